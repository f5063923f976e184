"""A few rows times a layer's weights on the CPU: the weights go once from memory to the registers.

A task is a block of outputs. Four rows of weights and four rows of the input meet in 16 vectors of sums, 16 inputs at
a time: eight loads for 16 multiply-adds. The other rows of the input find the weights in the first-level cache.
"""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from verim.ops.compiled import compiled
from verim.ops.memory import address_of
from verim.ops.vectors import (
    BYTES,
    LANES,
    ROW,
    full,
    load,
    load_lanes,
    load_scalar,
    multiply_add,
    prefetch,
    store,
    store_scalar,
    sum_rows,
)
from verim.ops.workers import run_tasks

SIDE = 4  # rows of weights, and of the input, in registers
OUTPUTS = 8  # of a task
_NANOSECONDS = 0.3  # to read a weight


def few_rows(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x Wᵀ + b for float32 `x` [..., inputs] and contiguous `weight` [outputs, inputs]. Unchecked."""
    x = x.contiguous()
    bias = None if bias is None else bias.contiguous()
    outputs, inputs = weight.shape
    y = torch.empty(*x.shape[:-1], outputs, dtype=torch.float32, device="cpu")
    rows = x.numel() // inputs
    arguments = (rows, inputs, outputs, x.data_ptr(), weight.data_ptr(), address_of(bias), y.data_ptr())
    work = _NANOSECONDS * outputs * inputs * (1 + rows / LANES)
    run_tasks(_few_rows, -(-outputs // OUTPUTS), work, SIDE * SIDE * LANES + LANES, arguments)
    return y


@njit(nogil=True, error_model="numpy")
def _row(base: int, index: int, last: int, row: int) -> int:
    """The address of a row; of the last one for those after it, whose sums nobody reads."""
    return base + min(index, last) * row


@compiled
def _few_rows(
    first: int,
    last: int,
    scratch: int,
    rows: int,
    inputs: int,
    outputs: int,
    x: int,
    weight: int,
    bias: int,
    y: int,
) -> None:
    """Compiled. Tensors are addresses, 0 for None."""
    row = inputs * BYTES
    whole = inputs // LANES
    rest = inputs % LANES
    for task in range(first, last):
        for output in range(task * OUTPUTS, min(task * OUTPUTS + OUTPUTS, outputs), SIDE):
            w0 = weight + output * row
            w1 = _row(weight, output + 1, outputs - 1, row)
            w2 = _row(weight, output + 2, outputs - 1, row)
            w3 = _row(weight, output + 3, outputs - 1, row)
            for begin in range(0, rows, SIDE):
                x0 = x + begin * row
                x1 = _row(x, begin + 1, rows - 1, row)
                x2 = _row(x, begin + 2, rows - 1, row)
                x3 = _row(x, begin + 3, rows - 1, row)
                ahead = SIDE * row if begin == 0 else 0  # the next outputs' weights; later they are there
                _sums(scratch, whole, rest, w0, w1, w2, w3, x0, x1, x2, x3, ahead)
                sums = sum_rows(scratch, ROW, 8 * ROW)
                store(scratch + SIDE * SIDE * ROW, sums)
                for i in range(min(rows - begin, SIDE)):
                    for j in range(min(outputs - output, SIDE)):
                        value = load_scalar(scratch + SIDE * SIDE * ROW + (i * SIDE + j) * BYTES)
                        if bias != 0:
                            value += load_scalar(bias + (output + j) * BYTES)
                        store_scalar(y + ((begin + i) * outputs + output + j) * BYTES, value)


@njit(nogil=True, error_model="numpy")
def _sums(
    scratch: int,
    whole: int,
    rest: int,
    w0: int,
    w1: int,
    w2: int,
    w3: int,
    x0: int,
    x1: int,
    x2: int,
    x3: int,
    ahead: int,
) -> None:
    """For the four rows of x and of weights, x first, the vectors whose lanes add up to their products."""
    zero: Any = full(np.float32(0))
    s00 = s01 = s02 = s03 = s10 = s11 = s12 = s13 = zero
    s20 = s21 = s22 = s23 = s30 = s31 = s32 = s33 = zero
    for step in range(whole + (1 if rest > 0 else 0)):
        at = step * ROW
        if step < whole:
            prefetch(w0 + ahead + at)
            prefetch(w1 + ahead + at)
            prefetch(w2 + ahead + at)
            prefetch(w3 + ahead + at)
            a, b, c, d = load(w0 + at), load(w1 + at), load(w2 + at), load(w3 + at)
            p, q, r, s = load(x0 + at), load(x1 + at), load(x2 + at), load(x3 + at)
        else:
            a, b = load_lanes(w0 + at, rest), load_lanes(w1 + at, rest)
            c, d = load_lanes(w2 + at, rest), load_lanes(w3 + at, rest)
            p, q = load_lanes(x0 + at, rest), load_lanes(x1 + at, rest)
            r, s = load_lanes(x2 + at, rest), load_lanes(x3 + at, rest)
        s00, s01 = multiply_add(p, a, s00), multiply_add(p, b, s01)
        s02, s03 = multiply_add(p, c, s02), multiply_add(p, d, s03)
        s10, s11 = multiply_add(q, a, s10), multiply_add(q, b, s11)
        s12, s13 = multiply_add(q, c, s12), multiply_add(q, d, s13)
        s20, s21 = multiply_add(r, a, s20), multiply_add(r, b, s21)
        s22, s23 = multiply_add(r, c, s22), multiply_add(r, d, s23)
        s30, s31 = multiply_add(s, a, s30), multiply_add(s, b, s31)
        s32, s33 = multiply_add(s, c, s32), multiply_add(s, d, s33)
    store(scratch, s00)
    store(scratch + ROW, s01)
    store(scratch + 2 * ROW, s02)
    store(scratch + 3 * ROW, s03)
    store(scratch + 4 * ROW, s10)
    store(scratch + 5 * ROW, s11)
    store(scratch + 6 * ROW, s12)
    store(scratch + 7 * ROW, s13)
    store(scratch + 8 * ROW, s20)
    store(scratch + 9 * ROW, s21)
    store(scratch + 10 * ROW, s22)
    store(scratch + 11 * ROW, s23)
    store(scratch + 12 * ROW, s30)
    store(scratch + 13 * ROW, s31)
    store(scratch + 14 * ROW, s32)
    store(scratch + 15 * ROW, s33)
