"""Cross entropy on the CPU: loss and gradient of a row while it lies in the first-level cache."""

import math
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from verim.errors import InputError
from verim.ops.compiled import compiled
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


def cross_entropy_forward(
    logits: Tensor, targets: Tensor, ignore_index: int, mean: bool, keep: bool
) -> tuple[Tensor, Tensor]:
    """The sum of the rows' losses, or their mean, and with `keep` its gradient, else an empty tensor. Float32."""
    logits, targets = logits.contiguous(), targets.contiguous()
    vocab, rows = logits.shape[-1], targets.numel()
    count = _count(targets.data_ptr(), rows, vocab, ignore_index)
    if count < 0:
        got = int(targets.flatten()[-1 - count])
        raise InputError(
            f"cross_entropy: argument targets holds {got}, expected 0 to {vocab - 1} (logits has {vocab} classes) or "
            f"ignore_index = {ignore_index}: give logits a larger last dimension or mask that position with "
            "ignore_index"
        )
    divisor = count if mean else 1
    gradient = torch.empty_like(logits) if keep else logits.new_empty(0)
    blocks = -(-rows // _BLOCK)
    loss = logits.new_empty(())
    sums = logits.new_empty(blocks)  # what each block brings to it
    places = logits.data_ptr(), targets.data_ptr(), gradient.data_ptr() if keep else 0, sums.data_ptr()
    arguments = (*places, rows, vocab, ignore_index, divisor)
    run_tasks(_blocks, blocks, _NANOSECONDS * rows * vocab, _SCRATCH, arguments)
    _finish(loss.data_ptr(), sums.data_ptr(), blocks, divisor)
    return loss, gradient


@compiled
def _count(targets: int, rows: int, vocab: int, ignore_index: int) -> int:
    """How many targets are not `ignore_index`; -1 - i where target i is the first outside 0 ... vocab - 1."""
    count = 0
    for row in range(rows):
        target = load_integer(targets + 8 * row)
        if target != ignore_index:
            if target < 0 or target >= vocab:
                return -1 - row
            count += 1
    return count


@compiled
def _finish(loss: int, sums: int, blocks: int, divisor: int) -> None:
    total = 0.0
    for block in range(blocks):
        total += load_scalar(sums + block * BYTES)
    store_scalar(loss, np.float32(total / divisor))


@compiled
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
