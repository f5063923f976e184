"""The gated unit on the CPU: one pass over the packed tensor, forward and backward."""

from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from verim.ops.compiled import compiled
from verim.ops.vectors import (
    BYTES,
    LANES,
    LOG2_E,
    add,
    divide,
    exp2,
    full,
    load_lanes,
    multiply,
    multiply_add,
    store_lanes,
    subtract,
)
from verim.ops.workers import run_tasks

_BLOCK = 64  # rows of a task
_FORWARD_NANOSECONDS, _BACKWARD_NANOSECONDS = 1.0, 1.5  # of one output, measured
_ONE, _MINUS_LOG2_E = np.float32(1), np.float32(-LOG2_E)


def swiglu_forward(packed: Tensor) -> Tensor:
    """The output for `packed` [..., 2 hidden]. Float32, unchecked."""
    packed = packed.contiguous()
    hidden = packed.shape[-1] // 2
    y = packed.new_empty((*packed.shape[:-1], hidden))
    rows = y.numel() // hidden
    arguments = (packed.data_ptr(), y.data_ptr(), rows, hidden)
    run_tasks(_forward, -(-rows // _BLOCK), _FORWARD_NANOSECONDS * rows * hidden, 0, arguments)
    return y


def swiglu_backward(packed: Tensor, dy: Tensor) -> Tensor:
    """The packed gradient."""
    packed, dy = packed.contiguous(), dy.contiguous()
    hidden = dy.shape[-1]
    rows = dy.numel() // hidden
    gradient = torch.empty_like(packed)
    arguments = (packed.data_ptr(), dy.data_ptr(), gradient.data_ptr(), rows, hidden)
    run_tasks(_backward, -(-rows // _BLOCK), _BACKWARD_NANOSECONDS * rows * hidden, 0, arguments)
    return gradient


@njit(nogil=True)
def _sigmoid(x: Any) -> Any:
    """1 / (1 + exp(-x))."""
    return divide(full(_ONE), add(full(_ONE), exp2(multiply(x, full(_MINUS_LOG2_E)))))


@compiled
def _forward(first: int, last: int, scratch: int, packed: int, y: int, rows: int, hidden: int) -> None:
    for row in range(first * _BLOCK, min(rows, last * _BLOCK)):
        gates, out = packed + 2 * row * hidden * BYTES, y + row * hidden * BYTES
        values = gates + hidden * BYTES
        for c in range(0, hidden, LANES):
            count, place = hidden - c, c * BYTES
            gate = load_lanes(gates + place, count)
            silu = multiply(gate, _sigmoid(gate))
            store_lanes(out + place, count, multiply(silu, load_lanes(values + place, count)))


@compiled
def _backward(first: int, last: int, scratch: int, packed: int, dy: int, gradient: int, rows: int, hidden: int) -> None:
    """dvalue = dy silu(gate), dgate = dy value s (1 + gate (1 - s)) with s the sigmoid of gate."""
    half = hidden * BYTES
    for row in range(first * _BLOCK, min(rows, last * _BLOCK)):
        start, out = 2 * row * half, dy + row * half
        for c in range(0, hidden, LANES):
            count, place = hidden - c, start + c * BYTES
            gate = load_lanes(packed + place, count)
            g = load_lanes(out + c * BYTES, count)
            s = _sigmoid(gate)
            silu = multiply(gate, s)
            store_lanes(gradient + place + half, count, multiply(g, silu))
            slope = multiply_add(silu, subtract(full(_ONE), s), s)
            value = load_lanes(packed + place + half, count)
            store_lanes(gradient + place, count, multiply(multiply(g, value), slope))
