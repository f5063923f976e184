"""The weighted key-value on the CPU: 16 channels to a vector, one step of time after the other.

What limits it is memory, so rows are read as they lie: a task is one batch row and a band of channels, which it walks
side by side, their states in the first-level cache. That also hides that each step waits for the one before.
Every `INTERVAL` steps the state is kept (a checkpoint). The backward pass goes back through the intervals, recomputes
the states of one from its checkpoint, and walks them in reverse.

With numerator a and denominator b divided by e^m, m the largest weight's logarithm, a step is

    y = (p a + q v) / (p b + q)          p = e^(m - M), q = e^(u + k - M), M = max(m, u + k)
    a' = r a + s v, b' = r b + s         r = e^(m - w - m'), s = e^(k - m'), m' = max(m - w, k)

where of p and q one is 1, of r and s too, so that a step takes two exponentials. What the state stands for does not
depend on m, so the gradients are those at fixed m. With g = dy / (p b + q), and A, B the gradients of a', b':

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
from verim.ops.lanes import maximum, minus_absolute, where_positive
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
    store,
    store_lanes,
    subtract,
)
from verim.ops.wkv.reference import LOWEST
from verim.ops.workers import run_tasks

INTERVAL = 32  # steps between checkpoints
AHEAD = 8  # steps: rows lie far apart, so the hardware does not foresee the next one
TASKS = 8  # wanted, so that threads end together
NARROWEST, WIDEST = 8, 32  # vectors of a band: narrower ones are no stream to the memory, wider ones no cache's worth

# What is kept of 16 channels, as vectors that lie side by side.
ENTRY, DECAY, BONUS, ABOVE, BELOW, LARGEST = 5 * ROW, 0 * ROW, 1 * ROW, 2 * ROW, 3 * ROW, 4 * ROW  # w, u, a, b, m
BACK, TO_ABOVE, TO_BELOW, TO_LARGEST, TO_W, TO_U = 5 * ROW, 0 * ROW, 1 * ROW, 2 * ROW, 3 * ROW, 4 * ROW
# The same at one step: the state before it, and r and s.
RECORD, OLD, NEW = 5 * ROW, 0 * ROW, 1 * ROW

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
def _begin(entry: int, channel: int, count: int, w: int, u: int, state: int, row: int) -> None:
    """The parameters and the first state of 16 channels; `state` is the address of their numerator, or 0."""
    store(entry + DECAY, load_lanes(w + channel * BYTES, count))
    store(entry + BONUS, load_lanes(u + channel * BYTES, count))
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
def _step(entry: int, k: int, v: int, y: int, count: int) -> None:
    """One step of 16 channels: writes y, updates the state in `entry`."""
    key, value = _load_key(k, count), load_lanes(v, count)
    above, below, largest = load(entry + ABOVE), load(entry + BELOW), load(entry + LARGEST)
    past, present = _weights(subtract(largest, add(key, load(entry + BONUS))))
    numerator = multiply_add(past, above, multiply(present, value))
    store_lanes(y, count, divide(numerator, multiply_add(past, below, present)))
    decayed = subtract(largest, load(entry + DECAY))
    old, new = _weights(subtract(decayed, key))
    store(entry + ABOVE, multiply_add(old, above, multiply(new, value)))
    store(entry + BELOW, multiply_add(old, below, new))
    store(entry + LARGEST, maximum(decayed, key))


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
        offset = channel * BYTES
        for block in range(whole + (rest > 0)):
            at = offset + block * ROW
            count = min(width - block * LANES, LANES)
            given = 0 if state == 0 else state + batch * 3 * row + at
            _begin(scratch + block * ENTRY, channel + block * LANES, count, w, u, given, row)
        k_row, v_row = k + batch * k_batch + offset, v + batch * v_batch + offset
        y_row = y + batch * length * row + offset
        for t in range(length):
            if checkpoints != 0 and t % INTERVAL == 0:
                kept = checkpoints + (batch * intervals + t // INTERVAL) * 3 * row + offset
                for block in range(whole + (rest > 0)):
                    count = min(width - block * LANES, LANES)
                    _write_state(scratch + block * ENTRY, count, kept + block * ROW, row)
            for block in range(whole):
                at = block * ROW
                prefetch(k_row + AHEAD * k_time + at)
                prefetch(v_row + AHEAD * v_time + at)
                _step(scratch + block * ENTRY, k_row + at, v_row + at, y_row + at, LANES)
            if rest > 0:
                at = whole * ROW
                _step(scratch + whole * ENTRY, k_row + at, v_row + at, y_row + at, rest)
            k_row += k_time
            v_row += v_time
            y_row += row
        for block in range(whole + (rest > 0)):
            count = min(width - block * LANES, LANES)
            _write_state(scratch + block * ENTRY, count, final + batch * 3 * row + offset + block * ROW, row)


@njit(nogil=True, error_model="numpy")
def _recompute(entry: int, record: int, k: int, v: int, count: int) -> None:
    """One step of 16 channels again: keeps the state before it, r and s in `record`, updates the state."""
    key, value = _load_key(k, count), load_lanes(v, count)
    above, below, largest = load(entry + ABOVE), load(entry + BELOW), load(entry + LARGEST)
    store(record + ABOVE, above)
    store(record + BELOW, below)
    store(record + LARGEST, largest)
    decayed = subtract(largest, load(entry + DECAY))
    old, new = _weights(subtract(decayed, key))
    store(record + OLD, old)
    store(record + NEW, new)
    store(entry + ABOVE, multiply_add(old, above, multiply(new, value)))
    store(entry + BELOW, multiply_add(old, below, new))
    store(entry + LARGEST, maximum(decayed, key))


@njit(nogil=True, error_model="numpy")
def _step_back(entry: int, back: int, record: int, k: int, v: int, dy: int, dk: int, dv: int, count: int) -> None:
    """One step of 16 channels backwards: writes dk and dv, updates the state's gradients and the sums in `back`."""
    key, value = _load_key(k, count), load_lanes(v, count)
    above, below, largest = load(record + ABOVE), load(record + BELOW), load(record + LARGEST)
    past, present = _weights(subtract(largest, add(key, load(entry + BONUS))))
    inverse = divide(full(np.float32(1)), multiply_add(past, below, present))
    y = multiply(multiply_add(past, above, multiply(present, value)), inverse)
    g = multiply(load_lanes(dy, count), inverse)
    to_present = multiply(present, g)
    to_key = multiply(to_present, subtract(value, y))
    store(back + TO_U, add(load(back + TO_U), to_key))
    to_above, to_below = load(back + TO_ABOVE), load(back + TO_BELOW)
    old, new = load(record + OLD), load(record + NEW)
    store_lanes(dv, count, multiply_add(new, to_above, to_present))
    store_lanes(dk, count, multiply_add(new, multiply_add(value, to_above, to_below), to_key))
    through_decay = multiply_add(above, to_above, multiply(below, to_below))
    store(back + TO_W, subtract(load(back + TO_W), multiply(old, through_decay)))
    to_past = multiply(past, g)
    store(back + TO_ABOVE, multiply_add(old, to_above, to_past))
    store(back + TO_BELOW, subtract(multiply(old, to_below), multiply(to_past, y)))


