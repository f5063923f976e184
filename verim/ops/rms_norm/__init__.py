"""The root-mean-square norm of the residual stream."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from verim.errors import InputError
from verim.ops.arguments import check_tensor
from verim.ops.backend import takes_fast_path
from verim.ops.derivatives import refuse_second_derivative
from verim.ops.rms_norm.cpu import norm_backward, norm_forward
from verim.ops.rms_norm.reference import rms_norm_reference

_NAME = "rms_norm"


def rms_norm(
    x: Float[Tensor, "*rest width"], gain: Float[Tensor, "width"], eps: float = 1e-6
) -> Float[Tensor, "*rest width"]:
    """y = x / sqrt(mean(x²) + eps) · gain over the last dimension (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4).

    - `x` [..., width], `gain` [width]; one floating-point data type and one device. Gradients go to both.

    The fast version (float32 on the CPU) keeps x and one number a row for the backward pass, which reads x and the
    gradient once. It is not differentiable twice; the reference is. The same input gives the same bits, whatever
    the number of threads.

    Raises `InputError` (a ValueError) for a wrong shape, data type or device.

    >>> rms_norm(torch.tensor([3.0, 4.0]), torch.ones(2), eps=0.0).square().mean()
    tensor(1.)
    """
    if x.dim() < 1 or x.shape[-1] < 1 or not x.is_floating_point():
        raise InputError(
            f"{_NAME}: argument x is {x.dtype} of shape {tuple(x.shape)}, expected a floating-point tensor "
            "[..., width] with width at least 1"
        )
    check_tensor(_NAME, "gain", gain, (x.shape[-1],), "[width of x]", x)
    if not takes_fast_path(_NAME, x):
        return rms_norm_reference(x, gain, eps)
    if torch.is_grad_enabled() and (x.requires_grad or gain.requires_grad):
        result: Tensor = _RMSNorm.apply(x, gain, eps)
        return result
    return norm_forward(x.contiguous(), gain.contiguous(), eps)[0]


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        y, inverse = norm_forward(x.contiguous(), gain.contiguous(), eps)
        ctx.save_for_backward(x, gain, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        refuse_second_derivative(_NAME)
        x, gain, inverse = ctx.saved_tensors
        dx, dgain = norm_backward(x.contiguous(), gain.contiguous(), inverse, gradients[0].contiguous())
        return dx, dgain, None
