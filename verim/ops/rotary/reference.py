"""The definition of rotary positions, in plain PyTorch, any floating-point data type."""

import torch
from jaxtyping import Float
from torch import Tensor


def rotary_reference(
    x: Float[Tensor, "batch length *heads head_dim"],
    cosines: Float[Tensor, "length half"],
    sines: Float[Tensor, "length half"],
) -> Float[Tensor, "batch length *heads head_dim"]:
    """See `verim.ops.rotary`."""
    shape = (x.shape[1], *[1] * (x.dim() - 3), cosines.shape[1])
    cosines, sines = cosines.reshape(shape), sines.reshape(shape)
    left, right = x.chunk(2, dim=-1)
    return torch.cat([left * cosines - right * sines, left * sines + right * cosines], dim=-1)
