"""The emergence recipe: exact matches counted as they are said to be, and all of it runs."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from verim.errors import InputError
from verim.recipes import emergence


@given(st.integers(0, 10**6), st.integers(1, 6))
def test_exact_matches_are_those_of_a_count_by_hand(seed: int, run: int) -> None:
    right = torch.rand(3, 9, generator=torch.Generator().manual_seed(seed)) < 0.7
    windows = [bool(row[start : start + run].all()) for row in right for start in range(9 - run + 1)]
    assert emergence.exact_match(right, run) == pytest.approx(sum(windows) / len(windows))


def test_independent_bytes_give_the_power() -> None:
    right = torch.rand(400, 128, generator=torch.Generator().manual_seed(0)) < 0.8
    for run in (1, 4, 16):
        assert emergence.exact_match(right, run) == pytest.approx(0.8**run, rel=0.1)


def test_all_of_it_runs(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(60):
        (texts / f"{number}.txt").write_text(f"chapter {number}: the quick brown fox, number {number * number}.\n" * 8)
    experiment = emergence.Experiment(tmp_path / "out", tmp_path / "page.md", (str(texts),), quick=True)
    assert "exam of 16" in emergence.run(experiment, Console(quiet=True)).read_text()
    sizes = json.loads((tmp_path / "out/result.json").read_text())["sizes"]
    assert [size["parameters"] for size in sizes] == sorted(size["parameters"] for size in sizes)
    for size in sizes:
        shares = [size["exact"][str(run)] for run in emergence.RUNS]
        assert shares == sorted(shares, reverse=True) and shares[0] == size["accuracy"]
    assert "| parameters | bits per byte | 1 right |" in (tmp_path / "page.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"widths": (20,)}, "widths: got"), ({"tokens": 10.0}, "tokens: got 10"), ({"seed": -1}, "seed: got -1")],
)
def test_bad_input_is_named(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        emergence.Experiment(**options)
