"""The weighted key-value on the CPU: 16 channels to a vector, one step of time after the other.

Rows are read as they lie in memory: a task is one batch row and a band of channels, which it walks side by side, their
states in the first-level cache. That also hides that each step waits for the one before. Every `INTERVAL` steps the
state is kept (a checkpoint). The backward pass goes back through the intervals, recomputes the states of one from its
checkpoint, and walks them in reverse.

With numerator a and denominator b divided by e^m, m the largest weight's logarithm, a step is

    a' = r a + s v, b' = r b + s         r = e^(m - w - m'), s = e^(k - m'), m' = max(m - w, k)
    y = (p a + q v) / (p b + q)          p / q = e^(m - u - k)

Of r and s one is 1, so both take one exponential, and as y does not change when p and q are multiplied by one number,
p = r and q = e^(u - w) s will do, with no exponential of their own. Only where u and w lie so far apart that these
could overflow, or vanish together, q and p are computed as r and s are (`apart`).

What the state stands for does not depend on m, so the gradients are those at fixed m. With g = dy / (p b + q), and
A, B the gradients of a', b':

    dk = q g (v - y) + s (v A + B)       du = sum of q g (v - y)
    dv = q g + s A                       dw = - sum of r (a A + b B)
    the gradients of a and b: r A + p g, r B - p g y

All of them are bounded by the gradients that came in, whatever k. The state's own m at the end is one of the inputs,
some k_i less what it lost since, or the first m: `_follow_largest` takes its gradient there.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from verim.ops.compiled import compiled
from verim.ops.lanes import largest_lane, maximum, minus_absolute, where_positive
from verim.ops.memory import address_of, place_of, rows_of
from verim.ops.vectors import (
    BYTES,
    LANES,
    LOG2_E,
    ROW,
    add,
    divide,
    exp2,
    full,
    load,
    load_lanes,
    multiply,
    multiply_add,
    prefetch,
    prefetch_to_write,
    store,
    store_lanes,
    subtract,
)
from verim.ops.wkv.reference import LOWEST
from verim.ops.workers import run_tasks

INTERVAL = 16  # steps between checkpoints
AHEAD = 8  # steps: rows lie far apart, so the hardware does not foresee the next one
WRITTEN_AHEAD = 4  # steps, backwards
TASKS = 4  # wanted; more would end together more evenly, but whole rows are what memory gives fastest
NARROWEST, WIDEST = 8, 64  # vectors of a band: narrower ones are no stream to the memory, wider ones no cache's worth

APART = 32.0  # where |u - w| is more: e^32 away from 1, and from what a float32 can hold

# What is kept of 16 channels, as vectors that lie side by side: w, u or e^(u - w), a, b, m.
ENTRY, DECAY, BONUS, ABOVE, BELOW, LARGEST = 5 * ROW, 0 * ROW, 1 * ROW, 2 * ROW, 3 * ROW, 4 * ROW
BACK, TO_ABOVE, TO_BELOW, TO_LARGEST, TO_W, TO_U = 5 * ROW, 0 * ROW, 1 * ROW, 2 * ROW, 3 * ROW, 4 * ROW
# The same at one step: r, s, r a, r b; and where they are not the same, p, q, p a, p b.
RECORD, OLD, NEW, OLD_ABOVE, OLD_BELOW = 4 * ROW, 0 * ROW, 1 * ROW, 2 * ROW, 3 * ROW
APART_RECORD, PAST, PRESENT, PAST_ABOVE, PAST_BELOW = 8 * ROW, 4 * ROW, 5 * ROW, 6 * ROW, 7 * ROW

_FORWARD_NANOSECONDS, _BACKWARD_NANOSECONDS = 10.0, 25.0  # for 16 channels and one step


@njit(nogil=True, error_model="numpy")
def _weights(difference: Any) -> Any:
    """e^(x - max(x, z)) and e^(z - max(x, z)) for `difference` = x - z."""
    one = full(np.float32(1))
    smaller = exp2(multiply(minus_absolute(difference), full(np.float32(LOG2_E))))
    return where_positive(difference, one, smaller), where_positive(difference, smaller, one)


@njit(nogil=True, error_model="numpy")
def _load_key(address: int, count: int) -> Any:
    return maximum(full(np.float32(LOWEST)), load_lanes(address, count))


@njit(nogil=True, error_model="numpy")
def _are_apart(w: int, u: int, channel: int, width: int) -> bool:
    """Whether u and w are, in any of the channels."""
    largest = full(np.float32(0))
    for first in range(channel, channel + width, LANES):
        count = min(channel + width - first, LANES)
        difference = subtract(load_lanes(u + first * BYTES, count), load_lanes(w + first * BYTES, count))
        largest = maximum(largest, maximum(difference, subtract(full(np.float32(0)), difference)))
    return bool(largest_lane(largest) > APART)


@njit(nogil=True, error_model="numpy")
def _begin(entry: int, count: int, w: int, u: int, apart: bool) -> None:
    """The parameters of 16 channels, at the addresses `w` and `u`."""
    decay, bonus = load_lanes(w, count), load_lanes(u, count)
    store(entry + DECAY, decay)
    if apart:
        store(entry + BONUS, bonus)
    else:
        difference = subtract(bonus, decay)
        store(entry + BONUS, exp2(multiply(difference, full(np.float32(LOG2_E)))))


@njit(nogil=True, error_model="numpy")
def _read_state(entry: int, count: int, state: int, row: int) -> None:
    """`state` is the address of the numerator, the other two are a `row` further each; 0 is the empty state."""
    if state == 0:
        store(entry + ABOVE, full(np.float32(0)))
        store(entry + BELOW, full(np.float32(0)))
        store(entry + LARGEST, full(np.float32(LOWEST)))
    else:
        store(entry + ABOVE, load_lanes(state, count))
        store(entry + BELOW, load_lanes(state + row, count))
        store(entry + LARGEST, _load_key(state + 2 * row, count))


@njit(nogil=True, error_model="numpy")
def _write_state(entry: int, count: int, state: int, row: int) -> None:
    """m becomes NaN with the others: a maximum may have lost it."""
    below = load(entry + BELOW)
    lost = multiply(below, full(np.float32(0)))
    store_lanes(state, count, load(entry + ABOVE))
    store_lanes(state + row, count, below)
    store_lanes(state + 2 * row, count, add(load(entry + LARGEST), lost))


@njit(nogil=True, error_model="numpy")
def _advance(entry: int, key: Any, value: Any, apart: bool) -> Any:
    """One step of the state in `entry`; r, s, r a, r b, and p, q, p a, p b."""
    above, below, largest = load(entry + ABOVE), load(entry + BELOW), load(entry + LARGEST)
    decayed = subtract(largest, load(entry + DECAY))
    old, new = _weights(subtract(decayed, key))
    old_above, old_below = multiply(old, above), multiply(old, below)
    store(entry + ABOVE, multiply_add(new, value, old_above))
    store(entry + BELOW, add(old_below, new))
    store(entry + LARGEST, maximum(decayed, key))
    if apart:
        past, present = _weights(subtract(largest, add(key, load(entry + BONUS))))
        return old, new, old_above, old_below, past, present, multiply(past, above), multiply(past, below)
    return old, new, old_above, old_below, old, multiply(new, load(entry + BONUS)), old_above, old_below


@njit(nogil=True, error_model="numpy")
def _step(entry: int, k: int, v: int, y: int, count: int, apart: bool) -> None:
    """One step of 16 channels: writes y, updates the state in `entry`."""
    value = load_lanes(v, count)
    _, _, _, _, _, present, past_above, past_below = _advance(entry, _load_key(k, count), value, apart)
    store_lanes(y, count, divide(multiply_add(present, value, past_above), add(past_below, present)))


@njit(nogil=True, error_model="numpy")
def _step_row(
    entries: int, k: int, k_time: int, v: int, v_time: int, y: int, whole: int, rest: int, apart: bool
) -> None:
    """One step of a band: `whole` vectors, and one with `rest` channels if that is not 0."""
    for block in range(whole):
        at = block * ROW
        prefetch(k + AHEAD * k_time + at)
        prefetch(v + AHEAD * v_time + at)
        _step(entries + block * ENTRY, k + at, v + at, y + at, LANES, apart)
    if rest > 0:
        at = whole * ROW
        _step(entries + whole * ENTRY, k + at, v + at, y + at, rest, apart)


@compiled
def _forward(
    first: int,
    last: int,
    scratch: int,
    length: int,
    channels: int,
    bands: int,
    band_blocks: int,
    k: int,
    k_batch: int,
    k_time: int,
    v: int,
    v_batch: int,
    v_time: int,
    w: int,
    u: int,
    state: int,
    y: int,
    final: int,
    checkpoints: int,
) -> None:
    """Compiled. Tensors are addresses (0 for None); `_batch` and `_time` are strides in bytes."""
    row = channels * BYTES
    intervals = (length + INTERVAL - 1) // INTERVAL
    for task in range(first, last):
        batch, channel = task // bands, task % bands * band_blocks * LANES
        width = min(channels - channel, band_blocks * LANES)
        whole, rest = width // LANES, width % LANES
        blocks = whole + (rest > 0)
        offset = channel * BYTES
        apart = _are_apart(w, u, channel, width)
        for block in range(blocks):
            at = offset + block * ROW
            count = min(width - block * LANES, LANES)
            _begin(scratch + block * ENTRY, count, w + at, u + at, apart)
            _read_state(scratch + block * ENTRY, count, 0 if state == 0 else state + batch * 3 * row + at, row)
        k_row, v_row = k + batch * k_batch + offset, v + batch * v_batch + offset
        y_row = y + batch * length * row + offset
        for t in range(length):
            if checkpoints != 0 and t % INTERVAL == 0:
                kept = checkpoints + (batch * intervals + t // INTERVAL) * 3 * row + offset
                for block in range(blocks):
                    _write_state(scratch + block * ENTRY, min(width - block * LANES, LANES), kept + block * ROW, row)
            if apart:
                _step_row(scratch, k_row, k_time, v_row, v_time, y_row, whole, rest, True)
            else:
                _step_row(scratch, k_row, k_time, v_row, v_time, y_row, whole, rest, False)
            k_row += k_time
            v_row += v_time
            y_row += row
        for block in range(blocks):
            count = min(width - block * LANES, LANES)
            _write_state(scratch + block * ENTRY, count, final + batch * 3 * row + offset + block * ROW, row)


@njit(nogil=True, error_model="numpy")
def _recompute(entry: int, record: int, k: int, v: int, count: int, apart: bool) -> None:
    """One step of 16 channels again: keeps in `record` what the way back needs, updates the state in `entry`."""
    old, new, old_above, old_below, past, present, past_above, past_below = _advance(
        entry, _load_key(k, count), load_lanes(v, count), apart
    )
    store(record + OLD, old)
    store(record + NEW, new)
    store(record + OLD_ABOVE, old_above)
    store(record + OLD_BELOW, old_below)
    if apart:
        store(record + PAST, past)
        store(record + PRESENT, present)
        store(record + PAST_ABOVE, past_above)
        store(record + PAST_BELOW, past_below)


@njit(nogil=True, error_model="numpy")
def _step_back(entry: int, back: int, record: int, v: int, dy: int, dk: int, dv: int, count: int, apart: bool) -> None:
    """One step of 16 channels backwards: writes dk and dv, updates the state's gradients and the sums in `back`."""
    old, new, old_above, old_below = (
        load(record + OLD),
        load(record + NEW),
        load(record + OLD_ABOVE),
        load(record + OLD_BELOW),
    )
    past, present, past_above, past_below = old, multiply(new, load(entry + BONUS)), old_above, old_below
    if apart:
        past, present = load(record + PAST), load(record + PRESENT)
        past_above, past_below = load(record + PAST_ABOVE), load(record + PAST_BELOW)
    value = load_lanes(v, count)
    inverse = divide(full(np.float32(1)), add(past_below, present))
    y = multiply(multiply_add(present, value, past_above), inverse)
    g = multiply(load_lanes(dy, count), inverse)
    to_present = multiply(present, g)
    to_key = multiply(to_present, subtract(value, y))
    store(back + TO_U, add(load(back + TO_U), to_key))
    to_above, to_below = load(back + TO_ABOVE), load(back + TO_BELOW)
    store_lanes(dv, count, multiply_add(new, to_above, to_present))
    store_lanes(dk, count, multiply_add(new, multiply_add(value, to_above, to_below), to_key))
    through_decay = multiply_add(old_above, to_above, load(back + TO_W))
    store(back + TO_W, multiply_add(old_below, to_below, through_decay))
    to_past = multiply(past, g)
    store(back + TO_ABOVE, multiply_add(old, to_above, to_past))
    store(back + TO_BELOW, subtract(multiply(old, to_below), multiply(to_past, y)))


