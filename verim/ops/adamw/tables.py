"""What a kernel over all weights of a model is told: addresses and sizes, and the numbers of each weight's rule."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import types
from torch import Tensor

from verim.ops.adamw.tensors import AdamWRule
from verim.ops.vectors import intrinsic

CHUNK = 2**14  # weights of a task: enough that a task costs little, few enough to share out a small model
NUMBERS = 8  # of a rule
_ADDRESS = 8  # bytes of an address or a size
_COLUMNS = 8  # first chunk, size, and up to six addresses


def table_of(tensors: Sequence[tuple[Tensor, ...]]) -> tuple[Any, int]:
    """For the tensors of each weight: the first of its chunks, its size, addresses; and how many chunks there are."""
    table = np.zeros((len(tensors), _COLUMNS), np.int64)
    chunks = 0
    for row, held in zip(table, tensors, strict=True):
        size = held[0].numel()
        row[: 2 + len(held)] = chunks, size, *(tensor.data_ptr() for tensor in held)
        chunks += -(-size // CHUNK)
    return table, chunks


def weights_of(table: Any) -> int:
    return int(table[:, 1].sum())


def numbers_of(rules: Sequence[AdamWRule]) -> Any:
    """For each rule β₁, 1 - β₁, β₂, 1 - β₂, -η λ, -η / (1 - β₁ᵗ), 1 / √(1 - β₂ᵗ), ε, as float32."""
    return np.array([_numbers(rule) for rule in rules], np.float32)


def _numbers(rule: AdamWRule) -> tuple[float, ...]:
    """Each computed in float64 and rounded once: 1 - β₂ of float32 numbers would be off by 1e-5."""
    corrections = 1 - rule.beta1**rule.step, 1 - rule.beta2**rule.step
    rate = rule.learning_rate
    keeps = rule.beta1, 1 - rule.beta1, rule.beta2, 1 - rule.beta2
    return *keeps, -rate * rule.weight_decay, -rate / corrections[0], corrections[1] ** -0.5, rule.eps


@intrinsic
def load_integer(typing: Any, address: Any) -> Any:
    """The 64-bit integer at `address`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], ir.IntType(64).as_pointer()))

    return types.int64(types.int64), generate


@njit(nogil=True)
def row_of(table: int, rows: int, chunk: int) -> int:
    """The row of the weight that `chunk` belongs to: the last that begins at it or before, none of size 0."""
    low, high = 0, rows - 1
    while low < high:
        middle = (low + high + 1) // 2
        if load_integer(table + middle * _COLUMNS * _ADDRESS) <= chunk:
            low = middle
        else:
            high = middle - 1
    return low


@njit(nogil=True)
def column(table: int, row: int, index: int) -> int:
    """0: first chunk, 1: size, 2 to 7: addresses."""
    return load_integer(table + (row * _COLUMNS + index) * _ADDRESS)
