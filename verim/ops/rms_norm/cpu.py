"""The root-mean-square norm on the CPU: a row is read once from memory, forward and backward."""

import math
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

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


def norm_forward(x: Tensor, gain: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """y and the reciprocal root of each row. All contiguous."""
    width = x.shape[-1]
    rows = x.numel() // width
    y, inverse = torch.empty(x.shape, dtype=torch.float32), torch.empty(rows, dtype=torch.float32)
    places = (x.data_ptr(), gain.data_ptr(), y.data_ptr(), inverse.data_ptr())
    _run(_forward, rows, width, (*places, rows, width, eps))
    return y, inverse


def norm_backward(x: Tensor, gain: Tensor, inverse: Tensor, dy: Tensor) -> tuple[Tensor, Tensor]:
    """dx and dgain. All contiguous."""
    width, rows = x.shape[-1], inverse.numel()
    dx, sums = torch.empty(x.shape, dtype=torch.float32), torch.empty(1 + -(-rows // _BLOCK), width)
    places = (x.data_ptr(), gain.data_ptr(), inverse.data_ptr(), dy.data_ptr(), dx.data_ptr(), sums.data_ptr())
    _run(_backward, rows, width, (*places, rows, width))
    _sum_blocks(sums.data_ptr(), sums.shape[0], width)
    return dx, sums[0]


def _run(kernel: Any, rows: int, width: int, arguments: tuple[int | float, ...]) -> None:
    run_tasks(kernel, -(-rows // _BLOCK), _NANOSECONDS * rows * width, 0, arguments)


@njit(cache=True, nogil=True, error_model="numpy")
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


@njit(cache=True, nogil=True, error_model="numpy")
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
        total = sums + (1 + block) * width * BYTES
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


@njit(cache=True, nogil=True)
def _sum_blocks(sums: int, rows: int, width: int) -> None:
    """Row 0 becomes the sum of the others."""
    for c in range(0, width, LANES):
        total = full(_ZERO)
        for row in range(1, rows):
            total = add(total, load_lanes(sums + (row * width + c) * BYTES, width - c))
        store_lanes(sums + c * BYTES, width - c, total)
