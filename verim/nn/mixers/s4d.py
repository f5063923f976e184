"""S4D in Mamba's block: the same mixer with a state space that does not look at its input."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from verim.errors import InputError
from verim.nn.along import HERE, Along
from verim.nn.linear import Linear
from verim.nn.mixers.mixer import Mixer
from verim.nn.state import TensorState
from verim.nn.time_invariant import Modes
from verim.ops.causal_conv1d import cost as convolution
from verim.ops.linear_recurrence import cost as recurrence
from verim.ops.precision import widen


@dataclass(frozen=True)
class S4DConfig:
    """Mamba's block (`MambaConfig`) with Δ, B and C that are weights: beside Mamba it shows what selectivity buys.

    - `state`: numbers of state a channel: as many real ones, or half as many complex ones, so that Mamba's and both
      of these hold the same number of bytes.
    - `initial`: where A starts. "lin": A_n = -1/2 + iπn, complex (S4D-Lin of Gu et al. 2022, arXiv 2206.11893); "real":
      A_n = -(n + 1), real, as Mamba's (S4D-Real).
    - `expand`, `kernel`, `delta_min`, `delta_max`: as Mamba's.
    """

    state: int = 16
    expand: int = 2
    kernel: int = 4
    initial: Literal["lin", "real"] = "lin"
    delta_min: float = 0.001
    delta_max: float = 0.1

    def __post_init__(self) -> None:
        for name in ("state", "expand", "kernel"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.initial not in ("lin", "real"):
            raise InputError(f"initial: got {self.initial!r}, expected 'lin' or 'real'")
        if self.initial == "lin" and self.state % 2:
            raise InputError(
                f"state: got {self.state}, expected an even number: complex modes take two each (or initial='real')"
            )
        if not 0 < self.delta_min < self.delta_max:
            raise InputError(
                f"delta_min, delta_max: got {self.delta_min}, {self.delta_max}; expected 0 < delta_min < delta_max"
            )

    def build(self, width: int, index: int = 0, depth: int = 1) -> "S4D":
        return S4D(self, width)


@dataclass(frozen=True)
class S4DState(TensorState):
    """The last inputs of the convolution and the state of the modes."""

    convolution: Float[Tensor, "batch past inner"]
    modes: Float[Tensor, "batch inner modes"] | Complex[Tensor, "batch inner modes"]


class S4D(Mixer):
    """x, z = W_in input; x = silu(conv(x)); y = system(x) + D x; W_out (y · silu(z)). The system of every channel is

        h_t = exp(Δ A) h_{t-1} + (exp(Δ A) - 1) / A · B x_t,    y_t = Re Σ_n C_n h_{t,n}

    the zero-order hold of h' = A h + B x, y = C h with a diagonal A (Gu et al. 2022, arXiv 2206.11893). Complex modes
    stand for themselves and their conjugates, and count twice. A = -exp(log_decay) + i frequency, Δ = exp(log_delta).
    Weights of complex numbers hold the real and the imaginary part along a last axis. B starts at 1, C at N(0, 1), as
    in the paper. The state that is kept is h for B = 1 and an input that enters unscaled; C takes up the rest.
    """

    along: Along = HERE

    def __init__(self, config: S4DConfig, width: int) -> None:
        super().__init__()
        inner = config.expand * width
        self.is_complex = config.initial == "lin"
        self.inner, self.state, self.kernel = inner, config.state, config.kernel
        modes = config.state // 2 if self.is_complex else config.state
        parts = (2,) if self.is_complex else ()
        self.into = Linear(width, 2 * inner, bias=False)
        self.convolution = nn.Parameter(torch.empty(inner, config.kernel))
        self.convolution_bias = nn.Parameter(torch.zeros(inner))
        self.log_delta = nn.Parameter(
            torch.empty(inner).uniform_(math.log(config.delta_min), math.log(config.delta_max))
        )
        if self.is_complex:
            self.log_decay = nn.Parameter(torch.full((inner, modes), 0.5).log())
            self.frequency = nn.Parameter(math.pi * torch.arange(modes).float().repeat(inner, 1))
        else:
            self.log_decay = nn.Parameter(torch.arange(1, modes + 1).float().log().repeat(inner, 1))
        self.B = nn.Parameter(torch.zeros(inner, modes, *parts))
        self.C = nn.Parameter(torch.randn(inner, modes, *parts))
        self.skip = nn.Parameter(torch.ones(inner))
        self.out = Linear(inner, width, bias=False)
        nn.init.uniform_(self.convolution, -(config.kernel**-0.5), config.kernel**-0.5)
        with torch.no_grad():
            if self.is_complex:
                self.B[..., 0] = 1
                self.C.mul_(0.5**0.5)
            else:
                self.B.fill_(1)

    def forward(
        self, x: Float[Tensor, "batch length width"], state: S4DState | None = None
    ) -> tuple[Float[Tensor, "batch length width"], S4DState]:
        inputs, gate = self.into(x).chunk(2, dim=-1)
        past, modes = (None, None) if state is None else (state.convolution, state.modes)
        inputs, past = self.along.causal_conv1d(
            inputs, self.convolution, self.convolution_bias, initial=past, activation="silu"
        )
        y, modes = self.along.time_invariant_scan(inputs, *self.system(), self.skip, initial=modes)
        return self.out(y * nn.functional.silu(gate)), S4DState(past, modes)

    def system(self) -> tuple[Modes, Modes]:
        """Δ A, and what C h takes of each mode where the input enters it unscaled: C (exp(Δ A) - 1) / A · B."""
        log_decay, log_delta, B, C = widen(self.log_decay, self.log_delta, self.B, self.C)
        A = -log_decay.exp()
        if self.is_complex:
            A = torch.complex(A, *widen(self.frequency))
            B, C = torch.view_as_complex(B), 2 * torch.view_as_complex(C)
        log_transition = log_delta.exp()[:, None] * A
        return log_transition, C * B * _expm1(log_transition) / A

    def state_bytes(self, batch: int, length: int) -> int:
        return batch * self.inner * (self.kernel - 1 + self.state) * self.into.weight.element_size()

    def flops(self, length: int) -> tuple[float, float]:
        """The system counts as its recurrence, and a product with C; blocks multiply more, and faster."""
        weights = 2 * (self.into.weight.numel() + self.out.weight.numel())
        across = (1, 1, self.inner, self.kernel)
        along = (1, 1, self.inner * self.log_decay.shape[1], self.is_complex)
        read = 2 * self.inner * (self.state + 1)  # Re(C h) and D x
        forward = convolution.forward_cost(*across) + recurrence.forward_cost(*along)
        backward = convolution.backward_cost(*across) + recurrence.backward_cost(*along)
        return weights + forward.flops + read, 2 * (weights + read) + backward.flops


def _expm1(z: Tensor) -> Tensor:
    """exp(z) - 1 without cancellation near 0; torch's own takes seven times as long for complex numbers."""
    if not z.is_complex():
        return z.expm1()
    growth, turn = z.real.expm1(), z.imag.sin()
    return torch.complex(growth * z.imag.cos() - 2 * (z.imag / 2).sin().square(), (growth + 1) * turn)
