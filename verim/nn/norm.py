"""Normalisation of the residual stream."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verim import ops


class RMSNorm(nn.Module):
    """y = x / sqrt(mean(x²) + eps) · gain over the last dimension (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4)."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*rest width"]) -> Float[Tensor, "*rest width"]:
        return ops.rms_norm(x, self.gain, self.eps)
