"""Batches: the same for the same step, each window once an epoch, each held-out byte predicted once."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verim.data import SEPARATOR, Loader, evaluation_batches
from verim.errors import InputError


def numbered(count: int) -> torch.Tensor:
    """Tokens each one more than the one before, modulo a prime."""
    return (torch.arange(count) % 251).to(torch.uint8)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(1, 9), st.integers(0, 200), st.integers(0, 2**40), st.integers(0, 60))
def test_an_epoch_shows_every_window_once(batch: int, length: int, extra: int, seed: int, skip: int) -> None:
    tokens = torch.arange(250, dtype=torch.uint8)[: 2 * length + extra]
    loader = Loader(tokens, batch, length, seed)
    windows = loader.windows_per_epoch
    assert len(tokens) - windows * length <= 2 * length
    rows = torch.cat([loader.batch(step)[0][:, 0] for step in range(skip, skip + 2 * windows // batch + 3)])
    begin = -(skip * batch) % windows  # the first row that begins an epoch
    starts = rows[begin : begin + windows]
    assert len(starts.unique()) == windows
    assert len((starts % length).unique()) == 1
    assert int(starts.max()) + length < len(tokens)


def test_targets_are_the_next_tokens() -> None:
    loader = Loader(numbered(1000), 4, 16, 3)
    for step in (0, 5, 1000):
        inputs, targets = loader.batch(step)
        assert inputs.dtype == targets.dtype == torch.int64
        assert inputs.shape == targets.shape == (4, 16)
        assert inputs.is_contiguous()
        assert targets.is_contiguous()
        assert torch.equal((inputs + 1) % 251, targets)


def test_a_step_has_one_batch_whatever_was_asked_before() -> None:
    tokens = torch.randint(0, 256, (5000,), dtype=torch.uint8)
    in_order, anyhow = Loader(tokens, 8, 32, 11), Loader(tokens, 8, 32, 11)
    expected = [in_order.batch(step) for step in range(100)]
    for step in torch.randperm(100).tolist():
        inputs, targets = anyhow.batch(step)
        assert torch.equal(inputs, expected[step][0])
        assert torch.equal(targets, expected[step][1])


def test_seeds_and_epochs_differ() -> None:
    tokens = torch.randint(0, 256, (10_000,), dtype=torch.uint8)
    first, second = Loader(tokens, 8, 10, 0), Loader(tokens, 8, 10, 1)
    assert not torch.equal(first.batch(0)[0], second.batch(0)[0])
    an_epoch_on = first.windows_per_epoch // 8 + 1
    assert not torch.equal(first.batch(0)[0], first.batch(an_epoch_on)[0])


def test_the_order_is_shuffled() -> None:
    starts = Loader(torch.arange(250, dtype=torch.uint8), 40, 5, 0).batch(0)[0][:, 0]
    assert 10 < int((starts.diff() < 0).sum()) < 30


def test_windows_move_between_epochs() -> None:
    """Every epoch has an offset of its own, so targets are not always at the same place of a window."""
    tokens = torch.arange(200, dtype=torch.uint8)
    loader = Loader(tokens, 1, 10, 0)
    offsets = {int(loader.batch(epoch * loader.windows_per_epoch)[0][0, 0]) % 10 for epoch in range(40)}
    assert len(offsets) > 5


@pytest.mark.parametrize(("batch", "length"), [(0, 8), (1, 0), (1, 51)])
def test_what_cannot_work_is_refused(batch: int, length: int) -> None:
    with pytest.raises(InputError, match="length = "):
        Loader(numbered(100), batch, length, 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 40))
def test_evaluation_predicts_every_byte_once_in_order(count: int, batch: int, length: int) -> None:
    tokens = numbered(count)
    batches = list(evaluation_batches(tokens, batch, length))
    targets = torch.cat([targets.flatten() for _, targets in batches])
    inputs = torch.cat([inputs.flatten() for inputs, _ in batches])
    assert torch.equal(targets, tokens.long())
    assert torch.equal(inputs, torch.cat([torch.tensor([SEPARATOR]), tokens[:-1].long()]))
    assert all(inputs.shape[0] <= batch and inputs.shape[1] <= length for inputs, _ in batches)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 250), st.integers(1, 9), st.integers(1, 40), st.integers(1, 300))
def test_a_limit_spreads_whole_windows_evenly(count: int, batch: int, length: int, limit: int) -> None:
    tokens = torch.arange(count).to(torch.uint8)
    rows = [row for _, targets in evaluation_batches(tokens, batch, length, limit) for row in targets]
    if limit >= count or length > count:
        assert torch.equal(torch.cat(rows), tokens.long())
        return
    assert len(rows) == max(1, limit // length)
    starts = [int(row[0]) for row in rows]
    gaps = {after - before for before, after in pairwise(starts)}
    assert all(len(row) == length and int(row[0]) % length == 0 for row in rows)
    assert not gaps or (min(gaps) >= length and max(gaps) - min(gaps) <= length)
    assert count - starts[-1] <= (max(gaps) if gaps else count) + 2 * length


@pytest.mark.parametrize("limit", [0, -5])
def test_a_limit_that_cannot_work_is_refused(limit: int) -> None:
    with pytest.raises(InputError, match="limit = "):
        list(evaluation_batches(numbered(100), 1, 8, limit))
