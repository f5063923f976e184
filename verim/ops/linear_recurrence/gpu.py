"""The linear recurrence on CUDA devices, real and complex: a thread for a channel, one step after the other.

What limits it is memory. A program is one warp with `_CHANNELS` channels of one batch row; it loads `_STEPS` steps at
once, so that one wait for memory serves them all, and between them one multiply-add waits for the one before. The
walk along time is the same forward and backward, as written at `cpu.py`.

Where batch and channels are too few to keep memory busy, time is cut into spans too. A first kernel finds what every
span does to a state: the product of its coefficients (in float64, as it may leave the range of float32 where the
states do not), and where a zero state ends. A program of the second one goes through these for the spans before its
own. Memory is then read twice, or once and once from the second-level cache.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from verim.ops.launch import launch, spans_of_time
from verim.ops.precision import HALVES
from verim.ops.rows import load_rows, place, within

_CHANNELS = 32
_STEPS = 16
_TOGETHER = tl.constexpr(8)  # spans, whose effects are loaded at once
_WARPS = 6  # wanted on a multiprocessor: with 16 steps on their way each they ask for all that memory can give


@triton.jit
def _load_numbers(start, stride, d, channels, left, STEPS: tl.constexpr, COMPLEX: tl.constexpr):
    """Real and imaginary parts of `STEPS` rows; real numbers stand for their imaginary parts, which nobody reads."""
    if COMPLEX:
        real = load_rows(start, stride, 2 * d, 2 * channels, left, STEPS)
        imaginary = load_rows(start + 1, stride, 2 * d, 2 * channels, left, STEPS)
    else:
        real = load_rows(start, stride, d, channels, left, STEPS)
        imaginary = real
    return real, imaginary


@triton.jit
def _load_number(start, d, channels, COMPLEX: tl.constexpr):
    real, imaginary = _load_numbers(start, 0, d, channels, 1 + 0 * channels, 1, COMPLEX)
    return real[0], imaginary[0]


@triton.jit
def _store_number(start, d, mask, real, imaginary, COMPLEX: tl.constexpr):
    if COMPLEX:
        tl.store(start + 2 * d, real, mask)
        tl.store(start + 2 * d + 1, imaginary, mask)
    else:
        tl.store(start + d, real, mask)


@triton.jit
def _times_plus(a_real, a_imaginary, b_real, b_imaginary, c_real, c_imaginary, COMPLEX: tl.constexpr):
    """a b + c"""
    if COMPLEX:
        real = a_real * b_real - a_imaginary * b_imaginary + c_real
        imaginary = a_real * b_imaginary + a_imaginary * b_real + c_imaginary
    else:
        real = a_real * b_real + c_real
        imaginary = real
    return real, imaginary


@triton.jit
def _step(a_real, a_imaginary, x_real, x_imaginary, real, imaginary, BACKWARD: tl.constexpr, COMPLEX: tl.constexpr):
    """The state one step later, and what is written: h, or g on the way back, where `a_imaginary` is conjugated."""
    if BACKWARD:
        g_real, g_imaginary = x_real + real, x_imaginary + imaginary
        real, imaginary = _times_plus(a_real, a_imaginary, g_real, g_imaginary, 0.0, 0.0, COMPLEX)
    else:
        real, imaginary = _times_plus(a_real, a_imaginary, real, imaginary, x_real, x_imaginary, COMPLEX)
        g_real, g_imaginary = real, imaginary
    return real, imaginary, g_real, g_imaginary


@triton.jit
def _recurrence_summary(
    a,
    x,
    products,
    alone,
    channels,
    spans,
    span_steps,
    a_batch,
    a_time,
    x_batch,
    x_time,
    CHANNELS: tl.constexpr,
    STEPS: tl.constexpr,
    COMPLEX: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    """What every span but the last does: the product of its coefficients, and the state after it from zero."""
    batch, span, block = place(channels, spans - 1, CHANNELS)
    d = block * CHANNELS + tl.arange(0, CHANNELS)
    real = tl.zeros([CHANNELS], tl.float32)
    imaginary = tl.zeros([CHANNELS], tl.float32)
    product_real = tl.full([CHANNELS], 1.0, tl.float64)
    product_imaginary = tl.zeros([CHANNELS], tl.float64)
    first = (span * span_steps).to(tl.int64)
    a += batch * a_batch + first * a_time
    x += batch * x_batch + first * x_time
    for _ in range(0, span_steps, STEPS):
        a_reals, a_imaginaries = _load_numbers(a, a_time, d, channels, span_steps, STEPS, COMPLEX)
        x_reals, x_imaginaries = _load_numbers(x, x_time, d, channels, span_steps, STEPS, COMPLEX)
        for k in tl.static_range(STEPS):
            a_real, a_imaginary = a_reals[k], -a_imaginaries[k] if BACKWARD else a_imaginaries[k]
            real, imaginary, _real, _imaginary = _step(
                a_real, a_imaginary, x_reals[k], x_imaginaries[k], real, imaginary, BACKWARD, COMPLEX
            )
            product_real, product_imaginary = _times_plus(
                a_real.to(tl.float64), a_imaginary.to(tl.float64), product_real, product_imaginary, 0.0, 0.0, COMPLEX
            )
        a += STEPS * a_time
        x += STEPS * x_time
    parts: tl.constexpr = 2 if COMPLEX else 1
    at = (batch * (spans - 1) + span) * channels * parts
    _store_number(products + at, d, d < channels, product_real, product_imaginary, COMPLEX)
    _store_number(alone + at, d, d < channels, real, imaginary, COMPLEX)


@triton.jit
def _recurrence_walk(
    a,
    x,
    start,
    end,
    y,
    before,
    before_end,
    da,
    products,
    alone,
    length,
    channels,
    spans,
    span_steps,
    a_batch,
    a_time,
    x_batch,
    x_time,
    y_batch,
    y_time,
    CHANNELS: tl.constexpr,
    STEPS: tl.constexpr,
    COMPLEX: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    """One span of a walk from the state `start` (None for zero) to `end`.

    Tensors are given at the first step of the walk, with negative strides against time. Forward x is b, and y is h.
    Backward x is dh, y is db, and `before` is h, which lies as y and `da` do; `before_end` is the initial state.
    """
    parts: tl.constexpr = 2 if COMPLEX else 1
    batch, span, block = place(channels, spans, CHANNELS)
    d = block * CHANNELS + tl.arange(0, CHANNELS)
    mask = d < channels
    row = batch * channels * parts
    real = tl.zeros([CHANNELS], tl.float32)
    imaginary = tl.zeros([CHANNELS], tl.float32)
    if start is not None:
        real, imaginary = _load_number(start + row, d, channels, COMPLEX)
    if alone is not None:
        wide_real, wide_imaginary = real.to(tl.float64), imaginary.to(tl.float64)
        stride = channels * parts
        for one in range(0, span, _TOGETHER):
            at = (batch * (spans - 1) + one) * stride
            left = span - one
            ends, i_ends = _load_numbers(alone + at, stride, d, channels, left, _TOGETHER, COMPLEX)
            for k in tl.static_range(_TOGETHER):
                spot = products + at + k * stride
                inside = within(d, channels, k, left)
                if COMPLEX:
                    r_product = tl.load(spot + 2 * d, inside, other=1)
                    i_product = tl.load(spot + 2 * d + 1, inside, other=0)
                else:
                    r_product = tl.load(spot + d, inside, other=1)
                    i_product = r_product
                wide_real, wide_imaginary = _times_plus(
                    r_product,
                    i_product,
                    wide_real,
                    wide_imaginary,
                    ends[k].to(tl.float64),
                    i_ends[k].to(tl.float64),
                    COMPLEX,
                )
        real, imaginary = wide_real.to(tl.float32), wide_imaginary.to(tl.float32)
    if BACKWARD:
        border_real = tl.zeros([CHANNELS], tl.float32)
        border_imaginary = tl.zeros([CHANNELS], tl.float32)
        if before_end is not None:
            border_real, border_imaginary = _load_number(before_end + row, d, channels, COMPLEX)
    begin = span * span_steps
    finish = tl.minimum(begin + span_steps, length)
    first = begin.to(tl.int64)
    a += batch * a_batch + first * a_time
    x += batch * x_batch + first * x_time
    y += batch * y_batch + first * y_time
    if BACKWARD:
        da += batch * y_batch + first * y_time
        before += batch * y_batch + (first + 1) * y_time
    for t in range(begin, finish, STEPS):
        left = finish - t
        a_reals, a_imaginaries = _load_numbers(a, a_time, d, channels, left, STEPS, COMPLEX)
        x_reals, x_imaginaries = _load_numbers(x, x_time, d, channels, left, STEPS, COMPLEX)
        if BACKWARD:
            more = tl.minimum(left, length - 1 - t)
            olds, i_olds = _load_numbers(before, y_time, d, channels, more, STEPS, COMPLEX)
        for k in tl.static_range(STEPS):
            inside = within(d, channels, k, left)
            a_imaginary = -a_imaginaries[k] if BACKWARD else a_imaginaries[k]
            next_real, next_imaginary, out_real, out_imaginary = _step(
                a_reals[k], a_imaginary, x_reals[k], x_imaginaries[k], real, imaginary, BACKWARD, COMPLEX
            )
            _store_number(y + k * y_time, d, inside, out_real, out_imaginary, COMPLEX)
            if BACKWARD:
                is_last = t + k == length - 1
                old = tl.where(is_last, border_real, olds[k])
                i_old = tl.where(is_last, border_imaginary, i_olds[k])
                to_a, i_to_a = _times_plus(out_real, out_imaginary, old, -i_old, 0.0, 0.0, COMPLEX)
                _store_number(da + k * y_time, d, inside, to_a, i_to_a, COMPLEX)
            real = tl.where(k < left, next_real, real)
            imaginary = tl.where(k < left, next_imaginary, imaginary)
        a += STEPS * a_time
        x += STEPS * x_time
        y += STEPS * y_time
        if BACKWARD:
            da += STEPS * y_time
            before += STEPS * y_time
    if span == spans - 1:
        _store_number(end + row, d, mask, real, imaginary, COMPLEX)


def recurrence_forward(a: Tensor, b: Tensor, initial: Tensor | None, reverse: bool) -> tuple[Tensor, Tensor]:
    """h and the final state. Unchecked."""
    h, final = b.new_empty(b.shape), _new_state(b)
    _walk(a, b, initial, final, h, reverse, None, None, None)
    return h, final


def recurrence_backward(
    a: Tensor, h: Tensor, initial: Tensor | None, dh: Tensor, dfinal: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of a, in its data type, of b and of the initial state."""
    da, db, dinitial = a.new_empty(h.shape), h.new_empty(h.shape), _new_state(h)
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
    """Forward where `h`, `initial` and `da` are None, backward where they are the arguments of that."""
    batch, length, channels = y.shape
    constants = {"COMPLEX": y.is_complex(), "BACKWARD": da is not None, "CHANNELS": _CHANNELS}
    constants["STEPS"] = _STEPS // 2 if y.is_complex() else _STEPS
    start, initial = (None if state is None else _parts(state.contiguous()) for state in (start, initial))
    a, x, y, end = _laid_out(a), _laid_out(x), _parts(y), _parts(end)
    h, da = (None if tensor is None else _parts(tensor) for tensor in (h, da))
    strides = *a.stride()[:2], *x.stride()[:2], *y.stride()[:2]
    if against_time and length:
        a, x, y, h, da = (None if tensor is None else tensor[:, -1:] for tensor in (a, x, y, h, da))
        strides = tuple(-stride if i % 2 else stride for i, stride in enumerate(strides))
    programs = batch * -(-channels // _CHANNELS)
    spans, span_steps = spans_of_time(length, programs, end, _WARPS)
    products = alone = None
    if spans > 1:
        shape = batch, spans - 1, *end.shape[1:]
        products, alone = end.new_empty(shape, dtype=torch.float64), end.new_empty(shape)
        arguments = a, x, products, alone, channels, spans, span_steps, *strides[:4]
        launch(_recurrence_summary, programs * (spans - 1), end, *arguments, warps=1, **constants)
    arguments = a, x, start, end, y, h, initial, da, products, alone, length, channels, spans, span_steps, *strides
    launch(_recurrence_walk, programs * spans, end, *arguments, warps=1, **constants)


def _new_state(like: Tensor) -> Tensor:
    kind = torch.float32 if like.dtype in HALVES else like.dtype
    return like.new_empty(like.shape[0], like.shape[2], dtype=kind)


def _parts(tensor: Tensor) -> Tensor:
    """Complex numbers as pairs of real ones, along a last axis."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor.resolve_neg()


def _laid_out(tensor: Tensor) -> Tensor:
    """The parts of `tensor` [batch, length, channels], the channels side by side, in a copy where they are not."""
    return _parts(tensor if tensor.stride(2) == 1 else tensor.contiguous())
