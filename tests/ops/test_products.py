"""Products of small matrices whose sums stay in registers, against torch's."""

import numpy as np
import pytest
import torch
from numba import njit

from verim.ops.products import product_of
from verim.ops.vectors import BYTES, ROW

SETS, ADDS = product_of(6, 4, adds=False), product_of(12, 1, adds=True)


@njit
def multiply_rows(out: int, out_row: int, x: int, x_step: int, y: int, y_row: int, y_step: int, count: int) -> None:
    SETS(out, out_row, x, x_step, y, y_row, y_step, count)


@njit
def add_rows(out: int, out_row: int, x: int, x_step: int, y: int, y_row: int, y_step: int, count: int) -> None:
    ADDS(out, out_row, x, x_step, y, y_row, y_step, count)


def aligned(*sizes: int, seed: int) -> torch.Tensor:
    """Random numbers at a multiple of 64 bytes."""
    draw = np.random.default_rng(seed)
    count = int(np.prod(sizes))
    room = np.empty(count + 16, np.float32)
    start = -room.ctypes.data % ROW // BYTES
    room[start : start + count] = draw.standard_normal(count)
    return torch.from_numpy(room[start : start + count]).view(sizes)


@pytest.mark.parametrize("count", [1, 2, 7, 48])
@pytest.mark.parametrize(("function", "rows", "columns", "adds"), [(multiply_rows, 6, 64, 0), (add_rows, 12, 16, 1)])
@pytest.mark.parametrize("transposed", [False, True])
def test_products_agree_with_torchs(function, rows: int, columns: int, adds: int, count: int, transposed: bool) -> None:
    x = aligned(count, columns + 16, seed=1)  # 16 columns more than are read
    y = aligned(count, rows, seed=2).T if transposed else aligned(rows, count, seed=2)
    out = aligned(rows, columns + 32, seed=3)
    before = out.clone()
    out_row, x_step, y_row, y_step = (BYTES * step for step in (out.stride(0), x.stride(0), *y.stride()))
    function(out.data_ptr(), out_row, x.data_ptr(), x_step, y.data_ptr(), y_row, y_step, count)
    expected = before.clone()
    expected[:, :columns] = adds * before[:, :columns] + y @ x[:, :columns]
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(out[:, columns:], before[:, columns:])


def test_a_nan_reaches_its_row_or_its_column_alone() -> None:
    x, y, out = aligned(3, 64, seed=1), aligned(6, 3, seed=2), aligned(6, 64, seed=3)
    x[1, 5], y[2, 0] = torch.nan, torch.nan
    multiply_rows(out.data_ptr(), 64 * BYTES, x.data_ptr(), 64 * BYTES, y.data_ptr(), 3 * BYTES, BYTES, 3)
    expected = torch.zeros(6, 64, dtype=torch.bool)
    expected[2], expected[:, 5] = True, True
    assert torch.equal(out.isnan(), expected)
