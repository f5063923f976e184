"""The root-mean-square norm of the residual stream."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from verim.errors import InputError
from verim.ops.arguments import check_tensor
from verim.ops.backend import FLOATS_ON_CPU, takes_fast_path
from verim.ops.derivatives import refuse_second_derivative
from verim.ops.kernel import Kernel
from verim.ops.precision import follow_autocast, narrow, widen
from verim.ops.rms_norm import cpu
from verim.ops.rms_norm.cost import backward_cost, forward_cost
from verim.ops.rms_norm.reference import rms_norm_reference

_NAME = "rms_norm"


def rms_norm(
    x: Float[Tensor, "*rest width"], gain: Float[Tensor, "width"], eps: float = 1e-6
) -> Float[Tensor, "*rest width"]:
    """y = x / sqrt(mean(x²) + eps) · gain over the last dimension (Zhang & Sennrich 2019, arXiv 1910.07467, eq. 4).

    - `x` [..., width], `gain` [width]; one floating-point data type and one device; beside a bfloat16 or float16 x the
      gain may be float32. Gradients go to both.

    Halves are computed in float32, y is rounded once; so does `torch.autocast`, with y in float32. The fast version
    (on the CPU, float32 and halves) keeps x and one number a row for the backward pass, which reads x and the
    gradient once. It is not differentiable twice; the reference is. The same input gives the same bits, whatever
    the number of threads.

    Raises `InputError` (a ValueError) for a wrong shape, data type or device.

    >>> rms_norm(torch.tensor([3.0, 4.0]), torch.ones(2), eps=0.0).square().mean()
    tensor(1.)
    """
    x, gain = follow_autocast(x, gain)
    if x.dim() < 1 or x.shape[-1] < 1 or not x.is_floating_point():
        raise InputError(
            f"{_NAME}: argument x is {x.dtype} of shape {tuple(x.shape)}, expected a floating-point tensor "
            "[..., width] with width at least 1"
        )
    check_tensor(_NAME, "gain", gain, (x.shape[-1],), "[width of x]", x, or_float32=True)
    values, gain = widen(x, gain)
    if not takes_fast_path(_NAME, x, FLOATS_ON_CPU):
        y = rms_norm_reference(values, gain, eps)
    elif torch.is_grad_enabled() and (x.requires_grad or gain.requires_grad):
        y = _RMSNorm.apply(values, gain, eps)
    else:
        y, _ = rms_norm_forward(values, gain, eps)
    return narrow(y, x)


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        y, inverse = rms_norm_forward(x, gain, eps)
        ctx.save_for_backward(x, gain, inverse)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        refuse_second_derivative(_NAME)
        x, gain, inverse = ctx.saved_tensors
        dx, dgain = rms_norm_backward(x, gain, inverse, gradients[0])
        return dx, dgain, None


def _fake_forward(x: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[:-1])


def _fake_backward(x: Tensor, gain: Tensor, inverse: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(gain.shape)


def _sizes(x: Tensor) -> tuple[int, int, int]:
    return x.numel() // x.shape[-1], x.shape[-1], x.element_size()


rms_norm_forward = Kernel(
    cpu.rms_norm_forward,
    "(Tensor x, Tensor gain, float eps) -> (Tensor, Tensor)",
    _fake_forward,
    lambda x, *others: forward_cost(*_sizes(x)),
)
rms_norm_backward = Kernel(
    cpu.rms_norm_backward,
    "(Tensor x, Tensor gain, Tensor inverse, Tensor dy) -> (Tensor, Tensor)",
    _fake_backward,
    lambda x, *others: backward_cost(*_sizes(x)),
)
