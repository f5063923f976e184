"""What every layer of a block is: it can stop after any position and go on from its state."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Protocol

from jaxtyping import Float
from torch import Tensor, nn

from verim.nn.linear_stack import Matrix
from verim.nn.state import State


class Layer(nn.Module, ABC):
    """`y, state = layer(x, state)`.

    `state=None` starts a sequence. The same call serves training (the whole sequence), prefill (a chunk) and
    decoding (one token): a sequence in chunks, each with the state of the one before, gives what the whole
    gives. Position t of `y` depends on positions ≤ t of `x` alone. A layer that looks at one position alone
    returns None as its state.
    """

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "batch length width"], state: Any = None
    ) -> tuple[Float[Tensor, "batch length width"], State | None]:
        """What the layer adds to the residual stream after what `state` has seen, and the state to go on from."""

    @abstractmethod
    def state_bytes(self, batch: int, length: int) -> int:
        """Bytes of the state of `batch` sequences after `length` positions."""

    @abstractmethod
    def flops(self, length: int) -> tuple[float, float]:
        """Forward and backward FLOPs a token, the mean over a sequence of `length`; a multiply-add is 2."""

    @abstractmethod
    def writers(self) -> Sequence[Matrix]:
        """The matrices whose products are added to the residual stream: they start smaller in deep models."""

    def idle_weights(self) -> int:
        """How many weights a token does not use: those of the experts that it does not go to."""
        return 0


class LayerConfig(Protocol):
    """The configuration of a kind of layer: a frozen dataclass of numbers, truth values and words."""

    def build(self, width: int, index: int = 0, depth: int = 1) -> Layer:
        """A layer of `width` channels with new weights, for block `index` of `depth`."""
        ...
