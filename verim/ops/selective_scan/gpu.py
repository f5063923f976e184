"""The selective scan on CUDA devices: one warp for a block of channels, its states in registers.

A program is one warp. It has some channels of one batch row, with all entries of their states, 8 to a thread, and
walks through time. The exponentials, the costly part, are independent of each other: only one multiply-add a step
waits for the step before. Steps are loaded several at once, so that one wait for memory serves them all. Nothing
goes through shared memory, and no program waits for another.

Where batch and channels are too few to fill the device, time is cut into spans too. A first kernel runs the spans
from a zero state; a program of the second one goes through the results of the spans before its own, the product of
a span's decays being exp(A sum of delta). The gradients go the same way, from the end.

The forward pass keeps the state every `STEPS_KEPT` steps. The backward pass goes back through these intervals,
recomputes the states of one, with every `_BACKWARD_STEPS`-th put aside in memory that stays in the second-level
cache, and from these again the ones between, in registers. The recurrence of the gradients is written at `cpu.py`.
The sums over channels that make dB and dC are added up within a warp, those of the warps and of the batch by torch:
a fixed order, so the same input gives the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from verim.ops.launch import STEPS_KEPT, launch, spans_of_time
from verim.ops.memory import rows_of
from verim.ops.rows import load_rows, place, within

_STEPS = 4  # loaded at once in the forward pass
_BACKWARD_STEPS = 4  # the same in the backward pass, which holds their states and decays in registers too
_ENTRIES = 256  # of a program's states: 8 to a thread
_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)


@triton.jit
def _advance(h, delta, u, B, decay):
    """The state one step later, for A log2(e) in `decay`."""
    return tl.exp2(delta[:, None] * decay) * h + (delta * u)[:, None] * B[None, :]


@triton.jit
def _through(h, alone, total, decay, first, last, stride, state_stride, d, entry, d_mask, mask, STEP: tl.constexpr):
    """The state after the spans from `first` to before `last`, of which each alone and its sum of delta are known."""
    for span in range(first, last, STEP):
        decayed = tl.exp2(tl.load(total + span * stride + d, d_mask, other=0)[:, None] * decay)
        h = decayed * h + tl.load(alone + span * state_stride + entry, mask, other=0)
    return h


@triton.jit
def _scan_summary(
    u,
    delta,
    A,
    B,
    alone,
    total,
    channels,
    state,
    spans,
    span_steps,
    u_batch,
    u_time,
    delta_batch,
    delta_time,
    B_batch,
    B_time,
    CHANNELS: tl.constexpr,
    STATE: tl.constexpr,
    STEPS: tl.constexpr,
):
    """What every span but the last does alone: the state after it from a zero state, and the sum of its delta."""
    batch, span, block = place(channels, spans - 1, CHANNELS)
    d, n = block * CHANNELS + tl.arange(0, CHANNELS), tl.arange(0, STATE)
    d_mask, n_mask = d < channels, n < state
    entry, mask = d[:, None] * state + n[None, :], d_mask[:, None] & n_mask[None, :]
    decay = tl.load(A + entry, mask, other=0).to(tl.float32) * _LOG2_E
    h = tl.zeros([CHANNELS, STATE], tl.float32)
    sums = tl.zeros([CHANNELS], tl.float32)
    begin = (span * span_steps).to(tl.int64)
    u += batch * u_batch + begin * u_time
    delta += batch * delta_batch + begin * delta_time
    B += batch * B_batch + begin * B_time
    for _ in range(0, span_steps, STEPS):
        steps = load_rows(delta, delta_time, d, channels, span_steps, STEPS)
        inputs = load_rows(u, u_time, d, channels, span_steps, STEPS)
        writes = load_rows(B, B_time, n, state, span_steps, STEPS)
        for k in tl.static_range(STEPS):
            h = _advance(h, steps[k], inputs[k], writes[k], decay)
            sums += steps[k]
        u += STEPS * u_time
        delta += STEPS * delta_time
        B += STEPS * B_time
    at = (batch * (spans - 1) + span) * channels
    tl.store(total + at + d, sums, d_mask)
    tl.store(alone + at * state + entry, h, mask)


@triton.jit
def _scan_forward(
    u,
    delta,
    A,
    B,
    C,
    D,
    initial,
    alone,
    total,
    y,
    final,
    checkpoints,
    length,
    channels,
    state,
    spans,
    span_steps,
    u_batch,
    u_time,
    delta_batch,
    delta_time,
    B_batch,
    B_time,
    C_batch,
    C_time,
    CHANNELS: tl.constexpr,
    STATE: tl.constexpr,
    STEPS: tl.constexpr,
    INTERVAL: tl.constexpr,
):
    batch, span, block = place(channels, spans, CHANNELS)
    d, n = block * CHANNELS + tl.arange(0, CHANNELS), tl.arange(0, STATE)
    d_mask, n_mask = d < channels, n < state
    entry, mask = d[:, None] * state + n[None, :], d_mask[:, None] & n_mask[None, :]
    decay = tl.load(A + entry, mask, other=0).to(tl.float32) * _LOG2_E
    h = tl.zeros([CHANNELS, STATE], tl.float32)
    if initial is not None:
        h += tl.load(initial + batch * channels * state + entry, mask, other=0).to(tl.float32)
    size = channels.to(tl.int64) * state
    if alone is not None:
        before = batch * (spans - 1)
        alone += before * size
        total += before * channels
        h = _through(h, alone, total, decay, 0, span, channels, size, d, entry, d_mask, mask, 1)
    skip = tl.zeros([CHANNELS], tl.float32)
    if D is not None:
        skip += tl.load(D + d, d_mask, other=0).to(tl.float32)
    begin = span * span_steps
    end = tl.minimum(begin + span_steps, length)
    first = begin.to(tl.int64)
    u += batch * u_batch + first * u_time
    delta += batch * delta_batch + first * delta_time
    B += batch * B_batch + first * B_time
    C += batch * C_batch + first * C_time
    y += (batch * length + first) * channels
    if checkpoints is not None:
        checkpoints += (batch * tl.cdiv(length, INTERVAL) + first // INTERVAL) * size
    for t in range(begin, end, STEPS):
        if checkpoints is not None:
            if t % INTERVAL == 0:
                tl.store(checkpoints + entry, h, mask)
                checkpoints += size
        left = end - t
        steps = load_rows(delta, delta_time, d, channels, left, STEPS)
        inputs = load_rows(u, u_time, d, channels, left, STEPS)
        writes = load_rows(B, B_time, n, state, left, STEPS)
        reads = load_rows(C, C_time, n, state, left, STEPS)
        for k in tl.static_range(STEPS):
            h = _advance(h, steps[k], inputs[k], writes[k], decay)
            row = tl.sum(h * reads[k][None, :], 1) + skip * inputs[k]
            tl.store(y + k * channels + d, row, within(d, channels, k, left))
        u += STEPS * u_time
        delta += STEPS * delta_time
        B += STEPS * B_time
        C += STEPS * C_time
        y += STEPS * channels
    if span == spans - 1:
        tl.store(final + batch * size + entry, h, mask)


@triton.jit
def _scan_backward_summary(
    delta,
    A,
    C,
    dy,
    alone,
    total,
    length,
    channels,
    state,
    spans,
    span_steps,
    delta_batch,
    delta_time,
    C_batch,
    C_time,
    dy_batch,
    dy_time,
    CHANNELS: tl.constexpr,
    STATE: tl.constexpr,
    STEPS: tl.constexpr,
):
    """What every span but the first does alone to c, the gradient that goes back, and the sum of its delta."""
    batch, span, block = place(channels, spans - 1, CHANNELS)
    d, n = block * CHANNELS + tl.arange(0, CHANNELS), tl.arange(0, STATE)
    d_mask, n_mask = d < channels, n < state
    entry, mask = d[:, None] * state + n[None, :], d_mask[:, None] & n_mask[None, :]
    decay = tl.load(A + entry, mask, other=0).to(tl.float32) * _LOG2_E
    c = tl.zeros([CHANNELS, STATE], tl.float32)
    sums = tl.zeros([CHANNELS], tl.float32)
    begin = (span + 1) * span_steps
    for back in range(STEPS, span_steps + STEPS, STEPS):
        first = begin + span_steps - back
        left, at = length - first, first.to(tl.int64)
        steps = load_rows(delta + batch * delta_batch + at * delta_time, delta_time, d, channels, left, STEPS)
        weights = load_rows(dy + batch * dy_batch + at * dy_time, dy_time, d, channels, left, STEPS)
        reads = load_rows(C + batch * C_batch + at * C_time, C_time, n, state, left, STEPS)
        for k in tl.static_range(STEPS - 1, -1, -1):
            c = tl.exp2(steps[k][:, None] * decay) * (weights[k][:, None] * reads[k][None, :] + c)
            sums += steps[k]
    at = (batch * (spans - 1) + span) * channels
    tl.store(total + at + d, sums, d_mask)
    tl.store(alone + at * state + entry, c, mask)


@triton.jit
def _scan_backward(
    u,
    delta,
    A,
    B,
    C,
    D,
    checkpoints,
    dy,
    dfinal,
    alone,
    total,
    aside,
    du,
    ddelta,
    dA,
    dB,
    dC,
    dD,
    dinitial,
    batches,
    length,
    channels,
    state,
    spans,
    span_steps,
    u_batch,
    u_time,
    delta_batch,
    delta_time,
    B_batch,
    B_time,
    C_batch,
    C_time,
    dy_batch,
    dy_time,
    CHANNELS: tl.constexpr,
    STATE: tl.constexpr,
    STEPS: tl.constexpr,
    INTERVAL: tl.constexpr,
):
    batch, span, block = place(channels, spans, CHANNELS)
    d, n = block * CHANNELS + tl.arange(0, CHANNELS), tl.arange(0, STATE)
    d_mask, n_mask = d < channels, n < state
    entry, mask = d[:, None] * state + n[None, :], d_mask[:, None] & n_mask[None, :]
    decay = tl.load(A + entry, mask, other=0).to(tl.float32) * _LOG2_E
    size = channels.to(tl.int64) * state
    c = tl.zeros([CHANNELS, STATE], tl.float32)
    if dfinal is not None:
        c += tl.load(dfinal + batch * size + entry, mask, other=0).to(tl.float32)
    if alone is not None:
        before = batch * (spans - 1)
        alone += before * size
        total += before * channels
        c = _through(c, alone, total, decay, spans - 2, span - 1, channels, size, d, entry, d_mask, mask, -1)
    skip = tl.zeros([CHANNELS], tl.float32)
    if D is not None:
        skip += tl.load(D + d, d_mask, other=0).to(tl.float32)
    to_A = tl.zeros([CHANNELS, STATE], tl.float32)
    to_D = tl.zeros([CHANNELS], tl.float32)
    u += batch * u_batch
    delta += batch * delta_batch
    B += batch * B_batch
    C += batch * C_batch
    dy += batch * dy_batch
    du += batch * length * channels
    ddelta += batch * length * channels
    dB += (block * batches + batch) * length * state
    dC += (block * batches + batch) * length * state
    checkpoints += batch * tl.cdiv(length, INTERVAL) * size
    own = tl.arange(0, CHANNELS)[:, None] * STATE + n[None, :]
    aside += tl.program_id(0).to(tl.int64) * (INTERVAL // STEPS * CHANNELS * STATE)
    begin = span * span_steps
    intervals = tl.cdiv(tl.minimum(span_steps, length - begin), INTERVAL)
    for back in range(intervals):
        index = begin // INTERVAL + intervals - 1 - back
        start = index * INTERVAL
        h = tl.load(checkpoints + index * size + entry, mask, other=0)
        for step in range(0, INTERVAL, STEPS):
            tl.store(aside + step * (CHANNELS * STATE // STEPS) + own, h)
            first = (start + step).to(tl.int64)
            left = length - start - step
            steps = load_rows(delta + first * delta_time, delta_time, d, channels, left, STEPS)
            inputs = load_rows(u + first * u_time, u_time, d, channels, left, STEPS)
            writes = load_rows(B + first * B_time, B_time, n, state, left, STEPS)
            for k in tl.static_range(STEPS):
                h = _advance(h, steps[k], inputs[k], writes[k], decay)
        tl.debug_barrier()
        for step in range(INTERVAL - STEPS, -STEPS, -STEPS):
            h = tl.load(aside + step * (CHANNELS * STATE // STEPS) + own)
            first = (start + step).to(tl.int64)
            left = length - start - step
            steps = load_rows(delta + first * delta_time, delta_time, d, channels, left, STEPS)
            inputs = load_rows(u + first * u_time, u_time, d, channels, left, STEPS)
            writes = load_rows(B + first * B_time, B_time, n, state, left, STEPS)
            weights = load_rows(dy + first * dy_time, dy_time, d, channels, left, STEPS)
            reads = load_rows(C + first * C_time, C_time, n, state, left, STEPS)
            states = ()
            decays = ()
            for k in tl.static_range(STEPS):
                states = states + (h,)
                decays = decays + (tl.exp2(steps[k][:, None] * decay),)
                h = decays[k] * h + (steps[k] * inputs[k])[:, None] * writes[k][None, :]
                row = tl.sum(weights[k][:, None] * h, 0)
                tl.store(dC + (first + k) * state + n, row, within(n, state, k, left))
            for k in tl.static_range(STEPS - 1, -1, -1):
                g = weights[k][:, None] * reads[k][None, :] + c
                row = tl.sum(g * (steps[k] * inputs[k])[:, None], 0)
                tl.store(dB + (first + k) * state + n, row, within(n, state, k, left))
                c = decays[k] * g
                decayed = c * states[k]
                to_A += steps[k][:, None] * decayed
                to_D += weights[k] * inputs[k]
                through_drive = tl.sum(g * writes[k][None, :], 1)
                through_decay = tl.sum(decayed * decay, 1) * _LN_2
                at = (first + k) * channels + d
                tl.store(du + at, through_drive * steps[k] + skip * weights[k], within(d, channels, k, left))
                tl.store(ddelta + at, through_drive * inputs[k] + through_decay, within(d, channels, k, left))
        tl.debug_barrier()
    partial = batch * spans + span
    tl.store(dA + partial * size + entry, to_A, mask)
    tl.store(dD + partial * channels + d, to_D, d_mask)
    if span == 0:
        tl.store(dinitial + batch * size + entry, c, mask)


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
    u, delta, A, B, C = rows_of(u), rows_of(delta), A.contiguous(), rows_of(B), rows_of(C)
    D = None if D is None else D.contiguous()
    initial = None if initial is None else initial.contiguous()
    batch, length, channels = u.shape
    state = A.shape[1]
    constants = _block(state) | {"STEPS": _STEPS}
    programs = batch * -(-channels // constants["CHANNELS"])
    spans, span_steps = spans_of_time(length, programs, u)
    y = u.new_empty(batch, length, channels)
    final = u.new_empty(batch, channels, state, dtype=torch.float32)
    kept = (batch, -(-length // STEPS_KEPT), channels, state) if keep else (0,)
    checkpoints = u.new_empty(kept, dtype=torch.float32)
    alone = total = None
    if spans > 1:
        alone = u.new_empty(batch, spans - 1, channels, state, dtype=torch.float32)
        total = u.new_empty(batch, spans - 1, channels, dtype=torch.float32)
        arguments = u, delta, A, B, alone, total, channels, state, spans, span_steps
        strides = *u.stride()[:2], *delta.stride()[:2], *B.stride()[:2]
        launch(_scan_summary, programs * (spans - 1), u, *arguments, *strides, warps=1, **constants)
    arguments = u, delta, A, B, C, D, initial, alone, total, y, final, checkpoints if keep else None
    sizes = length, channels, state, spans, span_steps
    strides = *u.stride()[:2], *delta.stride()[:2], *B.stride()[:2], *C.stride()[:2]
    constants |= {"INTERVAL": STEPS_KEPT}
    launch(_scan_forward, programs * spans, u, *arguments, *sizes, *strides, warps=1, **constants)
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
    """The gradients of u, delta, A, B, C, D and the initial state, each in the data type of its tensor."""
    u, delta, dy, B, C = rows_of(u), rows_of(delta), rows_of(dy), rows_of(B), rows_of(C)
    A = A.contiguous()
    D = None if D is None else D.contiguous()
    dfinal = None if dfinal is None else dfinal.contiguous()
    batch, length, channels = u.shape
    state = A.shape[1]
    constants = _block(state) | {"STEPS": _BACKWARD_STEPS}
    blocks = -(-channels // constants["CHANNELS"])
    programs = batch * blocks
    spans, span_steps = spans_of_time(length, programs, u)
    du, ddelta = u.new_empty(batch, length, channels), delta.new_empty(batch, length, channels)
    dA = u.new_empty(batch * spans, channels, state, dtype=torch.float32)
    dB, dC = (u.new_empty(blocks, batch, length, state, dtype=torch.float32) for _ in range(2))
    dD = u.new_empty(batch * spans, channels, dtype=torch.float32)
    dinitial = u.new_empty(batch, channels, state, dtype=torch.float32)
    alone = total = None
    if spans > 1:
        alone = u.new_empty(batch, spans - 1, channels, state, dtype=torch.float32)
        total = u.new_empty(batch, spans - 1, channels, dtype=torch.float32)
        arguments = delta, A, C, dy, alone, total, length, channels, state, spans, span_steps
        strides = *delta.stride()[:2], *C.stride()[:2], *dy.stride()[:2]
        launch(_scan_backward_summary, programs * (spans - 1), u, *arguments, *strides, warps=1, **constants)
    entries = STEPS_KEPT // _BACKWARD_STEPS * constants["CHANNELS"] * constants["STATE"]
    aside = u.new_empty(programs * spans, entries, dtype=torch.float32)
    arguments = u, delta, A, B, C, D, checkpoints, dy, dfinal, alone, total, aside, du, ddelta, dA, dB, dC, dD, dinitial
    sizes = batch, length, channels, state, spans, span_steps
    strides = *u.stride()[:2], *delta.stride()[:2], *B.stride()[:2], *C.stride()[:2], *dy.stride()[:2]
    constants |= {"INTERVAL": STEPS_KEPT}
    launch(_scan_backward, programs * spans, u, *arguments, *sizes, *strides, warps=1, **constants)
    gradients = dA.sum(0).to(A.dtype), dB.sum(0).to(B.dtype), dC.sum(0).to(C.dtype)
    return du, ddelta, *gradients, dD.sum(0).to(u.dtype if D is None else D.dtype), dinitial


def _block(state: int) -> dict[str, int]:
    """The channels of a program and the entries of their states, both powers of two."""
    entries = triton.next_power_of_2(state)
    return {"CHANNELS": max(1, min(_ENTRIES // entries, 16)), "STATE": entries}
