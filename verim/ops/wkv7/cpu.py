"""RWKV-7's state evolution on the CPU: the states of a few steps in the first-level cache, 16 lanes to a vector.

Forward, values lie in the lanes: a row of S, which belongs to a key, is a few vectors, and the numbers of r, w, k, b, a
are broadcast. The columns of S do not know of each other, so a task is one head of one batch row and a group of
columns. One walk over S does a step: it writes the new S and sums up r S, and a S of the next step.

Backward, keys lie in the lanes, as most gradients are sums over values; a task is a whole head, walked in blocks of 16
values. Every `INTERVAL` steps the forward pass has kept S (a checkpoint), and at every step f = a S; so the states of
an interval take no sum to recompute. With G the gradient of S_t, dy_tᵀ r_t added, in coordinates [value, key] as
everywhere in the backward pass:

    dr = dy S_t     dk = v G     dv = G kᵀ     db = f G     dw = sum over values of G ⊙ S_{t-1}
    h = G bᵀ, the gradient of f     da = h S_{t-1}     the gradient of S_{t-1}: G diag(w) + hᵀ a

Two walks over a block of G, as h must be complete before it is used: `_gather` and `_pass_on`.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from verim.ops.compiled import compiled
from verim.ops.memory import address_of
from verim.ops.tiles import fill, read_square, write_square
from verim.ops.vectors import (
    BYTES,
    LANES,
    ROW,
    broadcast,
    full,
    load,
    load_lanes,
    multiply,
    multiply_add,
    prefetch,
    prefetch_to_write,
    store,
    store_lanes,
    sum_rows,
)
from verim.ops.workers import run_tasks

INTERVAL = 16  # steps between checkpoints
GROUP = 4  # vectors of values that share the numbers of a key
AHEAD = 4  # steps that are asked for before they are needed

_STATE_ROW = GROUP * ROW
_SQUARE = LANES * ROW
# Of a block of 16 values at one step, as vectors that lie side by side: dy, v, f, h, and rows that sum to dv and h.
_DY, _V, _F, _H, _TO_V, _TO_F = 0 * ROW, 1 * ROW, 2 * ROW, 3 * ROW, 4 * ROW, (4 + LANES) * ROW
_BLOCK = (4 + 2 * LANES) * ROW

_FORWARD_NANOSECONDS, _BACKWARD_NANOSECONDS = 1.5, 5.0  # for 16 entries of the state and one step


@njit(nogil=True, error_model="numpy")
def _step(
    state: int, found: int, keys: int, r: int, w: int, k: int, b: int, a: int, v: int, y: int, lanes: int
) -> None:
    """One step of 16 columns: `found` holds a S of this step, then that of the next, whose a is given."""
    f, value = load(found), load_lanes(v, lanes)
    out = next_found = full(np.float32(0))
    for key in range(keys):
        at, here = key * BYTES, state + key * _STATE_ROW
        s = multiply_add(f, broadcast(b + at), multiply(value, broadcast(k + at)))
        s = multiply_add(load(here), broadcast(w + at), s)
        store(here, s)
        out = multiply_add(s, broadcast(r + at), out)
        next_found = multiply_add(s, broadcast(a + at), next_found)
    store_lanes(y, lanes, out)
    store(found, next_found)


@njit(nogil=True, error_model="numpy")
def _step_group(
    state: int, found: int, keys: int, r: int, w: int, k: int, b: int, a: int, v: int, y: int, lanes: int
) -> None:
    """The same for a whole group of columns: a number is loaded once for all four vectors."""
    f0, f1, f2, f3 = load(found), load(found + ROW), load(found + 2 * ROW), load(found + 3 * ROW)
    v0, v1, v2, v3 = load(v), load(v + ROW), load(v + 2 * ROW), load_lanes(v + 3 * ROW, lanes)
    y0 = y1 = y2 = y3 = n0 = n1 = n2 = n3 = full(np.float32(0))
    for key in range(keys):
        at, here = key * BYTES, state + key * _STATE_ROW
        wk, kk, bk, rk, ak = (
            broadcast(w + at),
            broadcast(k + at),
            broadcast(b + at),
            broadcast(r + at),
            broadcast(a + at),
        )
        s0 = multiply_add(load(here), wk, multiply_add(f0, bk, multiply(v0, kk)))
        s1 = multiply_add(load(here + ROW), wk, multiply_add(f1, bk, multiply(v1, kk)))
        s2 = multiply_add(load(here + 2 * ROW), wk, multiply_add(f2, bk, multiply(v2, kk)))
        s3 = multiply_add(load(here + 3 * ROW), wk, multiply_add(f3, bk, multiply(v3, kk)))
        store(here, s0)
        store(here + ROW, s1)
        store(here + 2 * ROW, s2)
        store(here + 3 * ROW, s3)
        y0, y1 = multiply_add(s0, rk, y0), multiply_add(s1, rk, y1)
        y2, y3 = multiply_add(s2, rk, y2), multiply_add(s3, rk, y3)
        n0, n1 = multiply_add(s0, ak, n0), multiply_add(s1, ak, n1)
        n2, n3 = multiply_add(s2, ak, n2), multiply_add(s3, ak, n3)
    store(y, y0)
    store(y + ROW, y1)
    store(y + 2 * ROW, y2)
    store_lanes(y + 3 * ROW, lanes, y3)
    store(found, n0)
    store(found + ROW, n1)
    store(found + 2 * ROW, n2)
    store(found + 3 * ROW, n3)


@njit(nogil=True, error_model="numpy")
def _begin(state: int, found: int, keys: int, vectors: int, lanes: int, given: int, row: int, a: int) -> None:
    """The state at `given` (0: zeros), whose rows lie `row` bytes apart, and a S of the first step if there is one."""
    for vector in range(vectors):
        count = lanes if vector == vectors - 1 else LANES
        total = full(np.float32(0))
        for key in range(keys):
            s = full(np.float32(0))
            if given != 0:
                s = load_lanes(given + key * row + vector * ROW, count)
            store(state + key * _STATE_ROW + vector * ROW, s)
            if a != 0:
                total = multiply_add(s, broadcast(a + key * BYTES), total)
        store(found + vector * ROW, total)


@njit(nogil=True, error_model="numpy")
def _write_state(target: int, row: int, state: int, keys: int, vectors: int, lanes: int) -> None:
    for key in range(keys):
        for vector in range(vectors):
            count = lanes if vector == vectors - 1 else LANES
            store_lanes(target + key * row + vector * ROW, count, load(state + key * _STATE_ROW + vector * ROW))


@compiled
def _forward(
    first: int,
    last: int,
    scratch: int,
    length: int,
    heads: int,
    keys: int,
    r: int,
    r_batch: int,
    r_time: int,
    r_head: int,
    w: int,
    w_batch: int,
    w_time: int,
    w_head: int,
    k: int,
    k_batch: int,
    k_time: int,
    k_head: int,
    v: int,
    v_batch: int,
    v_time: int,
    v_head: int,
    a: int,
    a_batch: int,
    a_time: int,
    a_head: int,
    b: int,
    b_batch: int,
    b_time: int,
    b_head: int,
    state: int,
    y: int,
    final: int,
    found: int,
    checkpoints: int,
) -> None:
    """Compiled. Tensors are addresses (0 for None); `_batch`, `_time` and `_head` are strides in bytes."""
    row = keys * BYTES
    groups = (keys + GROUP * LANES - 1) // (GROUP * LANES)
    intervals = (length + INTERVAL - 1) // INTERVAL
    founds = scratch + keys * _STATE_ROW
    for task in range(first, last):
        batch, head, group = task // groups // heads, task // groups % heads, task % groups
        offset = group * GROUP * ROW
        width = min(keys - group * GROUP * LANES, GROUP * LANES)
        vectors = (width + LANES - 1) // LANES
        lanes = width - (vectors - 1) * LANES
        r_row, w_row = r + batch * r_batch + head * r_head, w + batch * w_batch + head * w_head
        k_row, v_row = k + batch * k_batch + head * k_head, v + batch * v_batch + head * v_head + offset
        a_row, b_row = a + batch * a_batch + head * a_head, b + batch * b_batch + head * b_head
        out = (batch * length * heads + head) * row + offset
        y_row, found_row = y + out, found + out
        here = (batch * heads + head) * keys * row + offset
        given = 0 if state == 0 else state + here
        _begin(scratch, founds, keys, vectors, lanes, given, row, a_row if length > 0 else 0)
        for t in range(length):
            if checkpoints != 0:
                if t % INTERVAL == 0:
                    kept = ((batch * intervals + t // INTERVAL) * heads + head) * keys * row + offset
                    _write_state(checkpoints + kept, row, scratch, keys, vectors, lanes)
                for vector in range(vectors):
                    count = lanes if vector == vectors - 1 else LANES
                    store_lanes(found_row + vector * ROW, count, load(founds + vector * ROW))
            for line in range(0, row, ROW):
                prefetch(r_row + AHEAD * r_time + line)
                prefetch(w_row + AHEAD * w_time + line)
                prefetch(k_row + AHEAD * k_time + line)
                prefetch(v_row + AHEAD * v_time + line)
                prefetch(a_row + AHEAD * a_time + line)
                prefetch(b_row + AHEAD * b_time + line)
            next_a = a_row + a_time if t < length - 1 else a_row  # behind the last step what it finds is not used
            if vectors == GROUP:
                _step_group(scratch, founds, keys, r_row, w_row, k_row, b_row, next_a, v_row, y_row, lanes)
            else:
                for vector in range(vectors):
                    at = vector * ROW
                    count = lanes if vector == vectors - 1 else LANES
                    _step(
                        scratch + at,
                        founds + at,
                        keys,
                        r_row,
                        w_row,
                        k_row,
                        b_row,
                        next_a,
                        v_row + at,
                        y_row + at,
                        count,
                    )
            r_row += r_time
            w_row += w_time
            k_row += k_time
            v_row += v_time
            a_row += a_time
            b_row += b_time
            y_row += heads * row
            found_row += heads * row
        _write_state(final + here, row, scratch, keys, vectors, lanes)


@njit(nogil=True, error_model="numpy")
def _read_turned(
    target: int, target_row: int, source: int, source_row: int, keys: int, values: int, spare: int
) -> None:
    """target[value, key] = source[key, value] for 16 values, all keys, filled up with zeros; 0 as source: zeros."""
    for key in range(0, keys, LANES):
        if source == 0:
            for value in range(LANES):
                store(target + value * target_row + key * BYTES, full(np.float32(0)))
        else:
            count = min(keys - key, LANES)
            read_square(spare, source + key * source_row, source_row, BYTES, count, values)
            for value in range(LANES):
                store(target + value * target_row + key * BYTES, load(spare + value * ROW))


@njit(nogil=True, error_model="numpy")
def _recompute(after: int, before: int, row: int, keys: int, block: int, w: int, k: int, b: int) -> None:
    """The next state of 16 values."""
    for key in range(0, keys, LANES):
        at, count = key * BYTES, min(keys - key, LANES)
        wk, kk, bk = load_lanes(w + at, count), load_lanes(k + at, count), load_lanes(b + at, count)
        for value in range(LANES):
            place, number = value * row + at, block + value * BYTES
            s = multiply_add(broadcast(number + _F), bk, multiply(broadcast(number + _V), kk))
            store(after + place, multiply_add(load(before + place), wk, s))


@njit(nogil=True, error_model="numpy")
def _gather(
    G: int, after: int, before: int, row: int, keys: int, block: int, sums: int, r: int, k: int, b: int
) -> None:
    """dyᵀ r goes into G; then all sums over values but da's, and the rows whose sums over keys are dv and h."""
    zero = full(np.float32(0))
    for value in range(0, LANES, 4):
        number, first = block + value * BYTES, value * row
        dy0, dy1, dy2, dy3 = (
            broadcast(number + _DY),
            broadcast(number + _DY + BYTES),
            broadcast(number + _DY + 2 * BYTES),
            broadcast(number + _DY + 3 * BYTES),
        )
        to_v0 = to_v1 = to_v2 = to_v3 = to_f0 = to_f1 = to_f2 = to_f3 = zero
        for key in range(0, keys, LANES):
            at, count = key * BYTES, min(keys - key, LANES)
            rk, kk, bk = load_lanes(r + at, count), load_lanes(k + at, count), load_lanes(b + at, count)
            here = first + at
            g0 = multiply_add(dy0, rk, load(G + here))
            g1 = multiply_add(dy1, rk, load(G + here + row))
            g2 = multiply_add(dy2, rk, load(G + here + 2 * row))
            g3 = multiply_add(dy3, rk, load(G + here + 3 * row))
            store(G + here, g0)
            store(G + here + row, g1)
            store(G + here + 2 * row, g2)
            store(G + here + 3 * row, g3)
            to_v0, to_v1 = multiply_add(g0, kk, to_v0), multiply_add(g1, kk, to_v1)
            to_v2, to_v3 = multiply_add(g2, kk, to_v2), multiply_add(g3, kk, to_v3)
            to_f0, to_f1 = multiply_add(g0, bk, to_f0), multiply_add(g1, bk, to_f1)
            to_f2, to_f3 = multiply_add(g2, bk, to_f2), multiply_add(g3, bk, to_f3)
            place = sums + at
            dr = multiply_add(dy0, load(after + here), load(place))
            dr = multiply_add(dy1, load(after + here + row), dr)
            dr = multiply_add(dy2, load(after + here + 2 * row), dr)
            store(place, multiply_add(dy3, load(after + here + 3 * row), dr))
            dw = multiply_add(g0, load(before + here), load(place + row))
            dw = multiply_add(g1, load(before + here + row), dw)
            dw = multiply_add(g2, load(before + here + 2 * row), dw)
            store(place + row, multiply_add(g3, load(before + here + 3 * row), dw))
            dk = multiply_add(g0, broadcast(number + _V), load(place + 2 * row))
            dk = multiply_add(g1, broadcast(number + _V + BYTES), dk)
            dk = multiply_add(g2, broadcast(number + _V + 2 * BYTES), dk)
            store(place + 2 * row, multiply_add(g3, broadcast(number + _V + 3 * BYTES), dk))
            db = multiply_add(g0, broadcast(number + _F), load(place + 3 * row))
            db = multiply_add(g1, broadcast(number + _F + BYTES), db)
            db = multiply_add(g2, broadcast(number + _F + 2 * BYTES), db)
            store(place + 3 * row, multiply_add(g3, broadcast(number + _F + 3 * BYTES), db))
        rows = block + value * ROW
        store(rows + _TO_V, to_v0)
        store(rows + _TO_V + ROW, to_v1)
        store(rows + _TO_V + 2 * ROW, to_v2)
        store(rows + _TO_V + 3 * ROW, to_v3)
        store(rows + _TO_F, to_f0)
        store(rows + _TO_F + ROW, to_f1)
        store(rows + _TO_F + 2 * ROW, to_f2)
        store(rows + _TO_F + 3 * ROW, to_f3)


