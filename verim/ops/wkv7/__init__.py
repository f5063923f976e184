"""RWKV-7's weighted key-value: a matrix for each head that every step decays, corrects and adds to."""

from typing import Any, Literal, overload

import torch
from jaxtyping import Float
from torch import Tensor

from verim.errors import InputError
from verim.ops.arguments import check_is_tensor, check_tensor
from verim.ops.backend import FLOATS, takes_fast_path
from verim.ops.derivatives import asked_for, is_recorded, refuse_second_derivative
from verim.ops.kernel import Kernel
from verim.ops.precision import follow_autocast, widen
from verim.ops.wkv7 import cpu
from verim.ops.wkv7.cost import backward_cost, forward_cost
from verim.ops.wkv7.reference import wkv7_reference

_NAME = "wkv7"
Heads = Float[Tensor, "batch length heads head_dim"]
State = Float[Tensor, "batch heads head_dim head_dim"]


@overload
def wkv7(
    r: Heads,
    w: Heads,
    k: Heads,
    v: Heads,
    a: Heads,
    b: Heads,
    state: State | None = None,
    return_state: Literal[False] = False,
) -> Heads: ...


@overload
def wkv7(
    r: Heads,
    w: Heads,
    k: Heads,
    v: Heads,
    a: Heads,
    b: Heads,
    state: State | None = None,
    *,
    return_state: Literal[True],
) -> tuple[Heads, State]: ...


def wkv7(
    r: Heads,
    w: Heads,
    k: Heads,
    v: Heads,
    a: Heads,
    b: Heads,
    state: State | None = None,
    return_state: bool = False,
) -> Any:
    """The state evolution of RWKV-7, a generalised delta rule, for each head with row vectors r, w, k, v, a, b:

        S_t = diag(w_t) S_{t-1} + b_tᵀ (a_t S_{t-1}) + k_tᵀ v_t        y_t = r_t S_t

    RWKV-7 (arXiv 2503.14456, section 4.1). The rows of S belong to keys and its columns to values: the transpose of
    the paper's. The paper's transition, diag(w) - k̂ᵀ (a ⊙ k̂), is a = -k̂, b = a ⊙ k̂ here: what the state holds under
    the direction k̂ is taken out, to the share a.

    - `r`, `w`, `k`, `v`, `a`, `b` [batch, length, heads, head_dim]. `w` is the factor that a row keeps of itself, in
      (0, 1) in RWKV-7, which is not checked; nor is it that the state stays bounded.
    - `state` [batch, heads, head_dim, head_dim] (keys, values): S before the first step; None is zeros. With
      `return_state=True` the result is `(y, S after the last step)`, so a sequence may be processed in pieces, and
      decoding is length 1.

    All tensors have one floating-point data type and one device; beside a bfloat16 or float16 r the others may be
    float32, and `w`, close to 1, should. Halves are computed in float32, their state comes back in float32, y is
    rounded once; so does `torch.autocast`, with y in float32. The fast version (float32 and halves, on the CPU and on
    CUDA devices) keeps the state every few steps and recomputes what lies between in the backward pass: no tensor holds
    the states of all steps. It is not differentiable twice; the reference is. The same input gives the same bits,
    whatever the number of threads.

    Raises `InputError` (a ValueError) for a wrong shape, data type or device.

    >>> one, none = torch.ones(1, 2, 1, 1), torch.zeros(1, 2, 1, 1)
    >>> v = torch.tensor([3.0, 5.0]).view(1, 2, 1, 1)
    >>> wkv7(one, one, one, v, none, none).flatten()  # nothing decays, nothing is taken out: a running sum
    tensor([3., 8.])
    >>> wkv7(one, one, one, v, -one, one).flatten()  # what is held under the key is replaced
    tensor([3., 5.])
    """
    r, w, k, v, a, b, state = follow_autocast(r, w, k, v, a, b, state)
    _check(r, w, k, v, a, b, state)
    tensors = r, w, k, v, a, b, state
    if not takes_fast_path(_NAME, r, FLOATS):
        y, final = wkv7_reference(*widen(*tensors))
    else:
        if r.device.type == "cpu":
            tensors = widen(*tensors)
        if is_recorded(*tensors):
            y, final = _WKV7.apply(*tensors)
        else:
            y, final, _, _ = wkv7_forward(*tensors, False)
    y = y.to(r.dtype)
    return (y, final) if return_state else y


class _WKV7(torch.autograd.Function):
    """The fast version with its gradients. Saves the inputs, what a finds in the state, and the checkpoints of it."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        y, final, found, checkpoints = wkv7_forward(*tensors, True)
        ctx.save_for_backward(*tensors[:6], found, checkpoints)
        ctx.set_materialize_grads(False)
        return y, final

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(_NAME)
        saved = ctx.saved_tensors
        if dy is None:  # only the final state was used
            dy = torch.zeros_like(saved[0])
        return asked_for(wkv7_backward(*saved, dy, dfinal), ctx.needs_input_grad)


def _check(r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor | None) -> None:
    check_is_tensor(_NAME, "r", r)
    if r.dim() != 4 or not r.is_floating_point():
        raise InputError(
            f"{_NAME}: argument r is {r.dtype} of shape {tuple(r.shape)}, expected a floating-point tensor "
            "[batch, length, heads, head_dim]"
        )
    batch, _, heads, head_dim = r.shape
    for name, tensor in (("w", w), ("k", k), ("v", v), ("a", a), ("b", b)):
        meaning = "[batch, length, heads, head_dim] of r"
        check_tensor(_NAME, name, tensor, tuple(r.shape), meaning, r, or_float32=True)
    if state is not None:
        shape = batch, heads, head_dim, head_dim
        check_tensor(_NAME, "state", state, shape, "[batch, heads, head_dim, head_dim of r]", r, or_float32=True)


def _fake_forward(r: Tensor, *others: Any) -> tuple[Tensor, ...]:
    batch, length, heads, head_dim = r.shape
    keep = others[-1]
    found = r.shape if keep else (0,)
    kept = cpu.checkpoints_shape(batch, length, heads, head_dim) if keep else (0,)
    shapes = (batch, heads, head_dim, head_dim), found, kept
    return r.new_empty(r.shape), *(r.new_empty(shape, dtype=torch.float32) for shape in shapes)


def _fake_backward(*tensors: Any) -> tuple[Tensor, ...]:
    batch, _, heads, head_dim = tensors[0].shape
    dstate = tensors[0].new_empty(batch, heads, head_dim, head_dim, dtype=torch.float32)
    return *(tensor.new_empty(tensor.shape) for tensor in tensors[:6]), dstate


def _sizes(r: Tensor) -> tuple[int, int, int, int, int]:
    batch, length, heads, head_dim = r.shape
    return batch, length, heads, head_dim, r.element_size()


wkv7_forward = Kernel(
    cpu.wkv7_forward,
    "(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, Tensor? state, bool keep)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    _fake_forward,
    lambda r, *others: forward_cost(*_sizes(r)),
)
wkv7_backward = Kernel(
    cpu.wkv7_backward,
    "(Tensor r, Tensor w, Tensor k, Tensor v, Tensor a, Tensor b, Tensor found, Tensor checkpoints, Tensor dy,"
    " Tensor? dfinal) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
    _fake_backward,
    lambda r, *others: backward_cost(*_sizes(r)),
)
