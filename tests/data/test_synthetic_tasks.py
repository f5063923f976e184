"""Synthetic tasks: the answers follow from the tokens, a guesser gets what is stated, and every batch is fresh."""

import doctest
import importlib
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from verim.data.synthetic import (
    IGNORED,
    SYNTHETIC_TASKS,
    AssociativeRecall,
    InductionHeads,
    Parity,
    SelectiveCopying,
    SyntheticTask,
    correct,
)
from verim.data.synthetic.task import distinct
from verim.errors import InputError

seeds = st.integers(0, 2**40)


@st.composite
def selective_copyings(draw: st.DrawFn) -> SelectiveCopying:
    memorised = draw(st.integers(1, 9))
    return SelectiveCopying(draw(st.integers(2 * memorised, 60)), memorised, draw(st.integers(4, 20)))


@st.composite
def associative_recalls(draw: st.DrawFn) -> AssociativeRecall:
    pairs = draw(st.integers(1, 8))
    length, vocab = 2 * draw(st.integers(2 * pairs, 40)), 2 * draw(st.integers(pairs + 1, 40))
    return AssociativeRecall(length, pairs, vocab, draw(st.floats(0.01, 1.0)), draw(st.booleans()))


@st.composite
def parities(draw: st.DrawFn) -> Parity:
    length = draw(st.integers(1, 60))
    return Parity(length, draw(st.integers(0, length - 1)))


TASKS = {
    "selective_copying": selective_copyings(),
    "induction_heads": st.builds(InductionHeads, st.integers(3, 60), st.integers(3, 20)),
    "associative_recall": associative_recalls(),
    "parity": parities(),
}
any_task = st.one_of(*TASKS.values())


def solve(task: SyntheticTask, row: list[int]) -> list[int]:
    """The answers, worked out token by token from the description of the task; `IGNORED` where none is asked."""
    answers = [IGNORED] * len(row)
    match task:
        case SelectiveCopying():
            queue = [token for token in row if 0 < token < task.vocab - 1]
            for place, token in enumerate(row):
                if token == task.vocab - 1:
                    answers[place] = queue.pop(0)
        case InductionHeads():
            answers[-1] = row[row.index(task.vocab - 1) + 1]
        case AssociativeRecall():
            known = dict(zip(row[0 : 2 * task.pairs : 2], row[1 : 2 * task.pairs : 2], strict=True))
            for place in range(2 * task.pairs, len(row)):
                answers[place] = known.get(row[place], IGNORED)
        case Parity():
            odd = 0
            for place, bit in enumerate(row):
                odd ^= bit
                answers[place] = odd if place >= task.asked_from else IGNORED
    return answers


def test_every_task_is_covered() -> None:
    assert TASKS.keys() == SYNTHETIC_TASKS.keys()


@settings(max_examples=150, deadline=None)
@given(any_task, seeds, st.integers(0, 10**9), st.booleans())
def test_a_solver_of_the_description_is_always_right(task: Any, seed: int, step: int, held_out: bool) -> None:
    tokens, targets = task.batch(5, seed, step, held_out)
    assert tokens.shape == targets.shape == (5, task.length)
    assert tokens.dtype == targets.dtype == torch.int64
    assert tokens.is_contiguous()
    assert targets.is_contiguous()
    assert int(tokens.min()) >= 0
    assert int(tokens.max()) < task.vocab
    asked = targets != IGNORED
    assert asked.any(dim=1).all()
    solved = torch.tensor([solve(task, row) for row in tokens.tolist()])
    if isinstance(task, AssociativeRecall) and task.random_filler:
        solved = solved.where(asked, torch.tensor(IGNORED))  # a filler may be a key: it is not asked for
    assert torch.equal(solved, targets)
    assert correct(solved, targets) == (int(asked.sum()), int(asked.sum()))


