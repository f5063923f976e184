"""RWKV-7's state evolution on the CPU: S in the first-level cache, 16 values to a vector.

Values lie in the lanes: a row of S, which belongs to a key, is a few vectors, and the numbers of r, w, k, b, a
are broadcast. The columns of S do not know of each other, so a task is one head of one batch row and a group of
columns. One walk over S does a step: it writes the new S and sums up r S, and a S of the next step. The way
back stands in `backward.py`.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from verim.ops.compiled import compiled
from verim.ops.memory import address_of
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
    store,
    store_lanes,
)
from verim.ops.wkv7.backward import INTERVAL, backward, backward_scratch
from verim.ops.workers import run_tasks

GROUP = 4  # vectors of values that share the numbers of a key
AHEAD = 4  # steps that are asked for before they are needed

_STATE_ROW = GROUP * ROW

_FORWARD_NANOSECONDS, _BACKWARD_NANOSECONDS = 2.0, 12.0  # for 16 entries of the state and one step


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
        wk, kk, bk = broadcast(w + at), broadcast(k + at), broadcast(b + at)
        rk, ak = broadcast(r + at), broadcast(a + at)
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
                    state_at, found_at, v_at, y_at = scratch + at, founds + at, v_row + at, y_row + at
                    _step(state_at, found_at, keys, r_row, w_row, k_row, b_row, next_a, v_at, y_at, count)
            r_row += r_time
            w_row += w_time
            k_row += k_time
            v_row += v_time
            a_row += a_time
            b_row += b_time
            y_row += heads * row
            found_row += heads * row
        _write_state(final + here, row, scratch, keys, vectors, lanes)


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
    work = _BACKWARD_NANOSECONDS * batch * length * heads * head_dim * -(-head_dim // LANES)
    run_tasks(backward, batch * heads, work, backward_scratch(head_dim) // BYTES, arguments)
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
