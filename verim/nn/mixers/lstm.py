"""Long short-term memory."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verim.errors import InputError
from verim.nn.mixers.recurrent import Recurrent, check_hidden_or_width
from verim.nn.state import TensorState


@dataclass(frozen=True)
class LSTMConfig:
    """`hidden` channels of state, and as many of the cell (0: width).

    The bias of the forget gate starts at `forget_bias`: at 1, what is in the cell stays for some positions, and so do
    gradients (Jozefowicz et al. 2015, "An empirical exploration of recurrent network architectures").
    """

    hidden: int = 0
    forget_bias: float = 1.0

    def __post_init__(self) -> None:
        check_hidden_or_width(self.hidden)
        if not math.isfinite(self.forget_bias):
            raise InputError(f"forget_bias: got {self.forget_bias}, expected a finite number")

    def build(self, width: int, index: int = 0, depth: int = 1) -> "LSTM":
        return LSTM(self, width)


@dataclass(frozen=True)
class LSTMState(TensorState):
    """What the recurrence gave at the last position, and its cell."""

    hidden: Float[Tensor, "batch hidden"]
    cell: Float[Tensor, "batch hidden"]


class LSTM(Recurrent):
    """i, f, o = σ(W x_t + U h_{t-1} + b), g = tanh(W_g x_t + U_g h_{t-1} + b_g), y = W_out h with

        c_t = f ⊙ c_{t-1} + i ⊙ g,    h_t = o ⊙ tanh(c_t)

    Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000, without peepholes. Each b is the sum of
    torch's two biases.
    """

    def __init__(self, config: LSTMConfig, width: int) -> None:
        hidden = config.hidden or width
        super().__init__(nn.LSTM(width, hidden, batch_first=True))
        bias = dict(self.recurrence.named_parameters())["bias_ih_l0"]
        with torch.no_grad():
            bias[hidden : 2 * hidden] = config.forget_bias  # torch's order is i, f, g, o

    def forward(
        self, x: Float[Tensor, "batch length width"], state: LSTMState | None = None
    ) -> tuple[Float[Tensor, "batch length width"], LSTMState]:
        if state is not None and x.shape[1] == 1:  # one step takes oneDNN's loop five times as long
            hidden, cell = torch.lstm_cell(x[:, 0], (state.hidden, state.cell), *self.recurrence.parameters())
            return self.out(hidden[:, None]), LSTMState(hidden, cell)
        before = None if state is None else (state.hidden[None], state.cell[None])
        outputs, (hidden, cell) = self.recurrence(x, before)
        return self.out(outputs), LSTMState(hidden[0], cell[0])

    def state_bytes(self, batch: int, length: int) -> int:
        return 2 * super().state_bytes(batch, length)
