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

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from verim.ops.compiled import compiled
from verim.ops.lanes import transpose
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
    load_lanes,
    load_scalar,
    multiply,
    multiply_add,
    prefetch,
    prefetch_to_write,
    store,
    store_lanes,
    store_scalar,
    sum_rows,
    upper_half,
)
from verim.ops.workers import run_tasks

GROUP_BLOCKS = 8  # of 16 channels: more of them share one sum over lanes, fewer give more tasks
AHEAD = 8  # steps: rows lie far apart, so the hardware does not foresee the next one
UNROLL = 4  # entries of the state are handled by fours

# What is kept of an entry of the state, as vectors that lie side by side: one pointer serves them all.
FORWARD_ENTRY, DECAY, STATE = 2 * ROW, 0 * ROW, 1 * ROW  # A log2(e), h
ENTRY, CARRY, TO_A = 3 * ROW, 1 * ROW, 2 * ROW  # A log2(e), c, dA
# The same for an entry at one step. A step's records end with an empty vector: at distances of 4096 bytes the
# processor would take a load for one of what was just stored.
RECORD, DECAYED, AFTER, TO_B, TO_C = 4 * ROW, 0 * ROW, 1 * ROW, 2 * ROW, 3 * ROW  # e, h, dB, dC

_INTERVAL_RECORDS = 128  # of one interval: they fill a first-level cache
_FORWARD_NANOSECONDS, _BACKWARD_NANOSECONDS = 3.0, 9.0  # for 16 channels, one step, one entry of the state


@njit(nogil=True, error_model="numpy")
def _step(entries: int, B: int, C: int, step: Any, drive: Any, total: Any, state: int) -> Any:
    """One step of a block: updates the state in `entries`, adds C h to `total`."""
    for n in range(0, state, UNROLL):
        for k in range(UNROLL):
            entry = entries + (n + k) * FORWARD_ENTRY
            e = exp2(multiply(step, load(entry + DECAY)))
            h = multiply_add(e, load(entry + STATE), multiply(drive, broadcast(B + (n + k) * BYTES)))
            store(entry + STATE, h)
            total = multiply_add(h, broadcast(C + (n + k) * BYTES), total)
    return total


@njit(nogil=True, error_model="numpy")
def _read_decays(target: int, A: int, count: int, columns: int, state: int) -> None:
    """A log2(e) of 16 channels, turned: entries of the state by rows. `A` has `count` rows; what is missing is 0."""
    whole = columns // LANES * LANES if count == LANES else 0
    for n in range(0, whole, LANES):
        transpose(target + n * FORWARD_ENTRY, FORWARD_ENTRY, A + n * BYTES, columns * BYTES)
    for n in range(whole, state):
        store(target + n * FORWARD_ENTRY, full(np.float32(0)))
    for n in range(whole, columns):
        for channel in range(count):
            place = target + n * FORWARD_ENTRY + channel * BYTES
            store_scalar(place, load_scalar(A + (channel * columns + n) * BYTES))
    for n in range(state):
        entry = target + n * FORWARD_ENTRY
        store(entry, multiply(load(entry), full(np.float32(LOG2_E))))


