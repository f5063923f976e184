"""The prefix sum on the CPU: memory is read once and written once, by all threads.

An axis that lies side by side in memory is scanned 16 entries at a time, across the lanes of a vector: four rounds
of shift and add. An axis of rows is scanned by adding row after row to a row of running sums, in strips that stay in
the first-level cache. Two to eight entries side by side (a last axis of 2, 4 or 8) share a vector: the rounds begin
at their distance.

Where there are too few rows or strips for the threads, the axis is cut into blocks that fit the second-level cache:
a thread sums its block, hands the carry on (`verim.ops.chain`) and scans it. If a carry does not come, because the
system has given the other thread's core away, the blocks in between are summed a second time. What is cut depends on
the shape alone, so that the bits do not depend on the threads. Running sums are float64 for floats, int64 for
integers.
"""

import math
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from verim.ops.chain import draw_ticket, finish_streams, hand_on, has_come, is_handed_on, wait_for
from verim.ops.compiled import compiled
from verim.ops.numbers import (
    halves,
    lane_7,
    last_1,
    last_entry,
    load_numbers,
    moved_1,
    moved_1_in_halves,
    moved_2,
    moved_2_in_halves,
    moved_4,
    moved_4_in_halves,
    moved_8,
    plus,
    reversed_numbers,
    shifted,
    store_numbers,
    stream_numbers,
    zero,
)
from verim.ops.vectors import LANES, prefetch, prefetch_to_write
from verim.ops.workers import run_tasks

_MARKERS: dict[torch.dtype, Any] = {
    torch.float32: np.float32(0),
    torch.float64: np.float64(0),
    torch.int64: np.int64(0),
    torch.int32: np.int32(0),
    torch.int16: np.int16(0),
    torch.int8: np.int8(0),
    torch.uint8: np.uint8(0),
    torch.bool: np.bool_(False),
}
TYPES = tuple(_MARKERS)
SUM = 8  # bytes of a running sum
SUMS_ROW = LANES * SUM
BLOCK = 1 << 15  # entries of a block: with its result, a part of the second-level cache
STRIP = 1024  # columns of a strip at most: rows of 4 kB, a page, and running sums of 8 kB
NARROW = 512  # of a strip where wider ones would be too few for the threads
AHEAD = 2048  # bytes: the hardware foresees the next memory, but not beyond a page
PATIENCE = 4096  # looks at a carry that does not come, some 10 µs, before its block is summed a second time
BLOCK_ROWS = 64  # of a strip: many, as each block keeps a row of running sums
CUT = 1 << 19  # entries of a row from which on two threads are worth reading its blocks twice
CHAINS = 4  # with fewer rows than this the axis is cut
STRIPS = 2  # the same of strips, whose blocks keep a row of sums each
STREAMED = 1 << 24  # bytes of a result that rows of sums write past the caches, which would not hold it
_NANOSECONDS = 0.1  # for a byte that is read or written


@njit(nogil=True)
def _across(value: Any, nothing: Any, width: int) -> Any:
    """The running sums of a vector's lanes, over entries of `width` lanes."""
    if width <= 1:
        value = plus(value, moved_1(nothing, value))
    if width <= 2:
        value = plus(value, moved_2(nothing, value))
    if width <= 4:
        value = plus(value, moved_4(nothing, value))
    return plus(value, moved_8(nothing, value))


@njit(nogil=True)
def _sum_of_block(x: int, lanes: int, size: int, nothing: Any, width: int, memory: Any, sums: Any) -> Any:
    """The sum of a block's entries, in all entries."""
    total = other = nothing
    pairs = lanes // (2 * LANES)
    for _ in range(pairs):
        total = plus(total, load_numbers(x, LANES, memory, sums))
        other = plus(other, load_numbers(x + LANES * size, LANES, memory, sums))
        x += 2 * LANES * size
    for at in range(pairs * 2 * LANES, lanes, LANES):
        total = plus(total, load_numbers(x, lanes - at, memory, sums))
        x += LANES * size
    return last_entry(_across(plus(total, other), nothing, width), width)


@njit(nogil=True)
def _begin(index: int, lanes: int, block: int, backwards: int) -> int:
    """The first lane in memory of a row's block."""
    return max(lanes - (index + 1) * block, 0) if backwards != 0 else index * block


