"""RWKV-4: a linear-time mixer that averages all past values with weights that decay, each channel at its own rate."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verim.errors import InputError
from verim.nn.along import HERE, Along
from verim.nn.linear import Linear
from verim.nn.mixers.mixer import Mixer
from verim.nn.state import TensorState
from verim.nn.token_shift import TokenShift, rising
from verim.ops.wkv import cost


@dataclass(frozen=True)
class RWKV4Config:
    """The time mix of Peng et al. 2023 (arXiv 2305.13048); `inner` channels inside (0: as many as outside).

    The published models have `RWKV4ChannelMixConfig` behind it, `NormConfig("layer", 1e-5)` and a norm after the
    embedding.
    """

    inner: int = 0

    def __post_init__(self) -> None:
        if self.inner < 0:
            raise InputError(f"inner: got {self.inner}, expected 0 (the width) or more")

    def build(self, width: int, index: int = 0, depth: int = 1) -> "RWKV4":
        return RWKV4(self, width, index, depth)


@dataclass(frozen=True)
class RWKV4State(TensorState):
    """The last input, and the numerator, the denominator and the scale of the weighted key-value."""

    last: Float[Tensor, "batch width"]
    wkv: Float[Tensor, "batch 3 inner"]


class RWKV4(Mixer):
    """r, k, v of the shifted input; y = W_out (sigmoid(r) ⊙ wkv(k, v)).

    Peng et al. 2023 (arXiv 2305.13048, eq. 11 to 13, 16, 17): r_t = W_r (μ_r ⊙ x_t + (1 - μ_r) ⊙ x_{t-1}), k and v
    likewise; the formula of wkv stands at `verim.ops.wkv`. The rows of `shift.mix` are μ_r, μ_k, μ_v, and
    `log_decay` is the logarithm of w (`time_decay` in the published code), `bonus` u (`time_first`). Their initial
    values are those of the published code (BlinkDL/RWKV-LM, RWKV-v4/src/model.py): they depend on the channel and on
    the depth of the block.
    """

    along: Along = HERE

    def __init__(self, config: RWKV4Config, width: int, index: int = 0, depth: int = 1) -> None:
        super().__init__()
        inner = config.inner or width
        fall, rise = 1 - index / depth, index / max(depth - 1, 1)  # 1 to nearly 0, and 0 to 1, down the depth
        channel = rising(width)
        self.shift = TokenShift(torch.stack([channel ** (0.5 * fall), channel**fall, channel**fall + 0.3 * rise]))
        self.log_decay = nn.Parameter(-5 + 8 * (torch.arange(inner) / max(inner - 1, 1)) ** (0.7 + 1.3 * rise))
        self.bonus = nn.Parameter(math.log(0.3) + 0.5 * ((torch.arange(inner) + 1) % 3 - 1))
        self.receptance = Linear(width, inner, bias=False)
        self.key = Linear(width, inner, bias=False)
        self.value = Linear(width, inner, bias=False)
        self.out = Linear(inner, width, bias=False)

    def forward(
        self, x: Float[Tensor, "batch length width"], state: RWKV4State | None = None
    ) -> tuple[Float[Tensor, "batch length width"], RWKV4State]:
        last, past = (None, None) if state is None else (state.last, state.wkv)
        (of_receptance, of_key, of_value), last = self.shift(x, last)
        average, past = self.along.wkv(
            self.key(of_key), self.value(of_value), self.log_decay.exp(), self.bonus, state=past
        )
        gate = torch.sigmoid(self.receptance(of_receptance))
        return self.out(gate * average), RWKV4State(last, past)

    def state_bytes(self, batch: int, length: int) -> int:
        inner, width = self.key.weight.shape
        element = self.key.weight.element_size()
        return batch * (width * element + 3 * inner * max(element, 4))  # halves: wkv keeps its state in float32

    def flops(self, length: int) -> tuple[float, float]:
        weights = 2 * sum(layer.weight.numel() for layer in (self.receptance, self.key, self.value, self.out))
        inner = self.key.out_features
        forward, backward = cost.forward_cost(1, 1, inner), cost.backward_cost(1, 1, inner)
        return weights + forward.flops, 2 * weights + backward.flops
