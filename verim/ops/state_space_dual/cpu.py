"""Mamba-2's chunked algorithm on the CPU, with products held in registers; `chunked.py` has its formulas.

A task is some of a group's heads in one sequence. It walks the chunks; what a chunk of one head needs lies in the first
two levels of cache, and C Bᵀ of a chunk serves all heads of the task. L is made without exponentials and without
differences of long sums: row t of it is row t - 1 times e^(delta_t A), with a 1 on the diagonal. What has decayed below
2^-100 becomes 0, or the numbers on their way to 0 (denormal, each a hundred cycles) would cost more than the products.

The gradient of delta A sums R[t, i] over i < j ≤ t: going back through the rows, a row of running sums over t, of which
lanes i < j are added up. Gradients of B and C sum over heads; those of a task's heads are summed in its cache, those of
several tasks of one group are added at the end: their number follows from the shape, and with it the bits.

Where few positions come without gradients (decoding), each head walks step by step over its state in memory.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from verim.ops.compiled import compiled
from verim.ops.lanes import between, sum_of_lanes, where_positive
from verim.ops.memory import address_of
from verim.ops.products import product_of
from verim.ops.tiles import fill, turn, up
from verim.ops.vectors import (
    BYTES,
    LANES,
    LOG2_E,
    ROW,
    add,
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
    store_scalar,
    subtract,
)
from verim.ops.workers import run_tasks

FEW = 8  # positions, below which walking over the states beats making matrices of them
TASKS = 8  # wanted where heads are many
_ZERO, _ONE, _LOG2_E, _LOWEST = np.float32(0), np.float32(1), np.float32(LOG2_E), np.float32(2.0**-100)
_NANOSECONDS = 0.012  # for a multiply-add of the forward pass

_add_6x4, _add_2x4, _add_6x2, _add_2x2, _add_6x1, _add_2x1 = (
    product_of(rows, vectors, adds=True) for vectors in (4, 2, 1) for rows in (6, 2)
)


@njit(nogil=True, error_model="numpy")
def _add_product(
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
def _read_rows(target: int, line: int, source: int, stride: int, rows: int, width: int, padded: int) -> None:
    """Rows of `width` floats into rows of `line` bytes, zeros behind them and in rows up to `padded`."""
    for r in range(rows):
        for c in range(0, width, LANES):
            store(target + r * line + c * BYTES, load_lanes(source + r * stride + c * BYTES, min(width - c, LANES)))
    for r in range(rows, padded):
        fill(target + r * line, line // BYTES, _ZERO)


@njit(nogil=True, error_model="numpy")
def _write_rows(target: int, stride: int, source: int, line: int, rows: int, width: int) -> None:
    for r in range(rows):
        for c in range(0, width, LANES):
            store_lanes(target + r * stride + c * BYTES, min(width - c, LANES), load(source + r * line + c * BYTES))


@njit(nogil=True, error_model="numpy")
def _scale_rows(target: int, line: int, rows: int, factor: Any) -> None:
    """All of the rows times one number."""
    for place in range(target, target + rows * line, ROW):
        store(place, multiply(load(place), factor))


@njit(nogil=True, error_model="numpy")
def _read_steps(steps: int, line: int, delta: int, delta_time: int, count: int, A: Any) -> Any:
    """Four rows of a chunk: delta, e^(delta A), and its products from the start and to the end. The product of all."""
    fill(steps, line, _ZERO)
    for t in range(count):
        store_scalar(steps + t * BYTES, load_scalar(delta + t * delta_time))
    decay, from_start, to_end = steps + line, steps + 2 * line, steps + 3 * line
    for t in range(0, line, ROW):
        store(decay + t, _flushed(exp2(multiply(load(steps + t), full(A * _LOG2_E)))))
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
def _flushed(value: Any) -> Any:
    """0 where it is below 2^-100."""
    return where_positive(subtract(full(_LOWEST), value), full(_ZERO), value)


@njit(nogil=True, error_model="numpy")
def _drive(
    driven: int, weighted: int, line: int, x: int, x_time: int, count: int, dim: int, steps: int, row: int
) -> None:
    """delta x, and what of it is left at the chunk's end; `row` is that of `steps`."""
    for t in range(count):
        step, left = broadcast(steps + t * BYTES), broadcast(steps + 3 * row + t * BYTES)
        for c in range(0, dim, LANES):
            at = t * line + c * BYTES
            value = multiply(step, load_lanes(x + t * x_time + c * BYTES, min(dim - c, LANES)))
            store(driven + at, value)
            store(weighted + at, multiply(left, value))