@settings(max_examples=60, deadline=None)
@given(any_task, seeds, st.integers(0, 1000))
def test_a_batch_depends_on_its_arguments_alone(task: Any, seed: int, step: int) -> None:
    for one, other in zip(task.batch(3, seed, step), task.batch(3, seed, step), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("task", [task() for task in SYNTHETIC_TASKS.values()], ids=SYNTHETIC_TASKS)
def test_no_two_batches_share_a_sequence(task: SyntheticTask) -> None:
    """Neighbouring seeds, steps, and training against evaluation: each draws sequences of its own."""
    rows = [
        tuple(row)
        for seed in (0, 1, 2**32)
        for step in (0, 1, 2)
        for held_out in (False, True)
        for row in task.batch(4, seed, step, held_out)[0].tolist()
    ]
    assert len(set(rows)) == len(rows)


def answers_shown(task: SyntheticTask, tokens: Tensor) -> Tensor:
    """For each row, the tokens among which its answers stand."""
    match task:
        case SelectiveCopying():
            return tokens[(tokens > 0) & (tokens < task.vocab - 1)].view(len(tokens), task.memorised)
        case InductionHeads():
            return tokens[tokens < task.vocab - 1].view(len(tokens), task.length - 2)
        case AssociativeRecall():
            return tokens[:, 1 : 2 * task.pairs : 2]
    return torch.tensor([0, 1]).expand(len(tokens), 2)


GUESSED = [
    SelectiveCopying(length=40, memorised=4, vocab=8),
    InductionHeads(length=6, vocab=6),
    AssociativeRecall(length=24, pairs=5, vocab=64),
    Parity(length=10),
]


@pytest.mark.parametrize("task", GUESSED, ids=SYNTHETIC_TASKS)
def test_a_guesser_gets_the_stated_chance(task: SyntheticTask) -> None:
    tokens, targets = task.batch(40_000, seed=0, step=0)
    shown = answers_shown(task, tokens)
    generator = torch.Generator().manual_seed(0)
    guesses = shown.gather(1, torch.randint(shown.shape[1], targets.shape, generator=generator))
    right, asked = correct(guesses, targets)
    assert abs(right / asked - task.chance) < 4.0 * 0.5 / len(tokens) ** 0.5


def test_places_and_data_of_selective_copying_are_uniform() -> None:
    task = SelectiveCopying(length=12, memorised=2, vocab=5)
    tokens, targets = task.batch(60_000, seed=3, step=0)
    held = (tokens[:, :10] > 0).double().mean(dim=0)
    assert (held - 0.2).abs().max() < 0.01
    pairs = torch.bincount((targets[:, 10] - 1) * 3 + targets[:, 11] - 1, minlength=9).double() / len(tokens)
    assert (pairs - 1 / 9).abs().max() < 0.01


def test_the_special_token_stands_anywhere() -> None:
    tokens, _ = InductionHeads(length=7, vocab=4).batch(50_000, seed=3, step=0)
    first = (tokens == 3).double().argmax(dim=1)
    shares = torch.bincount(first, minlength=5).double() / len(tokens)
    assert (shares - 0.2).abs().max() < 0.01


def test_queries_stand_at_the_gaps_that_the_power_law_says() -> None:
    """Against numpy's own draw without replacement, pair by pair; and keys and values are uniform and distinct."""
    task = AssociativeRecall(length=16, pairs=2, vocab=12, power=0.2)
    tokens, _ = task.batch(20_000, seed=5, step=0)
    weights = np.arange(1, 7) ** (task.power - 1.0)
    random = np.random.default_rng(0)
    reference = np.array([random.choice(6, 2, replace=False, p=weights / weights.sum()) for _ in range(6_000)])
    for pair in (0, 1):
        gaps = (tokens[:, 4:] == tokens[:, 2 * pair, None]).double().argmax(dim=1) // 2
        shares = torch.bincount(gaps, minlength=6).double() / len(tokens)
        expected = np.bincount(reference[:, pair], minlength=6) / len(reference)
        assert np.abs(shares.numpy() - expected).max() < 0.025


def test_keys_and_values_are_of_their_halves_and_distinct() -> None:
    tokens, _ = AssociativeRecall(length=16, pairs=2, vocab=12).batch(20_000, seed=5, step=0)
    for drawn, least, count in ((tokens[:, [0, 2]], 1, 5), (tokens[:, [1, 3]], 6, 6)):
        assert (drawn[:, 0] != drawn[:, 1]).all()
        shares = torch.bincount((drawn - least).flatten(), minlength=count).double() / drawn.numel()
        assert (shares - 1 / count).abs().max() < 0.01


@pytest.mark.parametrize(("among", "count"), [(1, 1), (5, 5), (7, 3), (16, 8), (40, 12)])
def test_distinct_numbers_stand_anywhere_in_a_row(among: int, count: int) -> None:
    drawn = distinct(np.random.default_rng(0), 20_000, among, count)
    assert (np.diff(np.sort(drawn, axis=1), axis=1) > 0).all()
    for place in drawn.T:
        shares = np.bincount(place, minlength=among) / len(drawn)
        assert np.abs(shares - 1 / among).max() < 5.0 * (1 / among / len(drawn)) ** 0.5


@pytest.mark.parametrize("task", GUESSED, ids=SYNTHETIC_TASKS)
def test_a_longer_task_asks_for_as_much(task: Any) -> None:
    longer = task.at_length(4 * task.length)
    (_, targets), (_, longer_targets) = task.batch(3, 0, 0), longer.batch(3, 0, 0)
    assert longer_targets.shape[1] == 4 * task.length
    asked, asked_longer = ((which != IGNORED).sum(dim=1) for which in (targets, longer_targets))
    if isinstance(task, Parity):  # only where no model trained at the shorter length has been
        assert (longer_targets[:, : task.length] == IGNORED).all()
        assert (asked_longer == 3 * task.length).all()
    else:
        assert torch.equal(asked, asked_longer)


def test_only_asked_positions_count() -> None:
    targets = torch.tensor([[1, IGNORED, 2], [IGNORED, IGNORED, 0]])
    assert correct(torch.tensor([[1, 5, 5], [0, 0, 0]]), targets) == (2, 3)


@pytest.mark.parametrize(
    ("kind", "fields", "named"),
    [
        (SelectiveCopying, {"memorised": 0}, "memorised: got 0"),
        (SelectiveCopying, {"length": 31}, "length: got 31"),
        (SelectiveCopying, {"vocab": 3}, "vocab: got 3"),
        (InductionHeads, {"length": 2}, "length: got 2"),
        (InductionHeads, {"vocab": 2}, "vocab: got 2"),
        (AssociativeRecall, {"pairs": 0}, "pairs: got 0"),
        (AssociativeRecall, {"length": 63}, "length: got 63, expected an even number of at least four times pairs, 16"),
        (AssociativeRecall, {"length": 14}, "length: got 14"),
        (AssociativeRecall, {"vocab": 8}, "vocab: got 8"),
        (AssociativeRecall, {"vocab": 33}, "vocab: got 33"),
        (AssociativeRecall, {"power": 0.0}, "power: got 0.0"),
        (AssociativeRecall, {"power": 1.5}, "power: got 1.5"),
        (Parity, {"length": 0}, "length: got 0"),
        (Parity, {"asked_from": 40}, "asked_from: got 40"),
        (Parity, {"asked_from": -1}, "asked_from: got -1"),
    ],
)
def test_what_cannot_work_is_refused(kind: type, fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        kind(**fields)


@pytest.mark.parametrize(("seed", "step"), [(-1, 0), (0, -1)])
def test_a_negative_seed_or_step_is_refused(seed: int, step: int) -> None:
    with pytest.raises(InputError, match="seed, step: got"):
        Parity().batch(1, seed, step)


@pytest.mark.parametrize("name", ["task", *SYNTHETIC_TASKS])
def test_examples_of_the_docstrings(name: str) -> None:
    module = importlib.import_module(f"verim.data.synthetic.{name}")
    outcome = doctest.testmod(module, extraglobs={"torch": torch, "IGNORED": IGNORED})
    assert outcome.attempted
    assert not outcome.failed
