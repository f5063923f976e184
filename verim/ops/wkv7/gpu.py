"""RWKV-7's state evolution on CUDA devices: a program walks the steps of one head, for a block of its values.

The columns of S do not know of each other, so blocks of them run side by side. What a finds in the state is summed up
for the next step together with y: one wait for a sum a step instead of two. The inputs of a step are asked for a
step before.

The backward pass goes back through the intervals between checkpoints. It writes the states of one interval to memory
(a few megabytes that stay in the cache), then walks them in reverse. The gradients of all inputs but v are sums over
values: each block writes its share, and the shares are added in order. The formulas stand at `backward.py`; S and G are
[keys, values] here.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from verim.ops.launch import launch
from verim.ops.wkv7.backward import INTERVAL
from verim.ops.wkv7.cpu import checkpoints_shape

_VALUES = 32  # of a program, a power of 2


@triton.jit
def _place(heads, blocks):
    """Batch row, head and block of values of this program."""
    program = tl.program_id(0)
    return (program // blocks // heads).to(tl.int64), program // blocks % heads, program % blocks


@triton.jit
def _load(start, index, count):
    return tl.load(start + index, index < count, other=0).to(tl.float32)


@triton.jit
def _wkv7_forward(
    r,
    w,
    k,
    v,
    a,
    b,
    state,
    y,
    final,
    found,
    checkpoints,
    length,
    heads,
    size,
    blocks,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    KEPT: tl.constexpr,
):
    batch, head, block = _place(heads, blocks)
    key, value = tl.arange(0, KEYS), block * VALUES + tl.arange(0, VALUES)
    cells = key[:, None] * size + value[None, :]
    mask = (key[:, None] < size) & (value[None, :] < size)
    S = tl.zeros([KEYS, VALUES], tl.float32)
    here = (batch * heads + head) * size * size
    if state is not None:
        S = tl.load(state + here + cells, mask, other=0).to(tl.float32)
    at, step = (batch * length * heads + head) * size, heads * size
    if length > 0:
        f = tl.sum(_load(a + at, key, size)[:, None] * S, 0)
        r_t, w_t, k_t = _load(r + at, key, size), _load(w + at, key, size), _load(k + at, key, size)
        v_t, b_t = _load(v + at, value, size), _load(b + at, key, size)
        for t in range(length):
            if checkpoints is not None:
                if t % KEPT == 0:
                    kept = (batch * tl.cdiv(length, KEPT) + t // KEPT) * heads + head
                    tl.store(checkpoints + kept * size * size + cells, S, mask)
                tl.store(found + at + value, f, value < size)
            later = at + tl.where(t < length - 1, step, 0)  # behind the last step what is loaded is not used
            a_next = _load(a + later, key, size)
            r_next, w_next, k_next = (
                _load(r + later, key, size),
                _load(w + later, key, size),
                _load(k + later, key, size),
            )
            v_next, b_next = _load(v + later, value, size), _load(b + later, key, size)
            S = w_t[:, None] * S + b_t[:, None] * f[None, :] + k_t[:, None] * v_t[None, :]
            f = tl.sum(a_next[:, None] * S, 0)
            tl.store(y + at + value, tl.sum(r_t[:, None] * S, 0), value < size)
            r_t, w_t, k_t, v_t, b_t = r_next, w_next, k_next, v_next, b_next
            at += step
    tl.store(final + here + cells, S, mask)


@triton.jit
def _wkv7_backward(
    r,
    w,
    k,
    v,
    a,
    b,
    found,
    checkpoints,
    dy,
    dfinal,
    states,
    dr,
    dw,
    dk,
    dv,
    da,
    db,
    dstate,
    length,
    heads,
    size,
    blocks,
    share,
    KEYS: tl.constexpr,
    VALUES: tl.constexpr,
    KEPT: tl.constexpr,
):
    """`share`: entries of one block's gradients; `states`: room for an interval's, [programs, KEPT, KEYS, VALUES]."""
    batch, head, block = _place(heads, blocks)
    key, value = tl.arange(0, KEYS), block * VALUES + tl.arange(0, VALUES)
    cells = key[:, None] * size + value[None, :]
    mask = (key[:, None] < size) & (value[None, :] < size)
    room = tl.arange(0, KEYS)[:, None] * VALUES + tl.arange(0, VALUES)[None, :]
    states += tl.program_id(0).to(tl.int64) * KEPT * KEYS * VALUES
    G = tl.zeros([KEYS, VALUES], tl.float32)
    here = (batch * heads + head) * size * size
    if dfinal is not None:
        G = tl.load(dfinal + here + cells, mask, other=0).to(tl.float32)
    own = block.to(tl.int64) * share
    intervals = tl.cdiv(length, KEPT)
    for back in range(intervals):
        interval = intervals - 1 - back
        start = interval * KEPT
        steps = tl.minimum(KEPT, length - start)
        kept = (batch * intervals + interval) * heads + head
        S = tl.load(checkpoints + kept * size * size + cells, mask, other=0)
        for i in range(steps):
            at = ((batch * length + start + i) * heads + head) * size
            tl.store(states + i * KEYS * VALUES + room, S)
            kept_part = _load(w + at, key, size)[:, None] * S
            corrected = _load(b + at, key, size)[:, None] * _load(found + at, value, size)[None, :]
            S = kept_part + corrected + _load(k + at, key, size)[:, None] * _load(v + at, value, size)[None, :]
        tl.debug_barrier()  # a state may be read by other threads than wrote it
        for i in range(steps - 1, -1, -1):
            at = ((batch * length + start + i) * heads + head) * size
            before = tl.load(states + i * KEYS * VALUES + room)
            dy_t, f = _load(dy + at, value, size), _load(found + at, value, size)
            G += _load(r + at, key, size)[:, None] * dy_t[None, :]
            h = tl.sum(G * _load(b + at, key, size)[:, None], 0)
            to_v = tl.sum(G * _load(k + at, key, size)[:, None], 0)
            tl.store(dv + at + value, to_v, value < size)
            inside = key < size
            tl.store(dr + own + at + key, tl.sum(S * dy_t[None, :], 1), inside)
            tl.store(dw + own + at + key, tl.sum(G * before, 1), inside)
            tl.store(dk + own + at + key, tl.sum(G * _load(v + at, value, size)[None, :], 1), inside)
            tl.store(db + own + at + key, tl.sum(G * f[None, :], 1), inside)
            tl.store(da + own + at + key, tl.sum(before * h[None, :], 1), inside)
            G = _load(w + at, key, size)[:, None] * G + _load(a + at, key, size)[:, None] * h[None, :]
            S = before
        tl.debug_barrier()  # before the next interval's states are written over these
    tl.store(dstate + here + cells, G, mask)


def wkv7_forward(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, the final state, and with `keep` a S of every step and the checkpoints for `wkv7_backward`. Unchecked."""
    inputs = [tensor.contiguous() for tensor in (r, w, k, v, a, b)]
    state = None if state is None else state.contiguous()
    batch, length, heads, size = r.shape
    kept = checkpoints_shape(batch, length, heads, size) if keep else (0,)
    shapes = (batch, heads, size, size), r.shape if keep else (0,), kept
    y = r.new_empty(r.shape)
    final, found, checkpoints = (r.new_empty(shape, dtype=torch.float32) for shape in shapes)
    blocks, constants = _blocks(size)
    outputs = y, final, found, checkpoints if keep else None
    launch(_wkv7_forward, batch * heads * blocks, r, *inputs, state, *outputs, length, heads, size, blocks, **constants)
    return y, final, found, checkpoints


