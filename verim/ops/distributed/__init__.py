"""Scans over a sequence whose pieces lie on the ranks of a process group: sequence parallelism."""

from contextlib import suppress
from functools import partial
from typing import Any, Literal, overload

import torch
from jaxtyping import Float, Inexact
from torch import Tensor
from torch.distributed import ProcessGroup

from verim.ops.distributed.attention import Order, distributed_attention, spans
from verim.ops.distributed.halo import distributed_causal_conv1d, padded_rows_before, rows_before
from verim.ops.distributed.pieces import PieceOp, Tensors, run_piece
from verim.ops.distributed.ranks import Ranks
from verim.ops.linear_recurrence import linear_recurrence
from verim.ops.selective_scan import selective_scan
from verim.ops.state_space_dual import state_space_dual
from verim.ops.wkv import wkv
from verim.ops.wkv7 import wkv7

__all__ = [
    "Order",
    "PieceOp",
    "Ranks",
    "distributed_attention",
    "distributed_causal_conv1d",
    "distributed_linear_recurrence",
    "distributed_selective_scan",
    "distributed_state_space_dual",
    "distributed_wkv",
    "distributed_wkv7",
    "padded_rows_before",
    "rows_before",
    "run_piece",
    "spans",
]

Coefficients = Inexact[Tensor, "batch length channels"]
Sequence = Float[Tensor, "batch length channels"]


@overload
def distributed_linear_recurrence(
    a: Coefficients,
    b: Coefficients,
    initial: Inexact[Tensor, "batch channels"] | None = None,
    reverse: bool = False,
    return_state: Literal[False] = False,
    group: ProcessGroup | None = None,
) -> Coefficients: ...


@overload
def distributed_linear_recurrence(
    a: Coefficients,
    b: Coefficients,
    initial: Inexact[Tensor, "batch channels"] | None = None,
    reverse: bool = False,
    *,
    return_state: Literal[True],
    group: ProcessGroup | None = None,
) -> tuple[Coefficients, Inexact[Tensor, "batch channels"]]: ...


def distributed_linear_recurrence(
    a: Coefficients,
    b: Coefficients,
    initial: Inexact[Tensor, "batch channels"] | None = None,
    reverse: bool = False,
    return_state: bool = False,
    group: ProcessGroup | None = None,
) -> Any:
    """`verim.ops.linear_recurrence` of a sequence whose pieces lie on the ranks of a `torch.distributed` group.

        h_t = a_t h_{t-1} + b_t        t over the pieces of all ranks, one after the other

    Rank r of `group` (by default all processes) gives the r-th piece of `b` [batch, length, channels] and of `a`, whose
    shape broadcasts to it, and gets the r-th piece of h. The lengths may differ between the ranks, and be 0; all else
    must be the same.

    - `initial` [batch, channels]: the state before the whole sequence. It is read on the rank where the recurrence
      begins, the first, with `reverse` the last, and gets its gradient there; other ranks give None or anything of
      that shape.
    - `reverse`: from the end to the beginning, h_t = a_t h_{t+1} + b_t.
    - `return_state`: the result is `(h, the state after the whole sequence)`, the same state on every rank.

    **Algorithm.** Blelloch, Prefix Sums and Their Applications (CMU-CS-90-190, 1990), section 1.4, with a rank in
    the place of a processor: a piece takes the state before it to P h + s, where P is the product of its a, and s what
    it reaches from zero. The ranks exchange (P, s) in one all-gather and each composes those before it. (That one
    all-gather of states is enough for every linear-time mixer is also the finding of LASP-2, arXiv 2502.07563.)

    **Cost.** A rank between the first and the last runs the local op twice, in the forward pass and in the backward
    pass: once for its summary, once with its true state. The first and the last run it once each way. Every rank
    receives (ranks - 1) summaries of 2 · batch · channels numbers forward, half of that backward, the state once more
    each way with `return_state`, and 512 bytes a rank that say how it was called. No sequence travels.

    **Gradients** are those of the sum of all ranks' losses. The backward pass exchanges too: all ranks must run it, in
    the same order as the others where there are several calls. A rank whose loss does not depend on its h gives
    `0 * h.sum()`. Of what all ranks hold (the parameters behind a and b) each rank gets its own share: sum them, as
    for any parameter. It is not differentiable twice.

    Raises `InputError`, on all ranks, where there is no process group, where one rank's arguments are wrong, or where
    the ranks disagree about shapes, types, `reverse`, `return_state` or whether gradients are recorded.
    """
    op = _linear_recurrence(reverse)
    with suppress(RuntimeError, AttributeError):  # what does not fit the local op refuses, on all ranks
        a = a.expand(b.shape)
    return run_piece(op, Ranks(op.name, group, reverse), (a, b), initial, return_state)


@overload
def distributed_selective_scan(
    u: Sequence,
    delta: Sequence,
    A: Float[Tensor, "channels state"],
    B: Float[Tensor, "batch length state"],
    C: Float[Tensor, "batch length state"],
    D: Float[Tensor, "channels"] | None = None,
    initial: Float[Tensor, "batch channels state"] | None = None,
    return_state: Literal[False] = False,
    group: ProcessGroup | None = None,
) -> Sequence: ...


