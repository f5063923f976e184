"""The linear recurrence on the CPU, real and complex: memory is read once and written once, by all threads.

The walk along time is the same forward and, with g_t = dL/dh_t and c_t = conj(a_t) g_t, backward from the other end:

    h_t = a_t h_{t-1} + b_t                                         h_{-1} is the initial state
    g_t = dh_t + c_{t+1}    db_t = g_t    da_t = g_t conj(h_{t-1})    c after the last step is dL/dfinal

A step adds a row of channels to a row of states, in strips that stay in the first-level cache. A channel alone, or
two to eight, are walked through 16 numbers at a time, across the lanes of a vector: four rounds in which every entry
takes up the one at some distance, (A, B) after (A', B') being (A A', A B' + B).

Where there are too few rows and strips for the threads, time is cut into blocks that fit the second-level cache: a
thread finds out what its block does to a state, hands the state on (`verim.ops.chain`) and walks the block. What is
cut depends on the shape alone, so that the bits do not depend on the threads. A product of many coefficients may be
infinite where the states are not: then the block is walked first and the state handed on afterwards.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from verim.ops.chain import draw_ticket, finish_streams, hand_on, wait_for
from verim.ops.compiled import compiled
from verim.ops.memory import place_of
from verim.ops.numbers import (
    conjugate,
    is_finite,
    last_entry,
    load_numbers,
    moved_1,
    moved_2,
    moved_4,
    moved_8,
    one,
    plus,
    reversed_numbers,
    shifted,
    store_numbers,
    stream_numbers,
    times,
    times_plus,
    zero,
)
from verim.ops.vectors import LANES
from verim.ops.workers import run_tasks

_MARKERS: dict[torch.dtype, tuple[Any, Any]] = {  # what is computed with, and long products of coefficients
    torch.float32: (np.float32(0), np.float64(0)),
    torch.float64: (np.float64(0), np.float64(0)),
    torch.complex64: (np.complex64(0), np.complex128(0)),
    torch.complex128: (np.complex128(0), np.complex128(0)),
}
STRIP = 512  # lanes of a strip: rows of 2 kB of float32
STRIP_ROW = STRIP * 8  # bytes of a row of any type
BLOCK = 1 << 14  # numbers of a block of each tensor: together a part of the second-level cache
CHAINS = 4  # with fewer rows and strips than this time is cut
STREAMED = 1 << 24  # bytes of a result that goes past the caches, which would not hold it
_NANOSECONDS = 0.08  # for a byte that is read or written


@njit(nogil=True)
def _put(address: int, count: int, value: Any, streamed: int, marker: Any) -> None:
    if streamed != 0 and count >= LANES:
        stream_numbers(address, value, marker)
    else:
        store_numbers(address, count, value, marker)


@njit(nogil=True)
def _copy(target: int, source: int, lanes: int, size: int, marker: Any) -> None:
    for c in range(0, lanes, LANES):
        store_numbers(target + c * size, lanes - c, load_numbers(source + c * size, lanes - c, marker, marker), marker)


@njit(nogil=True)
def _combined(product: Any, state: Any, local: Any, backwards: int, marker: Any) -> Any:
    if backwards != 0:
        product = conjugate(product, marker)
    return times_plus(product, state, local, marker)


@compiled
def _rows(
    first: int,
    last: int,
    scratch: int,
    tickets: int,
    control: int,
    carries: int,
    length: int,
    lanes: int,
    block: int,
    size: int,
    a: int,
    a_batch: int,
    a_time: int,
    x: int,
    x_batch: int,
    x_time: int,
    start: int,
    end: int,
    y: int,
    y_batch: int,
    y_time: int,
    backwards: int,
    before: int,
    before_end: int,
    da: int,
    streamed: int,
    marker: Any,
    wide: Any,
) -> None:
    """Compiled. A walk through rows of `lanes`, whose states go from `start` to `end`.

    Tensors are addresses, at the first step of the walk; `_batch` and `_time` are strides in bytes, negative for a
    walk against time. Forward x is b, and y is h. Backwards x is dh, y is db, and `before` is h one step further along
    the walk, `before_end` for the last step; `before` and `da` lie as y does. `control`: the next ticket, then a flag
    for each ticket.
    """
    states, product, local = scratch, scratch + STRIP_ROW, scratch + 2 * STRIP_ROW
    strips = (lanes + STRIP - 1) // STRIP
    blocks = (length + block - 1) // block
    while True:
        ticket = draw_ticket(control)
        if ticket >= tickets:
            break
        strip, index, batch = ticket % strips, ticket // strips % blocks, ticket // (strips * blocks)
        lane, begin = strip * STRIP, index * block
        count, steps = min(lanes - lane, STRIP), min(length - begin, block)
        following = ticket + strips
        a_start = a + batch * a_batch + begin * a_time + lane * size
        x_start = x + batch * x_batch + begin * x_time + lane * size
        out = batch * y_batch + begin * y_time + lane * size
        border = (batch * lanes + lane) * size
        if index < blocks - 1:
            for c in range(0, count, LANES):
                store_numbers(product + c * 8, LANES, one(wide), wide)
                store_numbers(local + c * size, LANES, zero(marker), marker)
            a_row, x_row = a_start, x_start
            for _ in range(steps):
                for c in range(0, count, LANES):
                    at = c * size
                    factor = load_numbers(a_row + at, count - c, marker, marker)
                    value = load_numbers(x_row + at, count - c, marker, marker)
                    state = load_numbers(local + at, LANES, marker, marker)
                    if backwards != 0:
                        state = times(conjugate(factor, marker), plus(value, state), marker)
                    else:
                        state = times_plus(factor, state, value, marker)
                    store_numbers(local + at, LANES, state, marker)
                    factor = load_numbers(a_row + at, count - c, marker, wide)
                    factor = times(load_numbers(product + c * 8, LANES, wide, wide), factor, wide)
                    store_numbers(product + c * 8, LANES, factor, wide)
                a_row += a_time
                x_row += x_time
        if index > 0:
            wait_for(control + ticket * 8)
            _copy(states, carries + ticket * STRIP_ROW, count, size, marker)
        else:
            _copy(states, start + border, count, size, marker)
        is_known = index < blocks - 1
        if is_known:
            for c in range(0, count, LANES):
                factor = load_numbers(product + c * 8, count - c, wide, marker)
                state = load_numbers(states + c * size, count - c, marker, marker)
                state = _combined(
                    factor, state, load_numbers(local + c * size, count - c, marker, marker), backwards, marker
                )
                is_known = is_known and is_finite(state)
                store_numbers(carries + following * STRIP_ROW + c * size, LANES, state, marker)
            if is_known:
                hand_on(control + following * 8)
        a_row, x_row = a_start, x_start
        for step in range(begin, begin + steps):
            before_row = before + out
            if step == length - 1:
                before_row = before_end + border
            for c in range(0, count, LANES):
                at, some = c * size, count - c
                factor = load_numbers(a_row + at, some, marker, marker)
                value = load_numbers(x_row + at, some, marker, marker)
                state = load_numbers(states + at, LANES, marker, marker)
                if backwards != 0:
                    value = plus(value, state)
                    state = times(conjugate(factor, marker), value, marker)
                    older = conjugate(load_numbers(before_row + at, some, marker, marker), marker)
                    _put(da + out + at, some, times(older, value, marker), streamed, marker)
                    _put(y + out + at, some, value, streamed, marker)
                else:
                    state = times_plus(factor, state, value, marker)
                    _put(y + out + at, some, state, streamed, marker)
                store_numbers(states + at, LANES, state, marker)
            a_row += a_time
            x_row += x_time
            out += y_time
        if index == blocks - 1:
            _copy(end + border, states, count, size, marker)
        elif not is_known:
            _copy(carries + following * STRIP_ROW, states, count, size, marker)
            hand_on(control + following * 8)
    finish_streams()


@njit(nogil=True)
def _composed(factor: Any, state: Any, width: int, marker: Any) -> Any:
    """Every entry of `width` lanes after all that come before it: the product of factors, the state from zero."""
    if width <= 1:
        state = times_plus(factor, moved_1(zero(marker), state), state, marker)
        factor = times(factor, moved_1(one(marker), factor), marker)
    if width <= 2:
        state = times_plus(factor, moved_2(zero(marker), state), state, marker)
        factor = times(factor, moved_2(one(marker), factor), marker)
    if width <= 4:
        state = times_plus(factor, moved_4(zero(marker), state), state, marker)
        factor = times(factor, moved_4(one(marker), factor), marker)
    state = times_plus(factor, moved_8(zero(marker), state), state, marker)
    return times(factor, moved_8(one(marker), factor), marker), state


@njit(nogil=True)
def _through(factor: Any, value: Any, carry: Any, width: int, marker: Any) -> Any:
    """The states after each entry, from the state `carry`."""
    product, state = _composed(factor, value, width, marker)
    state = times_plus(product, carry, state, marker)
    if not is_finite(state):  # perhaps only the product is not: one entry more is right after each round
        state = value
        for _ in range(0, LANES, width):
            state = times_plus(factor, shifted(state, carry, width), value, marker)
    return state


@njit(nogil=True)
def _take(address: int, count: int, fill: Any, flipped: int, spare: int, marker: Any) -> Any:
    """The first `count` numbers at `address` and `fill` after them; `flipped` from the last to the first."""
    if count >= LANES:
        value = load_numbers(address, LANES, marker, marker)
    else:
        store_numbers(spare, LANES, fill, marker)
        store_numbers(spare, count, load_numbers(address, count, marker, marker), marker)
        value = load_numbers(spare, LANES, marker, marker)
    return reversed_numbers(value, marker) if flipped != 0 else value


@compiled
def _lanes(
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
    size: int,
    a: int,
    a_row: int,
    x: int,
    x_row: int,
    start: int,
    end: int,
    y: int,
    backwards: int,
    flipped: int,
    before: int,
    before_end: int,
    da: int,
    streamed: int,
    marker: Any,
    wide: Any,
) -> None:
    """Compiled. A walk through `rows` of steps of `width` lanes that lie side by side, `lanes` in all.

    As `_rows`, but tensors are addresses of the first step in memory, and `flipped` means a walk against time.
    """
    spare, nothing, unit = scratch, zero(marker), one(marker)
    blocks = (lanes + block - 1) // block
    while True:
        ticket = draw_ticket(control)
        if ticket >= tickets:
            break
        index, row = ticket % blocks, ticket // blocks * together
        for r in range(row, min(row + together, rows)):
            ahead = index * block  # lanes that the walk has behind it
            count = min(lanes - ahead, block)
            vectors = (count + LANES - 1) // LANES
            a_here, x_here, border = a + r * a_row, x + r * x_row, r * width * size
            product, local = one(wide), nothing
            if index < blocks - 1:
                for v in range(vectors):
                    at = ahead + v * LANES
                    if flipped != 0:
                        at = lanes - LANES - at
                    factor = _take(a_here + at * size, LANES, unit, flipped, spare, marker)
                    value = _take(x_here + at * size, LANES, nothing, flipped, spare, marker)
                    if backwards != 0:
                        factor = conjugate(factor, marker)
                        value = times(factor, value, marker)
                    factor, value = _composed(factor, value, width, marker)
                    local = last_entry(times_plus(factor, local, value, marker), width)
                    store_numbers(spare, LANES, last_entry(factor, width), marker)
                    product = times(product, load_numbers(spare, LANES, marker, wide), wide)
            if index > 0:
                wait_for(control + ticket * 8)
                carry = load_numbers(carries + ticket * STRIP_ROW, LANES, marker, marker)
            else:
                carry = load_numbers(start + border, width, marker, marker)
                for lane in range(0, LANES, width):
                    store_numbers(spare + lane * size, width, carry, marker)
                carry = _take(spare, LANES, nothing, flipped, spare, marker)
            is_known = index < blocks - 1
            if is_known:
                store_numbers(spare, LANES, product, wide)
                handed = times_plus(load_numbers(spare, LANES, wide, marker), carry, local, marker)
                is_known = is_finite(handed)
                if is_known:
                    store_numbers(carries + (ticket + 1) * STRIP_ROW, LANES, handed, marker)
                    hand_on(control + (ticket + 1) * 8)
            for v in range(vectors):
                at = ahead + v * LANES
                some = min(lanes - at, LANES)
                is_end = at + some == lanes
                further = width
                if flipped != 0:
                    at = lanes - some - at
                    further = -width
                out = (r * lanes + at) * size
                factor = _take(a_here + at * size, some, unit, flipped, spare, marker)
                value = _take(x_here + at * size, some, nothing, flipped, spare, marker)
                if backwards != 0:
                    factor = conjugate(factor, marker)
                    states = _through(factor, times(factor, value, marker), carry, width, marker)
                    value = plus(value, shifted(states, carry, width))
                    place = before + out + further * size
                    if is_end:
                        border_at, rest_at = (some - width) * size, 0
                        if flipped != 0:
                            border_at, rest_at, place = 0, width * size, before + out
                        rest = load_numbers(place, some - width, marker, marker)
                        store_numbers(spare + rest_at, some - width, rest, marker)
                        rest = load_numbers(before_end + border, width, marker, marker)
                        store_numbers(spare + border_at, width, rest, marker)
                        place = spare
                    older = load_numbers(place, some, marker, marker)
                    if some < LANES:
                        store_numbers(spare, LANES, older, marker)
                    if flipped != 0:
                        older = reversed_numbers(older, marker)
                    older = times(conjugate(older, marker), value, marker)
                    if flipped != 0:
                        older = reversed_numbers(older, marker)
                    _put(da + out, some, older, streamed, marker)
                else:
                    states = _through(factor, value, carry, width, marker)
                    value = states
                carry = last_entry(states, width)
                if flipped != 0:
                    value = reversed_numbers(value, marker)
                _put(y + out, some, value, streamed, marker)
            if index == blocks - 1:
                if flipped != 0:
                    carry = reversed_numbers(carry, marker)
                store_numbers(end + border, width, carry, marker)
            elif not is_known:
                store_numbers(carries + (ticket + 1) * STRIP_ROW, LANES, carry, marker)
                hand_on(control + (ticket + 1) * 8)
    finish_streams()


def recurrence_forward(a: Tensor, b: Tensor, initial: Tensor | None, reverse: bool) -> tuple[Tensor, Tensor]:
    """h and the final state. Unchecked."""
    h = torch.empty(b.shape, dtype=b.dtype, device="cpu")
    final = torch.empty(b.shape[0], b.shape[2], dtype=b.dtype, device="cpu")
    _walk(a, b, initial, final, h, reverse, None, None, None)
    return h, final


def recurrence_backward(
    a: Tensor, h: Tensor, initial: Tensor | None, dh: Tensor, dfinal: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of a, b and the initial state."""
    da, db = (torch.empty(h.shape, dtype=h.dtype, device="cpu") for _ in range(2))
    dinitial = torch.empty(h.shape[0], h.shape[2], dtype=h.dtype, device="cpu")
    _walk(a, dh, dfinal, dinitial, db, not reverse, h.contiguous(), initial, da)
    return da, db, dinitial


