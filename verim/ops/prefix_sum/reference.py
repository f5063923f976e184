"""The prefix sum as it is defined: torch's cumsum, from the other end and without the last term where asked."""

import torch
from jaxtyping import Num
from torch import Tensor


def prefix_sum_reference(x: Num[Tensor, "..."], dim: int, exclusive: bool, reverse: bool) -> Num[Tensor, "..."]:
    """The formula stands at `verim.ops.prefix_sum`. Any data type and device."""
    if x.dim() == 0:  # a number is an axis of one
        return prefix_sum_reference(x[None], 0, exclusive, reverse)[0]
    if reverse:
        x = x.flip(dim)
    y = x.cumsum(dim)
    if exclusive and y.numel():
        y = torch.cat([torch.zeros_like(y.narrow(dim, 0, 1)), y.narrow(dim, 0, y.shape[dim] - 1)], dim)
    return y.flip(dim) if reverse else y
