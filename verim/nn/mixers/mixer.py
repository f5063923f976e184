"""What every mixer is: a layer that mixes along the sequence and can stop and go on anywhere."""

from abc import ABC, abstractmethod
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn


class Mixer(nn.Module, ABC):
    """`y, state = mixer(x, state)`.

    `state=None` starts a sequence. The same call serves training (the whole sequence), prefill (a chunk) and
    decoding (one token): mixing a sequence in chunks, each with the state of the one before, gives what mixing it
    whole gives. Position t of `y` depends on positions ≤ t of `x` alone.
    """

    @abstractmethod
    def forward(
        self, x: Float[Tensor, "batch length width"], state: Any = None
    ) -> tuple[Float[Tensor, "batch length width"], Any]:
        """Mixes `x` after what `state` has seen; returns the result and the state to go on from."""

    @abstractmethod
    def state_bytes(self, batch: int, length: int) -> int:
        """Bytes of the state of `batch` sequences after `length` positions."""

    @abstractmethod
    def flops(self, length: int) -> tuple[float, float]:
        """Forward and backward FLOPs a token, the mean over a sequence of `length`; a multiply-add is 2."""
