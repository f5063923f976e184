"""What every mixer is: the layer of a block that mixes along the sequence."""

from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn

from verim.nn.layer import Layer
from verim.nn.state import State


class Mixer(Layer):
    """A layer that mixes along the sequence; what it writes goes through the matrix `out`."""

    out: nn.Linear

    def writers(self) -> list[nn.Linear]:
        return [self.out]

    def routed(
        self, x: Float[Tensor, "rows length width"], state: Any, positions: Int[Tensor, "rows length"]
    ) -> tuple[Float[Tensor, "rows length width"], State | None]:
        """`layer(x, state)` where `x` are only some of a sequence's tokens, those that stood at `positions`.

        A recurrent mixer sees the tokens that come to it as the whole sequence: its state advances for them alone, and
        how many were left out between two of them it does not know. Rows go on one without the other (`State.take`,
        `State.put`, `blank`).
        """
        return self(x, state)

    def routing_obstacle(self) -> str:
        """Why tokens cannot be routed past it, as "field: what to change"; empty where they can."""
        return ""