@overload
def distributed_selective_scan(
    u: Sequence,
    delta: Sequence,
    A: Float[Tensor, "channels state"],
    B: Float[Tensor, "batch length state"],
    C: Float[Tensor, "batch length state"],
    D: Float[Tensor, "channels"] | None = None,
    initial: Float[Tensor, "batch channels state"] | None = None,
    *,
    return_state: Literal[True],
    group: ProcessGroup | None = None,
) -> tuple[Sequence, Float[Tensor, "batch channels state"]]: ...


def distributed_selective_scan(
    u: Sequence,
    delta: Sequence,
    A: Float[Tensor, "channels state"],
    B: Float[Tensor, "batch length state"],
    C: Float[Tensor, "batch length state"],
    D: Float[Tensor, "channels"] | None = None,
    initial: Float[Tensor, "batch channels state"] | None = None,
    return_state: bool = False,
    group: ProcessGroup | None = None,
) -> Any:
    """`verim.ops.selective_scan` of a sequence whose pieces lie on the ranks of a `torch.distributed` group.

    Rank r gives the r-th piece of `u`, `delta`, `B` and `C`, and all ranks the same `A` and `D`; the arguments are
    those of `selective_scan`, the rest as `distributed_linear_recurrence` says. The summary of a piece is
    exp(A · sum of its delta) and the state it reaches from zero: 2 · batch · channels · state numbers a rank. Of `A`
    and `D` each rank gets the share of its piece in the gradient: sum them.
    """
    op = _SELECTIVE_SCAN
    return run_piece(op, Ranks(op.name, group, False), (u, delta, A, B, C, D), initial, return_state)


@overload
def distributed_wkv(
    k: Sequence,
    v: Sequence,
    w: Float[Tensor, "channels"],
    u: Float[Tensor, "channels"],
    state: Float[Tensor, "batch 3 channels"] | None = None,
    return_state: Literal[False] = False,
    group: ProcessGroup | None = None,
) -> Sequence: ...


@overload
def distributed_wkv(
    k: Sequence,
    v: Sequence,
    w: Float[Tensor, "channels"],
    u: Float[Tensor, "channels"],
    state: Float[Tensor, "batch 3 channels"] | None = None,
    *,
    return_state: Literal[True],
    group: ProcessGroup | None = None,
) -> tuple[Sequence, Float[Tensor, "batch 3 channels"]]: ...


def distributed_wkv(
    k: Sequence,
    v: Sequence,
    w: Float[Tensor, "channels"],
    u: Float[Tensor, "channels"],
    state: Float[Tensor, "batch 3 channels"] | None = None,
    return_state: bool = False,
    group: ProcessGroup | None = None,
) -> Any:
    """`verim.ops.wkv` of a sequence whose pieces lie on the ranks of a `torch.distributed` group.

    Rank r gives the r-th piece of `k` and `v`, and all ranks the same `w` and `u`; the arguments are those of `wkv`,
    the rest as `distributed_linear_recurrence` says (`state` takes the place of `initial`). The summary of a piece is
    its decay e^(-length w), as a logarithm, and the state it reaches from the empty one; states merge by their running
    maxima, so any k is safe. That is 3 · batch · channels + channels numbers a rank. Of `w` and `u` each rank gets the
    share of its piece in the gradient: sum them.
    """
    op = _WKV
    return run_piece(op, Ranks(op.name, group, False), (k, v, w, u), state, return_state)


def distributed_state_space_dual(
    x: Float[Tensor, "batch length heads head_dim"],
    delta: Float[Tensor, "batch length heads"],
    A: Float[Tensor, "heads"],
    B: Float[Tensor, "batch length groups state"],
    C: Float[Tensor, "batch length groups state"],
    D: Float[Tensor, "heads"] | None = None,
    initial: Float[Tensor, "batch heads state head_dim"] | None = None,
    return_state: bool = False,
    group: ProcessGroup | None = None,
) -> Any:
    """`verim.ops.state_space_dual` of a sequence whose pieces lie on the ranks of a `torch.distributed` group.

    Rank r gives the r-th piece of `x`, `delta`, `B` and `C`, and all ranks the same `A` and `D`; the arguments are
    those of `state_space_dual`, the rest as `distributed_linear_recurrence` says. The summary of a piece is
    exp(A · sum of its delta), a number a head, and the state it reaches from zero. Of `A` and `D` each rank gets the
    share of its piece in the gradient: sum them.
    """
    op = _STATE_SPACE_DUAL
    return run_piece(op, Ranks(op.name, group, False), (x, delta, A, B, C, D), initial, return_state)