@njit(nogil=True, error_model="numpy")
def _follow_largest(back: int, record: int, dk: int, count: int) -> None:
    """The gradient of m goes to what m was taken from: k, or the m before (which s < 1 tells), and then to w."""
    zero = full(np.float32(0))
    kept = subtract(full(np.float32(1)), load(record + NEW))
    gradient = load(back + TO_LARGEST)
    store_lanes(dk, count, add(load_lanes(dk, count), where_positive(kept, zero, gradient)))
    gradient = where_positive(kept, gradient, zero)
    store(back + TO_LARGEST, gradient)
    store(back + TO_W, add(load(back + TO_W), gradient))


@njit(nogil=True, error_model="numpy")
def _end(entry: int, back: int, count: int, dfinal: int, row: int) -> None:
    """The gradients of the last state, where there are any. m's is that at fixed a e^m and b e^m."""
    zero = full(np.float32(0))
    to_above = to_below = to_largest = zero
    if dfinal != 0:
        to_above, to_below = load_lanes(dfinal, count), load_lanes(dfinal + row, count)
        inside = multiply_add(to_above, load(entry + ABOVE), multiply(to_below, load(entry + BELOW)))
        to_largest = subtract(load_lanes(dfinal + 2 * row, count), inside)
    store(back + TO_ABOVE, to_above)
    store(back + TO_BELOW, to_below)
    store(back + TO_LARGEST, to_largest)
    store(back + TO_W, zero)
    store(back + TO_U, zero)


