"""What a trainer carries from step to step beside its weights: precision, averages, the watch for spikes."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from verim.errors import InputError
from verim.models import LanguageModel, architecture_config
from verim.runs import RunDirectory
from verim.train import AdamWConfig, ByteLanguageModelling, Trainer, TrainerConfig, WarmupStableDecay
from verim.train.averaging import AveragingConfig
from verim.train.optimisers import OPTIMISERS, AdamW8bitConfig, MuonConfig
from verim.train.precision import Precision
from verim.train.schedules import Cosine
from verim.train.spikes import SpikeConfig
from verim.train.task import Batch
from verim.train.trainer import model_weights

STEPS = 12
PLAIN = TrainerConfig(
    AdamWConfig(learning_rate=0.01), WarmupStableDecay(STEPS, 2, 4), evaluations=3, checkpoint_seconds=0.0
)
CONFIGS = {
    "averaged": replace(PLAIN, averaging=AveragingConfig(0.9)),
    "bfloat16": replace(PLAIN, precision=Precision("bfloat16")),
    "float16": replace(PLAIN, precision=Precision("float16", initial_scale=2.0**40, growth_interval=3)),
    "bfloat16 weights": replace(PLAIN, precision=Precision("bfloat16_weights"), averaging=AveragingConfig(0.9)),
    "accumulated": replace(PLAIN, accumulation=2, schedule=Cosine(STEPS, warmup=2)),
    "muon": replace(PLAIN, optimiser=MuonConfig(0.01)),
    "8 bit": replace(PLAIN, optimiser=AdamW8bitConfig(0.01)),
    "spikes": replace(PLAIN, spikes=SpikeConfig(threshold=2.0, window=8, patience=1)),
}


class StoppedError(Exception):
    pass


def text(size: int) -> torch.Tensor:
    torch.manual_seed(1)
    return torch.randint(97, 105, (size,), dtype=torch.uint8)


def trainer(directory: Path, config: TrainerConfig, tied: bool = False) -> Trainer:
    torch.manual_seed(0)
    model = LanguageModel(replace(architecture_config("transformer", 16), tied=tied))
    task = ByteLanguageModelling(text(4000), text(700), batch=2, length=16, seed=0, evaluation_bytes=500)
    return Trainer(model, task, config, RunDirectory(directory))


def run(held: Trainer, stop: int | None = None) -> dict:
    def progress(record: dict[str, float]) -> None:
        if record["step"] == stop:
            raise StoppedError

    with held.run.writing():
        return held.train({"a": 1}, progress)


def figures(directory: Path) -> list[dict]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


@pytest.mark.parametrize("name", CONFIGS)
def test_resumed_equals_never_stopped_to_the_bit(name: str, tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole", CONFIGS[name])
    result = run(whole)
    for stop in (5, 9):
        with pytest.raises(StoppedError):
            run(trainer(tmp_path / "parts", CONFIGS[name]), stop)
    parts = trainer(tmp_path / "parts", CONFIGS[name])
    resumed = run(parts)
    assert result["bits_per_byte"] == resumed["bits_per_byte"]
    assert figures(tmp_path / "whole") == figures(tmp_path / "parts")
    one, other = (held.run.latest_checkpoint() for held in (whole, parts))
    assert one is not None and other is not None and one.tensors.keys() == other.tensors.keys()
    for key, tensor in one.tensors.items():
        assert torch.equal(tensor, other.tensors[key]), key


@pytest.mark.parametrize("name", CONFIGS)
def test_configurations_survive_json(name: str) -> None:
    config = replace(CONFIGS[name], spikes=SpikeConfig(window=16))
    assert TrainerConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_configurations_name_what_they_do_not_know() -> None:
    content = PLAIN.to_json()
    with pytest.raises(InputError, match=r"optimiser\.kind: got 'sophia', expected one of sgd"):
        TrainerConfig.from_json(content | {"optimiser": {"kind": "sophia"}})
    with pytest.raises(InputError, match=r"trainer\.speed: unknown"):
        TrainerConfig.from_json(content | {"speed": 1})
    with pytest.raises(InputError, match=r"precision\.bits: unknown"):
        TrainerConfig.from_json(content | {"precision": {"bits": 4}})


@pytest.mark.parametrize("tied", [False, True])
def test_averaged_weights_are_evaluated_and_kept(tied: bool, tmp_path: Path) -> None:
    held = trainer(tmp_path, CONFIGS["averaged"], tied)
    result = run(held)
    checkpoint = held.run.latest_checkpoint()
    assert checkpoint is not None
    fresh = LanguageModel(held.model.config)
    fresh.load_state_dict(model_weights(checkpoint))
    assert held.task.evaluate(fresh.eval())["bits_per_byte"] == result["bits_per_byte"]
    assert held.task.evaluate(held.model.eval())["bits_per_byte"] != result["bits_per_byte"]


def test_an_overflow_lowers_the_scale_and_skips_the_step(tmp_path: Path) -> None:
    run(trainer(tmp_path, CONFIGS["float16"]))
    lines = figures(tmp_path)
    assert lines[0]["loss_scale"] == 2.0**40 and lines[0]["gradient_norm"] is None
    assert min(line["loss_scale"] for line in lines) < 2.0**40
    assert all(math.isfinite(line["loss"]) for line in lines)


@pytest.mark.parametrize("kind", ["bfloat16", "bfloat16_weights"])
def test_halves_learn_as_float32(kind: str, tmp_path: Path) -> None:
    config = replace(PLAIN, schedule=WarmupStableDecay(80, 5, 30), evaluations=1, checkpoint_seconds=60.0)
    exact = run(trainer(tmp_path / "exact", config))["bits_per_byte"]
    halves = run(trainer(tmp_path / "halves", replace(config, precision=Precision(kind))))["bits_per_byte"]
    assert exact < 3.6 and halves == pytest.approx(exact, rel=0.02)


class Poisoned(ByteLanguageModelling):
    """Some batches are noise: their loss and gradient stand out."""

    poison: tuple[int, ...] = ()

    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        loss = super().loss(model, batch)
        return loss * (1e4 if int(batch[0][0, 0]) == 255 else 1.0)

    def batch(self, step: int) -> Batch:
        inputs, targets = super().batch(step)
        if step in self.poison:
            inputs = inputs.clone()
            inputs[:, 0] = 255
        return inputs, targets


def poisoned(directory: Path, poison: tuple[int, ...], patience: int) -> Trainer:
    spikes = SpikeConfig(threshold=8.0, window=8, patience=patience)
    schedule = WarmupStableDecay(40, 2, 10)
    held = trainer(directory, replace(PLAIN, spikes=spikes, schedule=schedule, evaluations=4))
    task = Poisoned(text(4000), text(700), batch=2, length=16, seed=0, evaluation_bytes=500)
    task.poison = poison
    held.task = task
    return held


def test_a_spike_is_skipped(tmp_path: Path) -> None:
    held = poisoned(tmp_path, (25,), patience=3)
    result = run(held)
    skipped = [line["step"] for line in figures(tmp_path) if "skipped" in line]
    assert skipped == [26] and result["steps"] == 40 and held.warnings == []
    assert result["bits_per_byte"] < 5


def test_spikes_in_a_row_are_gone_back_behind_and_a_resume_knows(tmp_path: Path) -> None:
    whole = poisoned(tmp_path / "whole", (25, 26, 27), patience=2)
    result = run(whole)
    assert whole.warnings == ["the loss spiked at step 26: went back to step 25 and left out 2 batches"]
    assert result["steps"] == 40 and whole.standing.passed_over > 0
    with pytest.raises(StoppedError):
        run(poisoned(tmp_path / "parts", (25, 26, 27), patience=2), stop=33)
    parts = poisoned(tmp_path / "parts", (25, 26, 27), patience=2)
    assert run(parts)["bits_per_byte"] == result["bits_per_byte"]
    assert parts.standing.passed_over == whole.standing.passed_over


def test_every_optimiser_trains_a_language_model(tmp_path: Path) -> None:
    rates = {"sgd": 0.3, "momentum": 0.1, "nesterov": 0.1, "adagrad": 0.03, "adadelta": 1.0, "lion": 0.003}
    for name, kind in OPTIMISERS.items():
        config = replace(PLAIN, optimiser=kind(learning_rate=rates.get(name, 0.01)), checkpoint_seconds=60.0)
        run(trainer(tmp_path / name, config))
        losses = [line["loss"] for line in figures(tmp_path / name)]
        assert losses[-1] < losses[0], name
