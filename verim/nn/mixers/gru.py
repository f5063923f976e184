"""The gated recurrent unit."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn

from verim.nn.mixers.recurrent import HiddenState, Recurrent, check_hidden_or_width


@dataclass(frozen=True)
class GRUConfig:
    """`hidden` channels of state (0: width)."""

    hidden: int = 0

    def __post_init__(self) -> None:
        check_hidden_or_width(self.hidden)

    def build(self, width: int, index: int = 0, depth: int = 1) -> "GRU":
        return GRU(self, width)


class GRU(Recurrent):
    """r, z = σ(W x_t + b + U h_{t-1} + c); n = tanh(W_n x_t + b_n + r ⊙ (U_n h_{t-1} + c_n)); y = W_out h with

        h_t = (1 - z) ⊙ n + z ⊙ h_{t-1}

    Cho et al. 2014 (arXiv 1406.1078, section 2.3), with the reset gate r behind U_n, as torch and cuDNN have it, where
    the paper has U_n (r ⊙ h_{t-1}).
    """

    def __init__(self, config: GRUConfig, width: int) -> None:
        super().__init__(nn.GRU(width, config.hidden or width, batch_first=True))

    def forward(
        self, x: Float[Tensor, "batch length width"], state: HiddenState | None = None
    ) -> tuple[Float[Tensor, "batch length width"], HiddenState]:
        outputs, last = self.recurrence(x, None if state is None else state.hidden[None])
        return self.out(outputs), HiddenState(last[0])
