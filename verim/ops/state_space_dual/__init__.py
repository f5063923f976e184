"""Mamba-2's state-space layer: a linear recurrence per head that is also a masked product of matrices."""

from collections.abc import Callable
from typing import Any, Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor

from verim.errors import InputError
from verim.ops.arguments import check_is_tensor, check_tensor
from verim.ops.backend import FLOATS, takes_fast_path
from verim.ops.cost import Cost
from verim.ops.derivatives import asked_for, is_recorded, refuse_second_derivative
from verim.ops.kernel import Kernel
from verim.ops.precision import follow_autocast, narrow, widen
from verim.ops.state_space_dual import chunked, cpu
from verim.ops.state_space_dual.cost import backward_cost, forward_cost
from verim.ops.state_space_dual.reference import state_space_dual_reference

_NAME = "state_space_dual"
_TYPES = {device: (*types, torch.float64) for device, types in FLOATS.items()}
_CHUNK = 64
Sequence = Float[Tensor, "batch length heads head_dim"]
Shared = Float[Tensor, "batch length groups state"]
State = Float[Tensor, "batch heads state head_dim"]


@overload
def state_space_dual(
    x: Sequence,
    delta: Float[Tensor, "batch length heads"],
    A: Float[Tensor, "heads"],
    B: Shared,
    C: Shared,
    D: Float[Tensor, "heads"] | None = None,
    initial: State | None = None,
    return_state: Literal[False] = False,
    chunk: int | None = None,
) -> Sequence: ...


@overload
def state_space_dual(
    x: Sequence,
    delta: Float[Tensor, "batch length heads"],
    A: Float[Tensor, "heads"],
    B: Shared,
    C: Shared,
    D: Float[Tensor, "heads"] | None = None,
    initial: State | None = None,
    *,
    return_state: Literal[True],
    chunk: int | None = None,
) -> tuple[Sequence, State]: ...


def state_space_dual(
    x: Sequence,
    delta: Float[Tensor, "batch length heads"],
    A: Float[Tensor, "heads"],
    B: Shared,
    C: Shared,
    D: Float[Tensor, "heads"] | None = None,
    initial: State | None = None,
    return_state: bool = False,
    chunk: int | None = None,
) -> Any:
    """The state-space recurrence of Mamba-2: each head has one decay for its whole state, [state, head_dim].

        h_t = exp(delta_t A) h_{t-1} + delta_t B_t x_tᵀ        h_0 = `initial`, or zero
        y_t = C_tᵀ h_t + D x_t

    Mamba-2 (Dao & Gu 2024, arXiv 2405.21060), equation 1 with the scalar-times-identity A of section 5.1, discretised
    as in the paper's code: exact for A, the Euler step delta B for B. Written out it is y = (L ⊙ C Bᵀ) (delta x) with
    L[t, i] = exp(sum of delta A over i < j ≤ t): attention whose softmax is replaced by a decay (the duality, section
    5). The fast version works on chunks (section 6): within a chunk by that product, from chunk to chunk by the state.

    - `x` [batch, length, heads, head_dim], `delta` [batch, length, heads]: the input, and the step sizes, used as
      given: a softplus, a bias and limits are the caller's.
    - `A` [heads]: negative for a stable recurrence.
    - `B`, `C` [batch, length, groups, state]: what is written to the state and read from it. `groups` divides
      `heads`: head h uses group h // (heads / groups).
    - `D` [heads]: a skip connection, or None.
    - `initial` [batch, heads, state, head_dim]: the state to start from. With `return_state=True` the result is
      `(y, state after the last step)`, so a sequence may be processed in pieces, and decoding is length 1.
    - `chunk`: how many positions a product spans; None chooses. It changes time and memory, not the result, but for
      rounding.

    All tensors have one floating-point data type and one device; beside bfloat16 or float16 sequences A, D and the
    state may be float32. Halves are computed in float32, their state stays float32, y is rounded once; so does
    `torch.autocast`, with y in float32. Gradients go to all of them. Neither [length, length] matrices nor the states
    of all steps exist at any time: memory grows as length · chunk, the state is kept once a chunk for the backward
    pass. Not differentiable twice; the reference is. The same input gives the same bits.

    Raises `InputError` (a ValueError) for a wrong shape, data type, device or chunk.

    >>> x, delta = torch.tensor([1.0, 2.0]).view(1, 2, 1, 1), torch.ones(1, 2, 1)
    >>> B = C = torch.ones(1, 2, 1, 1)
    >>> state_space_dual(x, delta, torch.zeros(1), B, C).flatten()  # A = 0 forgets nothing: a running sum
    tensor([1., 3.])
    """
    x, delta, A, B, C, D, initial = follow_autocast(x, delta, A, B, C, D, initial)
    _check(x, delta, A, B, C, D, initial, chunk)
    tensors = widen(x, delta, A, B, C, D, initial)
    if not takes_fast_path(_NAME, x, _TYPES):
        y, final = state_space_dual_reference(*tensors)
    else:
        span = max(min(_CHUNK if chunk is None else chunk, x.shape[1]), 1)
        if is_recorded(*tensors):
            y, final = _StateSpaceDual.apply(*tensors, span)
        else:
            y, final, _ = _kernels(tensors[0])[0](*tensors, span, False)
    y = narrow(y, x)
    return (y, final) if return_state else y


