"""The backward pass over the chunks, last to first: `chunked.py` has the formulas, `cpu.py` the way of working."""

from typing import Any

import numpy as np
from numba import njit

from verim.ops.compiled import compiled
from verim.ops.lanes import between, sum_of_lanes
from verim.ops.state_space_dual.matrices import (
    add_product,
    decay_row,
    drive,
    read_rows,
    read_steps,
    scale_rows,
    score,
    write_rows,
)
from verim.ops.tiles import fill, turn, up
from verim.ops.vectors import (
    BYTES,
    LANES,
    ROW,
    add,
    broadcast,
    full,
    load,
    load_lanes,
    load_scalar,
    multiply,
    multiply_add,
    prefetch,
    store,
    store_lanes,
    store_scalar,
)

_ZERO = np.float32(0)


@njit(nogil=True, error_model="numpy")
def _mix_back(mixing: int, across: int, dscores: int, line: int, scores: int, row: int, count: int, decay: int) -> None:
    """As `_mix`; of g uᵀ in `across` it makes R, and adds L ⊙ g uᵀ to the gradient of the scores."""
    fill(row, line // BYTES, _ZERO)
    zero = full(_ZERO)
    for t in range(count):
        decay_row(row, t, decay)
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
def backward(
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
                read_rows(onward, dim_line, dfinal + number * whole, dim * BYTES, state, dim, state_rows)
            else:
                fill(onward, state_rows * vectors * LANES, _ZERO)
        for back in range(chunks):
            index = chunks - 1 - back
            start = index * chunk
            count = min(chunk, length - start)
            read_rows(
                B_rows, state_line, B + batch * B_batch + group * B_group + start * B_time, B_time, count, state, rows
            )
            read_rows(
                C_rows, state_line, C + batch * C_batch + group * C_group + start * C_time, C_time, count, state, rows
            )
            turn(turned, line, B_rows, state_line, rows, state_rows)
            score(scores, line, turned, C_rows, state_line, count, state)
            fill(dscores, rows * rows, _ZERO)
            fill(dB_rows, 2 * rows * state_rows, _ZERO)  # and dC_rows, which follow
            for member in range(members):
                head, onward = head_first + member, held + member * state_rows * dim_line
                number = batch * heads + head
                place = x + batch * x_batch + head * x_head + start * x_time
                g_place = dy + batch * dy_batch + head * dy_head + start * dy_time
                step = delta + batch * delta_batch + head * delta_head + start * delta_time
                rate = load_scalar(A + head * BYTES)
                through = read_steps(steps, line, step, delta_time, count, rate)
                next_head, next_chunk = (1, 0) if member < members - 1 else (1 - members, -chunk)
                ahead = next_head * x_head + next_chunk * x_time
                drive(driven, weighted, dim_line, place, x_time, count, dim, steps, line, ahead)
                ahead = next_head * dy_head + next_chunk * dy_time
                for t in range(count):
                    factor = broadcast(steps + 2 * line + t * BYTES)
                    for c in range(0, dim, LANES):
                        at, from_here = t * dim_line + c * BYTES, g_place + t * dy_time + c * BYTES
                        prefetch(from_here + ahead)
                        value = load_lanes(from_here, min(dim - c, LANES))
                        store(gradient + at, value)
                        store(outward + at, multiply(factor, value))

                # through the states
                kept = states + ((batch * chunks + index) * heads + head) * whole
                read_rows(h, dim_line, kept, dim * BYTES, state, dim, state_rows)
                turn(turned_state, state_line, h, dim_line, state_rows, vectors * LANES)
                fill(own, up(count, 2) * state_rows, _ZERO)
                add_product(
                    own, state_line, turned_state, state_line, outward, dim_line, BYTES, dim, count, state_vectors
                )
                _dot_rows(out_of, own, C_rows, state_line, count)
                for at in range(0, count * state_line, ROW):
                    store(dC_rows + at, add(load(dC_rows + at), load(own + at)))
                turn(turned_state, state_line, onward, dim_line, state_rows, vectors * LANES)
                add_product(
                    dB_rows, state_line, turned_state, state_line, weighted, dim_line, BYTES, dim, count, state_vectors
                )
                fill(ddriven, up(count, 2) * vectors * LANES, _ZERO)
                add_product(ddriven, dim_line, onward, dim_line, B_rows, state_line, BYTES, state, count, vectors)
                _dot_rows(into, ddriven, weighted, dim_line, count)
                for t in range(count):
                    scale_rows(ddriven + t * dim_line, dim_line, 1, broadcast(steps + 3 * line + t * BYTES))
                product = full(_ZERO)
                for at in range(0, state * dim_line, ROW):
                    product = multiply_add(load(h + at), load(onward + at), product)
                through_all = through * sum_of_lanes(product)
                scale_rows(onward, dim_line, state, full(through))
                add_product(onward, dim_line, outward, dim_line, C_rows, BYTES, state_line, count, state, vectors)

                # within the chunk
                turn(turned_driven, line, driven, dim_line, up(count, LANES), vectors * LANES)
                score(across, line, turned_driven, gradient, dim_line, count, dim)
                _mix_back(mixing, across, dscores, line, scores, row, count, steps + line)
                for i in range(0, count, 6):
                    to, from_here, factors = (
                        ddriven + i * dim_line,
                        gradient + i * dim_line,
                        mixing + i * (line + BYTES),
                    )
                    height = min(6, count - i)
                    add_product(to, dim_line, from_here, dim_line, factors, BYTES, line, count - i, height, vectors)
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
                add_product(to, state_line, B_rows, state_line, factors, line, BYTES, until, height, state_vectors)
                to, from_here, factors = dB_rows + t * state_line, C_rows + t * state_line, dscores + t * (line + BYTES)
                add_product(
                    to, state_line, from_here, state_line, factors, BYTES, line, count - t, height, state_vectors
                )
            out = (((band * batches + batch) * length + start) * groups + group) * state * BYTES
            write_rows(dB + out, groups * state * BYTES, dB_rows, state_line, count, state)
            write_rows(dC + out, groups * state * BYTES, dC_rows, state_line, count, state)
        for member in range(members):
            here = (batch * heads + head_first + member) * whole
            write_rows(dinitial + here, dim * BYTES, held + member * state_rows * dim_line, dim_line, state, dim)
