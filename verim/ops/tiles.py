"""Small matrices in the first-level cache, for kernels: rows read, written and transposed.

A row of a scratch matrix is a whole number of vectors; what a tensor does not have is filled with zeros.
"""

from typing import Any

import numpy as np
from numba import njit

from verim.ops.lanes import transpose
from verim.ops.vectors import BYTES, LANES, ROW, full, load, load_lanes, store, store_lanes

_ZERO = np.float32(0)


@njit(nogil=True, error_model="numpy")
def up(count: int, multiple: int) -> Any:
    """`count` rounded up to a multiple."""
    return (count + multiple - 1) // multiple * multiple


@njit(nogil=True, error_model="numpy")
def fill(target: int, floats: int, value: Any) -> None:
    """`floats`, a multiple of 16, of one value."""
    for n in range(0, floats, LANES):
        store(target + n * BYTES, full(value))


@njit(nogil=True, error_model="numpy")
def turn(target: int, target_row: int, source: int, source_row: int, rows: int, columns: int) -> None:
    """target[c, r] = source[r, c] for scratch matrices; rows and columns are rounded up to multiples of 16."""
    for r in range(0, rows, LANES):
        for c in range(0, columns, LANES):
            to, place = target + c * target_row + r * BYTES, source + r * source_row + c * BYTES
            transpose(to, target_row, place, source_row)


@njit(nogil=True, error_model="numpy")
def read_square(square: int, source: int, row: int, column: int, rows: int, columns: int) -> None:
    """square[c, r] = source[r, c] for 16 x 16 floats, zeros from `rows` and `columns` on; any strides in bytes."""
    if column == BYTES:
        for r in range(LANES):
            value = load_lanes(source + r * row, columns) if r < rows else full(_ZERO)
            store(square + r * ROW, value)
        transpose(square, ROW, square, ROW)
    elif row == BYTES:
        for c in range(LANES):
            value = load_lanes(source + c * column, rows) if c < columns else full(_ZERO)
            store(square + c * ROW, value)
    else:
        for c in range(LANES):
            store(square + c * ROW, full(_ZERO))
            if c < columns:
                for r in range(min(rows, LANES)):
                    value = load_lanes(source + r * row + c * column, 1)
                    store_lanes(square + c * ROW + r * BYTES, 1, value)


@njit(nogil=True, error_model="numpy")
def write_square(target: int, row: int, square: int, square_row: int, rows: int, columns: int, spare: int) -> None:
    """target[r, c] = square[c, r] for at most 16 rows and columns, whose columns lie side by side."""
    transpose(spare, ROW, square, square_row)
    for r in range(min(rows, LANES)):
        store_lanes(target + r * row, min(columns, LANES), load(spare + r * ROW))