@njit(nogil=True, error_model="numpy")
def _follow_largest(entry: int, back: int, record: int, k: int, dk: int, count: int) -> None:
    """The gradient of m goes to what m was taken from: k, or the m before, and then to w."""
    zero = full(np.float32(0))
    kept = subtract(subtract(load(record + LARGEST), load(entry + DECAY)), _load_key(k, count))
    gradient = load(back + TO_LARGEST)
    store_lanes(dk, count, add(load_lanes(dk, count), where_positive(kept, zero, gradient)))
    gradient = where_positive(kept, gradient, zero)
    store(back + TO_LARGEST, gradient)
    store(back + TO_W, subtract(load(back + TO_W), gradient))


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
    backs = scratch + band_blocks * ENTRY
    records = backs + band_blocks * BACK
    size = band_blocks * RECORD
    for task in range(first, last):
        batch, channel = task // bands, task % bands * band_blocks * LANES
        width = min(channels - channel, band_blocks * LANES)
        whole, rest = width // LANES, width % LANES
        blocks = whole + (rest > 0)
        offset = channel * BYTES
        for back in range(intervals):
            start = (intervals - 1 - back) * INTERVAL
            steps = min(INTERVAL, length - start)
            kept = checkpoints + (batch * intervals + intervals - 1 - back) * 3 * row + offset
            for block in range(blocks):
                count = min(width - block * LANES, LANES)
                _begin(scratch + block * ENTRY, channel + block * LANES, count, w, u, kept + block * ROW, row)
            k_row = k + batch * k_batch + start * k_time + offset
            v_row = v + batch * v_batch + start * v_time + offset
            dy_row = dy + batch * dy_batch + start * dy_time + offset
            record = records
            for _ in range(steps):
                for block in range(whole):
                    at = block * ROW
                    prefetch(k_row + AHEAD * k_time + at)
                    prefetch(v_row + AHEAD * v_time + at)
                    prefetch(dy_row + at)
                    _recompute(scratch + block * ENTRY, record + block * RECORD, k_row + at, v_row + at, LANES)
                if rest > 0:
                    at = whole * ROW
                    _recompute(scratch + whole * ENTRY, record + whole * RECORD, k_row + at, v_row + at, rest)
                k_row += k_time
                v_row += v_time
                dy_row += dy_time
                record += size
            if back == 0:
                for block in range(blocks):
                    count = min(width - block * LANES, LANES)
                    given = 0 if dfinal == 0 else dfinal + batch * 3 * row + offset + block * ROW
                    _end(scratch + block * ENTRY, backs + block * BACK, count, given, row)
            out = (batch * length + start + steps) * row + offset
            for _ in range(steps):
                k_row -= k_time
                v_row -= v_time
                dy_row -= dy_time
                record -= size
                out -= row
                for block in range(whole):
                    at = block * ROW
                    _step_back(
                        scratch + block * ENTRY,
                        backs + block * BACK,
                        record + block * RECORD,
                        k_row + at,
                        v_row + at,
                        dy_row + at,
                        dk + out + at,
                        dv + out + at,
                        LANES,
                    )
                if rest > 0:
                    at = whole * ROW
                    _step_back(
                        scratch + whole * ENTRY,
                        backs + whole * BACK,
                        record + whole * RECORD,
                        k_row + at,
                        v_row + at,
                        dy_row + at,
                        dk + out + at,
                        dv + out + at,
                        rest,
                    )
                if dfinal != 0:
                    for block in range(blocks):
                        at = block * ROW
                        count = min(width - block * LANES, LANES)
                        entry, last_record = scratch + block * ENTRY, record + block * RECORD
                        _follow_largest(entry, backs + block * BACK, last_record, k_row + at, dk + out + at, count)
        for block in range(blocks):
            entry, back_entry = scratch + block * ENTRY, backs + block * BACK
            at = offset + block * ROW
            count = min(width - block * LANES, LANES)
            to_above, to_below = load(back_entry + TO_ABOVE), load(back_entry + TO_BELOW)
            above, below = load(records + block * RECORD + ABOVE), load(records + block * RECORD + BELOW)
            inside = multiply_add(to_above, above, multiply(to_below, below))
            here = dstate + batch * 3 * row + at
            store_lanes(here, count, to_above)
            store_lanes(here + row, count, to_below)
            store_lanes(here + 2 * row, count, add(inside, load(back_entry + TO_LARGEST)))
            store_lanes(dw + batch * row + at, count, load(back_entry + TO_W))
            store_lanes(du + batch * row + at, count, load(back_entry + TO_U))


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
    scratch = band_blocks * (ENTRY + BACK + min(INTERVAL, length) * RECORD)
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