def _walk(
    a: Tensor,
    x: Tensor,
    start: Tensor | None,
    end: Tensor,
    y: Tensor,
    against_time: bool,
    h: Tensor | None,
    initial: Tensor | None,
    da: Tensor | None,
) -> None:
    """Runs a kernel; forward where `h`, `initial` and `da` are None, backward where they are the arguments of that."""
    batch, length, channels = y.shape
    start = _state(start, end)
    if y.numel() == 0:
        end.copy_(start)
        return
    marker, wide = _MARKERS[y.dtype]
    parts = 2 if y.is_complex() else 1
    size, lanes = y.element_size() // parts, channels * parts
    is_narrow = lanes in (1, 2, 4, 8)
    a, x = _laid_out(a, is_narrow), _laid_out(x, is_narrow)
    before_end = end if da is None else _state(initial, end)
    bytes_of_row = lanes * size
    geometry: tuple[int, ...]
    streamed = y.numel() * parts * size >= STREAMED and (length * lanes if is_narrow else lanes) * size % 64 == 0
    if is_narrow:
        lanes *= length
        block, together = (BLOCK, 1) if batch < CHAINS and lanes > BLOCK else (lanes, max(1, BLOCK // lanes))
        tickets = -(-batch // together) * -(-lanes // block)
        places = tuple(tensor.data_ptr() for tensor in (start, end, y))
        geometry = (batch, together, lanes, lanes // length, block, size)
        geometry += (a.data_ptr(), a.stride(0) * a.element_size(), x.data_ptr(), x.stride(0) * x.element_size())
        geometry += (*places, int(da is not None), int(against_time))
        first = 0
    else:
        strips = -(-lanes // STRIP)
        fits = max(1, BLOCK // min(lanes, STRIP))
        block = fits if batch * strips < CHAINS and length > fits else length
        tickets = batch * strips * -(-length // block)
        first = (length - 1) * bytes_of_row if against_time else 0
        geometry = (length, lanes, block, size, *_from_end(a, against_time), *_from_end(x, against_time))
        geometry += (start.data_ptr(), end.data_ptr(), *_from_end(y, against_time), int(da is not None))
    if h is None or da is None:
        backward = 0, 0, 0
    elif is_narrow:
        backward = h.data_ptr(), before_end.data_ptr(), da.data_ptr()
    else:
        step = -bytes_of_row if against_time else bytes_of_row
        backward = h.data_ptr() + first + step, before_end.data_ptr(), da.data_ptr() + first
    control = torch.zeros(tickets + 1, dtype=torch.int64, device="cpu")
    handed = torch.empty(tickets + 1 if tickets > batch else 0, STRIP, dtype=torch.float64, device="cpu")
    work = _NANOSECONDS * y.numel() * y.element_size() * (3 if da is None else 5)
    arguments = (tickets, control.data_ptr(), handed.data_ptr(), *geometry, *backward, int(streamed), marker, wide)
    kernel = _lanes if is_narrow else _rows
    run_tasks(kernel, min(tickets, torch.get_num_threads()), work, 3 * STRIP_ROW // 4, arguments)


def _state(given: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if given is None else given.resolve_conj().resolve_neg().contiguous()


def _laid_out(tensor: Tensor, is_narrow: bool) -> Tensor:
    """`tensor` [batch, length, channels] itself where a row lies side by side (`is_narrow`: all rows), else a copy."""
    tensor = tensor.resolve_conj().resolve_neg()
    _, time, channel = tensor.stride()
    channels = tensor.shape[2]
    if (channel != 1 and channels > 1) or (is_narrow and time != channels and tensor.shape[1] > 1):
        return tensor.contiguous()
    return tensor


def _from_end(tensor: Tensor, from_end: bool) -> tuple[int, int, int]:
    """The place of `tensor`, from its last step backwards where asked."""
    address, batch, time = place_of(tensor)
    return (address + (tensor.shape[1] - 1) * time, batch, -time) if from_end else (address, batch, time)