@njit(nogil=True, error_model="numpy")
def _score(scores: int, line: int, turned: int, rows: int, state_line: int, count: int, state: int) -> None:
    """C Bᵀ up to the diagonal; what lies beyond it in its vectors is to be ignored."""
    for t in range(0, count, 6):
        height, vectors = min(6, count - t), (min(t + 6, count) + LANES - 1) // LANES
        for r in range(t, t + height):
            fill(scores + r * line, vectors * LANES, _ZERO)
        _add_product(
            scores + t * line, line, turned, line, rows + t * state_line, state_line, BYTES, state, height, vectors
        )


@njit(nogil=True, error_model="numpy")
def _decay_row(row: int, t: int, decay: int) -> None:
    """Row t of L from row t - 1, in place."""
    factor = broadcast(decay + t * BYTES)
    for c in range(0, t, LANES):
        store(row + c * BYTES, _flushed(multiply(load(row + c * BYTES), factor)))
    store_scalar(row + t * BYTES, _ONE)


@njit(nogil=True, error_model="numpy")
def _mix(mixing: int, line: int, scores: int, row: int, count: int, decay: int) -> None:
    """L ⊙ C Bᵀ, zeros beyond the diagonal in its vectors and up to the last that its six rows share."""
    fill(row, line // BYTES, _ZERO)
    zero = full(_ZERO)
    for t in range(count):
        _decay_row(row, t, decay)
        for c in range(0, min(t // 6 * 6 + 6, count), LANES):
            at = t * line + c * BYTES
            product = zero
            if c <= t:
                product = between(multiply(load(row + c * BYTES), load(scores + at)), 0, t + 1 - c, zero)
            store(mixing + at, product)


@njit(nogil=True, error_model="numpy")
def _mix_back(mixing: int, across: int, dscores: int, line: int, scores: int, row: int, count: int, decay: int) -> None:
    """As `_mix`; of g uᵀ in `across` it makes R, and adds L ⊙ g uᵀ to the gradient of the scores."""
    fill(row, line // BYTES, _ZERO)
    zero = full(_ZERO)
    for t in range(count):
        _decay_row(row, t, decay)
        for c in range(0, min(t // 6 * 6 + 6, count), LANES):
            at, left = t * line + c * BYTES, t + 1 - c
            if left >= LANES:
                weight, score = load(row + c * BYTES), load(scores + at)
                through = multiply(load(across + at), weight)
                store(mixing + at, multiply(weight, score))
                store(dscores + at, add(load(dscores + at), through))
                store(across + at, multiply(through, score))
            elif left > 0:
                weight, score = load(row + c * BYTES), between(load(scores + at), 0, left, zero)
                through = multiply(between(load(across + at), 0, left, zero), weight)
                store(mixing + at, multiply(weight, score))
                store(dscores + at, add(load(dscores + at), through))
                store(across + at, multiply(through, score))
            else:
                store(mixing + at, zero)


@njit(nogil=True, error_model="numpy")
def _dot_rows(sums: int, left: int, right: int, line: int, rows: int) -> None:
    """Each row's product with the other's, a number a row."""
    for r in range(rows):
        total = full(_ZERO)
        for at in range(r * line, (r + 1) * line, ROW):
            total = multiply_add(load(left + at), load(right + at), total)
        store_scalar(sums + r * BYTES, sum_of_lanes(total))


@njit(nogil=True, error_model="numpy")
def _step_gradients(
    sums: int, across: int, line: int, running: int, into: int, out_of: int, count: int, kept: Any
) -> None:
    """The gradient of delta A at each position: of R in `across`, of what goes into the states and out of them."""
    before = _ZERO
    for t in range(count):
        store_scalar(sums + t * BYTES, before + kept)
        before += load_scalar(into + t * BYTES)
    fill(running, line // BYTES, _ZERO)
    zero, after = full(_ZERO), _ZERO
    for t in range(count - 1, -1, -1):
        total = zero
        for c in range(0, t + 1, LANES):
            sum_of_later = add(load(running + c * BYTES), load(across + t * line + c * BYTES))
            store(running + c * BYTES, sum_of_later)
            total = add(total, between(sum_of_later, 0, t - c, zero))
        after += load_scalar(out_of + t * BYTES)
        store_scalar(sums + t * BYTES, load_scalar(sums + t * BYTES) + after + sum_of_lanes(total))


@compiled
def _forward(
    first: int,
    last: int,
    scratch: int,
    length: int,
    heads: int,
    dim: int,
    groups: int,
    state: int,
    chunk: int,
    bands: int,
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
    states: int,
) -> None:
    """Compiled. Tensors are addresses (0 for None); `_batch` and so on are strides in bytes."""
    rows, vectors = up(chunk, LANES), up(dim, LANES) // LANES
    line, dim_line, state_line = rows * BYTES, vectors * ROW, up(state, LANES) * BYTES
    state_rows = up(state, LANES)
    B_rows = scratch
    C_rows = B_rows + rows * state_line
    turned = C_rows + rows * state_line
    scores = turned + state_rows * line
    mixing = scores + rows * line
    driven = mixing + rows * line
    weighted = driven + rows * dim_line
    out = weighted + rows * dim_line
    steps = out + rows * dim_line
    row = steps + 4 * line
    held = row + line
    chunks = (length + chunk - 1) // chunk
    whole = state * dim * BYTES
    for task in range(first, last):
        batch, group, band = task // (groups * bands), task // bands % groups, task % bands
        sharing = heads // groups
        head_first = group * sharing + sharing * band // bands
        members = group * sharing + sharing * (band + 1) // bands - head_first
        for member in range(members):
            h = held + member * state_rows * dim_line
            here = (batch * heads + head_first + member) * whole
            if initial != 0:
                _read_rows(h, dim_line, initial + here, dim * BYTES, state, dim, state_rows)
            else:
                fill(h, state_rows * vectors * LANES, _ZERO)
        for index in range(chunks):
            start = index * chunk
            count = min(chunk, length - start)
            _read_rows(
                B_rows, state_line, B + batch * B_batch + group * B_group + start * B_time, B_time, count, state, rows
            )
            _read_rows(
                C_rows, state_line, C + batch * C_batch + group * C_group + start * C_time, C_time, count, state, rows
            )
            turn(turned, line, B_rows, state_line, rows, state_rows)
            _score(scores, line, turned, C_rows, state_line, count, state)
            for member in range(members):
                head, h = head_first + member, held + member * state_rows * dim_line
                place = x + batch * x_batch + head * x_head + start * x_time
                step = delta + batch * delta_batch + head * delta_head + start * delta_time
                through = _read_steps(steps, line, step, delta_time, count, load_scalar(A + head * BYTES))
                _drive(driven, weighted, dim_line, place, x_time, count, dim, steps, line)
                if states != 0:
                    kept = states + ((batch * chunks + index) * heads + head) * whole
                    _write_rows(kept, dim * BYTES, h, dim_line, state, dim)
                fill(out, up(count, 2) * vectors * LANES, _ZERO)
                _add_product(out, dim_line, h, dim_line, C_rows, state_line, BYTES, state, count, vectors)
                _mix(mixing, line, scores, row, count, steps + line)
                for t in range(count):
                    _scale_rows(out + t * dim_line, dim_line, 1, broadcast(steps + 2 * line + t * BYTES))
                for t in range(0, count, 6):
                    until = min(t + 6, count)
                    to, factors = out + t * dim_line, mixing + t * line
                    _add_product(to, dim_line, driven, dim_line, factors, line, BYTES, until, until - t, vectors)
                skip = full(_ZERO)
                if D != 0:
                    skip = broadcast(D + head * BYTES)
                to = y + ((batch * length + start) * heads + head) * dim * BYTES
                for t in range(count):
                    for c in range(0, dim, LANES):
                        value, n = load(out + t * dim_line + c * BYTES), min(dim - c, LANES)
                        if D != 0:
                            value = multiply_add(skip, load_lanes(place + t * x_time + c * BYTES, n), value)
                        store_lanes(to + t * heads * dim * BYTES + c * BYTES, n, value)
                _scale_rows(h, dim_line, state, full(through))
                _add_product(h, dim_line, weighted, dim_line, turned, line, BYTES, count, state, vectors)
        for member in range(members):
            here = (batch * heads + head_first + member) * whole
            _write_rows(final + here, dim * BYTES, held + member * state_rows * dim_line, dim_line, state, dim)


@compiled
def _backward(
    first: int,
    last: int,
    scratch: int,
    length: int,
    heads: int,
    dim: int,
    groups: int,
    state: int,
    chunk: int,
    bands: int,
    batches: int,
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
    states: int,
    dy: int,
    dy_batch: int,
    dy_time: int,
    dy_head: int,
    dfinal: int,
    dx: int,
    ddelta: int,
    dA: int,
    dB: int,
    dC: int,
    dD: int,
    dinitial: int,
) -> None:
    """Compiled. Tensors are addresses (0 for None); `_batch` and so on are strides in bytes."""
    rows, vectors = up(chunk, LANES), up(dim, LANES) // LANES
    line, dim_line, state_line = rows * BYTES, vectors * ROW, up(state, LANES) * BYTES
    state_rows, state_vectors = up(state, LANES), up(state, LANES) // LANES
    B_rows = scratch
    C_rows = B_rows + rows * state_line
    turned = C_rows + rows * state_line
    dB_rows = turned + rows * state_line
    dC_rows = dB_rows + rows * state_line
    own = dC_rows + rows * state_line
    scores = own + rows * state_line
    mixing = scores + rows * line
    across = mixing + rows * line
    dscores = across + rows * line
    driven = dscores + rows * line
    weighted = driven + rows * dim_line
    gradient = weighted + rows * dim_line
    outward = gradient + rows * dim_line
    ddriven = outward + rows * dim_line
    turned_driven = ddriven + rows * dim_line
    steps = turned_driven + rows * dim_line
    row, into, out_of, sums = steps + 4 * line, steps + 5 * line, steps + 6 * line, steps + 7 * line
    h = steps + 8 * line
    turned_state = h + state_rows * dim_line
    held = turned_state + state_rows * dim_line
    chunks = (length + chunk - 1) // chunk
    whole = state * dim * BYTES
    for task in range(first, last):
        batch, group, band = task // (groups * bands), task // bands % groups, task % bands
        sharing = heads // groups
        head_first = group * sharing + sharing * band // bands
        members = group * sharing + sharing * (band + 1) // bands - head_first
        for member in range(members):
            number = batch * heads + head_first + member
            store_scalar(dA + number * BYTES, _ZERO)
            store_scalar(dD + number * BYTES, _ZERO)
            onward = held + member * state_rows * dim_line
            if dfinal != 0:
                _read_rows(onward, dim_line, dfinal + number * whole, dim * BYTES, state, dim, state_rows)
            else:
                fill(onward, state_rows * vectors * LANES, _ZERO)
        for back in range(chunks):
            index = chunks - 1 - back
            start = index * chunk
            count = min(chunk, length - start)
            _read_rows(
                B_rows, state_line, B + batch * B_batch + group * B_group + start * B_time, B_time, count, state, rows
            )
            _read_rows(
                C_rows, state_line, C + batch * C_batch + group * C_group + start * C_time, C_time, count, state, rows
            )
            turn(turned, line, B_rows, state_line, rows, state_rows)
            _score(scores, line, turned, C_rows, state_line, count, state)
            fill(dscores, rows * rows, _ZERO)
            fill(dB_rows, 2 * rows * state_rows, _ZERO)  # and dC_rows, which follow
            for member in range(members):
                head, onward = head_first + member, held + member * state_rows * dim_line
                number = batch * heads + head
                place = x + batch * x_batch + head * x_head + start * x_time
                g_place = dy + batch * dy_batch + head * dy_head + start * dy_time
                step = delta + batch * delta_batch + head * delta_head + start * delta_time
                rate = load_scalar(A + head * BYTES)
                through = _read_steps(steps, line, step, delta_time, count, rate)
                _drive(driven, weighted, dim_line, place, x_time, count, dim, steps, line)
                _read_rows(gradient, dim_line, g_place, dy_time, count, dim, count)
                for t in range(count):
                    factor = broadcast(steps + 2 * line + t * BYTES)
                    for at in range(t * dim_line, (t + 1) * dim_line, ROW):
                        store(outward + at, multiply(factor, load(gradient + at)))

                # through the states
                kept = states + ((batch * chunks + index) * heads + head) * whole
                _read_rows(h, dim_line, kept, dim * BYTES, state, dim, state_rows)
                turn(turned_state, state_line, h, dim_line, state_rows, vectors * LANES)
                fill(own, up(count, 2) * state_rows, _ZERO)
                _add_product(
                    own, state_line, turned_state, state_line, outward, dim_line, BYTES, dim, count, state_vectors
                )
                _dot_rows(out_of, own, C_rows, state_line, count)
                for at in range(0, count * state_line, ROW):
                    store(dC_rows + at, add(load(dC_rows + at), load(own + at)))
                turn(turned_state, state_line, onward, dim_line, state_rows, vectors * LANES)
                _add_product(
                    dB_rows, state_line, turned_state, state_line, weighted, dim_line, BYTES, dim, count, state_vectors
                )
                fill(ddriven, up(count, 2) * vectors * LANES, _ZERO)
                _add_product(ddriven, dim_line, onward, dim_line, B_rows, state_line, BYTES, state, count, vectors)
                _dot_rows(into, ddriven, weighted, dim_line, count)
                for t in range(count):
                    _scale_rows(ddriven + t * dim_line, dim_line, 1, broadcast(steps + 3 * line + t * BYTES))
                product = full(_ZERO)
                for at in range(0, state * dim_line, ROW):
                    product = multiply_add(load(h + at), load(onward + at), product)
                through_all = through * sum_of_lanes(product)
                _scale_rows(onward, dim_line, state, full(through))
                _add_product(onward, dim_line, outward, dim_line, C_rows, BYTES, state_line, count, state, vectors)

                # within the chunk
                turn(turned_driven, line, driven, dim_line, up(count, LANES), vectors * LANES)
                _score(across, line, turned_driven, gradient, dim_line, count, dim)
                _mix_back(mixing, across, dscores, line, scores, row, count, steps + line)
                for i in range(0, count, 6):
                    to, from_here, factors = (
                        ddriven + i * dim_line,
                        gradient + i * dim_line,
                        mixing + i * (line + BYTES),
                    )
                    height = min(6, count - i)
                    _add_product(to, dim_line, from_here, dim_line, factors, BYTES, line, count - i, height, vectors)
                _step_gradients(sums, across, line, row, into, out_of, count, through_all)

                # the inputs
                skip, to_skip = full(_ZERO), full(_ZERO)
                if D != 0:
                    skip = broadcast(D + head * BYTES)
                out, to_rate = ((batch * length + start) * heads + head) * BYTES, _ZERO
                for t in range(count):
                    size, total = broadcast(steps + t * BYTES), full(_ZERO)
                    for c in range(0, dim, LANES):
                        at, n = t * dim_line + c * BYTES, min(dim - c, LANES)
                        value, slope, g = (
                            load_lanes(place + t * x_time + c * BYTES, n),
                            load(ddriven + at),
                            load(gradient + at),
                        )
                        total, to_skip = multiply_add(value, slope, total), multiply_add(value, g, to_skip)
                        store_lanes(dx + out * dim + c * BYTES, n, multiply_add(size, slope, multiply(skip, g)))
                    of_step = load_scalar(sums + t * BYTES)
                    store_scalar(ddelta + out, rate * of_step + sum_of_lanes(total))
                    to_rate += load_scalar(steps + t * BYTES) * of_step
                    out += heads * BYTES
                store_scalar(dA + number * BYTES, load_scalar(dA + number * BYTES) + to_rate)
                store_scalar(dD + number * BYTES, load_scalar(dD + number * BYTES) + sum_of_lanes(to_skip))
            for t in range(0, count, 6):
                until, height = min(t + 6, count), min(6, count - t)
                to, factors = dC_rows + t * state_line, dscores + t * line
                _add_product(to, state_line, B_rows, state_line, factors, line, BYTES, until, height, state_vectors)
                to, from_here, factors = dB_rows + t * state_line, C_rows + t * state_line, dscores + t * (line + BYTES)
                _add_product(
                    to, state_line, from_here, state_line, factors, BYTES, line, count - t, height, state_vectors
                )
            out = (((band * batches + batch) * length + start) * groups + group) * state * BYTES
            _write_rows(dB + out, groups * state * BYTES, dB_rows, state_line, count, state)
            _write_rows(dC + out, groups * state * BYTES, dC_rows, state_line, count, state)
        for member in range(members):
            here = (batch * heads + head_first + member) * whole
            _write_rows(dinitial + here, dim * BYTES, held + member * state_rows * dim_line, dim_line, state, dim)


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
    driven, total, other = multiply(step, value), multiply(skip, value), full(_ZERO)
    for k in range(state):
        old = load_lanes(before + k * line, n)
        new = multiply_add(decay, old, multiply(driven, broadcast(B + k * BYTES)))
        store_lanes(after + k * line, n, new)
        total = multiply_add(new, broadcast(C + k * BYTES), total)
    store_lanes(y, n, add(total, other))


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
def _walk(
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


def dual_forward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial: Tensor | None,
    chunk: int,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the final state, and with `keep` the states that `dual_backward` asks for. Arguments are unchecked."""
    batch, length, heads, dim = x.shape
    groups, state = B.shape[2:]
    x, B, C, A = rows_of(x), rows_of(B), rows_of(C), A.contiguous()
    D = None if D is None else D.contiguous()
    initial = None if initial is None else initial.contiguous()
    y = torch.empty(batch, length, heads, dim, dtype=torch.float32, device="cpu")
    final = torch.empty(batch, heads, state, dim, dtype=torch.float32, device="cpu")
    kept = states_shape(batch, length, heads, dim, state, chunk) if keep else (0,)
    states = torch.empty(kept, dtype=torch.float32, device="cpu")
    arguments: tuple[int, ...] = (*place_of(x), *place_of(delta), A.data_ptr(), *place_of(B), *place_of(C))
    arguments += (address_of(D), address_of(initial), y.data_ptr(), final.data_ptr())
    work = _NANOSECONDS * batch * length * heads * dim * (2 * state + chunk)
    if length < FEW and not keep:
        run_tasks(_walk, batch * heads, 4 * work, 0, (length, heads, dim, groups, state, *arguments))
        return y, final, states
    bands = _bands(batch, heads, groups)
    sizes = length, heads, dim, groups, state, chunk, bands
    members = -(-heads // (groups * bands))
    rows, columns, entries = (-(-size // LANES) * LANES for size in (chunk, dim, state))
    scratch = 3 * rows * entries + 2 * rows * rows + 3 * rows * columns + 5 * rows + members * entries * columns
    arguments += (states.data_ptr() if keep else 0,)
    run_tasks(_forward, batch * groups * bands, work, scratch, (*sizes, *arguments))
    return y, final, states


def dual_backward(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    states: Tensor,
    dy: Tensor,
    dfinal: Tensor | None,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, delta, A, B, C, D and the initial state."""
    batch, length, heads, dim = x.shape
    groups, state = B.shape[2:]
    x, B, C, dy, A = rows_of(x), rows_of(B), rows_of(C), rows_of(dy), A.contiguous()
    D = None if D is None else D.contiguous()
    dfinal = None if dfinal is None else dfinal.contiguous()
    bands = _bands(batch, heads, groups)

    def new(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device="cpu")

    dx, ddelta, dinitial = new(*x.shape), new(batch, length, heads), new(batch, heads, state, dim)
    dB, dC = new(bands, *B.shape), new(bands, *B.shape)
    dA, dD = new(batch, heads), new(batch, heads)
    arguments: tuple[int, ...] = (length, heads, dim, groups, state, chunk, bands, batch)
    arguments += (*place_of(x), *place_of(delta), A.data_ptr(), *place_of(B), *place_of(C), address_of(D))
    arguments += (states.data_ptr(), *place_of(dy), address_of(dfinal))
    arguments += tuple(tensor.data_ptr() for tensor in (dx, ddelta, dA, dB, dC, dD, dinitial))
    members = -(-heads // (groups * bands))
    rows, columns, entries = (-(-size // LANES) * LANES for size in (chunk, dim, state))
    scratch = 6 * rows * (entries + columns) + 4 * rows * rows + 8 * rows + (2 + members) * entries * columns
    work = 2 * _NANOSECONDS * batch * length * heads * dim * (2 * state + chunk)
    run_tasks(_backward, batch * groups * bands, work, scratch, arguments)
    dB, dC = (part[0] if bands == 1 else part.sum(0) for part in (dB, dC))
    return dx, ddelta, dA.sum(0), dB, dC, dD.sum(0), dinitial


def rows_of(tensor: Tensor) -> Tensor:
    """`tensor` itself where its last axis lies side by side, else a copy."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def place_of(tensor: Tensor) -> tuple[int, int, int, int]:
    """The address of a tensor [batch, length, heads, ...] and the bytes between two entries of the three axes."""
    batch, time, head = (stride * BYTES for stride in tensor.stride()[:3])
    return tensor.data_ptr(), batch, time, head


def states_shape(batch: int, length: int, heads: int, dim: int, state: int, chunk: int) -> tuple[int, ...]:
    """Of what the forward pass keeps: the state at the beginning of every chunk."""
    return batch, -(-length // chunk), heads, state, dim


def _bands(batch: int, heads: int, groups: int) -> int:
    """How many tasks share the heads of a group."""
    return max(1, min(heads // groups, -(-TASKS // max(batch * groups, 1))))
