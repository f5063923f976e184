"""What minGRU and minLSTM share: gates that look at the input alone, so that the recurrence is linear."""

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verim.errors import InputError
from verim.nn.along import HERE, Along
from verim.nn.linear import Linear
from verim.nn.mixers.mixer import Mixer
from verim.nn.state import TensorState
from verim.ops.causal_conv1d import cost as convolution
from verim.ops.linear_recurrence import cost as recurrence

Candidate = Literal["positive", "linear"]


@dataclass(frozen=True)
class MinimalState(TensorState):
    """The last inputs of the convolution (none without one), and the state of the recurrence."""

    convolution: Float[Tensor, "batch past width"]
    hidden: Float[Tensor, "batch inner"]


class Minimal(Mixer):
    """h_t = keep_t ⊙ h_{t-1} + (1 - keep_t) ⊙ candidate_t, from h = 0, and y = W_out h (Feng et al. 2024).

    keep and candidate are functions of x_t, so the recurrence is linear and goes by the scan. The paper
    (arXiv 2410.01201) scans logarithms (its appendix B) because its scan divides by products of gates; ours steps
    through, h is a mean of candidates with weights in (0, 1), and nothing can overflow.
    """

    along: Along = HERE

    def __init__(self, width: int, inner: int, maps: int, kernel: int, candidate: Candidate) -> None:
        super().__init__()
        self.width, self.inner, self.kernel, self.candidate = width, inner, kernel, candidate
        self.into = Linear(width, maps * inner)
        self.out = Linear(inner, width, bias=False)
        nn.init.zeros_(self.into.bias)
        if kernel:
            self.convolution = nn.Parameter(torch.empty(width, kernel).uniform_(-(kernel**-0.5), kernel**-0.5))
            self.convolution_bias = nn.Parameter(torch.zeros(width))

    @abstractmethod
    def gates(
        self, logits: Float[Tensor, "batch length channels"]
    ) -> tuple[Float[Tensor, "batch length inner"], Float[Tensor, "batch length inner"]]:
        """`keep` and 1 - `keep`, each without cancellation, from all maps of x but the candidate's."""

    def forward(
        self, x: Float[Tensor, "batch length width"], state: MinimalState | None = None
    ) -> tuple[Float[Tensor, "batch length width"], MinimalState]:
        past, hidden = (None, None) if state is None else (state.convolution, state.hidden)
        if self.kernel:
            x, past = self.along.causal_conv1d(x, self.convolution, self.convolution_bias, initial=past)
        else:
            past = x.new_empty(x.shape[0], 0, self.width)
        logits, candidate = self.into(x).tensor_split([-self.inner], dim=-1)
        keep, take = self.gates(logits)
        if self.candidate == "positive":
            candidate = positive(candidate)
        h, hidden = self.along.linear_recurrence(keep, take * candidate, hidden)
        return self.out(h), MinimalState(past, hidden)

    def state_bytes(self, batch: int, length: int) -> int:
        values = max(self.kernel - 1, 0) * self.width + self.inner
        return batch * values * self.into.weight.element_size()

    def flops(self, length: int) -> tuple[float, float]:
        weights = 2 * (self.into.weight.numel() + self.out.weight.numel())
        forward, backward = recurrence.forward_cost(1, 1, self.inner), recurrence.backward_cost(1, 1, self.inner)
        if self.kernel:
            forward += convolution.forward_cost(1, 1, self.width, self.kernel)
            backward += convolution.backward_cost(1, 1, self.width, self.kernel)
        return weights + forward.flops, 2 * weights + backward.flops


def positive(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """g(x) = x + 1/2 for x ≥ 0, σ(x) below: positive, continuous, increasing (Feng et al. 2024, appendix B)."""
    return torch.where(x >= 0, x + 0.5, torch.sigmoid(x))


def inner_width(expand: float, width: int) -> int:
    """`expand` · width, rounded, at least 1."""
    return max(1, round(expand * width))


def check_minimal(expand: float, kernel: int, candidate: str) -> None:
    if not 0 < expand < math.inf:
        raise InputError(f"expand: got {expand}, expected a positive number")
    if kernel < 0:
        raise InputError(f"kernel: got {kernel}, expected 0 (no convolution) or more")
    if candidate not in ("positive", "linear"):
        raise InputError(f"candidate: got {candidate!r}, expected 'positive' or 'linear'")
