"""Mamba-2: a state-space mixer of heads, each with one decay, whose training is products of matrices."""

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
from verim.ops import rms_norm
from verim.ops.causal_conv1d import cost as convolution
from verim.ops.state_space_dual import cost as scan


@dataclass(frozen=True)
class Mamba2Config:
    """The block of Dao & Gu 2024 (arXiv 2405.21060, section 7): `expand` · width channels in heads of `head_dim`.

    - `state`: N, the entries of the state for each channel; `groups`: how many different B and C there are, each for
      as many heads (section 7.2); the norm before the output is over the channels of each group (section 7.1).
    - `kernel`: of the short convolution over x, B and C.
    - Δ = softplus(its projection + a bias) starts between `delta_min` and `delta_max`, spread evenly in the logarithm,
      and is always held within `delta_least` and `delta_most` (0: no upper limit).
    - `gate_first`: norm(y · silu(z)), as published; otherwise norm(y) · silu(z). `eps` is the norm's.
    - `bias`, `convolution_bias`: of the two projections, and of the convolution.
    """

    state: int = 128
    head_dim: int = 64
    groups: int = 1
    expand: int = 2
    kernel: int = 4
    delta_min: float = 0.001
    delta_max: float = 0.1
    delta_least: float = 0.0
    delta_most: float = 0.0
    gate_first: bool = True
    eps: float = 1e-5
    bias: bool = False
    convolution_bias: bool = True

    def __post_init__(self) -> None:
        for name in ("state", "head_dim", "groups", "expand", "kernel"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if not 0 < self.delta_min <= self.delta_max:
            raise InputError(
                f"delta_min, delta_max: got {self.delta_min}, {self.delta_max}; expected 0 < delta_min <= delta_max"
            )
        if self.delta_least < 0 or (self.delta_most and not self.delta_least <= self.delta_most):
            raise InputError(
                f"delta_least, delta_most: got {self.delta_least}, {self.delta_most}; expected 0 <= delta_least <= "
                "delta_most, or delta_most 0 for no upper limit"
            )
        if not self.eps > 0:
            raise InputError(f"eps: got {self.eps}, expected more than 0")

    def build(self, width: int, index: int = 0, depth: int = 1) -> "Mamba2":
        return Mamba2(self, width)


@dataclass(frozen=True)
class Mamba2State(TensorState):
    """The last inputs of the convolution and the state of the heads."""

    convolution: Float[Tensor, "batch past mixed"]
    scan: Float[Tensor, "batch heads state head_dim"]


class Mamba2(Mixer):
    """z, xBC, Δ = W_in input; x, B, C = silu(conv(xBC)); y = SSD(x; softplus(Δ + b), A, B, C) + D x; W_out norm(y, z).

    Dao & Gu 2024 (arXiv 2405.21060, figure 6, the parallel block). A = -exp(log_decay), one number a head, starts
    between -1 and -16, as in the paper's code.
    """

    along: Along = HERE

    def __init__(self, config: Mamba2Config, width: int) -> None:
        super().__init__()
        inner = config.expand * width
        if inner % config.head_dim:
            raise InputError(
                f"head_dim: got {config.head_dim} for {inner} channels (expand {config.expand} · width {width}), "
                "expected a divisor of them"
            )
        self.heads, self.head_dim = inner // config.head_dim, config.head_dim
        if self.heads % config.groups:
            raise InputError(f"groups: got {config.groups}, expected a divisor of the {self.heads} heads")
        self.inner, self.groups, self.state, self.kernel = inner, config.groups, config.state, config.kernel
        self.limits = config.delta_least or None, config.delta_most or None
        self.gate_first, self.eps = config.gate_first, config.eps
        mixed = inner + 2 * config.groups * config.state
        self.into = Linear(width, inner + mixed + self.heads, bias=config.bias)
        self.convolution = nn.Parameter(torch.empty(mixed, config.kernel))
        self.convolution_bias = nn.Parameter(torch.zeros(mixed)) if config.convolution_bias else None
        self.log_decay = nn.Parameter(torch.empty(self.heads).uniform_(1, 16).log())
        self.skip = nn.Parameter(torch.ones(self.heads))
        self.gain = nn.Parameter(torch.ones(inner))
        self.out = Linear(inner, width, bias=config.bias)
        nn.init.uniform_(self.convolution, -(config.kernel**-0.5), config.kernel**-0.5)
        span = math.log(config.delta_min), math.log(config.delta_max)
        step = torch.exp(torch.empty(self.heads).uniform_(*span))
        self.delta_bias = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # softplus(bias) = step

    def forward(
        self, x: Float[Tensor, "batch length width"], state: Mamba2State | None = None
    ) -> tuple[Float[Tensor, "batch length width"], Mamba2State]:
        shared = self.groups * self.state
        gate, mixed, delta = self.into(x).split([self.inner, self.inner + 2 * shared, self.heads], dim=-1)
        past, initial = (None, None) if state is None else (state.convolution, state.scan)
        mixed, past = self.along.causal_conv1d(
            mixed, self.convolution, self.convolution_bias, initial=past, activation="silu"
        )
        inputs, B, C = mixed.split([self.inner, shared, shared], dim=-1)
        delta = nn.functional.softplus(delta + self.delta_bias)
        if self.limits != (None, None):
            delta = delta.clamp(*self.limits)
        y, final = self.along.state_space_dual(
            inputs.unflatten(-1, (self.heads, self.head_dim)),
            delta,
            -self.log_decay.exp(),
            B.unflatten(-1, (self.groups, self.state)),
            C.unflatten(-1, (self.groups, self.state)),
            self.skip,
            initial=initial,
        )
        y, gate = y.flatten(2), nn.functional.silu(gate)
        y = self._norm(y * gate) if self.gate_first else self._norm(y) * gate
        return self.out(y), Mamba2State(past, final)

    def _norm(self, y: Float[Tensor, "batch length inner"]) -> Float[Tensor, "batch length inner"]:
        """The root-mean-square norm over the channels of each group."""
        if self.groups == 1:
            return rms_norm(y, self.gain, self.eps)
        ones = self.gain.new_ones(self.inner // self.groups)
        return rms_norm(y.unflatten(-1, (self.groups, -1)), ones, self.eps).flatten(-2) * self.gain

    def state_bytes(self, batch: int, length: int) -> int:
        past = (self.kernel - 1) * len(self.convolution)
        return batch * (past + self.inner * self.state) * max(4, self.into.weight.element_size())

    def flops(self, length: int) -> tuple[float, float]:
        weights = 2 * (self.into.weight.numel() + self.out.weight.numel())
        across, along = (
            (1, 1, *self.convolution.shape),
            (1, 1, self.heads, self.head_dim, self.groups, self.state),
        )
        forward = convolution.forward_cost(*across) + scan.forward_cost(*along)
        backward = convolution.backward_cost(*across) + scan.backward_cost(*along)
        return weights + forward.flops, 2 * weights + backward.flops
