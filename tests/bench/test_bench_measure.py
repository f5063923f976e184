"""Measuring: who disagrees is not timed; turns, ceilings and records are what they say."""

import importlib
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from verim.bench import (
    SUBJECTS,
    DisagreementError,
    OpRecord,
    append,
    as_json,
    check_ours,
    load_peers,
    measure,
    rows,
    title,
)
from verim.bench.limits import Memory, Products, Vectors
from verim.bench.measure import Ceiling, Measured, Side
from verim.bench.subject import Case, Peer, Subject
from verim.errors import InputError
from verim.ops.cost import Cost

COST = Cost(flops=2**20, bytes=2**16)


class Constant:
    """A ceiling of so many seconds."""

    def __init__(self, name: str, seconds: float) -> None:
        self.name, self._seconds = name, seconds

    def seconds(self) -> float:
        return self._seconds


def double(x: Tensor) -> Tensor:
    return x + x


def subject(*peers: Peer, ours=double) -> Subject:
    case = Case("8", lambda: [torch.ones(8, requires_grad=True)], COST, COST)
    limits = [Constant("memory", 1e-9), Constant("vectors", 2e-9)]
    return Subject("double", "elements", ours, peers, lambda quick: [case], lambda case: (limits, limits[:1]))


def measured(of: Subject) -> Measured:
    return measure(of, of.cases(True)[0], load_peers(of, of.cases(True))[0], rounds=3)


def test_sides_ceilings_and_versions() -> None:
    result = measured(subject(Peer("product", "torch", lambda: lambda x: 2 * x)))
    assert [side.name for side in result.sides] == ["verim", "product"]
    assert result.sides[1].version == torch.__version__
    assert all(0 < side.forward_seconds < side.both_seconds < 0.1 for side in result.sides)
    assert (result.forward, result.both) == (Ceiling("vectors", 2e-9, False), Ceiling("memory", 1e-9, False))


def test_a_ceiling_that_a_side_is_faster_than_says_nothing() -> None:
    def slow(x: Tensor) -> Tensor:
        time.sleep(1e-3)
        return 2 * x

    of = replace(subject(ours=slow), limits=lambda case: ([Constant("memory", 5e-4)], [Constant("vectors", 1.0)]))
    result = measured(of)
    assert result.forward == Ceiling("memory", 5e-4, holds=True)
    assert result.both == Ceiling("vectors", 1.0, holds=False)
    assert 0.1 < 5e-4 / result.sides[0].forward_seconds < 0.5


def test_a_slow_side_takes_fewer_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(x: Tensor) -> Tensor:
        time.sleep(0.02)
        return 2 * x

    monkeypatch.setattr(importlib.import_module("verim.bench.measure"), "_SIDE_SECONDS", 0.05)
    result = measured(subject(Peer("slow", "torch", lambda: slow)))
    assert [side.rounds for side in result.sides] == [3, 2]
    assert [row[0] for row in rows(result)] == ["verim", "slow (2 of 3)", "ceiling"]


def test_what_does_something_else_is_timed_without_a_check() -> None:
    of = subject(Peer("copy", "torch", lambda: lambda x: x.clone(), compared=False))
    assert [side.name for side in measured(of).sides] == ["verim", "copy"]
    drawn = replace(of.cases(True)[0], random=True)
    of = replace(subject(Peer("other", "torch", lambda: lambda x: 3 * x)), cases=lambda quick: [drawn])
    assert [side.name for side in measured(of).sides] == ["verim", "other"]


@pytest.mark.parametrize(
    ("run", "what"),
    [
        (lambda x: 2.01 * x, "the result"),
        (lambda x: 2 * x.detach() + 0 * x, "the gradient of argument 1"),
        (lambda x: torch.full_like(x, torch.nan) * x, "the result"),
    ],
)
def test_a_peer_that_computes_something_else_is_refused(run, what: str) -> None:
    with pytest.raises(DisagreementError, match=f"wrong and verim disagree at 8 about {what}.*nothing was timed"):
        measured(subject(Peer("wrong", "torch", lambda: run)))


