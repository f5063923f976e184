"""Rotary positions: pairs of channels turned by an angle that grows with the position."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from verim.errors import InputError
from verim.ops.arguments import check_tensor
from verim.ops.backend import FLOATS_ON_CPU, takes_fast_path
from verim.ops.cost import Cost
from verim.ops.derivatives import refuse_second_derivative
from verim.ops.kernel import Kernel
from verim.ops.precision import narrow, widen
from verim.ops.rotary import cpu
from verim.ops.rotary.cost import forward_cost
from verim.ops.rotary.reference import rotary_reference

_NAME = "rotary"


def rotary(
    x: Float[Tensor, "batch length *heads head_dim"],
    cosines: Float[Tensor, "length half"],
    sines: Float[Tensor, "length half"],
) -> Float[Tensor, "batch length *heads head_dim"]:
    """Channels i and i + head_dim / 2 of position t rotated by the angle whose cosine and sine stand at [t, i].

        (x_i, x_j) -> (x_i cos - x_j sin, x_i sin + x_j cos)        j = i + head_dim / 2

    Su et al. 2021, arXiv 2104.09864, equation 34, with Llama's pairing (the paper pairs 2 i with 2 i + 1). Scores of
    rotated queries and keys depend on their distance alone. `rotary_attention` does this and the attention at once.

    - `x` [batch, length, ..., head_dim] with an even head_dim and any dimensions between (heads; queries and keys).
    - `cosines`, `sines` [length, head_dim / 2]: the rows of the positions in `x`. They get no gradient.

    All tensors have one floating-point data type and one device; beside a bfloat16 or float16 x the tables may be
    float32. Halves are computed in float32, the result is rounded once; under `torch.autocast` it has x's type, as
    torch's products. The fast version (on the CPU, float32 and halves) keeps nothing but the tables and is not
    differentiable twice; the reference is. The result is contiguous, and has the same bits whatever the number of
    threads.

    Raises `InputError` (a ValueError) for a wrong shape, data type or device.

    >>> rotary(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[0.0]]), torch.tensor([[1.0]]))  # a quarter turn
    tensor([[[0., 1.]]])
    """
    if x.dim() < 3 or x.shape[-1] < 2 or x.shape[-1] % 2 or not x.is_floating_point():
        raise InputError(
            f"{_NAME}: argument x is {x.dtype} of shape {tuple(x.shape)}, expected a floating-point tensor "
            "[batch, length, ..., head_dim] with an even head_dim"
        )
    expected = (x.shape[1], x.shape[-1] // 2)
    for name, table in (("cosines", cosines), ("sines", sines)):
        check_tensor(_NAME, name, table, expected, "[length, head_dim / 2] of x", x, or_float32=True)
    values, cosines, sines = widen(x, cosines, sines)
    if not takes_fast_path(_NAME, x, FLOATS_ON_CPU):
        y = rotary_reference(values, cosines, sines)
    elif torch.is_grad_enabled() and x.requires_grad:
        y = _Rotary.apply(values, cosines, sines)
    else:
        y = rotate(values, cosines, sines, 1)
    return narrow(y, x)


class _Rotary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        ctx.save_for_backward(cosines, sines)
        y: Tensor = rotate(x, cosines, sines, 1)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        refuse_second_derivative(_NAME)
        cosines, sines = ctx.saved_tensors
        return rotate(gradients[0], cosines, sines, -1), None, None


def _cost(x: Tensor, *others: Any) -> Cost:
    positions, dim = x.shape[0] * x.shape[1], x.shape[-1]
    return forward_cost(positions, x.shape[2:-1].numel(), dim, x.element_size())


rotate = Kernel(
    cpu.rotate,
    "(Tensor x, Tensor cosines, Tensor sines, int turn) -> Tensor",
    lambda x, *others: x.new_empty(x.shape),
    _cost,
)
