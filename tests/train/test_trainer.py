"""The trainer: what it promises for any model and task, and that stopping anywhere changes no bit."""

import json
import math
import warnings
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verim.errors import InputError
from verim.models import ARCHITECTURES, LanguageModel, architecture_config
from verim.runs import RunDirectory
from verim.train import AdamWConfig, ByteLanguageModelling, Trainer, TrainerConfig, WarmupStableDecay
from verim.train.meter import Meter
from verim.train.step import backward
from verim.train.task import Batch, Objective

STEPS = 12


def text(size: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(97, 105, (size,), dtype=torch.uint8)


def trainer(directory: Path, architecture: str = "transformer", **changes: object) -> Trainer:
    torch.manual_seed(0)
    model = LanguageModel(architecture_config(architecture, 16))
    task = ByteLanguageModelling(text(4000), text(700), batch=2, length=16, seed=0, evaluation_bytes=500)
    given = {"schedule": WarmupStableDecay(STEPS, 2, 4), "evaluations": 3, "checkpoint_seconds": 0.0} | changes
    config = TrainerConfig(AdamWConfig(learning_rate=0.01), **given)  # type: ignore[arg-type]
    return Trainer(model, task, config, RunDirectory(directory))


class StoppedError(Exception):
    pass


def stop_at(last: int):
    def progress(record: dict[str, float]) -> None:
        if record["step"] == last:
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


class Mean(torch.nn.Module):
    """A task of its own: rows of differing weight, whose loss is a weighted mean."""

    def __init__(self) -> None:
        super().__init__()
        self.guess = torch.nn.Linear(3, 1, dtype=torch.float64)


class Regression:
    """Rows count as often as their mask says; a part of a batch may hold none that counts."""

    tokens_per_step = 12
    objective = Objective("error")

    def batch(self, step: int) -> Batch:
        draw = torch.Generator().manual_seed(step)
        x = torch.randn(12, 3, generator=draw, dtype=torch.float64)
        counts = torch.randint(0, 3, (12,), generator=draw)
        counts[:3] = 0
        return x, x.sum(1, keepdim=True), counts

    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        x, y, counts = batch
        return ((model.guess(x) - y).square().squeeze(1) * counts).sum() / counts.sum()

    def weight(self, batch: Batch) -> float:
        return float(batch[2].sum())

    def figures(self, loss: float) -> dict[str, float]:
        return {"root": loss**0.5}

    def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
        return {"error": self.loss(model, self.batch(10**6)).item()}


@pytest.mark.parametrize("parts", [2, 3, 4, 12])
def test_accumulated_gradients_are_those_of_the_large_batch(parts: int) -> None:
    torch.manual_seed(0)
    model, task = Mean(), Regression()
    whole = backward(task, model, task.batch(3))
    expected = [weight.grad.clone() for weight in model.parameters()]
    model.zero_grad()
    loss = backward(task, model, task.batch(3), parts)
    torch.testing.assert_close(loss, whole)
    for weight, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(weight.grad, gradient, rtol=1e-12, atol=1e-12)


def test_parts_that_do_not_divide_the_batch_are_refused() -> None:
    task = Regression()
    with pytest.raises(InputError, match="accumulation: got 5 parts for a batch of 12 rows"):
        backward(task, Mean(), task.batch(0), 5)


def test_any_model_and_task_train_and_stop_when_nothing_improves(tmp_path: Path) -> None:
    def held(patience: int, name: str) -> Trainer:
        torch.manual_seed(0)
        config = TrainerConfig(
            AdamWConfig(1e-9), WarmupStableDecay(40, 0, 0), evaluations=20, patience=patience, checkpoint_seconds=0.0
        )
        return Trainer(Mean(), Regression(), config, RunDirectory(tmp_path / name))

    class Worse(Regression):
        def evaluate(self, model: torch.nn.Module) -> dict[str, float]:
            Worse.asked += 1
            return {"error": 5.0 if Worse.asked != 4 else 4.0}

        asked = 0

    patient = held(3, "patient")
    patient.task = Worse()
    with patient.run.writing():
        result = patient.train({})
    assert result["steps"] == 2 * (4 + 3)  # the fourth was the best, three more did not better it
    whole = held(0, "whole")
    with whole.run.writing():
        assert whole.train({})["steps"] == 40
    assert all("root" in line for line in figures(tmp_path / "whole"))


def test_the_meter_counts_what_its_formula_says(tmp_path: Path) -> None:
    held = trainer(tmp_path)
    held.meter = Meter(STEPS, held.task.tokens_per_step, flops_per_token=1000.0, peak_flops=1e6)
    lines: list[dict[str, float]] = []
    with held.run.writing():
        held.train({}, lines.append)
    for line in lines:
        assert line["utilisation"] == pytest.approx(line["tokens_per_second"] * 1000 / 1e6)
        assert line["memory_bytes"] > 1e7
    assert lines[-1]["seconds_left"] == 0
    pace = lines[-1]["tokens_per_second"]
    assert pace == pytest.approx(STEPS * held.task.tokens_per_step / lines[-1]["seconds"], rel=0.5)


def test_random_state_goes_on_where_it_was(tmp_path: Path) -> None:
    """Dropout draws after a resume what it would have drawn."""

    class Dropping(Regression):
        def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
            x, y, counts = batch
            return super().loss(model, (torch.nn.functional.dropout(x, 0.5), y, counts))

    def run_with(name: str, stop: int | None) -> list[dict]:
        torch.manual_seed(0)
        config = TrainerConfig(AdamWConfig(0.01), WarmupStableDecay(10, 0, 0), checkpoint_seconds=0.0)
        held = Trainer(Mean(), Dropping(), config, RunDirectory(tmp_path / name))
        if stop is not None:
            with pytest.raises(StoppedError), held.run.writing():
                held.train({}, stop_at(stop))
            return run_with(name, None)
        with held.run.writing():
            held.train({})
        return figures(tmp_path / name)

    assert run_with("whole", None) == run_with("parts", 6)


@pytest.mark.slow
def test_a_compiled_model_trains_like_itself_and_a_failing_compiler_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, compiled = trainer(tmp_path / "plain"), trainer(tmp_path / "compiled", compile=True)
    with plain.run.writing():
        expected = plain.train({})
    with warnings.catch_warnings(), compiled.run.writing():
        warnings.simplefilter("ignore")  # the compiler's own
        result = compiled.train({})
    assert compiled.warnings == []
    assert result["bits_per_byte"] == pytest.approx(expected["bits_per_byte"], rel=1e-4)

    def refuse(model: torch.nn.Module) -> torch.nn.Module:
        def called(*arguments: object) -> None:
            raise RuntimeError("no working C++ compiler\nmore")

        module = torch.nn.Module()
        module.forward = called  # type: ignore[method-assign]
        return module

    monkeypatch.setattr(torch, "compile", refuse)
    fallen = trainer(tmp_path / "fallen", compile=True)
    with fallen.run.writing():
        assert fallen.train({})["bits_per_byte"] == expected["bits_per_byte"]
    assert fallen.warnings == [
        "torch.compile failed (RuntimeError: no working C++ compiler): training goes on without it"
    ]


def test_training_learns(tmp_path: Path) -> None:
    """Eight equally likely letters: the loss falls from 8 bits to at most a little over 3."""
    held = trainer(tmp_path, schedule=WarmupStableDecay(150, 5, 50), checkpoint_seconds=100.0)
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
        ({"evaluations": 0}, "evaluations: got 0"),
        ({"clip": 0.0}, "clip: got 0.0"),
        ({"accumulation": 0}, "accumulation: got 0"),
        ({"patience": -1}, "patience: got -1"),
    ],
)
def test_impossible_settings_name_the_field(changes: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        trainer(tmp_path, **changes)


@pytest.mark.parametrize(("field", "value"), [("learning_rate", 0.0), ("beta1", 1.0), ("beta2", -0.1)])
def test_impossible_optimisers_name_the_field(field: str, value: float) -> None:
    with pytest.raises(InputError, match=field):
        AdamWConfig(**({"learning_rate": 0.1} | {field: value}))