def distributed_wkv7(
    r: Float[Tensor, "batch length heads head_dim"],
    w: Float[Tensor, "batch length heads head_dim"],
    k: Float[Tensor, "batch length heads head_dim"],
    v: Float[Tensor, "batch length heads head_dim"],
    a: Float[Tensor, "batch length heads head_dim"],
    b: Float[Tensor, "batch length heads head_dim"],
    state: Float[Tensor, "batch heads head_dim head_dim"] | None = None,
    return_state: bool = False,
    group: ProcessGroup | None = None,
) -> Any:
    """`verim.ops.wkv7` of a sequence whose pieces lie on the ranks of a `torch.distributed` group.

    Rank r gives the r-th piece of all sequences; the arguments are those of `wkv7`, the rest as
    `distributed_linear_recurrence` says (`state` takes the place of `initial`). The summary of a piece is the product
    of its transitions diag(w_t) + b_tᵀ a_t, a matrix a head, and the state it reaches from zero: 2 · batch · heads ·
    head_dim² numbers a rank. Ranks between the first and the last find that product by a third run of the local op
    forward, from the identity with nothing added.
    """
    op = _WKV7
    return run_piece(op, Ranks(op.name, group, False), (r, w, k, v, a, b), state, return_state)


def _follow(decay: Tensor, reached: Tensor, state: Tensor) -> Tensor:
    return decay * state + reached


def _carry_back(decay: Tensor, reached: Tensor, state: Tensor, gradient: Tensor) -> Tensor:
    return decay.conj() * gradient


def _recurrence_decay(tensors: Tensors, empty: Tensor) -> Tensor:
    a = tensors[0]
    assert a is not None
    return a.prod(1, dtype=empty.dtype)


def _linear_recurrence(reverse: bool) -> PieceOp:
    return PieceOp(
        name="distributed_linear_recurrence",
        local=partial(linear_recurrence, reverse=reverse),
        sequences=(0, 1),
        state_name="initial",
        decay=_recurrence_decay,
        follow=_follow,
        carry_back=_carry_back,
    )


def _selective_scan_decay(tensors: Tensors, empty: Tensor) -> Tensor:
    _, delta, A, *_ = tensors
    assert delta is not None and A is not None
    return torch.exp(delta.sum(1, dtype=empty.dtype)[..., None] * A.to(empty.dtype))


_SELECTIVE_SCAN = PieceOp(
    name="distributed_selective_scan",
    local=selective_scan,
    sequences=(0, 1, 3, 4),
    state_name="initial",
    decay=_selective_scan_decay,
    follow=_follow,
    carry_back=_carry_back,
)


def _wkv_decay(tensors: Tensors, empty: Tensor) -> Tensor:
    k, _, w, _ = tensors
    assert k is not None and w is not None
    return -k.shape[1] * w.to(empty.dtype)


def _wkv_follow(decay: Tensor, reached: Tensor, state: Tensor) -> Tensor:
    """Two sums of weights on different scales, brought to the larger maximum: `decay` is a logarithm."""
    past, own = state[:, 2] + decay, reached[:, 2]
    largest = torch.maximum(past, own)
    from_past, from_own = torch.exp(past - largest)[:, None], torch.exp(own - largest)[:, None]
    return torch.cat([from_past * state[:, :2] + from_own * reached[:, :2], largest[:, None]], 1)


def _wkv_carry_back(decay: Tensor, reached: Tensor, state: Tensor, gradient: Tensor) -> Tensor:
    with torch.enable_grad():
        before = state.detach().requires_grad_()
        after = _wkv_follow(decay, reached, before)
    return torch.autograd.grad(after, before, gradient)[0]


_WKV = PieceOp(
    name="distributed_wkv",
    local=wkv,
    sequences=(0, 1),
    state_name="state",
    decay=_wkv_decay,
    follow=_wkv_follow,
    carry_back=_wkv_carry_back,
)


def _dual_decay(tensors: Tensors, empty: Tensor) -> Tensor:
    _, delta, A, *_ = tensors
    assert delta is not None and A is not None
    return torch.exp(delta.sum(1, dtype=empty.dtype) * A.to(empty.dtype))[..., None, None]


_STATE_SPACE_DUAL = PieceOp(
    name="distributed_state_space_dual",
    local=state_space_dual,
    sequences=(0, 1, 3, 4),
    state_name="initial",
    decay=_dual_decay,
    follow=_follow,
    carry_back=_carry_back,
)


def _wkv7_decay(tensors: Tensors, empty: Tensor) -> Tensor:
    r, w, k, _, a, b = tensors
    assert r is not None and w is not None and k is not None and a is not None and b is not None
    identity = torch.eye(empty.shape[-1], dtype=empty.dtype, device=empty.device).expand_as(empty)
    return wkv7(r, w, k, torch.zeros_like(k), a, b, identity.contiguous(), return_state=True)[1]


_WKV7 = PieceOp(
    name="distributed_wkv7",
    local=wkv7,
    sequences=(0, 1, 2, 3, 4, 5),
    state_name="state",
    decay=_wkv7_decay,
    follow=lambda decay, reached, state: decay @ state + reached,
    carry_back=lambda decay, reached, state, gradient: decay.mT @ gradient,
)