@njit(nogil=True, error_model="numpy")
def _recompute_row(
    entries: int,
    records: int,
    size: int,
    k: int,
    k_time: int,
    v: int,
    v_time: int,
    dy: int,
    whole: int,
    rest: int,
    apart: bool,
) -> None:
    """One step of a band again; `size` is that of a vector's record."""
    for block in range(whole):
        at = block * ROW
        prefetch(k + AHEAD * k_time + at)
        prefetch(v + AHEAD * v_time + at)
        prefetch(dy + at)
        _recompute(entries + block * ENTRY, records + block * size, k + at, v + at, LANES, apart)
    if rest > 0:
        at = whole * ROW
        _recompute(entries + whole * ENTRY, records + whole * size, k + at, v + at, rest, apart)


@njit(nogil=True, error_model="numpy")
def _step_row_back(
    entries: int,
    backs: int,
    records: int,
    size: int,
    v: int,
    dy: int,
    dk: int,
    dv: int,
    row: int,
    whole: int,
    rest: int,
    apart: bool,
) -> None:
    """One step of a band backwards."""
    for block in range(whole):
        at, entry, back = block * ROW, entries + block * ENTRY, backs + block * BACK
        prefetch_to_write(dk + at - WRITTEN_AHEAD * row)
        prefetch_to_write(dv + at - WRITTEN_AHEAD * row)
        _step_back(entry, back, records + block * size, v + at, dy + at, dk + at, dv + at, LANES, apart)
    if rest > 0:
        at, entry, back = whole * ROW, entries + whole * ENTRY, backs + whole * BACK
        _step_back(entry, back, records + whole * size, v + at, dy + at, dk + at, dv + at, rest, apart)


