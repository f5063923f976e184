"""The root-mean-square norm on the CPU: a row is read once from memory, forward and backward."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from verim.ops.compiled import compiled
from verim.ops.lanes import sum_of_lanes
from verim.ops.vectors import (
    BYTES,
    LANES,
    add,
    full,
    load_lanes,
    load_scalar,
    multiply,
    multiply_add,
    store_lanes,
    store_scalar,
    subtract,
)
from verim.ops.workers import run_tasks

_BLOCK = 128  # rows of a task; blocks are summed in order, so the gain's gradient does not depend on the threads
_NANOSECONDS = 0.3  # of one number, measured
_ZERO = np.float32(0)


def rms_norm_forward(x: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """y and the reciprocal root of each row. Float32, unchecked."""
    x, gain = x.contiguous(), gain.contiguous()
    width = x.shape[-1]
    y = torch.empty_like(x)
    inverse = x.new_empty(x.shape[:-1])
    rows = inverse.numel()
    places = (x.data_ptr(), gain.data_ptr(), y.data_ptr(), inverse.data_ptr())
    _run(_forward, rows, width, (*places, rows, width, eps))
    return y, inverse


def rms_norm_backward(x: Tensor, gain: Tensor, inverse: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """dx and dgain."""
    x, gain, dy = x.contiguous(), gain.contiguous(), dy.contiguous()
    width, rows = x.shape[-1], inverse.numel()
    blocks = -(-rows // _BLOCK)
    dx, dgain = torch.empty_like(x), torch.empty_like(gain)
    sums = x.new_empty(blocks, width)
    places = (x.data_ptr(), gain.data_ptr(), inverse.data_ptr(), dy.data_ptr(), dx.data_ptr(), sums.data_ptr())
    _run(_backward, rows, width, (*places, rows, width))
    _sum_blocks(dgain.data_ptr(), sums.data_ptr(), blocks, width)
    return dx, dgain


def _run(kernel: Any, rows: int, width: int, arguments: tuple[int | float, ...]) -> None:
    run_tasks(kernel, -(-rows // _BLOCK), _NANOSECONDS * rows * width, 0, arguments)


@compiled
def _forward(
    first: int,
    last: int,
    scratch: int,
    x: int,
    gain: int,
    y: int,
    inverse: int,
    rows: int,
    width: int,
    eps: float,
) -> None:
    for row in range(first * _BLOCK, min(rows, last * _BLOCK)):
        start = row * width * BYTES
        squares = full(_ZERO)
        for c in range(0, width, LANES):
            value = load_lanes(x + start + c * BYTES, width - c)
            squares = multiply_add(value, value, squares)
        r = np.float32(1) / np.float32(math.sqrt(sum_of_lanes(squares) / np.float32(width) + np.float32(eps)))
        store_scalar(inverse + row * BYTES, r)
        for c in range(0, width, LANES):
            count, place = width - c, start + c * BYTES
            value = multiply(load_lanes(x + place, count), full(r))
            store_lanes(y + place, count, multiply(value, load_lanes(gain + c * BYTES, count)))


@compiled
def _backward(
    first: int,
    last: int,
    scratch: int,
    x: int,
    gain: int,
    inverse: int,
    dy: int,
    dx: int,
    sums: int,
    rows: int,
    width: int,
) -> None:
    """With n = x r: dgain = sum of dy n, and dx = r (dy gain - n mean(dy gain n))."""
    for block in range(first, last):
        total = sums + block * width * BYTES
        for c in range(0, width, LANES):
            store_lanes(total + c * BYTES, width - c, full(_ZERO))
        for row in range(block * _BLOCK, min(rows, (block + 1) * _BLOCK)):
            start, r = row * width * BYTES, load_scalar(inverse + row * BYTES)
            products = full(_ZERO)
            for c in range(0, width, LANES):
                count, place = width - c, start + c * BYTES
                normed = multiply(load_lanes(x + place, count), full(r))
                of_gain = multiply(load_lanes(dy + place, count), normed)
                products = multiply_add(of_gain, load_lanes(gain + c * BYTES, count), products)
                here = total + c * BYTES
                store_lanes(here, count, add(load_lanes(here, count), of_gain))
            share = full(sum_of_lanes(products) / np.float32(width) * r)
            for c in range(0, width, LANES):
                count, place = width - c, start + c * BYTES
                direct = multiply(load_lanes(dy + place, count), load_lanes(gain + c * BYTES, count))
                along = multiply(load_lanes(x + place, count), share)
                store_lanes(dx + place, count, multiply(subtract(direct, along), full(r)))


@compiled
def _sum_blocks(total: int, sums: int, blocks: int, width: int) -> None:
    for c in range(0, width, LANES):
        value = full(_ZERO)
        for block in range(blocks):
            value = add(value, load_lanes(sums + (block * width + c) * BYTES, width - c))
        store_lanes(total + c * BYTES, width - c, value)
