"""Small dense products and transpositions on tiles that lie in the first-level cache, for kernels.

The products keep 16 columns (or 32) in vectors and eight rows in registers; what limits them is how many numbers
must be loaded for a multiply-add, so two vectors that share a row's number run 1.5 times as fast as one.
"""

from typing import Any

import numpy as np
from numba import njit

from verim.ops.lanes import transpose
from verim.ops.vectors import (
    BYTES,
    LANES,
    ROW,
    broadcast,
    full,
    load,
    load_lanes,
    multiply_add,
    store,
    store_lanes,
)

TILE = 2 * LANES  # columns of a tile of two vectors
TILE_ROW = 2 * ROW
_ZERO = np.float32(0)


@njit(nogil=True)
def product_of_tile(out: int, x: int, y: int, y_stride: int, count: int) -> None:
    """out[r, :] = sum over n < count of y[n, r] x[n, :] for eight r; rows of `out` and `x` are tile rows.

    The eight numbers y[n, :] lie side by side, from one n to the next are `y_stride` bytes.
    """
    a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = full(_ZERO)
    b0 = b1 = b2 = b3 = b4 = b5 = b6 = b7 = full(_ZERO)
    for _ in range(count):
        left, right = load(x), load(x + ROW)
        s = broadcast(y)
        a0, b0 = multiply_add(left, s, a0), multiply_add(right, s, b0)
        s = broadcast(y + BYTES)
        a1, b1 = multiply_add(left, s, a1), multiply_add(right, s, b1)
        s = broadcast(y + 2 * BYTES)
        a2, b2 = multiply_add(left, s, a2), multiply_add(right, s, b2)
        s = broadcast(y + 3 * BYTES)
        a3, b3 = multiply_add(left, s, a3), multiply_add(right, s, b3)
        s = broadcast(y + 4 * BYTES)
        a4, b4 = multiply_add(left, s, a4), multiply_add(right, s, b4)
        s = broadcast(y + 5 * BYTES)
        a5, b5 = multiply_add(left, s, a5), multiply_add(right, s, b5)
        s = broadcast(y + 6 * BYTES)
        a6, b6 = multiply_add(left, s, a6), multiply_add(right, s, b6)
        s = broadcast(y + 7 * BYTES)
        a7, b7 = multiply_add(left, s, a7), multiply_add(right, s, b7)
        x += TILE_ROW
        y += y_stride
    store(out, a0)
    store(out + ROW, b0)
    store(out + 2 * ROW, a1)
    store(out + 3 * ROW, b1)
    store(out + 4 * ROW, a2)
    store(out + 5 * ROW, b2)
    store(out + 6 * ROW, a3)
    store(out + 7 * ROW, b3)
    store(out + 8 * ROW, a4)
    store(out + 9 * ROW, b4)
    store(out + 10 * ROW, a5)
    store(out + 11 * ROW, b5)
    store(out + 12 * ROW, a6)
    store(out + 13 * ROW, b6)
    store(out + 14 * ROW, a7)
    store(out + 15 * ROW, b7)


@njit(nogil=True)
def add_rows_of_tile(out: int, out_stride: int, x: int, x_stride: int, y: int) -> None:
    """out[r, :] += sum over the 32 columns n of y[r, n] x[n, :] for eight rows r of the tile `y`, 16 columns of x."""
    a0, a1 = load(out), load(out + out_stride)
    a2, a3 = load(out + 2 * out_stride), load(out + 3 * out_stride)
    a4, a5 = load(out + 4 * out_stride), load(out + 5 * out_stride)
    a6, a7 = load(out + 6 * out_stride), load(out + 7 * out_stride)
    for _ in range(TILE):
        value = load(x)
        a0 = multiply_add(value, broadcast(y), a0)
        a1 = multiply_add(value, broadcast(y + TILE_ROW), a1)
        a2 = multiply_add(value, broadcast(y + 2 * TILE_ROW), a2)
        a3 = multiply_add(value, broadcast(y + 3 * TILE_ROW), a3)
        a4 = multiply_add(value, broadcast(y + 4 * TILE_ROW), a4)
        a5 = multiply_add(value, broadcast(y + 5 * TILE_ROW), a5)
        a6 = multiply_add(value, broadcast(y + 6 * TILE_ROW), a6)
        a7 = multiply_add(value, broadcast(y + 7 * TILE_ROW), a7)
        x += x_stride
        y += BYTES
    store(out, a0)
    store(out + out_stride, a1)
    store(out + 2 * out_stride, a2)
    store(out + 3 * out_stride, a3)
    store(out + 4 * out_stride, a4)
    store(out + 5 * out_stride, a5)
    store(out + 6 * out_stride, a6)
    store(out + 7 * out_stride, a7)


@njit(nogil=True)
def read_transposed(
    target: int, target_stride: int, source: int, source_stride: int, rows: int, columns: int, spare: int
) -> None:
    """target[c, r] = source[r, c] for 16 rows r and all columns; zeros for rows and columns that are missing.

    Writes columns rounded up to 16. `spare` is a 16 x 16 scratch.
    """
    for c in range(0, columns, LANES):
        if rows >= LANES and columns - c >= LANES:
            transpose(target + c * target_stride, target_stride, source + c * BYTES, source_stride)
        else:
            for r in range(LANES):
                if r < rows:
                    place = source + c * BYTES + r * source_stride
                    store(spare + r * ROW, load_lanes(place, min(columns - c, LANES)))
                else:
                    store(spare + r * ROW, full(_ZERO))
            transpose(target + c * target_stride, target_stride, spare, ROW)


@njit(nogil=True)
def write_transposed(
    target: int, target_stride: int, source: int, source_stride: int, rows: int, columns: int, spare: int
) -> None:
    """target[r, c] = source[c, r] for at most 16 rows r and all columns. `spare` is a 16 x 16 scratch."""
    for c in range(0, columns, LANES):
        if rows >= LANES and columns - c >= LANES:
            transpose(target + c * BYTES, target_stride, source + c * source_stride, source_stride)
        else:
            transpose(spare, ROW, source + c * source_stride, source_stride)
            for r in range(min(rows, LANES)):
                place = target + c * BYTES + r * target_stride
                store_lanes(place, min(columns - c, LANES), load(spare + r * ROW))


@njit(nogil=True)
def up(count: int, multiple: int) -> Any:
    """`count` rounded up to a multiple."""
    return (count + multiple - 1) // multiple * multiple