@compiled
def _backward(
    first: int,
    last: int,
    scratch: int,
    length: int,
    channels: int,
    bands: int,
    band_blocks: int,
    k: int,
    k_batch: int,
    k_time: int,
    v: int,
    v_batch: int,
    v_time: int,
    w: int,
    u: int,
    checkpoints: int,
    dy: int,
    dy_batch: int,
    dy_time: int,
    dfinal: int,
    dk: int,
    dv: int,
    dw: int,
    du: int,
    dstate: int,
) -> None:
    """Compiled. Tensors are addresses (0 for None); `_batch` and `_time` are strides in bytes. The length is not 0."""
    row = channels * BYTES
    intervals = (length + INTERVAL - 1) // INTERVAL
    zero = full(np.float32(0))
    backs = scratch + band_blocks * ENTRY
    records = backs + band_blocks * BACK
    for task in range(first, last):
        batch, channel = task // bands, task % bands * band_blocks * LANES
        width = min(channels - channel, band_blocks * LANES)
        whole, rest = width // LANES, width % LANES
        blocks = whole + (rest > 0)
        offset = channel * BYTES
        apart = _are_apart(w, u, channel, width)
        size = APART_RECORD if apart else RECORD
        for block in range(blocks):
            at = offset + block * ROW
            _begin(scratch + block * ENTRY, min(width - block * LANES, LANES), w + at, u + at, apart)
        for back in range(intervals):
            start = (intervals - 1 - back) * INTERVAL
            steps = min(INTERVAL, length - start)
            kept = checkpoints + (batch * intervals + intervals - 1 - back) * 3 * row + offset
            for block in range(blocks):
                _read_state(scratch + block * ENTRY, min(width - block * LANES, LANES), kept + block * ROW, row)
            k_row = k + batch * k_batch + start * k_time + offset
            v_row = v + batch * v_batch + start * v_time + offset
            dy_row = dy + batch * dy_batch + start * dy_time + offset
            record = records
            for _ in range(steps):
                if apart:
                    _recompute_row(scratch, record, size, k_row, k_time, v_row, v_time, dy_row, whole, rest, True)
                else:
                    _recompute_row(scratch, record, size, k_row, k_time, v_row, v_time, dy_row, whole, rest, False)
                k_row += k_time
                v_row += v_time
                dy_row += dy_time
                record += band_blocks * size
            if back == 0:
                for block in range(blocks):
                    given = 0 if dfinal == 0 else dfinal + batch * 3 * row + offset + block * ROW
                    count = min(width - block * LANES, LANES)
                    _end(scratch + block * ENTRY, backs + block * BACK, count, given, row)
            out = (batch * length + start + steps) * row + offset
            for _ in range(steps):
                v_row -= v_time
                dy_row -= dy_time
                record -= band_blocks * size
                out -= row
                if apart:
                    _step_row_back(
                        scratch, backs, record, size, v_row, dy_row, dk + out, dv + out, row, whole, rest, True
                    )
                else:
                    _step_row_back(
                        scratch, backs, record, size, v_row, dy_row, dk + out, dv + out, row, whole, rest, False
                    )
                if dfinal != 0:
                    for block in range(blocks):
                        count = min(width - block * LANES, LANES)
                        _follow_largest(backs + block * BACK, record + block * size, dk + out + block * ROW, count)
        for block in range(blocks):
            entry = backs + block * BACK
            at = offset + block * ROW
            count = min(width - block * LANES, LANES)
            first_state = checkpoints + batch * intervals * 3 * row + at
            to_above, to_below = load(entry + TO_ABOVE), load(entry + TO_BELOW)
            inside = multiply(to_below, load_lanes(first_state + row, count))
            inside = multiply_add(to_above, load_lanes(first_state, count), inside)
            here = dstate + batch * 3 * row + at
            store_lanes(here, count, to_above)
            store_lanes(here + row, count, to_below)
            store_lanes(here + 2 * row, count, add(inside, load(entry + TO_LARGEST)))
            store_lanes(dw + batch * row + at, count, subtract(zero, load(entry + TO_W)))
            store_lanes(du + batch * row + at, count, load(entry + TO_U))


