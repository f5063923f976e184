"""The depthwise causal convolution on the CPU: a task is one block of 16 channels, over all batch rows.

Inputs are counted from the first of the kernel - 1 inputs before the sequence, so that y_t reads the inputs p
= t to t + kernel - 1. The backward pass walks back in time. With z_t the sum before the activation f,
recomputed, and g_t = dy_t f'(z_t), it needs only the last `kernel` of the g, in a ring:

    dx at p = sum over k of weight[:, k] g_{p - k}      dweight[:, k] = sum over t of g_t x at p = t + k
    dbias = sum over t of g_t

To dx belongs the gradient of the final state too, which is the inputs from p = length on.
"""

from typing import Any

import numpy as np
from numba import njit
from torch import Tensor

from verim.ops.compiled import compiled
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
    store,
    store_lanes,
    subtract,
)
from verim.ops.workers import run_tasks

_FORWARD_NANOSECONDS, _BACKWARD_NANOSECONDS = 2.0, 4.0  # for 16 channels, one step, one entry of the kernel


@njit(nogil=True)
def _sigmoid(z: Any) -> Any:
    """1 / (1 + exp(-z))."""
    one = full(np.float32(1))
    return divide(one, add(one, exp2(multiply(z, full(np.float32(-LOG2_E))))))


@njit(nogil=True)
def _input(
    x: int,
    x_time: int,
    initial: int,
    batch: int,
    channels: int,
    channel: int,
    before: int,
    p: int,
    count: int,
) -> Any:
    """The inputs of one block at p; `x` is the address of its first one (t = 0)."""
    if p >= before:
        return load_lanes(x + (p - before) * x_time, count)
    if initial != 0:
        return load_lanes(initial + ((batch * before + p) * channels + channel) * BYTES, count)
    return full(np.float32(0))


@compiled
def _forward(
    first: int,
    last: int,
    scratch: int,
    batches: int,
    length: int,
    channels: int,
    kernel: int,
    silu: int,
    x: int,
    x_batch: int,
    x_time: int,
    weight: int,
    bias: int,
    initial: int,
    y: int,
    final: int,
) -> None:
    """Compiled. Tensors are addresses (0 for None); `_batch` and `_time` are strides in bytes."""
    before = kernel - 1
    for block in range(first, last):
        channel = block * LANES
        count = min(channels - channel, LANES)
        for k in range(kernel):
            column = load_lanes(weight + (k * channels + channel) * BYTES, count)
            store(scratch + k * ROW, column)
        offset = full(np.float32(0))
        if bias != 0:
            offset = load_lanes(bias + channel * BYTES, count)
        for batch in range(batches):
            x_row = x + batch * x_batch + channel * BYTES
            for t in range(length):
                z = offset
                for k in range(kernel):
                    value = _input(x_row, x_time, initial, batch, channels, channel, before, t + k, count)
                    z = multiply_add(value, load(scratch + k * ROW), z)
                if silu:
                    z = multiply(z, _sigmoid(z))
                store_lanes(y + ((batch * length + t) * channels + channel) * BYTES, count, z)
            for k in range(before):
                value = _input(x_row, x_time, initial, batch, channels, channel, before, length + k, count)
                store_lanes(final + ((batch * before + k) * channels + channel) * BYTES, count, value)


