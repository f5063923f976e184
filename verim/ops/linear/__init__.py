"""The product with a layer's weights; of a few rows, as in decoding, limited by reading the weights once."""

import torch
from jaxtyping import Float
from torch import Tensor

from verim.ops.backend import takes_fast_path
from verim.ops.derivatives import is_recorded
from verim.ops.kernel import is_traced
from verim.ops.linear.cpu import few_rows
from verim.ops.linear.reference import linear_reference

_NAME = "linear"
_TYPES = {"cpu": (torch.float32,)}
# Rows of the input. Torch's product reads the weights at the memory's rate for one or two, and computes for many; in
# between its own transposed product is faster from 16 on, and ours below (docs/LOG.md).
_FEWEST, _TRANSPOSED, _MOST = 3, 16, 48


def linear(
    x: Float[Tensor, "*rest inputs"],
    weight: Float[Tensor, "outputs inputs"],
    bias: Float[Tensor, "outputs"] | None = None,
) -> Float[Tensor, "*rest outputs"]:
    """x Wᵀ + b over the last axis, as `torch.nn.functional.linear`, which it is almost everywhere.

    The fast version takes 3 to 48 rows of float32 on the CPU where no gradient is recorded: what a model does when it
    decodes for several sequences at once. Torch reads the weights at a third of the memory's rate there. Up to 15 rows,
    a kernel reads them once, four rows and four outputs in registers at a time; from 16 on torch multiplies
    W xᵀ. The same input gives the same bits, whatever the number of threads.

    Errors are torch's.

    >>> linear(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 10.0]]))
    tensor([[21.],
            [43.]])
    """
    rows = x.numel() // weight.shape[-1] if weight.numel() else 0
    if not (_FEWEST <= rows <= _MOST and _is_fast(x, weight, bias)):
        return linear_reference(x, weight, bias)
    if rows < _TRANSPOSED:
        return few_rows(x, weight, bias)
    y = torch.mm(weight, x.reshape(rows, -1).t()).t().reshape(*x.shape[:-1], -1)
    return y if bias is None else y + bias


def _is_fast(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    return (
        x.dtype is weight.dtype is torch.float32
        and weight.dim() == 2
        and x.shape[-1] == weight.shape[1]
        and weight.is_contiguous()
        and (bias is None or (bias.dtype is torch.float32 and bias.shape == weight.shape[:1]))
        and not is_recorded(x, weight, bias)
        and not is_traced()
        and not torch.is_autocast_enabled("cpu")
        and takes_fast_path(_NAME, x, _TYPES)
    )
