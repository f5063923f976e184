"""AdamW on the CPU: one pass over all weights of a model, that reads each tensor once."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba.core import cgutils
from torch import Tensor

from verim.ops.adamw.tables import CHUNK, NUMBERS, column, numbers_of, row_of, table_of, weights_of
from verim.ops.adamw.tensors import AdamWRule, AdamWTensors
from verim.ops.compiled import compiled
from verim.ops.vectors import (
    BYTES,
    LANES,
    ROW,
    add,
    divide,
    full,
    intrinsic,
    load_lanes,
    load_scalar,
    multiply,
    multiply_add,
    store,
    store_lanes,
    vector,
)
from verim.ops.workers import run_tasks

_UPDATE_NANOSECONDS, _NORM_NANOSECONDS = 1.5, 0.3  # of a weight, measured


def adamw(tensors: Sequence[AdamWTensors], rules: Sequence[AdamWRule], gradient_scale: float) -> None:
    """Float32 without gaps, unchecked."""
    table, chunks = table_of([(held.weight, held.gradient, held.average, held.square) for held in tensors])
    numbers = numbers_of(rules)
    scale: Any = np.float32(gradient_scale)
    arguments = (table.ctypes.data, numbers.ctypes.data, len(tensors), scale)
    run_tasks(_update, chunks, _UPDATE_NANOSECONDS * weights_of(table), 0, arguments)


def gradient_norm(gradients: Sequence[Tensor]) -> Tensor:
    """Float32 without gaps, unchecked."""
    table, chunks = table_of([(gradient,) for gradient in gradients])
    sums = torch.empty(chunks, LANES, dtype=torch.float32)
    arguments = (table.ctypes.data, len(gradients), sums.data_ptr())
    run_tasks(_squares, chunks, _NORM_NANOSECONDS * weights_of(table), 0, arguments)
    return sums.sum(dtype=torch.float64).sqrt().float()


@intrinsic
def square_root(typing: Any, value: Any) -> Any:
    """The square root, lane by lane; NaN below zero."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = args[0].type
        root = cgutils.get_or_insert_function(builder.module, ir.FunctionType(kind, [kind]), "llvm.sqrt.v16f32")
        return builder.call(root, args)

    return vector(vector), generate


@compiled
def _update(first: int, last: int, scratch: int, table: int, numbers: int, rows: int, scale: Any) -> None:
    factor = full(scale)
    for task in range(first, last):
        row = row_of(table, rows, task)
        begin = (task - column(table, row, 0)) * CHUNK
        count = min(column(table, row, 1) - begin, CHUNK)
        weight = column(table, row, 2) + begin * BYTES
        gradient = column(table, row, 3) + begin * BYTES
        average = column(table, row, 4) + begin * BYTES
        square = column(table, row, 5) + begin * BYTES
        n = numbers + row * NUMBERS * BYTES
        keep1, new1 = full(load_scalar(n)), full(load_scalar(n + BYTES))
        keep2, new2 = full(load_scalar(n + 2 * BYTES)), full(load_scalar(n + 3 * BYTES))
        decay, rate = full(load_scalar(n + 4 * BYTES)), full(load_scalar(n + 5 * BYTES))
        correction, eps = full(load_scalar(n + 6 * BYTES)), full(load_scalar(n + 7 * BYTES))
        for i in range(0, count, LANES):
            left, place = count - i, i * BYTES
            g = multiply(load_lanes(gradient + place, left), factor)
            m = multiply_add(keep1, load_lanes(average + place, left), multiply(new1, g))
            v = multiply_add(keep2, load_lanes(square + place, left), multiply(multiply(new2, g), g))
            store_lanes(average + place, left, m)
            store_lanes(square + place, left, v)
            w = load_lanes(weight + place, left)
            w = multiply_add(decay, w, w)
            root = multiply_add(square_root(v), correction, eps)
            store_lanes(weight + place, left, multiply_add(rate, divide(m, root), w))


@compiled
def _squares(first: int, last: int, scratch: int, table: int, rows: int, sums: int) -> None:
    zero = full(np.float32(0))
    for task in range(first, last):
        row = row_of(table, rows, task)
        begin = (task - column(table, row, 0)) * CHUNK
        count = min(column(table, row, 1) - begin, CHUNK)
        at = column(table, row, 2) + begin * BYTES
        a, b, c, d = zero, zero, zero, zero  # four sums at once: one would wait for its own multiply-add
        for i in range(0, count, 4 * LANES):
            place, left = at + i * BYTES, count - i
            x, y = load_lanes(place, left), load_lanes(place + ROW, left - LANES)
            z, t = load_lanes(place + 2 * ROW, left - 2 * LANES), load_lanes(place + 3 * ROW, left - 3 * LANES)
            a, b, c, d = multiply_add(x, x, a), multiply_add(y, y, b), multiply_add(z, z, c), multiply_add(t, t, d)
        store(sums + task * ROW, add(add(a, b), add(c, d)))
