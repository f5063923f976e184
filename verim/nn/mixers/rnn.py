"""The vanilla recurrent network."""

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from verim.errors import InputError
from verim.nn.mixers.recurrent import HiddenState, Recurrent, check_hidden_or_width


@dataclass(frozen=True)
class RNNConfig:
    """`hidden` channels of state (0: width); `activation`: "tanh" (Elman), or "relu" (Le et al. 2015)."""

    hidden: int = 0
    activation: Literal["tanh", "relu"] = "tanh"

    def __post_init__(self) -> None:
        check_hidden_or_width(self.hidden)
        if self.activation not in ("tanh", "relu"):
            raise InputError(f"activation: got {self.activation!r}, expected 'tanh' or 'relu'")

    def build(self, width: int, index: int = 0, depth: int = 1) -> "RNN":
        return RNN(self, width)


class RNN(Recurrent):
    """h_t = tanh(W x_t + U h_{t-1} + b), y = W_out h (Elman 1990, "Finding structure in time").

    With "relu" in tanh's place: Le, Jaitly & Hinton 2015 (arXiv 1504.00941). b is the sum of torch's two biases.
    """

    def __init__(self, config: RNNConfig, width: int) -> None:
        hidden = config.hidden or width
        super().__init__(nn.RNN(width, hidden, nonlinearity=config.activation, batch_first=True))

    def forward(
        self, x: Float[Tensor, "batch length width"], state: HiddenState | None = None
    ) -> tuple[Float[Tensor, "batch length width"], HiddenState]:
        outputs, last = self.recurrence(x, None if state is None else state.hidden[None])
        return self.out(outputs), HiddenState(last[0])
