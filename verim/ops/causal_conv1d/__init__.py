"""The short depthwise convolution in front of a selective scan, looking only back in time."""

from typing import Any, Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor

from verim.errors import InputError
from verim.ops.arguments import check_sequence, check_tensor
from verim.ops.backend import FLOATS_ON_CPU, takes_fast_path
from verim.ops.causal_conv1d import cpu
from verim.ops.causal_conv1d.cost import backward_cost, forward_cost
from verim.ops.causal_conv1d.reference import causal_conv1d_reference
from verim.ops.derivatives import is_recorded, refuse_second_derivative
from verim.ops.kernel import Kernel
from verim.ops.precision import narrow, widen

_NAME = "causal_conv1d"
Sequence = Float[Tensor, "batch length channels"]
State = Float[Tensor, "batch kernel_minus_1 channels"]


@overload
def causal_conv1d(
    x: Sequence,
    weight: Float[Tensor, "channels kernel"],
    bias: Float[Tensor, "channels"] | None = None,
    initial: State | None = None,
    return_state: Literal[False] = False,
    activation: str | None = None,
) -> Sequence: ...


@overload
def causal_conv1d(
    x: Sequence,
    weight: Float[Tensor, "channels kernel"],
    bias: Float[Tensor, "channels"] | None = None,
    initial: State | None = None,
    *,
    return_state: Literal[True],
    activation: str | None = None,
) -> tuple[Sequence, State]: ...


def causal_conv1d(
    x: Sequence,
    weight: Float[Tensor, "channels kernel"],
    bias: Float[Tensor, "channels"] | None = None,
    initial: State | None = None,
    return_state: bool = False,
    activation: str | None = None,
) -> Any:
    """Each channel convolved with its own kernel over the present and the last `kernel - 1` inputs.

        y_t = f(bias + sum_k weight[:, k] x_{t - kernel + 1 + k})        k = 0 ... kernel - 1

    with f the identity (`activation=None`) or SiLU, z / (1 + exp(-z)) (`activation="silu"`). As in
    `torch.nn.Conv1d`, the last column of `weight` meets the present input. Used by Mamba (arXiv 2312.00752,
    figure 3), and in H3 (arXiv 2212.14052, section 3) as the shift state-space model.

    - `x` [batch, length, channels], `weight` [channels, kernel], `bias` [channels] or None.
    - `initial` [batch, kernel - 1, channels]: the inputs before the first, oldest first; None means zeros.
      With `return_state=True` the result is `(y, the last kernel - 1 inputs)`, so a sequence may come in
      pieces.

    All tensors have one floating-point data type and one device; beside a bfloat16 or float16 x the others may be
    float32. Halves are computed in float32, their state is float32, y is rounded once; under `torch.autocast` y has
    x's type. Gradients go to all of them. The fast version (on the CPU, float32 and halves) keeps nothing but its
    inputs for the backward pass and is not differentiable twice; the reference is. The same input gives the same
    bits, whatever the number of threads.

    Raises `InputError` (a ValueError) for a wrong shape, data type, device or activation.

    >>> causal_conv1d(torch.tensor([[[1.0], [2.0], [4.0]]]), torch.tensor([[10.0, 1.0]])).flatten()
    tensor([ 1., 12., 24.])
    """
    _check(x, weight, bias, initial, activation)
    tensors = widen(x, weight, bias, initial)
    if not takes_fast_path(_NAME, x, FLOATS_ON_CPU):
        y, final = causal_conv1d_reference(*(*tensors, activation))
    elif is_recorded(*tensors):
        y, final = _CausalConvolution.apply(*tensors, activation)
    else:
        y, final = convolution_forward(*tensors, activation)
    y = narrow(y, x)
    return (y, final) if return_state else y


class _CausalConvolution(torch.autograd.Function):
    """The fast version with its gradients. Saves the inputs alone."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        initial: Tensor | None,
        activation: str | None,
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, weight, bias, initial)
        ctx.activation = activation
        ctx.set_materialize_grads(False)
        y, final = convolution_forward(x, weight, bias, initial, activation)
        return y, final

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(_NAME)
        x, weight, bias, initial = ctx.saved_tensors
        if dy is None:  # only the final state was used
            dy = torch.zeros_like(x)
        gradients = convolution_backward(x, weight, bias, initial, ctx.activation, dy, dfinal)
        needed = ctx.needs_input_grad
        return (*(g if needed[i] else None for i, g in enumerate(gradients)), None)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, initial: Tensor | None, activation: str | None) -> None:
    check_sequence(_NAME, "x", x)
    batch, _, channels = x.shape
    if weight.dim() != 2 or weight.shape[0] != channels or weight.shape[1] < 1:
        expected = f"[channels, kernel] with channels = {channels} and kernel at least 1"
        check_tensor(_NAME, "weight", weight, (channels, -1), expected, x, or_float32=True)
    kernel = weight.shape[1]
    check_tensor(_NAME, "weight", weight, (channels, kernel), "[channels, kernel]", x, or_float32=True)
    if bias is not None:
        check_tensor(_NAME, "bias", bias, (channels,), "[channels of x]", x, or_float32=True)
    if initial is not None:
        expected = "[batch, kernel - 1, channels of x]"
        check_tensor(_NAME, "initial", initial, (batch, kernel - 1, channels), expected, x, or_float32=True)
    if activation not in (None, "silu"):
        raise InputError(f"{_NAME}: argument activation is {activation!r}, expected None or 'silu'")


def _fake_forward(x: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[0], weight.shape[1] - 1, x.shape[2])


def _fake_backward(x: Tensor, weight: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch, _, channels = x.shape
    kernel = weight.shape[1]
    dbias, dinitial = x.new_empty(channels), x.new_empty(batch, kernel - 1, channels)
    return x.new_empty(x.shape), x.new_empty(kernel, channels).t(), dbias, dinitial


def _sizes(x: Tensor, weight: Tensor, activation: str | None) -> tuple[int, int, int, int, str | None, int]:
    return *x.shape, weight.shape[1], activation, x.element_size()


convolution_forward = Kernel(
    cpu.convolution_forward,
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? initial, str? activation) -> (Tensor, Tensor)",
    _fake_forward,
    lambda x, weight, bias, initial, activation: forward_cost(*_sizes(x, weight, activation)),
)
convolution_backward = Kernel(
    cpu.convolution_backward,
    "(Tensor x, Tensor weight, Tensor? bias, Tensor? initial, str? activation, Tensor dy, Tensor? dfinal)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _fake_backward,
    lambda x, weight, bias, initial, activation, *others: backward_cost(*_sizes(x, weight, activation)),
)