def wkv_forward(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the final state, and with `keep` the checkpoints for `wkv_backward`, else an empty tensor. Unchecked."""
    k, v, w, u = rows_of(k), rows_of(v), w.contiguous(), u.contiguous()
    state = None if state is None else state.contiguous()
    batch, length, channels = k.shape
    bands, band_blocks = _bands(batch, channels)
    y = torch.empty(batch, length, channels, dtype=torch.float32, device="cpu")
    final = torch.empty(batch, 3, channels, dtype=torch.float32, device="cpu")
    kept = checkpoints_shape(batch, length, channels) if keep else (0,)
    checkpoints = torch.empty(kept, dtype=torch.float32, device="cpu")
    arguments: tuple[int, ...] = (length, channels, bands, band_blocks, *place_of(k), *place_of(v))
    arguments += (w.data_ptr(), u.data_ptr(), address_of(state), y.data_ptr(), final.data_ptr())
    arguments += (checkpoints.data_ptr() if keep else 0,)
    work = _FORWARD_NANOSECONDS * batch * length * bands * band_blocks
    run_tasks(_forward, batch * bands, work, band_blocks * ENTRY // BYTES, arguments)
    return y, final, checkpoints


def wkv_backward(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, checkpoints: Tensor, dy: Tensor, dfinal: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of k, v, w, u and the state."""
    k, v, dy, w, u = rows_of(k), rows_of(v), rows_of(dy), w.contiguous(), u.contiguous()
    batch, length, channels = k.shape
    if length == 0:  # the state was handed through
        nothing, none = torch.zeros_like(k), torch.zeros_like(w)
        dstate = torch.zeros(batch, 3, channels) if dfinal is None else dfinal.clone()
        return nothing, torch.zeros_like(v), none, torch.zeros_like(u), dstate
    dfinal = None if dfinal is None else dfinal.contiguous()
    bands, band_blocks = _bands(batch, channels)
    dk, dv = (torch.empty(batch, length, channels, dtype=torch.float32, device="cpu") for _ in range(2))
    dw, du = (torch.empty(batch, channels, dtype=torch.float32, device="cpu") for _ in range(2))
    dstate = torch.empty(batch, 3, channels, dtype=torch.float32, device="cpu")
    scratch = band_blocks * (ENTRY + BACK + min(INTERVAL, length) * APART_RECORD)
    arguments: tuple[int, ...] = (length, channels, bands, band_blocks, *place_of(k), *place_of(v))
    arguments += (w.data_ptr(), u.data_ptr(), checkpoints.data_ptr(), *place_of(dy), address_of(dfinal))
    arguments += tuple(tensor.data_ptr() for tensor in (dk, dv, dw, du, dstate))
    work = _BACKWARD_NANOSECONDS * batch * length * bands * band_blocks
    run_tasks(_backward, batch * bands, work, scratch // BYTES, arguments)
    return dk, dv, dw.sum(0), du.sum(0), dstate


def _bands(batch: int, channels: int) -> tuple[int, int]:
    """How many bands the channels are cut into, and the vectors of 16 channels in one."""
    blocks = -(-channels // LANES)
    wanted = max(-(-TASKS // max(batch, 1)), -(-blocks // WIDEST))
    band_blocks = max(-(-blocks // wanted), min(NARROWEST, blocks), 1)
    return -(-blocks // band_blocks), band_blocks


def checkpoints_shape(batch: int, length: int, channels: int) -> tuple[int, ...]:
    """Of what the forward pass keeps: the state at the beginning of every interval."""
    return batch, -(-length // INTERVAL), 3, channels
