"""Normalisation of the residual stream."""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verim import ops
from verim.errors import InputError


@dataclass(frozen=True)
class NormConfig:
    """`kind`: "rms" (`RMSNorm`) or "layer" (torch's `LayerNorm`, with a bias); `eps` is added to the mean square."""

    kind: Literal["rms", "layer"] = "rms"
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.kind not in ("rms", "layer"):
            raise InputError(f"norm.kind: got {self.kind!r}, expected 'rms' or 'layer'")
        if not self.eps > 0:
            raise InputError(f"norm.eps: got {self.eps}, expected more than 0")

    def build(self, width: int) -> nn.Module:
        return RMSNorm(width, self.eps) if self.kind == "rms" else nn.LayerNorm(width, self.eps)


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x²) + eps) · gain over the last dimension (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*rest width"]) -> Float[Tensor, "*rest width"]:
        return ops.rms_norm(x, self.gain, self.eps)
