"""The trainer: what it promises for any model and task, and that stopping anywhere changes no bit."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verim.errors import InputError
from verim.models import ARCHITECTURES, LanguageModel, architecture_config
from verim.runs import RunDirectory
from verim.train import AdamWConfig, ByteLanguageModelling, Trainer, TrainerConfig, WarmupStableDecay

STEPS = 12


def text(size: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(97, 105, (size,), dtype=torch.uint8)


def trainer(directory: Path, architecture: str = "transformer", **changes: object) -> Trainer:
    torch.manual_seed(0)
    model = LanguageModel(architecture_config(architecture, 16))
    task = ByteLanguageModelling(text(4000), text(700), batch=2, length=16, seed=0, evaluation_bytes=500)
    settings_ = {"steps": STEPS, "warmup": 2, "decay": 4, "evaluations": 3, "checkpoint_seconds": 0.0} | changes
    config = TrainerConfig(optimiser=AdamWConfig(learning_rate=0.01), **settings_)  # type: ignore[arg-type]
    return Trainer(model, task, config, RunDirectory(directory))


class StoppedError(Exception):
    pass


def stop_at(last: int):
    def progress(step: int) -> None:
        if step == last:
            raise StoppedError

    return progress


def run(directory: Path, architecture: str = "transformer", stops: tuple[int, ...] = ()) -> tuple[Trainer, dict]:
    for stop in stops:
        held = trainer(directory, architecture)
        with pytest.raises(StoppedError), held.run.writing():
            held.train({"a": 1}, stop_at(stop))
    held = trainer(directory, architecture)
    with held.run.writing():
        return held, held.train({"a": 1})


def figures(directory: Path) -> list[dict]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_resumed_equals_never_stopped_to_the_bit(architecture: str, tmp_path: Path) -> None:
    whole, result = run(tmp_path / "whole", architecture)
    parts, resumed = run(tmp_path / "parts", architecture, stops=(3, 4, 11))
    assert result["bits_per_byte"] == resumed["bits_per_byte"]
    assert figures(tmp_path / "whole") == figures(tmp_path / "parts")
    for one, other in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        assert torch.equal(one, other)
        assert torch.equal(whole.optimiser.state[one]["exp_avg_sq"], parts.optimiser.state[other]["exp_avg_sq"])


def test_a_kill_between_the_last_checkpoint_and_the_result_loses_nothing(tmp_path: Path) -> None:
    _, expected = run(tmp_path / "whole")
    held = trainer(tmp_path / "parts")

    def killed(result: dict) -> None:
        raise StoppedError

    held.run.finish = killed  # type: ignore[assignment]
    with pytest.raises(StoppedError), held.run.writing():
        held.train({"a": 1})
    _, result = run(tmp_path / "parts")
    assert result["bits_per_byte"] == expected["bits_per_byte"]


def test_result_says_what_was_done_and_evaluations_are_spread(tmp_path: Path) -> None:
    _, result = run(tmp_path)
    assert result["steps"] == STEPS and result["tokens"] == STEPS * 32
    assert [line["step"] for line in figures(tmp_path) if "bits_per_byte" in line] == [4, 8, 12]
    assert figures(tmp_path)[-1]["bits_per_byte"] == result["bits_per_byte"]


def test_training_learns(tmp_path: Path) -> None:
    """Eight equally likely letters: the loss falls from 8 bits to at most a little over 3."""
    held = trainer(tmp_path, steps=150, warmup=5, decay=50, checkpoint_seconds=100.0)
    with held.run.writing():
        result = held.train({})
    assert 2.99 < result["bits_per_byte"] < 3.2


def test_evaluation_is_the_mean_over_every_held_out_byte(tmp_path: Path) -> None:
    held = trainer(tmp_path)
    uniform = held.evaluate()["bits_per_byte"]
    assert uniform == pytest.approx(8.0, abs=1e-5)  # the head starts at zero
    assert held.model.training


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path: Path) -> None:
    held = trainer(tmp_path)
    with torch.no_grad():
        held.model.head.weight.fill_(math.nan)
    with pytest.raises(InputError, match="loss is nan at step 0"), held.run.writing():
        held.train({})


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(0, 100), st.integers(0, 100))
def test_schedule_rises_stays_and_falls(steps: int, warmup: int, decay: int) -> None:
    if warmup + decay > steps:
        with pytest.raises(InputError, match="warmup \\+ decay"):
            WarmupStableDecay(steps, warmup, decay)
        return
    factors = [WarmupStableDecay(steps, warmup, decay)(step) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)
    assert factors[:warmup] == sorted(factors[:warmup])
    assert factors[steps - decay :] == sorted(factors[steps - decay :], reverse=True)
    assert all(factor == 1 for factor in factors[warmup : steps - decay])


def test_matrices_learn_slower_the_wider_they_are() -> None:
    model = torch.nn.Sequential(
        torch.nn.Linear(64, 16),
        torch.nn.Linear(16, 4),
        torch.nn.LayerNorm(4),
        torch.nn.Linear(2, 3),
        torch.nn.Embedding(5, 4),
    )
    optimiser = AdamWConfig(learning_rate=0.1).build(model)
    rates = {id(w): group["base_rate"] for group in optimiser.param_groups for w in group["params"]}
    decays = {id(w): group["weight_decay"] for group in optimiser.param_groups for w in group["params"]}
    assert rates[id(model[0].weight)] == pytest.approx(0.05)
    assert rates[id(model[1].weight)] == pytest.approx(0.2)
    assert rates[id(model[3].weight)] == pytest.approx(0.4)  # not 32 / 2
    assert rates[id(model[0].bias)] == rates[id(model[2].weight)] == pytest.approx(0.03)
    assert rates[id(model[4].weight)] == 0.1
    assert decays[id(model[0].weight)] == 0.1 and decays[id(model[2].weight)] == 0
    assert len(rates) == sum(1 for _ in model.parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": 0}, "steps: got 0"),
        ({"evaluations": 0}, "evaluations: got 0"),
        ({"clip": 0.0}, "clip: got 0.0"),
        ({"warmup": 10, "decay": 10}, "warmup"),
    ],
)
def test_impossible_settings_name_the_field(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        trainer(tmp_path, **changes)


@pytest.mark.parametrize(("field", "value"), [("learning_rate", 0.0), ("beta1", 1.0), ("beta2", -0.1)])
def test_impossible_optimisers_name_the_field(field: str, value: float) -> None:
    with pytest.raises(InputError, match=field):
        AdamWConfig(**({"learning_rate": 0.1} | {field: value}))
