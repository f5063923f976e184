"""The gated unit of a feed-forward layer."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from verim.errors import InputError
from verim.ops.backend import takes_fast_path
from verim.ops.derivatives import refuse_second_derivative
from verim.ops.swiglu.cpu import gate_backward, gate_forward
from verim.ops.swiglu.reference import swiglu_reference

_NAME = "swiglu"


def swiglu(gate_and_value: Float[Tensor, "*rest two_hidden"]) -> Float[Tensor, "*rest hidden"]:
    """silu(gate) · value with gate, value the first and the last half of the channels; silu(z) = z / (1 + exp(-z)).

    Between the two projections of a SwiGLU layer (Shazeer 2020, arXiv 2002.05202, equation 6), where one matrix
    makes gate and value at once.

    - `gate_and_value` [..., 2 hidden], floating point.

    The fast version (float32 on the CPU) keeps its input alone and writes one packed gradient. It is not
    differentiable twice; the reference is. The same input gives the same bits, whatever the number of threads.

    Raises `InputError` (a ValueError) for a wrong shape or data type.

    >>> swiglu(torch.tensor([0.0, 100.0, 5.0, 2.0]))
    tensor([  0., 200.])
    """
    if gate_and_value.dim() < 1 or not gate_and_value.is_floating_point():
        raise InputError(
            f"{_NAME}: argument gate_and_value is {gate_and_value.dtype} of shape {tuple(gate_and_value.shape)}, "
            "expected a floating-point tensor [..., 2 hidden]"
        )
    if gate_and_value.shape[-1] < 2 or gate_and_value.shape[-1] % 2:
        raise InputError(
            f"{_NAME}: argument gate_and_value has {gate_and_value.shape[-1]} channels, expected an even number: "
            "the gates and as many values"
        )
    if not takes_fast_path(_NAME, gate_and_value):
        return swiglu_reference(gate_and_value)
    if torch.is_grad_enabled() and gate_and_value.requires_grad:
        result: Tensor = _SwiGLU.apply(gate_and_value)
        return result
    return gate_forward(gate_and_value.contiguous())


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_and_value: Tensor) -> Tensor:
        ctx.save_for_backward(gate_and_value)
        return gate_forward(gate_and_value.contiguous())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        refuse_second_derivative(_NAME)
        (gate_and_value,) = ctx.saved_tensors
        return gate_backward(gate_and_value.contiguous(), gradients[0].contiguous())
