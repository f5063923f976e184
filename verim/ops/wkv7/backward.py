"""The backward pass of RWKV-7's state evolution on the CPU, 16 keys to a vector.

Keys lie in the lanes, as most gradients are sums over values; a task is a whole head, walked in blocks of 16
values. Every `INTERVAL` steps the forward pass has kept S (a checkpoint), and at every step f = a S; so the states of
an interval take no sum to recompute. With G the gradient of S_t, dy_tᵀ r_t added, in coordinates [value, key] as
everywhere in the backward pass:

    dr = dy S_t     dk = v G     dv = G kᵀ     db = f G     dw = sum over values of G ⊙ S_{t-1}
    h = G bᵀ, the gradient of f     da = h S_{t-1}     the gradient of S_{t-1}: G diag(w) + hᵀ a

Two walks over a block of G, as h must be complete before it is used: `_gather` and `_pass_on`.
"""

import numpy as np
from numba import njit

from verim.ops.compiled import compiled
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

INTERVAL = 16  # steps between checkpoints

_SQUARE = LANES * ROW
# Of a block of 16 values at one step, as vectors that lie side by side: dy, v, f, h, and rows that sum to dv and h.
_DY, _V, _F, _H, _TO_V, _TO_F = 0 * ROW, 1 * ROW, 2 * ROW, 3 * ROW, 4 * ROW, (4 + LANES) * ROW
_BLOCK = (4 + 2 * LANES) * ROW


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
        dy0, dy1 = broadcast(number + _DY), broadcast(number + _DY + BYTES)
        dy2, dy3 = broadcast(number + _DY + 2 * BYTES), broadcast(number + _DY + 3 * BYTES)
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
def backward(
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
            r_begin = r + batch * r_batch + head * r_head + start * r_time
            w_begin = w + batch * w_batch + head * w_head + start * w_time
            k_begin = k + batch * k_batch + head * k_head + start * k_time
            v_begin = v + batch * v_batch + head * v_head + start * v_time
            a_begin = a + batch * a_batch + head * a_head + start * a_time
            b_begin = b + batch * b_batch + head * b_head + start * b_time
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


def backward_scratch(head_dim: int) -> int:
    """Bytes that a thread of `backward` needs: a head's gradient, an interval's sums, and a block's states in it."""
    blocks = -(-head_dim // LANES)
    record = LANES * blocks * ROW
    return blocks * record + INTERVAL * 5 * blocks * ROW + _BLOCK + _SQUARE + (INTERVAL + 1) * (record + ROW)
