"""Cross entropy on the CPU: loss and gradient of a row while it lies in the first-level cache."""

import math
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from verim.ops.lanes import largest_lane, load_integer, maximum, sum_of_lanes
from verim.ops.vectors import (
    BYTES,
    LANES,
    LOG2_E,
    ROW,
    add,
    exp2,
    full,
    load,
    load_lanes,
    load_scalar,
    multiply,
    store,
    store_lanes,
    store_scalar,
    subtract,
)
from verim.ops.workers import run_tasks

_BLOCK = 64  # rows of a task; its losses are summed in order, so the loss does not depend on the threads
_NANOSECONDS = 0.8  # of one logit, measured
_SCRATCH = LANES
_ZERO, _LOG2_E = np.float32(0), np.float32(LOG2_E)


def count_targets(targets: Tensor, vocab: int, ignore_index: int) -> int:
    """How many targets are not `ignore_index`; -1 - i where target i is the first outside 0 ... vocab - 1."""
    return int(_count(targets.data_ptr(), targets.numel(), vocab, ignore_index))


def loss_and_gradient(
    logits: Tensor, targets: Tensor, ignore_index: int, divisor: int, gradient: Tensor | None
) -> Tensor:
    """The sum of the rows' losses over `divisor`; writes its gradient. All contiguous."""
    vocab = logits.shape[-1]
    rows = targets.numel()
    blocks = -(-rows // _BLOCK)
    sums = torch.empty(1 + blocks, dtype=torch.float32)  # the loss, then what each block brings to it
    place = sums.data_ptr()
    arguments = (
        logits.data_ptr(),
        targets.data_ptr(),
        0 if gradient is None else gradient.data_ptr(),
        place + BYTES,
        rows,
        vocab,
        ignore_index,
        divisor,
    )
    run_tasks(_blocks, blocks, _NANOSECONDS * rows * vocab, _SCRATCH, arguments)
    _finish(place, blocks, divisor)
    return sums[0]


@njit(cache=True, nogil=True)
def _count(targets: int, rows: int, vocab: int, ignore_index: int) -> int:
    count = 0
    for row in range(rows):
        target = load_integer(targets + 8 * row)
        if target != ignore_index:
            if target < 0 or target >= vocab:
                return -1 - row
            count += 1
    return count


@njit(cache=True, nogil=True, error_model="numpy")
def _finish(sums: int, blocks: int, divisor: int) -> None:
    total = 0.0
    for block in range(blocks):
        total += load_scalar(sums + (1 + block) * BYTES)
    store_scalar(sums, np.float32(total / divisor))


@njit(cache=True, nogil=True, error_model="numpy")
def _blocks(
    first: int,
    last: int,
    scratch: int,
    logits: int,
    targets: int,
    gradient: int,
    sums: int,
    rows: int,
    vocab: int,
    ignore_index: int,
    divisor: int,
) -> None:
    whole, tail = vocab // LANES, vocab % LANES
    for lane in range(LANES):  # lanes beyond the vocabulary hold -inf: no part of the maximum or the sum
        store_scalar(scratch + lane * BYTES, np.float32(0 if lane < tail else -np.inf))
    for block in range(first, last):
        loss = 0.0
        for row in range(block * _BLOCK, min(rows, (block + 1) * _BLOCK)):
            start = row * vocab * BYTES
            target = load_integer(targets + 8 * row)
            if target != ignore_index:
                share = np.float32(1.0 / divisor)
                loss += _row(logits + start, target, gradient + start, gradient != 0, whole, tail, scratch, share)
            elif gradient != 0:
                for k in range(whole):
                    store(gradient + start + k * ROW, full(_ZERO))
                store_lanes(gradient + start + whole * ROW, tail, full(_ZERO))
        store_scalar(sums + block * BYTES, np.float32(loss))


@njit(nogil=True, error_model="numpy")
def _row(logits: int, target: int, gradient: int, wanted: bool, whole: int, tail: int, hidden: int, share: Any) -> Any:
    """log(sum(exp(logits))) - logits[target]; writes share * (softmax - one-hot) where `wanted`."""
    end = whole * ROW
    rest = add(load_lanes(logits + end, tail), load(hidden))
    even = odd = rest
    for k in range(0, end - ROW, 2 * ROW):  # two maxima and two sums: one would wait for itself
        even = maximum(load(logits + k), even)
        odd = maximum(load(logits + k + ROW), odd)
    if whole % 2:
        even = maximum(load(logits + end - ROW), even)
    largest = largest_lane(maximum(even, odd))
    log2_e, top = full(_LOG2_E), full(largest)
    last = exp2(multiply(subtract(rest, top), log2_e))
    even, odd = last, full(_ZERO)
    for k in range(0, end - ROW, 2 * ROW):
        left = exp2(multiply(subtract(load(logits + k), top), log2_e))
        right = exp2(multiply(subtract(load(logits + k + ROW), top), log2_e))
        even, odd = add(even, left), add(odd, right)
        if wanted:
            store(gradient + k, left)
            store(gradient + k + ROW, right)
    if whole % 2:
        left = exp2(multiply(subtract(load(logits + end - ROW), top), log2_e))
        even = add(even, left)
        if wanted:
            store(gradient + end - ROW, left)
    total = sum_of_lanes(add(even, odd))
    if wanted:
        factor = full(share / total)
        for k in range(0, end, ROW):
            store(gradient + k, multiply(load(gradient + k), factor))
        store_lanes(gradient + end, tail, multiply(last, factor))
        place = gradient + target * BYTES
        store_scalar(place, load_scalar(place) - share)
    return np.float32(math.log(total)) + (largest - load_scalar(logits + target * BYTES))