@njit(nogil=True)
def _added(
    index: int,
    row: int,
    lanes: int,
    block: int,
    size: int,
    nothing: Any,
    width: int,
    backwards: int,
    memory: Any,
    sums: Any,
) -> Any:
    """What a block adds to the carry."""
    begin, count = _begin(index, lanes, block, backwards), min(lanes - index * block, block)
    value = _sum_of_block(row + begin * size, count, size, nothing, width, memory, sums)
    return reversed_numbers(value, sums) if backwards != 0 else value


@njit(nogil=True)
def _plain_vectors(
    source: int,
    target: int,
    count: int,
    carry: Any,
    nothing: Any,
    ahead_x: int,
    ahead_y: int,
    x_size: int,
    y_size: int,
    memory: Any,
    result: Any,
    sums: Any,
) -> Any:
    """Scans `count` vectors of single entries, forwards and inclusive; returns the carry.

    The halves of a vector, a register each, are scanned on their own and the carry goes through both: fewer shuffles
    than a scan of all 16 lanes, which one port alone can do, and two additions from carry to carry.
    """
    for _ in range(count):
        prefetch(ahead_x)  # of the next block: memory would be idle while this one is read from the cache
        prefetch(ahead_y)
        value = load_numbers(source, LANES, memory, sums)
        value = plus(value, moved_1_in_halves(nothing, value))
        value = plus(value, moved_2_in_halves(nothing, value))
        value = plus(value, moved_4_in_halves(nothing, value))
        middle = plus(carry, lane_7(value, value))
        store_numbers(target, LANES, plus(value, halves(carry, middle)), result)
        carry = plus(middle, last_1(value, value))
        source += LANES * x_size
        target += LANES * y_size
        ahead_x += LANES * x_size
        ahead_y += LANES * y_size
    return carry


@njit(nogil=True)
def _other_vectors(
    source: int,
    target: int,
    count: int,
    step: int,
    carry: Any,
    nothing: Any,
    ahead_x: int,
    ahead_y: int,
    width: int,
    x_size: int,
    y_size: int,
    exclusive: int,
    backwards: int,
    memory: Any,
    result: Any,
    sums: Any,
) -> Any:
    """The same of entries of `width` lanes, in any way; `step` lanes, which may be negative, to the next vector."""
    for _ in range(count):
        prefetch(ahead_x)
        prefetch(ahead_y)
        value = load_numbers(source, LANES, memory, sums)
        if backwards != 0:
            value = reversed_numbers(value, sums)
        value = _across(value, nothing, width)
        before = carry
        carry = plus(before, last_entry(value, width))
        value = plus(before, value)
        if exclusive != 0:
            value = shifted(value, before, width)
        if backwards != 0:
            value = reversed_numbers(value, sums)
        store_numbers(target, LANES, value, result)
        source += step * x_size
        target += step * y_size
        ahead_x += LANES * x_size
        ahead_y += LANES * y_size
    return carry