def wkv7_backward(
    r: Tensor,
    w: Tensor,
    k: Tensor,
    v: Tensor,
    a: Tensor,
    b: Tensor,
    found: Tensor,
    checkpoints: Tensor,
    dy: Tensor,
    dfinal: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of r, w, k, v, a, b, each in the data type of its tensor, and of the state."""
    inputs = [tensor.contiguous() for tensor in (r, w, k, v, a, b)]
    dfinal = None if dfinal is None else dfinal.contiguous()
    batch, length, heads, size = r.shape
    blocks, constants = _blocks(size)
    programs = batch * heads * blocks
    dv = v.new_empty(r.shape)
    dr, dw, dk, da, db = (r.new_empty(blocks, *r.shape, dtype=torch.float32) for _ in range(5))
    dstate = r.new_empty(batch, heads, size, size, dtype=torch.float32)
    room = programs, INTERVAL, constants["KEYS"], constants["VALUES"]
    states = r.new_empty(room, dtype=torch.float32)
    arguments = *inputs, found, checkpoints, dy.contiguous(), dfinal, states, dr, dw, dk, dv, da, db, dstate
    launch(_wkv7_backward, programs, r, *arguments, length, heads, size, blocks, r.numel(), **constants)
    shares = zip((dr, dw, dk, da, db), (r, w, k, a, b), strict=True)
    dr, dw, dk, da, db = (share.sum(0).to(tensor.dtype) for share, tensor in shares)
    return dr, dw, dk, dv, da, db, dstate


def _blocks(size: int) -> tuple[int, dict[str, int]]:
    """Blocks of values of a head, and the sizes of a program, powers of 2."""
    values = min(_VALUES, triton.next_power_of_2(size))
    constants = {"KEYS": triton.next_power_of_2(size), "VALUES": values, "KEPT": INTERVAL}
    return -(-size // values), constants
