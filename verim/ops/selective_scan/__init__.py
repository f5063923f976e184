"""Mamba's selective scan, a linear recurrence whose coefficients depend on the input."""

from typing import Any, Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor

from verim.ops.arguments import check_sequence, check_tensor
from verim.ops.backend import FLOATS, takes_fast_path
from verim.ops.derivatives import asked_for, is_recorded, refuse_second_derivative
from verim.ops.kernel import Kernel
from verim.ops.launch import STEPS_KEPT
from verim.ops.precision import follow_autocast, widen
from verim.ops.selective_scan import cpu
from verim.ops.selective_scan.cost import backward_cost, forward_cost
from verim.ops.selective_scan.reference import selective_scan_reference

_NAME = "selective_scan"
Sequence = Float[Tensor, "batch length channels"]
State = Float[Tensor, "batch channels state"]


@overload
def selective_scan(
    u: Sequence,
    delta: Sequence,
    A: Float[Tensor, "channels state"],
    B: Float[Tensor, "batch length state"],
    C: Float[Tensor, "batch length state"],
    D: Float[Tensor, "channels"] | None = None,
    initial: State | None = None,
    return_state: Literal[False] = False,
) -> Sequence: ...


@overload
def selective_scan(
    u: Sequence,
    delta: Sequence,
    A: Float[Tensor, "channels state"],
    B: Float[Tensor, "batch length state"],
    C: Float[Tensor, "batch length state"],
    D: Float[Tensor, "channels"] | None = None,
    initial: State | None = None,
    *,
    return_state: Literal[True],
) -> tuple[Sequence, State]: ...


def selective_scan(
    u: Sequence,
    delta: Sequence,
    A: Float[Tensor, "channels state"],
    B: Float[Tensor, "batch length state"],
    C: Float[Tensor, "batch length state"],
    D: Float[Tensor, "channels"] | None = None,
    initial: State | None = None,
    return_state: bool = False,
) -> Any:
    """The state-space recurrence of Mamba, with a state of its own for every channel.

        h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t        h_0 = `initial`, or zero
        y_t = C_t h_t + D u_t

    Mamba (arXiv 2312.00752), equations 2a and 2b, discretised as in the paper's code: zero-order hold
    (equation 4) for A, the Euler step delta B for B. `delta` is used as given: a softplus and its bias are
    the caller's.

    - `u`, `delta` [batch, length, channels]: the input, and the step sizes.
    - `A` [channels, state]: the diagonal of each channel's state matrix, negative for a stable recurrence.
    - `B`, `C` [batch, length, state]: what is written to the state and read from it, shared by all channels.
    - `D` [channels]: a skip connection, or None.
    - `initial` [batch, channels, state]: the state to start from. With `return_state=True` the result is
      `(y, state after the last step)`, so a sequence may be processed in pieces, and decoding is length 1.

    All tensors have one floating-point data type and one device; beside bfloat16 or float16 sequences A, D and the
    state may be float32. Halves are computed in float32, their state stays float32, y is rounded once; so does
    `torch.autocast`, with y in float32. Gradients go to all of them. The fast version (float32 and halves, on the CPU
    and on CUDA devices) never holds a [batch, length, channels, state] tensor: it keeps the state
    every few steps and recomputes what lies between in the backward pass. It is not differentiable twice; the
    reference is. The same input gives the same bits, whatever the number of threads.

    Raises `InputError` (a ValueError) for a wrong shape, data type or device.

    >>> u, delta = torch.tensor([[[1.0], [2.0]]]), torch.ones(1, 2, 1)
    >>> A, B, C = torch.zeros(1, 1), torch.ones(1, 2, 1), torch.ones(1, 2, 1)
    >>> selective_scan(u, delta, A, B, C).flatten()  # A = 0 forgets nothing: a running sum
    tensor([1., 3.])
    """
    u, delta, A, B, C, D, initial = follow_autocast(u, delta, A, B, C, D, initial)
    _check(u, delta, A, B, C, D, initial)
    tensors = u, delta, A, B, C, D, initial
    if not takes_fast_path(_NAME, u, FLOATS):
        y, final = selective_scan_reference(*widen(*tensors))
    else:
        if u.device.type == "cpu":
            tensors = widen(*tensors)
        if is_recorded(*tensors):
            y, final = _SelectiveScan.apply(*tensors)
        else:
            y, final, _ = scan_forward(*tensors, False)
    y = y.to(u.dtype)
    return (y, final) if return_state else y


