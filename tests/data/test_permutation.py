"""The order of windows: each once, anywhere, the same for the same place; what is read together lies together."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from verim.data.permutation import fill_starts

BLOCK, POOL = 4, 5


def starts(
    first: int, count: int, windows: int, seed: int = 0, epoch: int = 0, length: int = 1, pool: int = POOL
) -> np.ndarray:
    target = np.empty(count, np.int64)
    fill_starts(target, *map(np.uint64, (first, epoch, windows, length, seed, BLOCK, pool)))
    return target


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 300), st.integers(0, 2**64 - 1), st.integers(0, 2**40), st.integers(1, 9), st.data())
def test_every_window_comes_once_wherever_one_begins(
    windows: int, seed: int, epoch: int, length: int, data: st.DataObject
) -> None:
    whole = starts(0, windows, windows, seed, epoch, length)
    offset = whole.min()
    assert 0 <= offset < length
    assert sorted((whole - offset) // length) == list(range(windows))
    first = data.draw(st.integers(0, windows - 1))
    assert (starts(first, windows - first, windows, seed, epoch, length) == whole[first:]).all()


def test_any_window_may_come_at_any_place() -> None:
    """Over many epochs, at each place of the order each window comes equally often."""
    counts = np.zeros((12, 12))
    epochs = 6000
    for epoch in range(epochs):
        counts[np.arange(12), starts(0, 12, 12, seed=7, epoch=epoch)] += 1
    assert np.abs(counts / epochs - 1 / 12).max() < 5 * (1 / 12 / epochs) ** 0.5


def test_neighbours_in_the_order_are_no_neighbours_in_the_data() -> None:
    order = starts(0, 20_000, 20_000, pool=10_000)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.03
    assert abs(np.corrcoef(order, np.arange(20_000))[0, 1]) < 0.03


def test_a_pool_reads_few_blocks_and_pools_are_spread() -> None:
    order = starts(0, 2000, 2000)
    pools = order.reshape(-1, BLOCK * POOL) // BLOCK
    assert all(len(set(pool)) == POOL for pool in pools)
    assert np.median([np.ptp(pool) for pool in pools]) > 200  # of 500 blocks


def test_an_order_of_a_trillion_windows_is_asked_for_in_the_middle() -> None:
    order = starts(123_456_789_012, 1000, 10**12)
    assert len(set(order.tolist())) == 1000
    assert order.max() < 10**12
