"""RWKV's weighted key-value, an average of all past values whose weights decay with time."""

from typing import Any, Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor

from verim.ops.arguments import check_sequence, check_tensor
from verim.ops.backend import FLOATS, takes_fast_path
from verim.ops.derivatives import asked_for, is_recorded, refuse_second_derivative
from verim.ops.kernel import Kernel
from verim.ops.precision import follow_autocast, widen
from verim.ops.wkv import cpu
from verim.ops.wkv.cost import backward_cost, forward_cost
from verim.ops.wkv.reference import wkv_reference

_NAME = "wkv"
Sequence = Float[Tensor, "batch length channels"]
Channels = Float[Tensor, "channels"]
State = Float[Tensor, "batch 3 channels"]


@overload
def wkv(
    k: Sequence,
    v: Sequence,
    w: Channels,
    u: Channels,
    state: State | None = None,
    return_state: Literal[False] = False,
) -> Sequence: ...


@overload
def wkv(
    k: Sequence, v: Sequence, w: Channels, u: Channels, state: State | None = None, *, return_state: Literal[True]
) -> tuple[Sequence, State]: ...


def wkv(
    k: Sequence, v: Sequence, w: Channels, u: Channels, state: State | None = None, return_state: bool = False
) -> Any:
    """The weighted key-value of RWKV: a mean of the values, each channel with a decay of its own.

              sum_{i<t} e^(-(t-1-i) w + k_i) v_i + e^(u + k_t) v_t
        y_t = ----------------------------------------------------
              sum_{i<t} e^(-(t-1-i) w + k_i)     + e^(u + k_t)

    RWKV-4 (arXiv 2305.13048), equation 16, computed with the running maximum of the paper's appendix, safely for any
    k: numerator and denominator are kept divided by the largest weight.

    - `k`, `v` [batch, length, channels]: the logarithm of each position's weight, and its value. A position with
      k = -inf is left out: it counts as -1e38. k must be below +inf.
    - `w` [channels]: how much the logarithm of a past weight loses at each step. RWKV's code keeps `time_decay`,
      the logarithm of it: w = exp(time_decay). Expected above 0, which is not checked (a check would wait for the
      data); with w < 0 the past grows.
    - `u` [channels]: added to the present position's k, in y alone (`time_first` in RWKV's code).
    - `state` [batch, 3, channels]: numerator and denominator, both divided by e^m, and m, the logarithm of the largest
      weight: max over i < t of -(t-1-i) w + k_i. What counts is numerator e^m and denominator e^m. The empty
      state, as None gives it, is (0, 0, -inf) or (0, 0, -1e38), as RWKV's code has it and as it comes back from an
      empty sequence. With `return_state=True` the result is `(y, state after the last step)`, so a sequence may be
      processed in pieces, and decoding is length 1.

    All tensors have one floating-point data type and one device; beside bfloat16 or float16 k and v the others may be
    float32. Halves are computed in float32, their state comes back in float32, y is rounded once; so does
    `torch.autocast`, with y in float32. Gradients go to all of them; the state's three rows are independent inputs.
    The fast version (float32 and halves, on the CPU and on CUDA devices) keeps the state every few steps and
    recomputes what lies between in the backward pass. It is not differentiable twice; the reference is. The same
    input gives the same bits, whatever the number of threads.

    Raises `InputError` (a ValueError) for a wrong shape, data type or device.

    >>> k, v = torch.zeros(1, 3, 1), torch.tensor([[[1.0], [2.0], [6.0]]])
    >>> wkv(k, v, torch.full((1,), 1e-9), torch.zeros(1)).flatten()  # equal weights, no decay: a running mean
    tensor([1.0000, 1.5000, 3.0000])
    """
    k, v, w, u, state = follow_autocast(k, v, w, u, state)
    _check(k, v, w, u, state)
    tensors = k, v, w, u, state
    if not takes_fast_path(_NAME, k, FLOATS):
        y, final = wkv_reference(*widen(*tensors))
    else:
        if k.device.type == "cpu":
            tensors = widen(*tensors)
        if is_recorded(*tensors):
            y, final = _WKV.apply(*tensors)
        else:
            y, final, _ = wkv_forward(*tensors, False)
    y = y.to(k.dtype)
    return (y, final) if return_state else y


class _WKV(torch.autograd.Function):
    """The fast version with its gradients. Saves the inputs and the checkpoints of the state."""

    @staticmethod
    def forward(ctx: Any, k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
        y, final, checkpoints = wkv_forward(k, v, w, u, state, True)
        ctx.save_for_backward(k, v, w, u, checkpoints)
        ctx.set_materialize_grads(False)
        return y, final

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(_NAME)
        k, v, w, u, checkpoints = ctx.saved_tensors
        if dy is None:  # only the final state was used
            dy = torch.zeros_like(k)
        gradients = wkv_backward(k, v, w, u, checkpoints, dy, dfinal)
        return asked_for(gradients, ctx.needs_input_grad)


def _check(k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor | None) -> None:
    check_sequence(_NAME, "k", k)
    batch, length, channels = k.shape
    check_tensor(_NAME, "v", v, (batch, length, channels), "[batch, length, channels] of k", k)
    check_tensor(_NAME, "w", w, (channels,), "[channels of k]", k, or_float32=True)
    check_tensor(_NAME, "u", u, (channels,), "[channels of k]", k, or_float32=True)
    if state is not None:
        check_tensor(_NAME, "state", state, (batch, 3, channels), "[batch, 3, channels of k]", k, or_float32=True)


def _fake_forward(k: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, channels = k.shape
    kept = cpu.checkpoints_shape(batch, length, channels) if others[-1] else (0,)
    final, checkpoints = (k.new_empty(shape, dtype=torch.float32) for shape in ((batch, 3, channels), kept))
    return k.new_empty(k.shape), final, checkpoints


def _fake_backward(k: Tensor, v: Tensor, w: Tensor, u: Tensor, *others: Any) -> tuple[Tensor, ...]:
    batch, _, channels = k.shape
    dstate = k.new_empty(batch, 3, channels, dtype=torch.float32)
    return *(tensor.new_empty(tensor.shape) for tensor in (k, v, w, u)), dstate


def _sizes(k: Tensor) -> tuple[int, int, int, int]:
    batch, length, channels = k.shape
    return batch, length, channels, k.element_size()


wkv_forward = Kernel(
    cpu.wkv_forward,
    "(Tensor k, Tensor v, Tensor w, Tensor u, Tensor? state, bool keep) -> (Tensor, Tensor, Tensor)",
    _fake_forward,
    lambda k, *others: forward_cost(*_sizes(k)),
)
wkv_backward = Kernel(
    cpu.wkv_backward,
    "(Tensor k, Tensor v, Tensor w, Tensor u, Tensor checkpoints, Tensor dy, Tensor? dfinal)"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake_backward,
    lambda k, *others: backward_cost(*_sizes(k)),
)
