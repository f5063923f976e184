"""What the RNN, the GRU and the LSTM share: a recurrence by torch's fused kernels with a matrix behind it."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verim.errors import InputError
from verim.nn.linear import Linear
from verim.nn.mixers.mixer import Mixer
from verim.nn.state import TensorState


@dataclass(frozen=True)
class HiddenState(TensorState):
    """What the recurrence gave at the last position."""

    hidden: Float[Tensor, "batch hidden"]


class Recurrent(Mixer):
    """A recurrence whose step needs the one before: a loop over the length, here torch's own.

    Input matrices start as N(0, 1 / width), as the matrices of a `LanguageModel` do; the matrix from state to state
    as an orthogonal one for each gate, so that what goes round keeps its size (Saxe et al. 2014, arXiv 1312.6120);
    biases as zeros. The state starts at zero.
    """

    def __init__(self, recurrence: nn.RNNBase) -> None:
        super().__init__()
        self.recurrence = recurrence
        width, hidden = recurrence.input_size, recurrence.hidden_size
        self.out = Linear(hidden, width, bias=False)
        weights = dict(recurrence.named_parameters())
        nn.init.normal_(weights["weight_ih_l0"], std=width**-0.5)
        with torch.no_grad():
            for gate in weights["weight_hh_l0"].split(hidden):
                nn.init.orthogonal_(gate)
        nn.init.zeros_(weights["bias_ih_l0"])
        nn.init.zeros_(weights["bias_hh_l0"])

    def state_bytes(self, batch: int, length: int) -> int:
        return batch * self.recurrence.hidden_size * self.out.weight.element_size()

    def flops(self, length: int) -> tuple[float, float]:
        """Of the matrices: two and four for each weight; gates are activations, which do not count."""
        weights = sum(weight.numel() for weight in self.parameters() if weight.dim() == 2)
        return 2 * weights, 4 * weights


def check_hidden_or_width(hidden: int) -> None:
    if hidden < 0:
        raise InputError(f"hidden: got {hidden}, expected 0 (the width) or more")