def test_an_op_that_is_not_its_definition_is_refused() -> None:
    def wrong(x: Tensor) -> Tensor:
        return x + x if x.dtype is torch.float64 else 2.1 * x

    with pytest.raises(DisagreementError, match="verim and the definition of double disagree at 8"):
        check_ours(subject(ours=wrong))


def test_what_is_not_installed_is_named_and_what_is_out_of_scope_left_out() -> None:
    def missing():
        raise ImportError("not here")

    of = subject(Peer("gone", "gone", missing), Peer("large", "torch", lambda: double, lambda case: False))
    assert load_peers(of, of.cases(True))[1] == ["gone"]
    assert [side.name for side in measured(of).sides] == ["verim"]


def test_a_peer_that_raises_is_named() -> None:
    def broken(x: Tensor) -> Tensor:
        raise RuntimeError("no kernel for this machine")

    result = measured(subject(Peer("broken", "torch", lambda: broken), Peer("fine", "torch", lambda: double)))
    assert result.failed == ("broken",) and [side.name for side in result.sides] == ["verim", "fine"]
    assert title(result) == "8, broken failed"


@pytest.mark.parametrize("name", list(SUBJECTS))
def test_every_op_agrees_with_its_definition_and_its_peers(name: str) -> None:
    of = SUBJECTS[name]
    check_ours(of)
    peers, _ = load_peers(of, of.cases(True))
    for case in of.cases(True):
        result = measure(of, case, peers, rounds=1)
        assert len(result.sides) > 1
        assert result.forward.seconds > 0 and result.both.seconds > 0
    assert all(case.both.flops > case.forward.flops > 0 for case in of.cases(False))


def test_the_loops_of_the_ceilings_run_at_the_speed_of_machines() -> None:
    cost = Cost(flops=2**26, bytes=2**22)
    assert 1e8 < cost.bytes / Memory(cost, 1, 1, cost.bytes).seconds() < 1e13
    assert 1e8 < cost.flops / Products(cost, torch.float32).seconds() < 1e15
    assert 1e7 < 2**20 / Vectors(cost, 2**20, 1).seconds() < 1e13


def record_of(name: str) -> OpRecord:
    sides = Side("verim", "verim", "1", 1e-3, 2e-3, 7), Side("peer", "torch", "2", 1.5, 0.03, 3)
    case = Measured("2×3", "bfloat16", sides, Ceiling("memory", 5e-4), Ceiling("vectors", 1.5e-3))
    return OpRecord(name, "rows × columns", (case,), ("jax",))


def test_the_rows_of_a_case() -> None:
    assert rows(record_of("op").cases[0]) == [
        ("verim", "1.00", "1.00", "50%", "2.00", "1.00", "75%"),
        ("peer (3 of 7)", "1500", "1500", "0%", "30.0", "15", "5%"),
        ("ceiling", "0.500", "", "memory", "1.50", "", "vectors"),
    ]
    unknown = replace(record_of("op").cases[0], forward=Ceiling("memory", 1e-6, holds=False))
    assert [row[3] for row in rows(unknown)] == ["–", "–", "memory"]


def test_records_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "RESULTS.md"
    for name in ("first", "second"):
        ops = [record_of(name)]
        append(path, as_json(ops, threads=2, rounds=7, quick=False), ops)
    text = path.read_text()
    assert text.startswith("# Measured\n") and text.count("\n## 20") == 2
    assert text.index("**first, rows × columns; not installed, so not compared: jax**") < text.index("**second")
    assert text.count("| 2×3, bfloat16 | peer (3 of 7) | 1500 | 1500 | 0% | 30.0 | 15 | 5% |") == 2
    assert f"torch {torch.__version__}" in text and "median of 7 rounds" in text
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match="there is no folder"):
        append(tmp_path / "gone" / "RESULTS.md", as_json([], threads=1, rounds=1, quick=True), [])
