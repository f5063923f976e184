"""The mixers experiment: what is tried next, that it goes on where it was, and that its page says what was found."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from verim.data.synthetic import SYNTHETIC_TASKS, SelectiveCopying
from verim.errors import InputError
from verim.models import LanguageModel, LanguageModelConfig
from verim.nn.mixers import MIXERS
from verim.recipes import mixers, mixers_page
from verim.recipes.mixers import Experiment, Results, Trial

QUIET = Console(quiet=True)


@pytest.mark.parametrize("width", [16, 32, 64])
@pytest.mark.parametrize("mixer", MIXERS)
def test_models_of_all_mixers_are_about_equally_large(mixer: str, width: int) -> None:
    config = LanguageModelConfig((mixers.block(mixer, width),), width, 2, vocab=16)
    weights = sum(weight.numel() for weight in LanguageModel(config).blocks.parameters())
    assert 0.9 < weights / (2 * 12 * width**2) < 1.25


def test_all_tasks_are_tried() -> None:
    assert mixers.TASKS.keys() == mixers.QUICK_TASKS.keys() == SYNTHETIC_TASKS.keys()
    for tasks in (mixers.TASKS, mixers.QUICK_TASKS):
        assert all(type(task) is SYNTHETIC_TASKS[name] for name, task in tasks.items())


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_trials_end_at_the_first_that_solves_the_task_and_its_other_seeds(data: st.DataObject) -> None:
    experiment = Experiment(widths=(16, 32), learning_rates=(0.1, 0.2, 0.3), seeds=data.draw(st.integers(1, 3)))
    results: Results = {}
    while (trial := mixers.next_trial(experiment, "parity", "mamba", results)) is not None:
        assert trial not in results
        results[trial] = {"accuracy": data.draw(st.sampled_from([0.3, 0.98, 0.99, 1.0]))}
    first = [trial for trial in results if trial.seed == 0]
    grid = [Trial("parity", "mamba", width, rate, 0) for width in (16, 32) for rate in (0.1, 0.2, 0.3)]
    assert first == grid[: len(first)]
    assert all(results[trial]["accuracy"] < 0.99 for trial in first[:-1])
    solved = results[first[-1]]["accuracy"] >= 0.99
    assert solved or first == grid
    again = range(1, experiment.seeds if solved else 1)
    assert [trial for trial in results if trial.seed > 0] == [replace(first[-1], seed=seed) for seed in again]


def test_a_solved_task_ends_after_the_cooldown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mixers.TASKS, "selective_copying", SelectiveCopying(length=6, memorised=1, vocab=6))
    trial = Trial("selective_copying", "attention", 16, 0.01, 0)
    result = mixers.train(trial, Experiment(steps=1000, cooldown=30))
    assert result["accuracy"] >= 0.99
    assert result["solved_at"] is not None
    assert result["steps"] == result["solved_at"] + 30 < 1000


def test_a_diverged_trial_says_so_and_stops() -> None:
    result = mixers.train(Trial("parity", "attention", 16, 1e30, 0), Experiment(steps=50, cooldown=5))
    assert result["diverged"]
    assert result["steps"] < 50
    assert result["accuracy"] < 0.99


def run_quickly(directory: Path) -> list[dict[str, Any]]:
    """Two mixers on two tasks; the records, without the seconds they took."""
    names = {"mixers": ("attention", "lstm"), "tasks": ("parity", "induction_heads")}
    experiment = Experiment(directory, **names, processes=1, quick=True)  # type: ignore[arg-type]
    page = mixers.run(experiment, QUIET)
    assert page.read_text().startswith("# Which mixer solves which task")
    lines = (directory / "trials.jsonl").read_text().splitlines()
    return sorted(({**json.loads(line), "seconds": 0} for line in lines), key=str)


def test_a_killed_experiment_goes_on_and_has_the_same_results(tmp_path: Path) -> None:
    whole = run_quickly(tmp_path)
    assert len(whole) == 4
    log = tmp_path / "trials.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:2]) + lines[2][:20])  # a kill amid the third line
    assert run_quickly(tmp_path) == whole
    assert log.read_bytes().splitlines(keepends=True)[:2] == lines[:2]
    written = log.read_bytes()
    run_quickly(tmp_path)
    assert log.read_bytes() == written  # nothing was left to do


def test_results_of_other_settings_are_not_mixed(tmp_path: Path) -> None:
    mixers.take_up(Experiment(tmp_path, steps=500))
    with pytest.raises(InputError, match="holds results of other settings"):
        mixers.take_up(Experiment(tmp_path, steps=600))
    mixers.take_up(Experiment(tmp_path, steps=500, widths=(128,), seeds=7))  # more of the same may be tried


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"mixers": ("attention", "transformer")}, "mixers: got .*'transformer'"),
        ({"tasks": ()}, "tasks: got none"),
        ({"widths": (24,)}, "widths: got"),
        ({"learning_rates": ()}, "learning_rates: got none"),
        ({"seeds": 0}, "seeds: got 0"),
        ({"steps": 0}, "steps: got 0"),
        ({"steps": 100, "cooldown": 101}, "cooldown: got 101"),
    ],
)
def test_what_cannot_work_is_refused(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        Experiment(**fields)


def test_what_is_wrong_is_said_in_a_line_with_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mixers.take_up(Experiment(tmp_path, steps=500))
    monkeypatch.setattr("sys.argv", ["mixers", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as leaving:
        mixers.main()
    assert leaving.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: --out {tmp_path} holds results of other settings")


def record(
    mixer: str, width: int, accuracy: float, longest: float, seed: int = 0, rate: float = 0.01
) -> dict[str, Any]:
    return {
        "task": "parity",
        "mixer": mixer,
        "width": width,
        "learning_rate": rate,
        "seed": seed,
        "accuracy": accuracy,
        "longer": [1.0, longest],
        "solved_at": 300,
        "steps": 600,
        "diverged": False,
        "parameters": 12345,
        "feed_forward": mixer != "mamba",
        "seconds": 12.0,
    }


def test_the_page_says_what_was_found(tmp_path: Path) -> None:
    records = [
        record("lstm", 16, 0.8, 0.5),
        record("lstm", 32, 1.0, 0.97, rate=0.003),
        record("lstm", 32, 0.95, 0.5, seed=1, rate=0.003),
        record("lstm", 32, 0.995, 0.99, seed=2, rate=0.003),
        record("mamba", 16, 0.9, 0.52),
        record("mamba", 32, 0.93, 0.51),
        record("attention", 16, 1.0, 0.95),
    ]
    page = tmp_path / "page.md"
    mixers_page.write_page(page, {"parity": mixers.TASKS["parity"]}, Experiment(tmp_path).settings(), records)
    text = page.read_text()
    assert "| lstm | **32** (2 of 3) |" in text
    assert "| lstm | 97.0 % |" in text
    assert "| mamba | 93.0 % (to 32) |" in text
    assert (
        "| parity | mamba, no feed-forward layer | 32 | 12,345 | 0.01 | 93.0 % | 100.0 % | 51.0 % | 300 | 12 |" in text
    )
    assert "| so: lstm 97.0 %; not run: rnn |" in text
    assert "| **not so**: attention 95.0 % |" in text
    assert "| so: mamba 51.0 %; not run: mamba2, min_gru" in text
    assert "induction" not in text