class _SelectiveScan(torch.autograd.Function):
    """The fast version with its gradients. Saves the inputs and the checkpoints of the state."""

    @staticmethod
    def forward(
        ctx: Any,
        u: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        initial: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        y, final, checkpoints = scan_forward(u, delta, A, B, C, D, initial, True)
        ctx.save_for_backward(u, delta, A, B, C, D, checkpoints)
        ctx.set_materialize_grads(False)
        return y, final

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(_NAME)
        u, delta, A, B, C, D, checkpoints = ctx.saved_tensors
        if dy is None:  # only the final state was used
            dy = torch.zeros_like(u)
        gradients = scan_backward(u, delta, A, B, C, D, checkpoints, dy, dfinal)
        return asked_for(gradients, ctx.needs_input_grad)


def _check(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, initial: Tensor | None) -> None:
    check_sequence(_NAME, "u", u)
    batch, length, channels = u.shape
    if A.dim() != 2 or A.shape[0] != channels or A.shape[1] < 1:
        expected = f"[channels, state] with channels = {channels} and state at least 1"
        check_tensor(_NAME, "A", A, (channels, -1), expected, u, or_float32=True)
    state = A.shape[1]
    check_tensor(_NAME, "delta", delta, (batch, length, channels), "[batch, length, channels] of u", u)
    check_tensor(_NAME, "A", A, (channels, state), "[channels, state]", u, or_float32=True)
    check_tensor(_NAME, "B", B, (batch, length, state), "[batch, length of u, state of A]", u)
    check_tensor(_NAME, "C", C, (batch, length, state), "[batch, length of u, state of A]", u)
    if D is not None:
        check_tensor(_NAME, "D", D, (channels,), "[channels of u]", u, or_float32=True)
    if initial is not None:
        expected = "[batch, channels of u, state of A]"
        check_tensor(_NAME, "initial", initial, (batch, channels, state), expected, u, or_float32=True)


def _fake_forward(u: Tensor, delta: Tensor, A: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, channels = u.shape
    state, keep = A.shape[1], others[-1]
    kept: tuple[int, ...]
    if u.device.type == "cuda":
        kept = (batch, -(-length // STEPS_KEPT), channels, state) if keep else (0,)
        final, checkpoints = (u.new_empty(shape, dtype=torch.float32) for shape in ((batch, channels, state), kept))
        return u.new_empty(u.shape), final, checkpoints
    final = u.new_empty(batch, cpu.filled(state), channels).transpose(1, 2)[..., :state]
    kept = cpu.checkpoints_shape(batch, length, channels, state) if keep else (0,)
    return u.new_empty(u.shape), final, u.new_empty(kept)


def _fake_backward(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, *others: Any
) -> tuple[Tensor, ...]:
    batch, length, channels = u.shape
    if u.device.type == "cuda":
        gradients = [tensor.new_empty(tensor.shape) for tensor in (u, delta, A, B, C)]
        dD = u.new_empty(channels) if D is None else D.new_empty(channels)
        return *gradients, dD, u.new_empty(batch, channels, A.shape[1], dtype=torch.float32)
    state, entries = A.shape[1], cpu.filled(A.shape[1])
    du, ddelta, dD = u.new_empty(u.shape), u.new_empty(u.shape), u.new_empty(channels)
    dB, dC = (u.new_empty(batch, length, entries)[..., :state] for _ in range(2))
    dinitial = u.new_empty(batch, entries, channels).transpose(1, 2)[..., :state]
    return du, ddelta, u.new_empty(entries, channels).t()[:, :state], dB, dC, dD, dinitial


def _sizes(u: Tensor, A: Tensor) -> tuple[int, int, int, int, int]:
    batch, length, channels = u.shape
    return batch, length, channels, A.shape[1], u.element_size()


scan_forward = Kernel(
    cpu.scan_forward,
    "(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? initial, bool keep)"
    " -> (Tensor, Tensor, Tensor)",
    _fake_forward,
    lambda u, delta, A, *others: forward_cost(*_sizes(u, A)),
)
scan_backward = Kernel(
    cpu.scan_backward,
    "(Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor checkpoints, Tensor dy,"
    " Tensor? dfinal) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake_backward,
    lambda u, delta, A, *others: backward_cost(*_sizes(u, A)),
)
