"""The first-order linear recurrence, the scan that is the engine of every linear-time model here."""

from typing import Any, Literal, overload

import torch
from jaxtyping import Complex, Float
from torch import Tensor

from verim.errors import InputError
from verim.ops.arguments import check_is_tensor, check_tensor
from verim.ops.backend import takes_fast_path
from verim.ops.derivatives import is_recorded, refuse_second_derivative
from verim.ops.kernel import Kernel
from verim.ops.linear_recurrence import cpu
from verim.ops.linear_recurrence.cost import backward_cost, forward_cost
from verim.ops.linear_recurrence.reference import linear_recurrence_reference
from verim.ops.precision import HALVES, follow_autocast, widen

_NAME = "linear_recurrence"
_TYPES = {
    "cpu": (torch.float32, torch.float64, torch.complex64, torch.complex128, *HALVES),
    "cuda": (torch.float32, torch.complex64, *HALVES),
}
Coefficients = Float[Tensor, "*#batch_length_channels"] | Complex[Tensor, "*#batch_length_channels"]
Sequence = Float[Tensor, "batch length channels"] | Complex[Tensor, "batch length channels"]
State = Float[Tensor, "batch channels"] | Complex[Tensor, "batch channels"]


@overload
def linear_recurrence(
    a: Coefficients,
    b: Sequence,
    initial: State | None = None,
    reverse: bool = False,
    return_state: Literal[False] = False,
) -> Sequence: ...


@overload
def linear_recurrence(
    a: Coefficients,
    b: Sequence,
    initial: State | None = None,
    reverse: bool = False,
    *,
    return_state: Literal[True],
) -> tuple[Sequence, State]: ...


def linear_recurrence(
    a: Coefficients,
    b: Sequence,
    initial: State | None = None,
    reverse: bool = False,
    return_state: bool = False,
) -> Any:
    """A state for every channel that decays by `a` and takes up `b`, real or complex.

        h_t = a_t h_{t-1} + b_t                      t = 0 ... length - 1, h_{-1} = `initial`, or zero
        h_t = a_t h_{t+1} + b_t                      with `reverse`: from the end, where h_length = `initial`

    The recurrence that Blelloch ("Prefix sums and their applications", CMU-CS-90-190, section 1.4) solves by a scan,
    and that S5 (arXiv 2208.04933), LRU (arXiv 2303.06349) and minGRU (arXiv 2410.01201) are made of.

    - `b` [batch, length, channels]: the input.
    - `a`: the coefficients, of b's shape or one that broadcasts to it, as [channels], [batch, 1, channels] or
      [length, channels].
    - `initial` [batch, channels]: the state to start from. With `return_state=True` the result is
      `(h, state after the last step)`, so a sequence may be processed in pieces; with `reverse` the last step is
      t = 0, and the pieces come from the end.

    All tensors have one floating-point or complex data type and one device; beside bfloat16 or float16 sequences `a`
    and the state may be float32. Halves are computed in float32, their state stays float32, h is rounded once; so
    does `torch.autocast`, with h in float32. Gradients go to all three, for complex numbers as PyTorch defines them
    (of the conjugate: with g_t = dh_t + conj(a_{t+1}) g_{t+1}, db = g and da_t = g_t conj(h_{t-1})). The fast version
    (floats and complex numbers on the CPU, float32, halves and complex64 on CUDA devices) keeps nothing but a and h
    for the backward pass. It is not differentiable twice; the reference is. The same input gives the same bits,
    whatever the number of threads.

    Where a long sequence of few channels is cut into pieces that are computed side by side, a state that is carried
    over goes through the product of a piece's coefficients: a few roundings more or less than step by step.

    Raises `InputError` (a ValueError) for a wrong shape, data type or device.

    >>> half, ones = torch.full((1, 3, 1), 0.5), torch.ones(1, 3, 1)
    >>> h, state = linear_recurrence(half, ones, return_state=True)
    >>> h.flatten(), state
    (tensor([1.0000, 1.5000, 1.7500]), tensor([[1.7500]]))
    """
    a, b, initial = follow_autocast(a, b, initial)
    _check(a, b, initial)
    kind = b.dtype
    fast = takes_fast_path(_NAME, b, _TYPES)
    if not fast or b.device.type == "cpu":
        a, b, initial = widen(a, b, initial)
    a = a.expand(b.shape)
    tensors = a, b, initial
    if not fast:
        h, final = linear_recurrence_reference(*tensors, reverse)
    elif is_recorded(*tensors):
        h, final = _LinearRecurrence.apply(*tensors, reverse)
    else:
        h, final = recurrence_forward(*tensors, reverse)
    h = h.to(kind)
    return (h, final) if return_state else h


