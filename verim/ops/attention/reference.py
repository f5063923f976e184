"""The definition of attention, in plain PyTorch, any floating-point data type."""

import torch
from jaxtyping import Float
from torch import Tensor


def attention_reference(
    q: Float[Tensor, "batch length heads head_dim"],
    k: Float[Tensor, "batch keys heads head_dim"],
    v: Float[Tensor, "batch keys heads head_dim"],
    causal: bool,
    scale: float,
) -> Float[Tensor, "batch length heads head_dim"]:
    """See `verim.ops.attention`."""
    length, keys = q.shape[1], k.shape[1]
    scores = scale * torch.einsum("bihd,bjhd->bhij", q, k)
    if causal:
        seen = torch.ones(length, keys, dtype=torch.bool, device=q.device).tril(keys - length)
        scores = scores.masked_fill(~seen, -torch.inf)
    return torch.einsum("bhij,bjhd->bihd", scores.softmax(-1), v)