@njit(nogil=True, error_model="numpy")
def _pass_on(G: int, before: int, row: int, keys: int, block: int, sums: int, w: int, a: int) -> None:
    """The gradient of the state before, and da: the fifth row of `sums`."""
    for key in range(0, keys, LANES):
        at, count = key * BYTES, min(keys - key, LANES)
        wk, ak = load_lanes(w + at, count), load_lanes(a + at, count)
        da = load(sums + 4 * row + at)
        for value in range(LANES):
            place, h = value * row + at, broadcast(block + value * BYTES + _H)
            store(G + place, multiply_add(load(G + place), wk, multiply(h, ak)))
            da = multiply_add(h, load(before + place), da)
        store(sums + 4 * row + at, da)


@compiled
def _backward(
    first: int,
    last: int,
    scratch: int,
    length: int,
    heads: int,
    keys: int,
    r: int,
    r_batch: int,
    r_time: int,
    r_head: int,
    w: int,
    w_batch: int,
    w_time: int,
    w_head: int,
    k: int,
    k_batch: int,
    k_time: int,
    k_head: int,
    v: int,
    v_batch: int,
    v_time: int,
    v_head: int,
    a: int,
    a_batch: int,
    a_time: int,
    a_head: int,
    b: int,
    b_batch: int,
    b_time: int,
    b_head: int,
    dy: int,
    dy_batch: int,
    dy_time: int,
    dy_head: int,
    found: int,
    checkpoints: int,
    dfinal: int,
    dr: int,
    dw: int,
    dk: int,
    dv: int,
    da: int,
    db: int,
    dstate: int,
) -> None:
    """Compiled. Tensors are addresses (0 for None); `_batch`, `_time` and `_head` are strides in bytes."""
    row = keys * BYTES
    blocks = (keys + LANES - 1) // LANES
    wide = blocks * ROW  # of a row in scratch
    intervals = (length + INTERVAL - 1) // INTERVAL
    size = LANES * wide + ROW  # of a step's record: not a multiple of 4096, see selective_scan
    gradients = scratch
    all_sums = gradients + blocks * LANES * wide
    block = all_sums + INTERVAL * 5 * wide
    spare = block + _BLOCK
    records = spare + _SQUARE
    for task in range(first, last):
        batch, head = task // heads, task % heads
        here = (batch * heads + head) * keys * row
        for index in range(blocks):
            value = index * LANES
            given = 0 if dfinal == 0 else dfinal + here + value * BYTES
            G = gradients + value * wide
            _read_turned(G, wide, given, row, keys, min(keys - value, LANES), spare)
        for back in range(intervals):
            interval = intervals - 1 - back
            start = interval * INTERVAL
            steps = min(INTERVAL, length - start)
            fill(all_sums, steps * 5 * blocks * LANES, np.float32(0))
            kept = checkpoints + ((batch * intervals + interval) * heads + head) * keys * row
            r_begin, w_begin = (
                r + batch * r_batch + head * r_head + start * r_time,
                w + batch * w_batch + head * w_head + start * w_time,
            )
            k_begin, v_begin = (
                k + batch * k_batch + head * k_head + start * k_time,
                v + batch * v_batch + head * v_head + start * v_time,
            )
            a_begin, b_begin = (
                a + batch * a_batch + head * a_head + start * a_time,
                b + batch * b_batch + head * b_head + start * b_time,
            )
            dy_begin = dy + batch * dy_batch + head * dy_head + start * dy_time
            out = ((batch * length + start) * heads + head) * row
            for index in range(blocks):
                at, lanes = index * ROW, min(keys - index * LANES, LANES)
                G = gradients + index * LANES * wide
                _read_turned(records, wide, kept + at, row, keys, lanes, spare)
                for t in range(steps):
                    prefetch_to_write(dv + out + t * heads * row + at)
                    store(block + _V, load_lanes(v_begin + t * v_time + at, lanes))
                    store(block + _F, load_lanes(found + out + t * heads * row + at, lanes))
                    before = records + t * size
                    w_row, k_row, b_row = w_begin + t * w_time, k_begin + t * k_time, b_begin + t * b_time
                    _recompute(before + size, before, wide, keys, block, w_row, k_row, b_row)
                for back_step in range(steps):
                    t = steps - 1 - back_step
                    place = out + t * heads * row + at
                    prefetch_to_write(dr + place)
                    prefetch_to_write(dw + place)
                    prefetch_to_write(dk + place)
                    prefetch_to_write(da + place)
                    prefetch_to_write(db + place)
                    # the same place an interval earlier, and a part of its checkpoint
                    prefetch(r_begin + (t - INTERVAL) * r_time + at)
                    prefetch(w_begin + (t - INTERVAL) * w_time + at)
                    prefetch(k_begin + (t - INTERVAL) * k_time + at)
                    prefetch(v_begin + (t - INTERVAL) * v_time + at)
                    prefetch(a_begin + (t - INTERVAL) * a_time + at)
                    prefetch(b_begin + (t - INTERVAL) * b_time + at)
                    prefetch(dy_begin + (t - INTERVAL) * dy_time + at)
                    prefetch(found + place - INTERVAL * heads * row)
                    for key in range(t, keys, INTERVAL):
                        prefetch(kept - heads * keys * row + key * row + at)
                    store(block + _V, load_lanes(v_begin + t * v_time + at, lanes))
                    store(block + _F, load_lanes(found + out + t * heads * row + at, lanes))
                    store(block + _DY, load_lanes(dy_begin + t * dy_time + at, lanes))
                    before, sums = records + t * size, all_sums + t * 5 * wide
                    r_row, k_row, b_row = r_begin + t * r_time, k_begin + t * k_time, b_begin + t * b_time
                    _gather(G, before + size, before, wide, keys, block, sums, r_row, k_row, b_row)
                    to_v = sum_rows(block + _TO_V, ROW, LANES // 2 * ROW)
                    store_lanes(dv + out + t * heads * row + at, lanes, to_v)
                    store(block + _H, sum_rows(block + _TO_F, ROW, LANES // 2 * ROW))
                    _pass_on(G, before, wide, keys, block, sums, w_begin + t * w_time, a_begin + t * a_time)
            for t in range(steps):
                for index in range(blocks):
                    at, lanes = index * ROW, min(keys - index * LANES, LANES)
                    sums, place = all_sums + t * 5 * wide + at, out + t * heads * row + at
                    store_lanes(dr + place, lanes, load(sums))
                    store_lanes(dw + place, lanes, load(sums + wide))
                    store_lanes(dk + place, lanes, load(sums + 2 * wide))
                    store_lanes(db + place, lanes, load(sums + 3 * wide))
                    store_lanes(da + place, lanes, load(sums + 4 * wide))
        for value in range(0, keys, LANES):
            for key in range(0, keys, LANES):
                square = gradients + value * wide + key * BYTES
                target = dstate + here + key * row + value * BYTES
                write_square(target, row, square, wide, keys - key, keys - value, spare)


def wkv7_forward(
    r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y, the final state, and with `keep` a S of every step and the checkpoints for `wkv7_backward`. Unchecked."""
    inputs = [_side_by_side(tensor) for tensor in (r, w, k, v, a, b)]
    state = None if state is None else state.contiguous()
    batch, length, heads, head_dim = r.shape
    kept = checkpoints_shape(batch, length, heads, head_dim) if keep else (0,)
    shapes = r.shape, (batch, heads, head_dim, head_dim), r.shape if keep else (0,), kept
    y, final, found, checkpoints = (torch.empty(shape, dtype=torch.float32, device="cpu") for shape in shapes)
    arguments: tuple[int, ...] = (length, heads, head_dim, *_places(inputs), address_of(state))
    arguments += (y.data_ptr(), final.data_ptr(), found.data_ptr(), checkpoints.data_ptr() if keep else 0)
    tasks = batch * heads * -(-head_dim // (GROUP * LANES))
    work = _FORWARD_NANOSECONDS * batch * length * heads * head_dim * -(-head_dim // LANES)
    run_tasks(_forward, tasks, work, (head_dim + 1) * _STATE_ROW // BYTES, arguments)
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
    """The gradients of r, w, k, v, a, b and the state."""
    inputs = [_side_by_side(tensor) for tensor in (r, w, k, v, a, b, dy)]
    dfinal = None if dfinal is None else dfinal.contiguous()
    batch, length, heads, head_dim = r.shape
    shapes = *[r.shape] * 6, (batch, heads, head_dim, head_dim)
    dr, dw, dk, dv, da, db, dstate = (torch.empty(shape, dtype=torch.float32, device="cpu") for shape in shapes)
    arguments: tuple[int, ...] = (length, heads, head_dim, *_places(inputs), found.data_ptr(), checkpoints.data_ptr())
    arguments += (address_of(dfinal), *(tensor.data_ptr() for tensor in (dr, dw, dk, dv, da, db, dstate)))
    blocks = -(-head_dim // LANES)
    record = LANES * blocks * ROW
    scratch = blocks * record + INTERVAL * 5 * blocks * ROW + _BLOCK + _SQUARE + (INTERVAL + 1) * (record + ROW)
    work = _BACKWARD_NANOSECONDS * batch * length * heads * head_dim * blocks
    run_tasks(_backward, batch * heads, work, scratch // BYTES, arguments)
    return dr, dw, dk, dv, da, db, dstate


def _side_by_side(tensor: Tensor) -> Tensor:
    """`tensor` itself where the numbers of a head lie side by side, else a copy."""
    return tensor if tensor.stride(3) == 1 else tensor.contiguous()


def _places(tensors: list[Tensor]) -> list[int]:
    """For each the address, and the bytes from one batch row, step and head to the next."""
    return [place for x in tensors for place in (x.data_ptr(), *(stride * BYTES for stride in x.stride()[:3]))]


def checkpoints_shape(batch: int, length: int, heads: int, head_dim: int) -> tuple[int, ...]:
    """Of what the forward pass keeps: the state at the beginning of every interval."""
    return batch, -(-length // INTERVAL), heads, head_dim, head_dim