def _kernels(x: Tensor) -> tuple[Kernel, Kernel]:
    """Forward and backward: compiled for float32 on the CPU, over torch's products elsewhere."""
    if x.is_cpu and x.dtype is torch.float32:
        return dual_forward, dual_backward
    return chunked_dual_forward, chunked_dual_backward


class _StateSpaceDual(torch.autograd.Function):
    """The fast version with its gradients. Saves the inputs and the state at the beginning of each chunk."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        delta: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        initial: Tensor | None,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        y, final, states = _kernels(x)[0](x, delta, A, B, C, D, initial, chunk, True)
        ctx.save_for_backward(x, delta, A, B, C, D, states)
        ctx.chunk = chunk
        ctx.set_materialize_grads(False)
        return y, final

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(_NAME)
        x, *others = ctx.saved_tensors
        if dy is None:  # only the final state was used
            dy = torch.zeros_like(x)
        gradients = _kernels(x)[1](x, *others, dy, dfinal, ctx.chunk)
        return *asked_for(gradients, ctx.needs_input_grad[:-1]), None


def _check(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial: Tensor | None,
    chunk: int | None,
) -> None:
    check_is_tensor(_NAME, "x", x)
    if x.dim() != 4 or not x.is_floating_point() or not x.shape[2] * x.shape[3]:
        raise InputError(
            f"{_NAME}: argument x is {x.dtype} of shape {tuple(x.shape)}, expected a floating-point tensor "
            "[batch, length, heads, head_dim] with at least one head and one channel"
        )
    batch, length, heads, head_dim = x.shape
    check_tensor(_NAME, "delta", delta, (batch, length, heads), "[batch, length, heads of x]", x)
    check_tensor(_NAME, "A", A, (heads,), "[heads of x]", x, or_float32=True)
    check_is_tensor(_NAME, "B", B)
    if B.dim() != 4 or not B.shape[3] or not B.shape[2] or heads % B.shape[2]:
        raise InputError(
            f"{_NAME}: argument B has shape {tuple(B.shape)}, expected [batch, length, groups, state] with groups a "
            f"divisor of the {heads} heads of x and state at least 1"
        )
    shape = (batch, length, *B.shape[2:])
    check_tensor(_NAME, "B", B, shape, "[batch and length of x, groups, state]", x)
    check_tensor(_NAME, "C", C, shape, "[batch and length of x, groups and state of B]", x)
    if D is not None:
        check_tensor(_NAME, "D", D, (heads,), "[heads of x]", x, or_float32=True)
    if initial is not None:
        expected = "[batch, heads of x, state of B, head_dim of x]"
        check_tensor(_NAME, "initial", initial, (batch, heads, shape[3], head_dim), expected, x, or_float32=True)
    if chunk is not None and (isinstance(chunk, bool | float) or chunk < 1):
        raise InputError(f"{_NAME}: argument chunk is {chunk}, expected a whole number of at least 1, or None")


def _fake_forward(x: Tensor, delta: Tensor, A: Tensor, B: Tensor, *others: Any) -> tuple[Tensor, Tensor, Tensor]:
    batch, length, heads, dim = x.shape
    state, (chunk, keep) = B.shape[3], others[-2:]
    kept = cpu.states_shape(batch, length, heads, dim, state, chunk) if keep else (0,)
    return x.new_empty(x.shape), x.new_empty(batch, heads, state, dim), x.new_empty(kept)


def _fake_chunked_forward(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, *others: Any
) -> tuple[Tensor, Tensor, Tensor]:
    y, final, states = _fake_forward(x, delta, A, B, *others)
    if others[-1]:
        batch, chunks, heads, state, dim = states.shape
        states = states.new_empty(batch, chunks, B.shape[2], state, heads // B.shape[2] * dim)
    return y, final, states


def _fake_backward(
    x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor | None, *others: Any
) -> tuple[Tensor, ...]:
    gradients = (tensor.new_empty(tensor.shape) for tensor in (x, delta, A, B, C, A))
    return *gradients, x.new_empty(x.shape[0], x.shape[2], B.shape[3], x.shape[3])


def _costs(of: Callable[..., Cost]) -> Callable[..., Cost]:
    return lambda x, delta, A, B, *others: of(*x.shape, *B.shape[2:], x.element_size())


_FORWARD = (
    "(Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? initial, int chunk, bool keep)"
    " -> (Tensor, Tensor, Tensor)"
)
_BACKWARD = (
    "(Tensor x, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor states, Tensor dy, Tensor? dfinal,"
    " int chunk) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
dual_forward = Kernel(cpu.dual_forward, _FORWARD, _fake_forward, _costs(forward_cost))
dual_backward = Kernel(cpu.dual_backward, _BACKWARD, _fake_backward, _costs(backward_cost))
chunked_dual_forward = Kernel(chunked.chunked_dual_forward, _FORWARD, _fake_chunked_forward, _costs(forward_cost))
chunked_dual_backward = Kernel(chunked.chunked_dual_backward, _BACKWARD, _fake_backward, _costs(backward_cost))
