"""The recurrence step by step over states in memory, for few positions: decoding."""

from typing import Any

import numpy as np
from numba import njit

from verim.ops.compiled import compiled
from verim.ops.vectors import (
    BYTES,
    LANES,
    LOG2_E,
    ROW,
    broadcast,
    exp2,
    full,
    load,
    load_lanes,
    load_scalar,
    multiply,
    multiply_add,
    store,
    store_lanes,
)

_ZERO, _LOG2_E = np.float32(0), np.float32(LOG2_E)


@njit(nogil=True, error_model="numpy")
def _walk_columns(
    before: int,
    after: int,
    line: int,
    B: int,
    C: int,
    decay: Any,
    step: Any,
    x: int,
    skip: Any,
    y: int,
    state: int,
    n: int,
) -> None:
    """One step of `n` columns, at most 16, of a head's state in memory."""
    value = load_lanes(x, n)
    driven, total = multiply(step, value), multiply(skip, value)
    for k in range(state):
        old = load_lanes(before + k * line, n)
        new = multiply_add(decay, old, multiply(driven, broadcast(B + k * BYTES)))
        store_lanes(after + k * line, n, new)
        total = multiply_add(new, broadcast(C + k * BYTES), total)
    store_lanes(y, n, total)


@njit(nogil=True, error_model="numpy")
def _walk_four(
    before: int, after: int, line: int, B: int, C: int, decay: Any, step: Any, x: int, skip: Any, y: int, state: int
) -> None:
    """One step of 64 columns of a head's state in memory."""
    x_0, x_1, x_2, x_3 = load(x), load(x + ROW), load(x + 2 * ROW), load(x + 3 * ROW)
    y_0, y_1, y_2, y_3 = multiply(skip, x_0), multiply(skip, x_1), multiply(skip, x_2), multiply(skip, x_3)
    x_0, x_1, x_2, x_3 = multiply(step, x_0), multiply(step, x_1), multiply(step, x_2), multiply(step, x_3)
    for k in range(state):
        b, c = broadcast(B + k * BYTES), broadcast(C + k * BYTES)
        old, new = before + k * line, after + k * line
        h_0 = multiply_add(decay, load(old), multiply(x_0, b))
        h_1 = multiply_add(decay, load(old + ROW), multiply(x_1, b))
        h_2 = multiply_add(decay, load(old + 2 * ROW), multiply(x_2, b))
        h_3 = multiply_add(decay, load(old + 3 * ROW), multiply(x_3, b))
        store(new, h_0)
        store(new + ROW, h_1)
        store(new + 2 * ROW, h_2)
        store(new + 3 * ROW, h_3)
        y_0, y_1 = multiply_add(h_0, c, y_0), multiply_add(h_1, c, y_1)
        y_2, y_3 = multiply_add(h_2, c, y_2), multiply_add(h_3, c, y_3)
    store(y, y_0)
    store(y + ROW, y_1)
    store(y + 2 * ROW, y_2)
    store(y + 3 * ROW, y_3)


@compiled
def walk(
    first: int,
    last: int,
    scratch: int,
    length: int,
    heads: int,
    dim: int,
    groups: int,
    state: int,
    x: int,
    x_batch: int,
    x_time: int,
    x_head: int,
    delta: int,
    delta_batch: int,
    delta_time: int,
    delta_head: int,
    A: int,
    B: int,
    B_batch: int,
    B_time: int,
    B_group: int,
    C: int,
    C_batch: int,
    C_time: int,
    C_group: int,
    D: int,
    initial: int,
    y: int,
    final: int,
) -> None:
    """Compiled. The recurrence as it is defined, a head to a task, its state in `final`. `scratch` stays unused."""
    line = dim * BYTES
    for task in range(first, last):
        batch, head = task // heads, task % heads
        group = head // (heads // groups)
        after = final + task * state * line
        before = after if initial == 0 else initial + task * state * line
        if initial == 0:
            for k in range(0, state * dim, LANES):
                store_lanes(after + k * BYTES, min(state * dim - k, LANES), full(_ZERO))
        rate, skip = full(load_scalar(A + head * BYTES) * _LOG2_E), full(_ZERO)
        if D != 0:
            skip = broadcast(D + head * BYTES)
        for t in range(length):
            step = broadcast(delta + batch * delta_batch + head * delta_head + t * delta_time)
            decay = exp2(multiply(step, rate))
            B_row = B + batch * B_batch + group * B_group + t * B_time
            C_row = C + batch * C_batch + group * C_group + t * C_time
            place = x + batch * x_batch + head * x_head + t * x_time
            to = y + ((batch * length + t) * heads + head) * line
            c = 0
            while dim - c >= 4 * LANES:
                at = c * BYTES
                _walk_four(before + at, after + at, line, B_row, C_row, decay, step, place + at, skip, to + at, state)
                c += 4 * LANES
            while c < dim:
                at, n = c * BYTES, min(dim - c, LANES)
                _walk_columns(
                    before + at, after + at, line, B_row, C_row, decay, step, place + at, skip, to + at, state, n
                )
                c += LANES
            before = after