@compiled
def _backward(
    first: int,
    last: int,
    scratch: int,
    batches: int,
    length: int,
    channels: int,
    kernel: int,
    places: int,
    silu: int,
    x: int,
    x_batch: int,
    x_time: int,
    weight: int,
    bias: int,
    initial: int,
    dy: int,
    dy_batch: int,
    dy_time: int,
    dfinal: int,
    dx: int,
    dweight: int,
    dbias: int,
    dinitial: int,
) -> None:
    """Compiled. Tensors are addresses (0 for None); `_batch` and `_time` are strides in bytes."""
    zero, one = full(np.float32(0)), full(np.float32(1))
    before = kernel - 1
    dweight_rows = scratch + kernel * ROW
    ring = dweight_rows + kernel * ROW  # g_t at place t modulo `places`, a power of two
    for block in range(first, last):
        channel = block * LANES
        count = min(channels - channel, LANES)
        for k in range(kernel):
            column = load_lanes(weight + (k * channels + channel) * BYTES, count)
            store(scratch + k * ROW, column)
            store(dweight_rows + k * ROW, zero)
        offset = zero
        if bias != 0:
            offset = load_lanes(bias + channel * BYTES, count)
        dbias_sum = zero
        for batch in range(batches):
            x_row = x + batch * x_batch + channel * BYTES
            for place in range(places):
                store(ring + place * ROW, zero)
            for back in range(length + before):
                t = length - 1 - back  # negative at last, where only the inputs before the sequence are left
                g = zero
                if t >= 0:
                    g = load_lanes(dy + batch * dy_batch + t * dy_time + channel * BYTES, count)
                    if silu:
                        z = offset
                        for k in range(kernel):
                            value = _input(x_row, x_time, initial, batch, channels, channel, before, t + k, count)
                            z = multiply_add(value, load(scratch + k * ROW), z)
                        s = _sigmoid(z)
                        g = multiply(g, multiply(s, multiply_add(z, subtract(one, s), one)))
                    for k in range(kernel):
                        value = _input(x_row, x_time, initial, batch, channels, channel, before, t + k, count)
                        place = dweight_rows + k * ROW
                        store(place, multiply_add(g, value, load(place)))
                    dbias_sum = add(dbias_sum, g)
                store(ring + (t & (places - 1)) * ROW, g)
                p = t + before  # the last input that y_t read, and the first output that read this input
                total = zero
                if p >= length and dfinal != 0:
                    at = ((batch * before + p - length) * channels + channel) * BYTES
                    total = load_lanes(dfinal + at, count)
                for k in range(kernel):
                    g = load(ring + ((p - k) & (places - 1)) * ROW)
                    total = multiply_add(load(scratch + k * ROW), g, total)
                if t >= 0:
                    store_lanes(dx + ((batch * length + t) * channels + channel) * BYTES, count, total)
                else:
                    store_lanes(dinitial + ((batch * before + p) * channels + channel) * BYTES, count, total)
        for k in range(kernel):
            at = (k * channels + channel) * BYTES
            store_lanes(dweight + at, count, load(dweight_rows + k * ROW))
        store_lanes(dbias + channel * BYTES, count, dbias_sum)


def convolution_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, initial: Tensor | None, activation: str | None
) -> tuple[Tensor, Tensor]:
    """y and the final state. Float32, unchecked."""
    x = rows_of(x)
    weight = weight.t().contiguous()
    bias = None if bias is None else bias.contiguous()
    initial = None if initial is None else initial.contiguous()
    batch, length, channels = x.shape
    kernel = weight.shape[0]
    y = x.new_empty(batch, length, channels)
    final = x.new_empty(batch, kernel - 1, channels)
    arguments: tuple[int, ...] = (
        batch,
        length,
        channels,
        kernel,
        int(activation == "silu"),
        *place_of(x),
        weight.data_ptr(),
    )
    arguments += (address_of(bias), address_of(initial), y.data_ptr(), final.data_ptr())
    blocks = -(-channels // LANES)
    work = _FORWARD_NANOSECONDS * batch * length * blocks * kernel
    run_tasks(_forward, blocks, work, kernel * LANES, arguments)
    return y, final


def convolution_backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    initial: Tensor | None,
    activation: str | None,
    dy: Tensor,
    dfinal: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, weight, bias and the initial state."""
    x, dy = rows_of(x), rows_of(dy)
    weight = weight.t().contiguous()
    bias = None if bias is None else bias.contiguous()
    initial = None if initial is None else initial.contiguous()
    dfinal = None if dfinal is None else dfinal.contiguous()
    batch, length, channels = x.shape
    kernel = weight.shape[0]
    places = 1 << (kernel - 1).bit_length()
    dx = x.new_empty(batch, length, channels)
    dweight = x.new_empty(kernel, channels)
    dbias = x.new_empty(channels)
    dinitial = x.new_empty(batch, kernel - 1, channels)
    arguments: tuple[int, ...] = (
        batch,
        length,
        channels,
        kernel,
        places,
        int(activation == "silu"),
        *place_of(x),
        weight.data_ptr(),
    )
    arguments += (address_of(bias), address_of(initial), *place_of(dy), address_of(dfinal))
    arguments += tuple(tensor.data_ptr() for tensor in (dx, dweight, dbias, dinitial))
    blocks = -(-channels // LANES)
    work = _BACKWARD_NANOSECONDS * batch * length * blocks * kernel
    run_tasks(_backward, blocks, work, (2 * kernel + places) * LANES, arguments)
    return dx, dweight.t(), dbias, dinitial