class _LinearRecurrence(torch.autograd.Function):
    """The fast version with its gradients. Saves the coefficients and the result."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor, initial: Tensor | None, reverse: bool) -> tuple[Tensor, Tensor]:
        h, final = recurrence_forward(a, b, initial, reverse)
        ctx.save_for_backward(a, h, initial)
        ctx.reverse = reverse
        ctx.set_materialize_grads(False)
        return h, final

    @staticmethod
    def backward(ctx: Any, dh: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(_NAME)
        a, h, initial = ctx.saved_tensors
        if dh is None:  # only the final state was used
            dh = torch.zeros_like(h)
        gradients = recurrence_backward(a, h, initial, dh, dfinal, ctx.reverse)
        needed = ctx.needs_input_grad
        return (*(gradient if needed[i] else None for i, gradient in enumerate(gradients)), None)


def _check(a: Tensor, b: Tensor, initial: Tensor | None) -> None:
    check_is_tensor(_NAME, "a", a)
    check_is_tensor(_NAME, "b", b)
    if b.dim() != 3:
        raise InputError(f"{_NAME}: argument b has shape {tuple(b.shape)}, expected [batch, length, channels]")
    if not (b.is_floating_point() or b.is_complex()):
        raise InputError(f"{_NAME}: argument b is {b.dtype}, expected a floating-point or complex data type")
    sizes = (1,) * (3 - a.dim()) + tuple(a.shape)
    if len(sizes) != 3 or any(size not in (1, full) for size, full in zip(sizes, b.shape, strict=True)):
        raise InputError(
            f"{_NAME}: argument a has shape {tuple(a.shape)}, expected one that broadcasts to [batch, length, "
            f"channels] of b = {tuple(b.shape)}"
        )
    check_tensor(_NAME, "a", a, tuple(a.shape), "", b, or_float32=True)
    if initial is not None:
        batch, _, channels = b.shape
        check_tensor(_NAME, "initial", initial, (batch, channels), "[batch, channels of b]", b, or_float32=True)


def _fake_forward(a: Tensor, b: Tensor, initial: Tensor | None, reverse: bool) -> tuple[Tensor, Tensor]:
    state = b.dtype if b.dtype not in HALVES else torch.float32
    return b.new_empty(b.shape), b.new_empty(b.shape[0], b.shape[2], dtype=state)


def _fake_backward(a: Tensor, h: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    state = h.dtype if h.dtype not in HALVES else torch.float32
    return a.new_empty(h.shape), h.new_empty(h.shape), h.new_empty(h.shape[0], h.shape[2], dtype=state)


def _sizes(h: Tensor) -> tuple[int, int, int, bool, int]:
    batch, length, channels = h.shape
    return batch, length, channels, h.is_complex(), h.element_size()


recurrence_forward = Kernel(
    cpu.recurrence_forward,
    "(Tensor a, Tensor b, Tensor? initial, bool reverse) -> (Tensor, Tensor)",
    _fake_forward,
    lambda a, b, *others: forward_cost(*_sizes(b)),
)
recurrence_backward = Kernel(
    cpu.recurrence_backward,
    "(Tensor a, Tensor h, Tensor? initial, Tensor dh, Tensor? dfinal, bool reverse) -> (Tensor, Tensor, Tensor)",
    _fake_backward,
    lambda a, h, *others: backward_cost(*_sizes(h)),
)
