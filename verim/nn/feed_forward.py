"""Feed-forward layers: they mix channels, one position at a time."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from verim import ops
from verim.errors import InputError
from verim.nn.layer import Layer
from verim.nn.linear import Linear
from verim.nn.state import State


class FeedForward(Layer):
    """A layer that mixes channels. Most look at one position alone: then there is no state."""

    def state_bytes(self, batch: int, length: int) -> int:
        return 0


@dataclass(frozen=True)
class SwiGLUConfig:
    """`hidden` channels between; `bias`: all matrices have one."""

    hidden: int
    bias: bool = False

    def __post_init__(self) -> None:
        check_hidden(self.hidden)

    def build(self, width: int, index: int = 0, depth: int = 1) -> "SwiGLU":
        return SwiGLU(self, width)


class SwiGLU(FeedForward):
    """y = W_out (silu(W_gate x) ⊙ W_in x) (Shazeer 2020, arXiv 2002.05202, eq. 6)."""

    def __init__(self, config: SwiGLUConfig, width: int) -> None:
        super().__init__()
        self.gate_and_in = Linear(width, 2 * config.hidden, bias=config.bias)
        self.out = Linear(config.hidden, width, bias=config.bias)

    def forward(
        self, x: Float[Tensor, "batch length width"], state: Any = None
    ) -> tuple[Float[Tensor, "batch length width"], State | None]:
        return self.out(ops.swiglu(self.gate_and_in(x))), None

    def flops(self, length: int) -> tuple[float, float]:
        return matrix_flops(self)

    def writers(self) -> list[nn.Linear]:
        return [self.out]


@dataclass(frozen=True)
class GELUConfig:
    """`hidden` channels between; `bias`: both matrices have one."""

    hidden: int
    bias: bool = False

    def __post_init__(self) -> None:
        check_hidden(self.hidden)

    def build(self, width: int, index: int = 0, depth: int = 1) -> "GELU":
        return GELU(self, width)


class GELU(FeedForward):
    """y = W_out gelu(W_in x), gelu(x) = x Φ(x) (Hendrycks & Gimpel 2016, arXiv 1606.08415, section 2)."""

    def __init__(self, config: GELUConfig, width: int) -> None:
        super().__init__()
        self.into = Linear(width, config.hidden, bias=config.bias)
        self.out = Linear(config.hidden, width, bias=config.bias)

    def forward(
        self, x: Float[Tensor, "batch length width"], state: Any = None
    ) -> tuple[Float[Tensor, "batch length width"], State | None]:
        return self.out(nn.functional.gelu(self.into(x))), None

    def flops(self, length: int) -> tuple[float, float]:
        return matrix_flops(self)

    def writers(self) -> list[nn.Linear]:
        return [self.out]


def matrix_flops(layer: nn.Module) -> tuple[float, float]:
    """Forward and backward FLOPs a token of all matrices of a layer: two and four for each weight."""
    weights = sum(module.weight.numel() for module in layer.modules() if isinstance(module, nn.Linear))
    return 2 * weights, 4 * weights


def check_hidden(hidden: int) -> None:
    if hidden < 1:
        raise InputError(f"hidden: got {hidden}, expected at least 1")
