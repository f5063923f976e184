"""The weighted key-value on CUDA devices: a thread for a channel, one step of time after the other.

What limits it is memory. A program is one warp with `_CHANNELS` channels of one batch row; it loads `_STEPS` steps at
once, so that one wait for memory serves them all, and between them no step waits for more than a few operations.

Where batch and channels are too few to fill the device, time is cut into spans too. A first kernel runs the spans
from the empty state; a program of the second one combines the states of the spans before its own. The gradients go
the same way, from the end. The backward pass goes back through the intervals between checkpoints and recomputes the
states of one, a few steps at a time, in registers: arithmetic is not what is short. The formulas are written at
`cpu.py`, the symbols here are the same.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from verim.ops.launch import launch, spans_of_time
from verim.ops.memory import rows_of
from verim.ops.rows import load_rows, place, within
from verim.ops.wkv.cpu import INTERVAL, checkpoints_shape
from verim.ops.wkv.reference import LOWEST

_CHANNELS = 32
_STEPS = 16  # loaded at once in the forward pass
_BACKWARD_STEPS = 8  # the same in the backward pass, which holds their states in registers too; a divisor of INTERVAL
_WARPS = 8  # wanted on a multiprocessor
_LOWEST = tl.constexpr(LOWEST)
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _weights(difference):
    """e^(x - max(x, z)) and e^(z - max(x, z)) for `difference` = x - z."""
    smaller = tl.exp2(-tl.abs(difference) * _LOG2_E)
    return tl.where(difference > 0, 1.0, smaller), tl.where(difference > 0, smaller, 1.0)


@triton.jit
def _update(a, b, m, key, value, w, present):
    """The state after one step, and r, s. A step that is not `present` leaves it as it is."""
    decayed = tl.where(present, m - w, m)
    key = tl.where(present, key, _LOWEST)
    r, s = _weights(decayed - key)
    s = tl.where(present, s, 0.0)
    return r * a + s * value, r * b + s, tl.where(decayed > key, decayed, key), r, s


@triton.jit
def _load_state(address, d, channels):
    mask = d < channels
    a = tl.load(address + d, mask, other=0).to(tl.float32)
    b = tl.load(address + channels + d, mask, other=0).to(tl.float32)
    m = tl.load(address + 2 * channels + d, mask, other=0).to(tl.float32)
    return a, b, tl.where(m < _LOWEST, _LOWEST, m)


@triton.jit
def _store_state(address, d, channels, a, b, m):
    """m becomes NaN with the others: a maximum may have lost it."""
    mask = d < channels
    tl.store(address + d, a, mask)
    tl.store(address + channels + d, b, mask)
    tl.store(address + 2 * channels + d, m + b * 0, mask)


@triton.jit
def _load_keys(start, stride, d, channels, left, STEPS: tl.constexpr):
    rows = load_rows(start, stride, d, channels, left, STEPS)
    keys = ()
    for i in tl.static_range(STEPS):
        keys = keys + (tl.where(rows[i] < _LOWEST, _LOWEST, rows[i]),)
    return keys


@triton.jit
def _wkv_summary(
    k,
    v,
    w,
    alone,
    channels,
    spans,
    span_steps,
    k_batch,
    k_time,
    v_batch,
    v_time,
    CHANNELS: tl.constexpr,
    STEPS: tl.constexpr,
):
    """The state after every span but the last, from the empty state."""
    batch, span, block = place(channels, spans - 1, CHANNELS)
    d = block * CHANNELS + tl.arange(0, CHANNELS)
    decay = tl.load(w + d, d < channels, other=0).to(tl.float32)
    a = tl.zeros([CHANNELS], tl.float32)
    b = tl.zeros([CHANNELS], tl.float32)
    m = tl.full([CHANNELS], _LOWEST, tl.float32)
    first = (span * span_steps).to(tl.int64)
    k += batch * k_batch + first * k_time
    v += batch * v_batch + first * v_time
    for _ in range(0, span_steps, STEPS):
        keys = _load_keys(k, k_time, d, channels, span_steps, STEPS)
        values = load_rows(v, v_time, d, channels, span_steps, STEPS)
        for i in tl.static_range(STEPS):
            a, b, m, _r, _s = _update(a, b, m, keys[i], values[i], decay, i < span_steps)
        k += STEPS * k_time
        v += STEPS * v_time
    _store_state(alone + (batch * (spans - 1) + span) * 3 * channels, d, channels, a, b, m)


@triton.jit
def _wkv_forward(
    k,
    v,
    w,
    u,
    state,
    alone,
    y,
    final,
    checkpoints,
    length,
    channels,
    spans,
    span_steps,
    k_batch,
    k_time,
    v_batch,
    v_time,
    CHANNELS: tl.constexpr,
    STEPS: tl.constexpr,
    KEPT: tl.constexpr,
):
    batch, span, block = place(channels, spans, CHANNELS)
    d = block * CHANNELS + tl.arange(0, CHANNELS)
    decay = tl.load(w + d, d < channels, other=0).to(tl.float32)
    bonus = tl.load(u + d, d < channels, other=0).to(tl.float32)
    a = tl.zeros([CHANNELS], tl.float32)
    b = tl.zeros([CHANNELS], tl.float32)
    m = tl.full([CHANNELS], _LOWEST, tl.float32)
    if state is not None:
        a, b, m = _load_state(state + batch * 3 * channels, d, channels)
    if alone is not None:
        for before in range(span):
            a_alone, b_alone, m_alone = _load_state(alone + (batch * (spans - 1) + before) * 3 * channels, d, channels)
            decayed = m - span_steps * decay
            r, s = _weights(decayed - m_alone)
            a, b, m = r * a + s * a_alone, r * b + s * b_alone, tl.where(decayed > m_alone, decayed, m_alone)
    begin = span * span_steps
    end = tl.minimum(begin + span_steps, length)
    first = begin.to(tl.int64)
    k += batch * k_batch + first * k_time
    v += batch * v_batch + first * v_time
    y += (batch * length + first) * channels
    if checkpoints is not None:
        checkpoints += (batch * tl.cdiv(length, KEPT) + first // KEPT) * 3 * channels
    for t in range(begin, end, STEPS):
        if checkpoints is not None:
            if t % KEPT == 0:
                _store_state(checkpoints, d, channels, a, b, m)
                checkpoints += 3 * channels
        left = end - t
        keys = _load_keys(k, k_time, d, channels, left, STEPS)
        values = load_rows(v, v_time, d, channels, left, STEPS)
        for i in tl.static_range(STEPS):
            p, q = _weights(m - (keys[i] + bonus))
            row = (p * a + q * values[i]) / (p * b + q)
            tl.store(y + i * channels + d, row, within(d, channels, i, left))
            a, b, m, _r, _s = _update(a, b, m, keys[i], values[i], decay, i < left)
        k += STEPS * k_time
        v += STEPS * v_time
        y += STEPS * channels
    if span == spans - 1:
        _store_state(final + batch * 3 * channels, d, channels, a, b, m)


@triton.jit
def _wkv_backward(
    k,
    v,
    w,
    u,
    checkpoints,
    dy,
    dfinal,
    alone,
    dk,
    dv,
    dw,
    du,
    dstate,
    length,
    channels,
    spans,
    span_steps,
    k_batch,
    k_time,
    v_batch,
    v_time,
    dy_batch,
    dy_time,
    CHANNELS: tl.constexpr,
    STEPS: tl.constexpr,
    KEPT: tl.constexpr,
    SUMMARY: tl.constexpr,
):
    """The gradients of a span, or for a `SUMMARY` what every span but the first does alone to those of a, b and m.

    Those are linear in what comes from the span after: r times it, and for m all or nothing.
    """
    if SUMMARY:
        batch, span, block = place(channels, spans - 1, CHANNELS)
        span += 1
    else:
        batch, span, block = place(channels, spans, CHANNELS)
    d = block * CHANNELS + tl.arange(0, CHANNELS)
    mask = d < channels
    decay = tl.load(w + d, mask, other=0).to(tl.float32)
    bonus = tl.load(u + d, mask, other=0).to(tl.float32)
    to_a = tl.zeros([CHANNELS], tl.float32)
    to_b = tl.zeros([CHANNELS], tl.float32)
    to_m = tl.zeros([CHANNELS], tl.float32)
    to_w = tl.zeros([CHANNELS], tl.float32)
    to_u = tl.zeros([CHANNELS], tl.float32)
    all_r = tl.full([CHANNELS], 1.0, tl.float32)
    all_kept = tl.full([CHANNELS], 1.0, tl.float32)
    if not SUMMARY and alone is not None:
        for after in range(spans - 2, span - 1, -1):
            at = alone + (batch * (spans - 1) + after) * 5 * channels + d
            r = tl.load(at + 3 * channels, mask, other=0)
            kept = tl.load(at + 4 * channels, mask, other=0)
            to_a = r * to_a + tl.load(at, mask, other=0)
            to_b = r * to_b + tl.load(at + channels, mask, other=0)
            to_m = tl.where(kept > 0, to_m, 0.0) + tl.load(at + 2 * channels, mask, other=0)
    k += batch * k_batch
    v += batch * v_batch
    dy += batch * dy_batch
    checkpoints += batch * tl.cdiv(length, KEPT) * 3 * channels
    begin = span * span_steps
    intervals = tl.cdiv(tl.minimum(span_steps, length - begin), KEPT)
    for back in range(intervals):
        index = begin // KEPT + intervals - 1 - back
        kept_state = checkpoints + index.to(tl.int64) * 3 * channels
        for part in range(KEPT // STEPS - 1, -1, -1):
            a, b, m = _load_state(kept_state, d, channels)
            for earlier in range(part):
                t = index * KEPT + earlier * STEPS
                left, first = length - t, t.to(tl.int64)
                keys = _load_keys(k + first * k_time, k_time, d, channels, left, STEPS)
                values = load_rows(v + first * v_time, v_time, d, channels, left, STEPS)
                for i in tl.static_range(STEPS):
                    a, b, m, _r, _s = _update(a, b, m, keys[i], values[i], decay, i < left)
            t = index * KEPT + part * STEPS
            left, first = length - t, t.to(tl.int64)
            keys = _load_keys(k + first * k_time, k_time, d, channels, left, STEPS)
            values = load_rows(v + first * v_time, v_time, d, channels, left, STEPS)
            weights = load_rows(dy + first * dy_time, dy_time, d, channels, left, STEPS)
            states = ()
            for i in tl.static_range(STEPS):
                states = states + ((a, b, m),)
                a, b, m, _r, _s = _update(a, b, m, keys[i], values[i], decay, i < left)
            if dfinal is not None:
                if (back == 0) & (part == KEPT // STEPS - 1) & (span == spans - 1):
                    at = dfinal + batch * 3 * channels + d
                    to_a = tl.load(at, mask, other=0).to(tl.float32)
                    to_b = tl.load(at + channels, mask, other=0).to(tl.float32)
                    to_m = tl.load(at + 2 * channels, mask, other=0).to(tl.float32) - (to_a * a + to_b * b)
            for i in tl.static_range(STEPS - 1, -1, -1):
                present = i < left
                a, b, m = states[i]
                key, value = keys[i], values[i]
                _a, _b, _m, r, s = _update(a, b, m, key, value, decay, present)
                p, q = _weights(m - (key + bonus))
                inverse = tl.where(present, 1 / (p * b + q), 0.0)
                row = (p * a + q * value) * inverse
                g = weights[i] * inverse
                kept = tl.where(present, m - decay - key, 1.0) > 0
                if SUMMARY:
                    all_r *= r
                    all_kept = tl.where(kept, all_kept, 0.0)
                else:
                    to_key = q * g * (value - row)
                    to_u += to_key
                    to_k = to_key + s * (value * to_a + to_b)
                    through = r * (a * to_a + b * to_b)
                    if dfinal is not None:
                        to_k += tl.where(kept, 0.0, to_m)
                        through += tl.where(kept, to_m, 0.0)
                    to_w -= tl.where(present, through, 0.0)
                    at = (batch * length + first + i) * channels + d
                    tl.store(dk + at, to_k, within(d, channels, i, left))
                    tl.store(dv + at, q * g + s * to_a, within(d, channels, i, left))
                to_a = r * to_a + p * g
                to_b = r * to_b - p * g * row
                to_m = tl.where(kept, to_m, 0.0)
    if SUMMARY:
        at = alone + (batch * (spans - 1) + span - 1) * 5 * channels + d
        tl.store(at, to_a, mask)
        tl.store(at + channels, to_b, mask)
        tl.store(at + 2 * channels, to_m, mask)
        tl.store(at + 3 * channels, all_r, mask)
        tl.store(at + 4 * channels, all_kept, mask)
    else:
        at = (batch * spans + span) * channels + d
        tl.store(dw + at, to_w, mask)
        tl.store(du + at, to_u, mask)
        if span == 0:
            a, b, m = _load_state(checkpoints, d, channels)
            _store_state(dstate + batch * 3 * channels, d, channels, to_a, to_b, to_m + to_a * a + to_b * b)


def wkv_forward(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor | None, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """y, the final state, and with `keep` the checkpoints for `wkv_backward`, else an empty tensor. Unchecked."""
    k, v, w, u = rows_of(k), rows_of(v), w.contiguous(), u.contiguous()
    state = None if state is None else state.contiguous()
    batch, length, channels = k.shape
    programs = batch * -(-channels // _CHANNELS)
    spans, span_steps = spans_of_time(length, programs, k, _WARPS)
    y = k.new_empty(batch, length, channels)
    final = k.new_empty(batch, 3, channels, dtype=torch.float32)
    checkpoints = k.new_empty(checkpoints_shape(batch, length, channels) if keep else (0,), dtype=torch.float32)
    strides = *k.stride()[:2], *v.stride()[:2]
    constants = {"CHANNELS": _CHANNELS, "STEPS": _STEPS}
    alone = None
    if spans > 1:
        alone = k.new_empty(batch, spans - 1, 3, channels, dtype=torch.float32)
        arguments = k, v, w, alone, channels, spans, span_steps
        launch(_wkv_summary, programs * (spans - 1), k, *arguments, *strides, warps=1, **constants)
    arguments = k, v, w, u, state, alone, y, final, checkpoints if keep else None, length, channels, spans, span_steps
    launch(_wkv_forward, programs * spans, k, *arguments, *strides, warps=1, KEPT=INTERVAL, **constants)
    return y, final, checkpoints


def wkv_backward(
    k: Tensor, v: Tensor, w: Tensor, u: Tensor, checkpoints: Tensor, dy: Tensor, dfinal: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of k, v, w, u, each in the data type of its tensor, and of the state."""
    k, v, dy, w, u = rows_of(k), rows_of(v), rows_of(dy), w.contiguous(), u.contiguous()
    batch, length, channels = k.shape
    dk, dv = k.new_empty(batch, length, channels), v.new_empty(batch, length, channels)
    if length == 0:  # the state was handed through
        shape = batch, 3, channels
        dstate = k.new_zeros(shape, dtype=torch.float32) if dfinal is None else dfinal.float().clone()
        return dk, dv, torch.zeros_like(w), torch.zeros_like(u), dstate
    dfinal = None if dfinal is None else dfinal.contiguous()
    programs = batch * -(-channels // _CHANNELS)
    spans, span_steps = spans_of_time(length, programs, k, _WARPS)
    dw, du = (k.new_empty(batch * spans, channels, dtype=torch.float32) for _ in range(2))
    dstate = k.new_empty(batch, 3, channels, dtype=torch.float32)
    alone = k.new_empty(batch, spans - 1, 5, channels, dtype=torch.float32) if spans > 1 else None
    arguments = k, v, w, u, checkpoints, dy, dfinal, alone, dk, dv, dw, du, dstate, length, channels, spans, span_steps
    strides = *k.stride()[:2], *v.stride()[:2], *dy.stride()[:2]
    constants = {"CHANNELS": _CHANNELS, "STEPS": _BACKWARD_STEPS, "KEPT": INTERVAL}
    for count, summary in ((spans - 1, True), (spans, False)):
        launch(_wkv_backward, programs * count, k, *arguments, *strides, warps=1, SUMMARY=summary, **constants)
    return dk, dv, dw.sum(0).to(w.dtype), du.sum(0).to(u.dtype), dstate