@compiled
def _along(
    first: int,
    last: int,
    scratch: int,
    tickets: int,
    control: int,
    carries: int,
    rows: int,
    together: int,
    lanes: int,
    width: int,
    block: int,
    x: int,
    x_row: int,
    x_size: int,
    y: int,
    y_size: int,
    exclusive: int,
    backwards: int,
    patience: int,
    memory: Any,
    result: Any,
    sums: Any,
) -> None:
    """Compiled. Scans `rows` of `lanes` that lie side by side, in blocks; or `together` rows for a ticket, uncut.

    `control`: the next ticket, then a flag for each ticket. The last three are markers of types.
    """
    # zeros from memory: LLVM would turn shifts of a constant into slower instructions
    nothing = load_numbers(control + tickets * SUM, LANES, sums, sums)
    blocks = (lanes + block - 1) // block
    ticket = draw_ticket(control)
    while ticket < tickets:
        upcoming = draw_ticket(control)
        row, begin, count = ticket * together, 0, lanes
        until = min(row + together, rows)
        ahead_x, ahead_y = x + row * x_row + AHEAD, y + row * lanes * y_size + AHEAD
        carry = nothing
        if blocks > 1:
            row, index = ticket // blocks, ticket % blocks
            until = row + 1
            begin, count = _begin(index, lanes, block, backwards), min(lanes - index * block, block)
            start, added = x + row * x_row, nothing
            if index < blocks - 1:
                added = _added(index, start, lanes, block, x_size, nothing, width, backwards, memory, sums)
            if index > 0:
                known = ticket
                if not has_come(control + ticket * SUM, patience):  # a thread is held up: what it should sum is summed
                    while known > ticket - index and not is_handed_on(control + known * SUM):
                        known -= 1
                if known > ticket - index:
                    carry = load_numbers(carries + known * SUMS_ROW, LANES, sums, sums)
                while known < ticket:
                    missing = known % blocks
                    carry = plus(
                        carry, _added(missing, start, lanes, block, x_size, nothing, width, backwards, memory, sums)
                    )
                    known += 1
                    store_numbers(carries + known * SUMS_ROW, LANES, carry, sums)
                    hand_on(control + known * SUM)
            if index < blocks - 1:
                store_numbers(carries + (ticket + 1) * SUMS_ROW, LANES, plus(carry, added), sums)
                hand_on(control + (ticket + 1) * SUM)
            then = min(upcoming, tickets - 1)
            next_row, next_begin = then // blocks, _begin(then % blocks, lanes, block, backwards)
            ahead_x = x + next_row * x_row + next_begin * x_size
            ahead_y = y + (next_row * lanes + next_begin) * y_size
        for r in range(row, until):
            source, target = x + r * x_row + begin * x_size, y + (r * lanes + begin) * y_size
            step = LANES
            if backwards != 0:
                step = -LANES
                source += (count - LANES) * x_size
                target += (count - LANES) * y_size
            vectors = count // LANES
            if width == 1 and exclusive == 0 and backwards == 0:
                carry = _plain_vectors(
                    source, target, vectors, carry, nothing, ahead_x, ahead_y, x_size, y_size, memory, result, sums
                )
            else:
                carry = _other_vectors(
                    source,
                    target,
                    vectors,
                    step,
                    carry,
                    nothing,
                    ahead_x,
                    ahead_y,
                    width,
                    x_size,
                    y_size,
                    exclusive,
                    backwards,
                    memory,
                    result,
                    sums,
                )
            source += vectors * step * x_size
            target += vectors * step * y_size
            ahead_x += vectors * LANES * x_size
            ahead_y += vectors * LANES * y_size
            rest = count % LANES
            if rest > 0:
                if backwards != 0:  # what is missing comes first, as zeros
                    source += (LANES - rest) * x_size
                    target += (LANES - rest) * y_size
                value = load_numbers(source, rest, memory, sums)
                if backwards != 0:
                    value = reversed_numbers(value, sums)
                value = plus(carry, _across(value, nothing, width))
                if exclusive != 0:
                    value = shifted(value, carry, width)
                if backwards != 0:
                    value = reversed_numbers(value, sums)
                store_numbers(target, rest, value, result)
            carry = nothing
        ticket = upcoming


