"""Mamba: a selective state-space mixer, linear in the length, with a state of constant size."""

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
from verim.ops.causal_conv1d import cost as convolution
from verim.ops.selective_scan import cost as scan


@dataclass(frozen=True)
class MambaConfig:
    """The block of Gu & Dao 2023 (arXiv 2312.00752, section 3.4): inner width = `expand` · width.

    `rank` is the rank of Δ's projection (0: width / 16, rounded up, as the paper does). Δ starts between
    `delta_min` and `delta_max`, spread evenly in the logarithm (section 3.6). `bias`: the matrices at both ends
    have one; `convolution_bias`: the convolution has one.
    """

    state: int = 16
    expand: int = 2
    kernel: int = 4
    rank: int = 0
    delta_min: float = 0.001
    delta_max: float = 0.1
    bias: bool = False
    convolution_bias: bool = True

    def __post_init__(self) -> None:
        for name in ("state", "expand", "kernel"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.rank < 0:
            raise InputError(f"rank: got {self.rank}, expected 0 (width / 16) or more")
        if not 0 < self.delta_min < self.delta_max:
            raise InputError(
                f"delta_min, delta_max: got {self.delta_min}, {self.delta_max}; expected 0 < delta_min < delta_max"
            )

    def build(self, width: int, index: int = 0, depth: int = 1) -> "Mamba":
        return Mamba(self, width)


@dataclass(frozen=True)
class MambaState(TensorState):
    """The last inputs of the convolution and the state of the scan."""

    convolution: Float[Tensor, "batch past inner"]
    scan: Float[Tensor, "batch inner state"]


class Mamba(Mixer):
    """x, z = W_in input; x = silu(conv(x)); Δ, B, C from x; y = scan(x; Δ, A, B, C) + D x; W_out (y · silu(z)).

    Gu & Dao 2023 (arXiv 2312.00752, algorithm 2, figure 3). A = -exp(log_decay) starts at -1, ..., -state (S4D-real).
    """

    along: Along = HERE

    def __init__(self, config: MambaConfig, width: int) -> None:
        super().__init__()
        inner = config.expand * width
        rank = config.rank or math.ceil(width / 16)
        self.inner, self.state, self.kernel, self.rank = inner, config.state, config.kernel, rank
        self.into = Linear(width, 2 * inner, bias=config.bias)
        self.convolution = nn.Parameter(torch.empty(inner, config.kernel))
        self.convolution_bias = nn.Parameter(torch.zeros(inner)) if config.convolution_bias else None
        self.select = Linear(inner, rank + 2 * config.state, bias=False)
        self.delta = Linear(rank, inner)
        self.log_decay = nn.Parameter(torch.arange(1, config.state + 1).float().log().repeat(inner, 1))
        self.skip = nn.Parameter(torch.ones(inner))
        self.out = Linear(inner, width, bias=config.bias)
        nn.init.uniform_(self.convolution, -(config.kernel**-0.5), config.kernel**-0.5)
        span = math.log(config.delta_min), math.log(config.delta_max)
        step = torch.exp(torch.empty(inner).uniform_(*span))
        with torch.no_grad():
            self.delta.bias.copy_(step + torch.log(-torch.expm1(-step)))  # softplus(bias) = step

    def forward(
        self, x: Float[Tensor, "batch length width"], state: MambaState | None = None
    ) -> tuple[Float[Tensor, "batch length width"], MambaState]:
        inputs, gate = self.into(x).chunk(2, dim=-1)
        past, initial = (None, None) if state is None else (state.convolution, state.scan)
        inputs, past = self.along.causal_conv1d(
            inputs, self.convolution, self.convolution_bias, initial=past, activation="silu"
        )
        low_rank, B, C = self.select(inputs).split([self.rank, self.state, self.state], dim=-1)
        delta = nn.functional.softplus(self.delta(low_rank))
        y, final = self.along.selective_scan(inputs, delta, -self.log_decay.exp(), B, C, self.skip, initial=initial)
        return self.out(y * nn.functional.silu(gate)), MambaState(past, final)

    def state_bytes(self, batch: int, length: int) -> int:
        return batch * self.inner * (self.kernel - 1 + self.state) * self.into.weight.element_size()

    def flops(self, length: int) -> tuple[float, float]:
        layers = (self.into, self.select, self.delta, self.out)
        weights = 2 * sum(layer.weight.numel() for layer in layers)
        across, along = (1, 1, self.inner, self.kernel), (1, 1, self.inner, self.state)
        forward = convolution.forward_cost(*across) + scan.forward_cost(*along)
        backward = convolution.backward_cost(*across) + scan.backward_cost(*along)
        return weights + forward.flops, 2 * weights + backward.flops