@compiled
def _forward(
    first: int,
    last: int,
    scratch: int,
    length: int,
    channels: int,
    columns: int,
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
    """Compiled. Tensors are addresses (0 for None); `_batch` and `_time` are strides in bytes.

    `A` [channels, columns] is turned here: for a step of decoding that is most of the work.
    """
    blocks = (channels + LANES - 1) // LANES
    intervals = (length + interval - 1) // interval
    for task in range(first, last):
        batch, block = task // blocks, task % blocks
        channel = block * LANES
        count = min(channels - channel, LANES)
        here = (batch * state * channels + channel) * BYTES
        _read_decays(scratch + DECAY, A + channel * columns * BYTES, count, columns, state)
        for n in range(state):
            entry = scratch + n * FORWARD_ENTRY
            if initial != 0:
                store(entry + STATE, load_lanes(initial + here + n * channels * BYTES, count))
            else:
                store(entry + STATE, full(np.float32(0)))
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
                    store(kept + n * ROW, load(scratch + n * FORWARD_ENTRY + STATE))
            prefetch(u_row + AHEAD * u_time)
            prefetch(delta_row + AHEAD * delta_time)
            prefetch_to_write(y_row + AHEAD * channels * BYTES)
            step, x = load_lanes(delta_row, count), load_lanes(u_row, count)
            total = _step(scratch, B_row, C_row, step, multiply(step, x), multiply(skip, x), state)
            store_lanes(y_row, count, total)
            u_row += u_time
            delta_row += delta_time
            B_row += B_time
            C_row += C_time
            y_row += channels * BYTES
        for n in range(state):
            value = load(scratch + n * FORWARD_ENTRY + STATE)
            store_lanes(final + here + n * channels * BYTES, count, value)


@njit(nogil=True, error_model="numpy")
def _recompute(record: int, size: int, entries: int, B: int, step: Any, drive: Any, g_y: Any, state: int) -> None:
    """One step of a block again: keeps e and h in `record`, adds dy h to dC there. The record before holds h."""
    before = record - size
    for n in range(0, state, UNROLL):
        for k in range(UNROLL):
            at, entry = record + (n + k) * RECORD, entries + (n + k) * ENTRY
            e = exp2(multiply(step, load(entry + DECAY)))
            old = load(before + (n + k) * RECORD + AFTER)
            h = multiply_add(e, old, multiply(drive, broadcast(B + (n + k) * BYTES)))
            store(at + DECAYED, e)
            store(at + AFTER, h)
            store(at + TO_C, multiply_add(g_y, h, load(at + TO_C)))


@njit(nogil=True, error_model="numpy")
def _step_back(
    record: int, size: int, entries: int, B: int, C: int, step: Any, drive: Any, g_y: Any, state: int
) -> Any:
    """One step of a block backwards. Sums over the state of c h_before A log2(e), and of g B."""
    through_decay = through_drive = full(np.float32(0))
    before = record - size
    for n in range(0, state, UNROLL):
        for k in range(UNROLL):
            at, entry = record + (n + k) * RECORD, entries + (n + k) * ENTRY
            g = multiply_add(g_y, broadcast(C + (n + k) * BYTES), load(entry + CARRY))
            c = multiply(g, load(at + DECAYED))
            store(entry + CARRY, c)
            decayed = multiply(c, load(before + (n + k) * RECORD + AFTER))
            store(entry + TO_A, multiply_add(step, decayed, load(entry + TO_A)))
            through_decay = multiply_add(decayed, load(entry + DECAY), through_decay)
            through_drive = multiply_add(g, broadcast(B + (n + k) * BYTES), through_drive)
            store(at + TO_B, multiply_add(g, drive, load(at + TO_B)))
    return through_decay, through_drive


@compiled
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
    groups = (blocks + GROUP_BLOCKS - 1) // GROUP_BLOCKS
    intervals = (length + interval - 1) // interval
    size = state * RECORD + ROW  # of a step's records
    dD_rows = scratch
    all_entries = dD_rows + GROUP_BLOCKS * ROW
    start_record = all_entries + GROUP_BLOCKS * state * ENTRY  # holds the checkpoint; the steps' records follow
    for task in range(first, last):
        batch, group = task // groups, task % groups
        first_block = group * GROUP_BLOCKS
        members = min(blocks - first_block, GROUP_BLOCKS)
        for member in range(members):
            channel = (first_block + member) * LANES
            count = min(channels - channel, LANES)
            here = (batch * state * channels + channel) * BYTES
            store(dD_rows + member * ROW, zero)
            for n in range(state):
                entry = all_entries + (member * state + n) * ENTRY
                column = load_lanes(A + (n * channels + channel) * BYTES, count)
                store(entry + DECAY, multiply(column, full(np.float32(LOG2_E))))
                store(entry + TO_A, zero)
                if dfinal != 0:
                    store(entry + CARRY, load_lanes(dfinal + here + n * channels * BYTES, count))
                else:
                    store(entry + CARRY, zero)
        for back in range(intervals):
            index = intervals - 1 - back
            start = index * interval
            steps = min(interval, length - start)
            record = start_record
            for _ in range(steps):
                record += size
                for n in range(state):
                    store(record + n * RECORD + TO_B, zero)
                    store(record + n * RECORD + TO_C, zero)
            for member in range(members):
                block = first_block + member
                channel = block * LANES
                count = min(channels - channel, LANES)
                entries = all_entries + member * state * ENTRY
                # where the next turn begins: the next block, or the first one an interval earlier
                turn = (0, 1) if member < members - 1 else (-interval, -member)
                kept = checkpoints + ((batch * intervals + index) * blocks + block) * state * ROW
                next_kept = kept + ROW * state if turn[0] == 0 else kept - (blocks + member) * state * ROW
                for n in range(state):
                    store(start_record + n * RECORD + AFTER, load(kept + n * ROW))
                    prefetch(next_kept + n * ROW)
                u_row = u + batch * u_batch + start * u_time + channel * BYTES
                delta_row = delta + batch * delta_batch + start * delta_time + channel * BYTES
                dy_row = dy + batch * dy_batch + start * dy_time + channel * BYTES
                B_row = B + batch * B_batch + start * B_time
                C_row = C + batch * C_batch + start * C_time
                record = start_record
                for _ in range(steps):
                    record += size
                    step, x, g_y = load_lanes(delta_row, count), load_lanes(u_row, count), load_lanes(dy_row, count)
                    _recompute(record, size, entries, B_row, step, multiply(step, x), g_y, state)
                    u_row += u_time
                    delta_row += delta_time
                    dy_row += dy_time
                    B_row += B_time
                    C_row += C_time
                skip = zero
                if D != 0:
                    skip = load_lanes(D + channel * BYTES, count)
                dD_sum = load(dD_rows + member * ROW)
                out = ((batch * length + start + steps) * channels + channel) * BYTES
                for _ in range(steps):
                    u_row -= u_time
                    delta_row -= delta_time
                    dy_row -= dy_time
                    B_row -= B_time
                    C_row -= C_time
                    out -= channels * BYTES
                    prefetch(u_row + turn[0] * u_time + turn[1] * ROW)
                    prefetch(delta_row + turn[0] * delta_time + turn[1] * ROW)
                    prefetch(dy_row + turn[0] * dy_time + turn[1] * ROW)
                    step, x, g_y = load_lanes(delta_row, count), load_lanes(u_row, count), load_lanes(dy_row, count)
                    through_decay, through_drive = _step_back(
                        record, size, entries, B_row, C_row, step, multiply(step, x), g_y, state
                    )
                    through_decay = multiply(through_decay, full(np.float32(LN_2)))
                    store_lanes(ddelta + out, count, multiply_add(through_drive, x, through_decay))
                    store_lanes(du + out, count, multiply_add(through_drive, step, multiply(skip, g_y)))
                    dD_sum = multiply_add(g_y, x, dD_sum)
                    record -= size
                store(dD_rows + member * ROW, dD_sum)
            out = ((group * batches + batch) * length + start) * state * BYTES
            record = start_record
            for _ in range(steps):
                record += size
                for n in range(0, state, LANES // 2):
                    sums = sum_rows(record + n * RECORD + TO_B, RECORD, TO_C - TO_B)
                    count = min(state - n, LANES // 2)
                    store_lanes(dB + out + n * BYTES, count, sums)
                    store_lanes(dC + out + n * BYTES, count, upper_half(sums))
                out += state * BYTES
        for member in range(members):
            channel = (first_block + member) * LANES
            count = min(channels - channel, LANES)
            here = (batch * state * channels + channel) * BYTES
            store_lanes(dD + (batch * channels + channel) * BYTES, count, load(dD_rows + member * ROW))
            for n in range(state):
                entry = all_entries + (member * state + n) * ENTRY
                store_lanes(dA + here + n * channels * BYTES, count, load(entry + TO_A))
                store_lanes(dinitial + here + n * channels * BYTES, count, load(entry + CARRY))


def scan_forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial: Tensor | None,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the final state, and with `keep` the checkpoints for `scan_backward`, else an empty tensor. Unchecked."""
    u, delta, B, C = rows_of(u), rows_of(delta), _filled(rows_of(B)), _filled(rows_of(C))
    batch, length, channels = u.shape
    state, entries = A.shape[1], B.shape[2]
    A = A.contiguous()
    D = None if D is None else D.contiguous()
    initial = None if initial is None else _filled(initial).transpose(1, 2).contiguous()
    interval = _interval(length, entries)
    blocks = -(-channels // LANES)
    y = torch.empty(batch, length, channels, dtype=torch.float32, device="cpu")
    final = torch.empty(batch, entries, channels, dtype=torch.float32, device="cpu")
    kept = checkpoints_shape(batch, length, channels, state) if keep else (0,)
    checkpoints = torch.empty(kept, dtype=torch.float32, device="cpu")
    arguments: tuple[int, ...] = (length, channels, state, entries, interval, *place_of(u), *place_of(delta))
    arguments += (A.data_ptr(), *place_of(B), *place_of(C), address_of(D), address_of(initial))
    arguments += (y.data_ptr(), final.data_ptr(), checkpoints.data_ptr() if keep else 0)
    work = _FORWARD_NANOSECONDS * batch * blocks * length * entries
    run_tasks(_forward, batch * blocks, work, entries * FORWARD_ENTRY // BYTES, arguments)
    final = final.transpose(1, 2)
    return y, final if entries == state else final[..., :state], checkpoints


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
    u, delta, dy = rows_of(u), rows_of(delta), rows_of(dy)
    B, C = _filled(rows_of(B)), _filled(rows_of(C))
    batch, length, channels = u.shape
    state, entries = A.shape[1], B.shape[2]
    A = _filled(A).t().contiguous()
    D = None if D is None else D.contiguous()
    dfinal = None if dfinal is None else _filled(dfinal).transpose(1, 2).contiguous()
    interval = _interval(length, entries)
    blocks = -(-channels // LANES)
    groups = -(-blocks // GROUP_BLOCKS)
    du, ddelta = (torch.empty(batch, length, channels, dtype=torch.float32, device="cpu") for _ in range(2))
    dA, dinitial = (torch.empty(batch, entries, channels, dtype=torch.float32, device="cpu") for _ in range(2))
    dB, dC = (torch.empty(groups, batch, length, entries, dtype=torch.float32, device="cpu") for _ in range(2))
    dD = torch.empty(batch, channels, dtype=torch.float32, device="cpu")
    scratch = GROUP_BLOCKS * (ROW + entries * ENTRY) + (interval + 1) * (entries * RECORD + ROW)
    scratch += UNROLL * RECORD  # the sums read eight entries at a time
    arguments: tuple[int, ...] = (batch, length, channels, entries, interval, *place_of(u), *place_of(delta))
    arguments += (A.data_ptr(), *place_of(B), *place_of(C), address_of(D), checkpoints.data_ptr())
    arguments += (*place_of(dy), address_of(dfinal))
    arguments += tuple(tensor.data_ptr() for tensor in (du, ddelta, dA, dB, dC, dD, dinitial))
    work = _BACKWARD_NANOSECONDS * batch * blocks * length * entries
    run_tasks(_backward, batch * groups, work, scratch // BYTES, arguments)
    dA, dB, dC, dinitial = _sum_first(dA).t(), _sum_first(dB), _sum_first(dC), dinitial.transpose(1, 2)
    if entries != state:
        dA, dB, dC, dinitial = (gradient[..., :state] for gradient in (dA, dB, dC, dinitial))
    return du, ddelta, dA, dB, dC, _sum_first(dD), dinitial


def _interval(length: int, entries: int) -> int:
    """Steps between checkpoints: a cache's worth of records, and checkpoints of at most two inputs' size."""
    return max(1, min(length, max(_INTERVAL_RECORDS // entries, entries // 2)))


def checkpoints_shape(batch: int, length: int, channels: int, state: int) -> tuple[int, ...]:
    """Of what the forward pass keeps: the state at the beginning of every interval, in blocks of 16 channels."""
    entries = filled(state)
    return batch, -(-length // _interval(length, entries)), -(-channels // LANES), entries, LANES


def filled(state: int) -> int:
    """Entries of the state that are computed: a multiple of `UNROLL`."""
    return -(-state // UNROLL) * UNROLL


def _filled(tensor: Tensor) -> Tensor:
    """Zeros appended to the last axis, the entries of the state, up to a multiple of `UNROLL`."""
    missing = filled(tensor.shape[-1]) - tensor.shape[-1]
    return tensor if missing == 0 else torch.nn.functional.pad(tensor, (0, missing))


def _sum_first(tensor: Tensor) -> Tensor:
    return tensor.squeeze(0) if tensor.shape[0] == 1 else tensor.sum(0)
