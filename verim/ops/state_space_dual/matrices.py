"""What the passes over the chunks share: matrices in scratch memory, and the matrix of decays."""

from typing import Any

import numpy as np
from numba import njit

from verim.ops.lanes import between, where_positive
from verim.ops.products import product_of
from verim.ops.tiles import fill
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
    prefetch,
    store,
    store_lanes,
    store_scalar,
    subtract,
)

_ZERO, _ONE, _LOG2_E, _LOWEST = np.float32(0), np.float32(1), np.float32(LOG2_E), np.float32(2.0**-100)

_add_6x4, _add_2x4, _add_6x2, _add_2x2, _add_6x1, _add_2x1 = (
    product_of(rows, vectors, adds=True) for vectors in (4, 2, 1) for rows in (6, 2)
)


@njit(nogil=True, error_model="numpy")
def add_product(
    out: int, out_row: int, x: int, x_step: int, y: int, y_row: int, y_step: int, count: int, rows: int, vectors: int
) -> None:
    """out[r, :] += sum over n < count of y[r, n] x[n, :]; where `rows` is odd, one more row is read and written."""
    column = 0
    while vectors - column >= 4:
        at, r = column * ROW, 0
        while rows - r >= 6:
            _add_6x4(out + r * out_row + at, out_row, x + at, x_step, y + r * y_row, y_row, y_step, count)
            r += 6
        while rows > r:
            _add_2x4(out + r * out_row + at, out_row, x + at, x_step, y + r * y_row, y_row, y_step, count)
            r += 2
        column += 4
    if vectors - column >= 2:
        at, r = column * ROW, 0
        while rows - r >= 6:
            _add_6x2(out + r * out_row + at, out_row, x + at, x_step, y + r * y_row, y_row, y_step, count)
            r += 6
        while rows > r:
            _add_2x2(out + r * out_row + at, out_row, x + at, x_step, y + r * y_row, y_row, y_step, count)
            r += 2
        column += 2
    if vectors > column:
        at, r = column * ROW, 0
        while rows - r >= 6:
            _add_6x1(out + r * out_row + at, out_row, x + at, x_step, y + r * y_row, y_row, y_step, count)
            r += 6
        while rows > r:
            _add_2x1(out + r * out_row + at, out_row, x + at, x_step, y + r * y_row, y_row, y_step, count)
            r += 2


@njit(nogil=True, error_model="numpy")
def read_rows(target: int, line: int, source: int, stride: int, rows: int, width: int, padded: int) -> None:
    """Rows of `width` floats into rows of `line` bytes, zeros behind them and in rows up to `padded`."""
    for r in range(rows):
        for c in range(0, width, LANES):
            store(target + r * line + c * BYTES, load_lanes(source + r * stride + c * BYTES, min(width - c, LANES)))
    for r in range(rows, padded):
        fill(target + r * line, line // BYTES, _ZERO)


@njit(nogil=True, error_model="numpy")
def write_rows(target: int, stride: int, source: int, line: int, rows: int, width: int) -> None:
    for r in range(rows):
        for c in range(0, width, LANES):
            store_lanes(target + r * stride + c * BYTES, min(width - c, LANES), load(source + r * line + c * BYTES))


@njit(nogil=True, error_model="numpy")
def scale_rows(target: int, line: int, rows: int, factor: Any) -> None:
    """All of the rows times one number."""
    for place in range(target, target + rows * line, ROW):
        store(place, multiply(load(place), factor))


@njit(nogil=True, error_model="numpy")
def read_steps(steps: int, line: int, delta: int, delta_time: int, count: int, A: Any) -> Any:
    """Four rows of a chunk: delta, e^(delta A), and its products from the start and to the end. The product of all."""
    fill(steps, line, _ZERO)
    for t in range(count):
        store_scalar(steps + t * BYTES, load_scalar(delta + t * delta_time))
    decay, from_start, to_end = steps + line, steps + 2 * line, steps + 3 * line
    for t in range(0, line, ROW):
        store(decay + t, flushed(exp2(multiply(load(steps + t), full(A * _LOG2_E)))))
    product = _ONE
    for t in range(count):
        product *= load_scalar(decay + t * BYTES)
        product = _ZERO if product < _LOWEST else product
        store_scalar(from_start + t * BYTES, product)
    product = _ONE
    for t in range(count - 1, -1, -1):
        store_scalar(to_end + t * BYTES, product)
        product *= load_scalar(decay + t * BYTES)
        product = _ZERO if product < _LOWEST else product
    return product


@njit(nogil=True, error_model="numpy")
def flushed(value: Any) -> Any:
    """0 where it is below 2^-100."""
    return where_positive(subtract(full(_LOWEST), value), full(_ZERO), value)


@njit(nogil=True, error_model="numpy")
def drive(
    driven: int,
    weighted: int,
    line: int,
    x: int,
    x_time: int,
    count: int,
    dim: int,
    steps: int,
    row: int,
    ahead: int,
) -> None:
    """delta x, and what of it is left at the chunk's end; `row` is that of `steps`.

    Rows of a head lie far apart: what is needed next, `ahead` bytes further, is asked for now.
    """
    for t in range(count):
        step, left = broadcast(steps + t * BYTES), broadcast(steps + 3 * row + t * BYTES)
        for c in range(0, dim, LANES):
            at, place = t * line + c * BYTES, x + t * x_time + c * BYTES
            prefetch(place + ahead)
            value = multiply(step, load_lanes(place, min(dim - c, LANES)))
            store(driven + at, value)
            store(weighted + at, multiply(left, value))


@njit(nogil=True, error_model="numpy")
def score(scores: int, line: int, turned: int, rows: int, state_line: int, count: int, state: int) -> None:
    """C Bᵀ up to the diagonal; what lies beyond it in its vectors is to be ignored."""
    for t in range(0, count, 6):
        height, vectors = min(6, count - t), (min(t + 6, count) + LANES - 1) // LANES
        for r in range(t, t + height):
            fill(scores + r * line, vectors * LANES, _ZERO)
        add_product(
            scores + t * line, line, turned, line, rows + t * state_line, state_line, BYTES, state, height, vectors
        )


@njit(nogil=True, error_model="numpy")
def decay_row(row: int, t: int, decay: int) -> None:
    """Row t of L from row t - 1, in place."""
    factor = broadcast(decay + t * BYTES)
    for c in range(0, t, LANES):
        store(row + c * BYTES, flushed(multiply(load(row + c * BYTES), factor)))
    store_scalar(row + t * BYTES, _ONE)


@njit(nogil=True, error_model="numpy")
def mix(mixing: int, line: int, scores: int, row: int, count: int, decay: int) -> None:
    """L ⊙ C Bᵀ, zeros beyond the diagonal in its vectors and up to the last that its six rows share."""
    fill(row, line // BYTES, _ZERO)
    zero = full(_ZERO)
    for t in range(count):
        decay_row(row, t, decay)
        for c in range(0, min(t // 6 * 6 + 6, count), LANES):
            at = t * line + c * BYTES
            product = zero
            if c <= t:
                product = between(multiply(load(row + c * BYTES), load(scores + at)), 0, t + 1 - c, zero)
            store(mixing + at, product)
