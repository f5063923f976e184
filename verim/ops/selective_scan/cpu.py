"""The selective scan on the CPU: 16 channels to a vector, one step of time after the other.

A task of the forward pass is one batch row and one block of 16 channels; its state lives in the first-level
cache. Every `interval` steps the state is kept (a checkpoint). A task of the backward pass is one batch row
and a group of blocks: it goes back through the intervals, recomputes the states of one from its checkpoint,
and walks them in reverse. With e_t = exp(delta_t A), g_t = dL/dh_t and c_t = e_t g_t, for each channel and
each entry of the state:

    g_t = C_t dy_t + c_{t+1}        c after the last step is the gradient of the final state
    dC_t = sum over channels of dy_t h_t          dB_t = sum over channels of g_t delta_t u_t
    dA = sum over t of delta_t c_t h_{t-1}        ddelta_t = sum over the state of A c_t h_{t-1} + g_t B_t u_t
    du_t = D dy_t + delta_t sum over the state of g_t B_t

The sums over channels that make dB and dC are first added up lane by lane over the blocks of the group, then
over the lanes, then over the groups: a fixed order, whatever the number of threads.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from verim.ops.memory import address_of, place_of, rows_of
from verim.ops.vectors import (
    BYTES,
    LANES,
    LN_2,
    LOG2_E,
    ROW,
    broadcast,
    exp2,
    full,
    load,
    load_column,
    load_lanes,
    multiply,
    multiply_add,
    prefetch,
    store,
    store_column,
    store_lanes,
    sum_rows,
)
from verim.ops.workers import run_tasks

_GROUP_BLOCKS = 8  # of 16 channels: more of them share one sum over lanes, fewer give more tasks
_INTERVAL_ROWS = 128  # vectors of state within an interval: four arrays of them fill a first-level cache
_FORWARD_NANOSECONDS, _BACKWARD_NANOSECONDS = 3.0, 5.0  # for 16 channels, one step, one entry of the state
_AHEAD = 8  # steps: rows lie far apart, so the hardware does not foresee the next one


@njit(cache=True, nogil=True, error_model="numpy")
def _forward(
    first: int,
    last: int,
    scratch: int,
    length: int,
    channels: int,
    state: int,
    interval: int,
    u: int,
    u_batch: int,
    u_time: int,
    delta: int,
    delta_batch: int,
    delta_time: int,
    A: int,
    B: int,
    B_batch: int,
    B_time: int,
    C: int,
    C_batch: int,
    C_time: int,
    D: int,
    initial: int,
    y: int,
    final: int,
    checkpoints: int,
) -> None:
    """Compiled. Tensors are addresses (0 for None); `_batch` and `_time` are strides in bytes."""
    blocks = (channels + LANES - 1) // LANES
    intervals = (length + interval - 1) // interval
    decay, h = scratch, scratch + state * ROW
    for task in range(first, last):
        batch, block = task // blocks, task % blocks
        channel = block * LANES
        count = min(channels - channel, LANES)
        here = (batch * channels + channel) * state * BYTES
        for n in range(state):
            column = load_column(A + (channel * state + n) * BYTES, state * BYTES, count)
            store(decay + n * ROW, multiply(column, full(np.float32(LOG2_E))))
            if initial != 0:
                store(h + n * ROW, load_column(initial + here + n * BYTES, state * BYTES, count))
            else:
                store(h + n * ROW, full(np.float32(0)))
        skip = full(np.float32(0))
        if D != 0:
            skip = load_lanes(D + channel * BYTES, count)
        u_row = u + batch * u_batch + channel * BYTES
        delta_row = delta + batch * delta_batch + channel * BYTES
        B_row, C_row = B + batch * B_batch, C + batch * C_batch
        y_row = y + (batch * length * channels + channel) * BYTES
        for t in range(length):
            if checkpoints != 0 and t % interval == 0:
                kept = checkpoints + ((batch * intervals + t // interval) * blocks + block) * state * ROW
                for n in range(state):
                    store(kept + n * ROW, load(h + n * ROW))
            prefetch(u_row + _AHEAD * u_time)
            prefetch(delta_row + _AHEAD * delta_time)
            step, x = load_lanes(delta_row, count), load_lanes(u_row, count)
            drive, total = multiply(step, x), multiply(skip, x)
            for n in range(state):
                e = exp2(multiply(step, load(decay + n * ROW)))
                new = multiply_add(e, load(h + n * ROW), multiply(drive, broadcast(B_row + n * BYTES)))
                store(h + n * ROW, new)
                total = multiply_add(new, broadcast(C_row + n * BYTES), total)
            store_lanes(y_row, count, total)
            u_row += u_time
            delta_row += delta_time
            B_row += B_time
            C_row += C_time
            y_row += channels * BYTES
        for n in range(state):
            store_column(final + here + n * BYTES, state * BYTES, count, load(h + n * ROW))


@njit(cache=True, nogil=True, error_model="numpy")
def _backward(
    first: int,
    last: int,
    scratch: int,
    batches: int,
    length: int,
    channels: int,
    state: int,
    interval: int,
    u: int,
    u_batch: int,
    u_time: int,
    delta: int,
    delta_batch: int,
    delta_time: int,
    A: int,
    B: int,
    B_batch: int,
    B_time: int,
    C: int,
    C_batch: int,
    C_time: int,
    D: int,
    checkpoints: int,
    dy: int,
    dy_batch: int,
    dy_time: int,
    dfinal: int,
    du: int,
    ddelta: int,
    dA: int,
    dB: int,
    dC: int,
    dD: int,
    dinitial: int,
) -> None:
    """Compiled. Tensors are addresses (0 for None); `_batch` and `_time` are strides in bytes."""
    zero = full(np.float32(0))
    blocks = (channels + LANES - 1) // LANES
    groups = (blocks + _GROUP_BLOCKS - 1) // _GROUP_BLOCKS
    intervals = (length + interval - 1) // interval
    rows = state * ROW  # bytes of a block's state
    e_rows = scratch
    h_rows = e_rows + interval * rows  # the state before step 0, after step 0, ...
    dB_rows = h_rows + (interval + 1) * rows
    dC_rows = dB_rows + interval * rows + LANES * ROW
    decay_rows = dC_rows + interval * rows + LANES * ROW
    carry_rows = decay_rows + _GROUP_BLOCKS * rows
    dA_rows = carry_rows + _GROUP_BLOCKS * rows
    dD_rows = dA_rows + _GROUP_BLOCKS * rows
    for task in range(first, last):
        batch, group = task // groups, task % groups
        first_block = group * _GROUP_BLOCKS
        members = min(blocks - first_block, _GROUP_BLOCKS)
        for member in range(members):
            channel = (first_block + member) * LANES
            count = min(channels - channel, LANES)
            here = (batch * channels + channel) * state * BYTES
            store(dD_rows + member * ROW, zero)
            for n in range(state):
                place = member * rows + n * ROW
                column = load_column(A + (channel * state + n) * BYTES, state * BYTES, count)
                store(decay_rows + place, multiply(column, full(np.float32(LOG2_E))))
                store(dA_rows + place, zero)
                if dfinal != 0:
                    column = load_column(dfinal + here + n * BYTES, state * BYTES, count)
                    store(carry_rows + place, column)
                else:
                    store(carry_rows + place, zero)
        for back in range(intervals):
            start = (intervals - 1 - back) * interval
            steps = min(interval, length - start)
            for row in range(steps * state):
                store(dB_rows + row * ROW, zero)
                store(dC_rows + row * ROW, zero)
            for member in range(members):
                block = first_block + member
                channel = block * LANES
                count = min(channels - channel, LANES)
                decay, carry = decay_rows + member * rows, carry_rows + member * rows
                dA_row = dA_rows + member * rows
                kept = checkpoints + ((batch * intervals + start // interval) * blocks + block) * rows
                for n in range(state):
                    store(h_rows + n * ROW, load(kept + n * ROW))
                u_row = u + batch * u_batch + start * u_time + channel * BYTES
                delta_row = delta + batch * delta_batch + start * delta_time + channel * BYTES
                B_row = B + batch * B_batch + start * B_time
                C_row = C + batch * C_batch + start * C_time
                e_row, h_row = e_rows, h_rows
                for _ in range(steps):
                    step = load_lanes(delta_row, count)
                    drive = multiply(step, load_lanes(u_row, count))
                    for n in range(state):
                        e = exp2(multiply(step, load(decay + n * ROW)))
                        new = multiply_add(e, load(h_row), multiply(drive, broadcast(B_row + n * BYTES)))
                        store(e_row, e)
                        store(h_row + rows, new)
                        e_row += ROW
                        h_row += ROW
                    u_row += u_time
                    delta_row += delta_time
                    B_row += B_time
                skip = zero
                if D != 0:
                    skip = load_lanes(D + channel * BYTES, count)
                dD_sum = load(dD_rows + member * ROW)
                for behind in range(steps):
                    i = steps - 1 - behind
                    t = start + i
                    u_row -= u_time
                    delta_row -= delta_time
                    B_row -= B_time
                    at = (batch * length + t) * channels * BYTES + channel * BYTES
                    g_y = load_lanes(dy + batch * dy_batch + t * dy_time + channel * BYTES, count)
                    step, x = load_lanes(delta_row, count), load_lanes(u_row, count)
                    drive = multiply(step, x)
                    C_t = C_row + i * C_time
                    through_decay, through_drive = zero, zero
                    for n in range(state):
                        place = (i * state + n) * ROW
                        g = multiply_add(g_y, broadcast(C_t + n * BYTES), load(carry + n * ROW))
                        c = multiply(g, load(e_rows + place))
                        store(carry + n * ROW, c)
                        through = multiply(c, load(h_rows + place))
                        store(dA_row + n * ROW, multiply_add(step, through, load(dA_row + n * ROW)))
                        through_decay = multiply_add(through, load(decay + n * ROW), through_decay)
                        through_drive = multiply_add(g, broadcast(B_row + n * BYTES), through_drive)
                        store(dB_rows + place, multiply_add(g, drive, load(dB_rows + place)))
                        after = load(h_rows + place + rows)
                        store(dC_rows + place, multiply_add(g_y, after, load(dC_rows + place)))
                    through_decay = multiply(through_decay, full(np.float32(LN_2)))
                    store_lanes(ddelta + at, count, multiply_add(through_drive, x, through_decay))
                    store_lanes(du + at, count, multiply_add(through_drive, step, multiply(skip, g_y)))
                    dD_sum = multiply_add(g_y, x, dD_sum)
                store(dD_rows + member * ROW, dD_sum)
            out = (((group * batches + batch) * length + start) * state) * BYTES
            for row in range(0, steps * state, LANES):
                count = min(steps * state - row, LANES)
                store_lanes(dB + out + row * BYTES, count, sum_rows(dB_rows + row * ROW))
                store_lanes(dC + out + row * BYTES, count, sum_rows(dC_rows + row * ROW))
        for member in range(members):
            channel = (first_block + member) * LANES
            count = min(channels - channel, LANES)
            here = (batch * channels + channel) * state * BYTES
            store_lanes(dD + (batch * channels + channel) * BYTES, count, load(dD_rows + member * ROW))
            for n in range(state):
                place = member * rows + n * ROW
                store_column(dA + here + n * BYTES, state * BYTES, count, load(dA_rows + place))
                store_column(dinitial + here + n * BYTES, state * BYTES, count, load(carry_rows + place))


def scan_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """y, the final state, and with `keep` the checkpoints for `scan_backward`. Float32, unchecked."""
    u, delta, B, C = rows_of(u), rows_of(delta), rows_of(B), rows_of(C)
    A = A.contiguous()
    batch, length, channels = u.shape
    state = A.shape[1]
    D = None if D is None else D.contiguous()
    initial = None if initial is None else initial.contiguous()
    interval = _interval(length, state)
    blocks = -(-channels // LANES)
    y = torch.empty(batch, length, channels)
    final = torch.empty(batch, channels, state)
    checkpoints = torch.empty(batch, -(-length // interval), blocks, state, LANES) if keep else None
    tasks = batch * blocks
    arguments: tuple[int, ...] = (
        length,
        channels,
        state,
        interval,
        *place_of(u),
        *place_of(delta),
        A.data_ptr(),
        *place_of(B),
        *place_of(C),
    )
    arguments += (address_of(D), address_of(initial), y.data_ptr(), final.data_ptr(), address_of(checkpoints))
    run_tasks(_forward, tasks, _FORWARD_NANOSECONDS * tasks * length * state, 2 * state * LANES, arguments)
    return y, final, checkpoints


def scan_backward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    checkpoints: Tensor,
    dy: Tensor,
    dfinal: Tensor | None,
) -> tuple[Tensor, ...]:
    """The gradients of u, delta, A, B, C, D and the initial state."""
    u, delta, B, C, dy = rows_of(u), rows_of(delta), rows_of(B), rows_of(C), rows_of(dy)
    A = A.contiguous()
    batch, length, channels = u.shape
    state = A.shape[1]
    D = None if D is None else D.contiguous()
    dfinal = None if dfinal is None else dfinal.contiguous()
    interval = _interval(length, state)
    blocks = -(-channels // LANES)
    groups = -(-blocks // _GROUP_BLOCKS)
    du, ddelta = torch.empty(2, batch, length, channels)
    dA, dinitial = torch.empty(2, batch, channels, state)
    dB, dC = torch.empty(2, groups, batch, length, state)
    dD = torch.empty(batch, channels)
    scratch = LANES * (state * (4 * interval + 1 + 3 * _GROUP_BLOCKS) + 2 * LANES + _GROUP_BLOCKS)
    arguments: tuple[int, ...] = (
        batch,
        length,
        channels,
        state,
        interval,
        *place_of(u),
        *place_of(delta),
        A.data_ptr(),
    )
    arguments += (
        *place_of(B),
        *place_of(C),
        address_of(D),
        checkpoints.data_ptr(),
        *place_of(dy),
        address_of(dfinal),
    )
    arguments += tuple(tensor.data_ptr() for tensor in (du, ddelta, dA, dB, dC, dD, dinitial))
    work = _BACKWARD_NANOSECONDS * batch * blocks * length * state
    run_tasks(_backward, batch * groups, work, scratch, arguments)
    return du, ddelta, dA.sum(0), _sum_first(dB), _sum_first(dC), dD.sum(0), dinitial


def _interval(length: int, state: int) -> int:
    """Steps between checkpoints: a cache's worth of states, and never more memory than two inputs' worth."""
    return max(1, min(length, max(_INTERVAL_ROWS // state, -(-state // 2))))


def _sum_first(tensor: Tensor) -> Tensor:
    return tensor[0] if tensor.shape[0] == 1 else tensor.sum(0)
