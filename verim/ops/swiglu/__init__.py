"""The gated unit of a feed-forward layer."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from verim.errors import InputError
from verim.ops.backend import FLOATS_ON_CPU, takes_fast_path
from verim.ops.derivatives import refuse_second_derivative
from verim.ops.kernel import Kernel
from verim.ops.precision import narrow, widen
from verim.ops.swiglu import cpu
from verim.ops.swiglu.cost import backward_cost, forward_cost
from verim.ops.swiglu.reference import swiglu_reference

_NAME = "swiglu"


def swiglu(gate_and_value: Float[Tensor, "*rest two_hidden"]) -> Float[Tensor, "*rest hidden"]:
    """silu(gate) · value with gate, value the first and the last half of the channels; silu(z) = z / (1 + exp(-z)).

    Between the two projections of a SwiGLU layer (Shazeer 2020, arXiv 2002.05202, equation 6), where one matrix
    makes gate and value at once.

    - `gate_and_value` [..., 2 hidden], floating point.

    Halves are computed in float32, the result is rounded once; under `torch.autocast` it has the input's type, as
    torch's own silu. The fast version (on the CPU, float32 and halves) keeps its input alone and writes one packed
    gradient. It is not differentiable twice; the reference is. The same input gives the same bits, whatever the
    number of threads.

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
    (packed,) = widen(gate_and_value)
    if not takes_fast_path(_NAME, gate_and_value, FLOATS_ON_CPU):
        y = swiglu_reference(packed)
    elif torch.is_grad_enabled() and packed.requires_grad:
        y = _SwiGLU.apply(packed)
    else:
        y = swiglu_forward(packed)
    return narrow(y, gate_and_value)


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, packed: Tensor) -> Tensor:
        ctx.save_for_backward(packed)
        y: Tensor = swiglu_forward(packed)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        refuse_second_derivative(_NAME)
        (packed,) = ctx.saved_tensors
        gradient: Tensor = swiglu_backward(packed, gradients[0])
        return gradient


def _fake_forward(packed: Tensor) -> Tensor:
    return packed.new_empty(*packed.shape[:-1], packed.shape[-1] // 2)


def _sizes(packed: Tensor) -> tuple[int, int, int]:
    return packed.numel() // packed.shape[-1], packed.shape[-1] // 2, packed.element_size()


swiglu_forward = Kernel(
    cpu.swiglu_forward,
    "(Tensor packed) -> Tensor",
    _fake_forward,
    lambda packed: forward_cost(*_sizes(packed)),
)
swiglu_backward = Kernel(
    cpu.swiglu_backward,
    "(Tensor packed, Tensor dy) -> Tensor",
    lambda packed, dy: packed.new_empty(packed.shape),
    lambda packed, dy: backward_cost(*_sizes(packed)),
)