@compiled
def _down(
    first: int,
    last: int,
    scratch: int,
    tickets: int,
    control: int,
    carries: int,
    length: int,
    columns: int,
    strip_columns: int,
    block: int,
    x: int,
    x_outer: int,
    x_row: int,
    x_size: int,
    y: int,
    y_size: int,
    exclusive: int,
    backwards: int,
    streamed: int,
    memory: Any,
    result: Any,
    sums: Any,
) -> None:
    """Compiled. Scans [outer, length, columns] along its rows, in blocks of `block` rows and strips of columns."""
    nothing = zero(sums)
    strips = (columns + strip_columns - 1) // strip_columns
    blocks = (length + block - 1) // block
    local = scratch + STRIP * SUM
    kept = min((columns + LANES - 1) // LANES * LANES, strip_columns)  # running sums that a block hands on
    while True:
        ticket = draw_ticket(control)
        if ticket >= tickets:
            break
        strip, index, outer = ticket % strips, ticket // strips % blocks, ticket // (strips * blocks)
        column = strip * strip_columns
        count = min(columns - column, strip_columns)
        begin = index * block
        steps = min(length - begin, block)
        source_step, target_step = x_row, columns * y_size
        if backwards != 0:
            begin = length - 1 - begin
            source_step, target_step = -source_step, -target_step
        start = x + outer * x_outer + begin * x_row + column * x_size
        target = y + ((outer * length + begin) * columns + column) * y_size
        for c in range(0, count, LANES):
            store_numbers(scratch + c * SUM, LANES, nothing, sums)
        if index < blocks - 1:
            for c in range(0, count, LANES):
                store_numbers(local + c * SUM, LANES, nothing, sums)
            source = start
            for _ in range(steps):
                for c in range(0, count, LANES):
                    value = load_numbers(source + c * x_size, count - c, memory, sums)
                    value = plus(load_numbers(local + c * SUM, LANES, sums, sums), value)
                    store_numbers(local + c * SUM, LANES, value, sums)
                source += source_step
        if index > 0:
            wait_for(control + ticket * SUM)
            for c in range(0, count, LANES):
                carry = load_numbers(carries + (ticket * kept + c) * SUM, LANES, sums, sums)
                store_numbers(scratch + c * SUM, LANES, carry, sums)
        if index < blocks - 1:
            following = ticket + strips
            for c in range(0, count, LANES):
                value = load_numbers(scratch + c * SUM, LANES, sums, sums)
                value = plus(value, load_numbers(local + c * SUM, LANES, sums, sums))
                store_numbers(carries + (following * kept + c) * SUM, LANES, value, sums)
            hand_on(control + following * SUM)
        source = start
        for _ in range(steps):
            for c in range(0, count, LANES):
                prefetch(source + source_step + c * x_size)
                if streamed == 0:
                    prefetch_to_write(target + target_step + c * y_size)
                before = load_numbers(scratch + c * SUM, LANES, sums, sums)
                value = plus(before, load_numbers(source + c * x_size, count - c, memory, sums))
                store_numbers(scratch + c * SUM, LANES, value, sums)
                if exclusive != 0:
                    value = before
                if streamed != 0 and count - c >= LANES:
                    stream_numbers(target + c * y_size, value, result)
                else:
                    store_numbers(target + c * y_size, count - c, value, result)
            source += source_step
            target += target_step
    finish_streams()


def prefix_sum_forward(x: Tensor, dim: int, exclusive: bool, reverse: bool) -> Tensor:
    """The running sums of `x`, which has an axis `dim` (not negative) and one of `TYPES`. Unchecked."""
    result = x.dtype if x.is_floating_point() else torch.int64
    y = torch.empty(x.shape, dtype=result, device="cpu")
    if y.numel() == 0:
        return y
    length, inner = x.shape[dim], math.prod(x.shape[dim + 1 :])
    outer = y.numel() // (length * inner)
    x = x.resolve_neg().reshape(outer, length, inner)
    side_by_side = inner in (1, 2, 4, 8)
    geometry: tuple[int, ...]
    if x.stride(2) != 1 or (side_by_side and x.stride(1) != inner):
        x = x.contiguous()
    x_size, y_size = x.element_size(), y.element_size()
    markers = _MARKERS[x.dtype], _MARKERS[result], np.float64(0) if x.is_floating_point() else np.int64(0)
    how: tuple[int, ...] = int(exclusive), int(reverse)
    if side_by_side:
        lanes = length * inner
        block, together = (BLOCK, 1) if outer < CHAINS and lanes >= CUT else (lanes, max(1, BLOCK // lanes))
        tickets = -(-outer // together) * -(-lanes // block)
        carries = LANES if block < lanes else 0
        geometry = (outer, together, lanes, inner, block, x.data_ptr(), x.stride(0) * x_size)
        how += (PATIENCE,)
        kernel = _along
    else:
        strip = STRIP if outer * -(-inner // STRIP) >= STRIPS else NARROW
        strips = -(-inner // strip)
        fits = max(BLOCK_ROWS, BLOCK // inner)
        block = fits if outer * strips < STRIPS and length > fits else length
        tickets = outer * strips * -(-length // block)
        carries = min(-(-inner // LANES) * LANES, strip) if block < length else 0
        geometry = (length, inner, strip, block, x.data_ptr(), x.stride(0) * x_size, x.stride(1) * x_size)
        how += (int(y.numel() * y_size >= STREAMED and inner * y_size % 64 == 0),)
        kernel = _down
    control = torch.zeros(tickets + LANES, dtype=torch.int64, device="cpu")
    handed = torch.empty(tickets * carries, dtype=torch.int64, device="cpu")
    arguments: tuple[Any, ...] = (
        tickets,
        control.data_ptr(),
        handed.data_ptr(),
        *geometry,
        x_size,
        y.data_ptr(),
        y_size,
        *how,
        *markers,
    )
    work = _NANOSECONDS * y.numel() * (x_size + y_size)
    threads = min(tickets, torch.get_num_threads())
    run_tasks(kernel, threads, work, 2 * STRIP * SUM // 4, arguments)
    return y
