"""`verim whatif`: a page of figures, one JSON object, layouts over devices, and what it refuses."""

import dataclasses
import json
from pathlib import Path

import pytest

from verim.anatomy.devices import device
from verim.anatomy.whatif import FittedRates
from verim.cli import whatif
from verim.cli.whatif import WhatifCommand
from verim.errors import InputError
from verim.models import architecture_config
from verim.runs import RunDirectory
from verim.train.parallel import ParallelConfig


def small(**options: object) -> WhatifCommand:
    return WhatifCommand(**{"width": 16, "batch": 8, "length": 32, "device": "h100", **options})  # type: ignore[arg-type]


def values_of(capsys: pytest.CaptureFixture[str], **options: object) -> dict[str, object]:
    small(json=True, **options).run()
    values: dict[str, object] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return values


def test_the_page_says_what_was_asked(capsys: pytest.CaptureFixture[str]) -> None:
    small(price_per_hour=2.0).run()
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "A step on 1 × h100-sxm takes",
        "tokens/s",
        "dense bfloat16 peak",
        "costs 48.00",
        "17 kWh",
        "aten.mm",
    ):
        assert words in said
    assert "not back-tested" in said


def test_copies_on_several_devices(capsys: pytest.CaptureFixture[str]) -> None:
    one, four = values_of(capsys), values_of(capsys, count=4)
    assert (one["count"], four["count"]) == (1, 4)
    assert one["tokens_per_step"] == four["tokens_per_step"] == 8 * 32
    assert one["flops"] == pytest.approx(four["flops"])
    assert four["computing_seconds"]["likely"] <= one["computing_seconds"]["likely"]  # type: ignore[index]
    assert four["waiting_seconds"]["high"] > 0 == one["waiting_seconds"]["high"]  # type: ignore[index]


@pytest.mark.parametrize(
    "parallel",
    [
        ParallelConfig(shard=4),
        ParallelConfig(data=2, tensor=2),
        ParallelConfig(context=2),
        ParallelConfig(shard=2, activation_checkpointing="full"),
    ],
    ids=["shard", "data-tensor", "context", "checkpointed"],
)
def test_layouts(parallel: ParallelConfig, capsys: pytest.CaptureFixture[str]) -> None:
    values = values_of(capsys, model="transformer", width=32, parallel=parallel)
    assert values["count"] == parallel.ranks
    for name in ("computing_seconds", "waiting_seconds", "step_seconds"):
        band = values[name]
        assert band["low"] <= band["likely"] <= band["high"]  # type: ignore[index]
    assert values["step_seconds"]["likely"] > 0  # type: ignore[index]


def test_stages_wait(capsys: pytest.CaptureFixture[str]) -> None:
    two = ParallelConfig(pipeline=2, micro_batches=2)
    values = values_of(capsys, width=128, parallel=two)
    third = values["computing_seconds"]["likely"] / 2  # type: ignore[index]
    assert values["waiting_seconds"]["likely"] >= third  # type: ignore[index]  # (p − 1) / (m + p − 1) of the step


def test_a_run_and_a_file_give_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = architecture_config("mamba", 16).to_json()
    run = RunDirectory(tmp_path / "run")
    with run.writing():
        run.start({"model": config})
    (tmp_path / "model.json").write_text(json.dumps(config))
    named = values_of(capsys, model="mamba")
    assert values_of(capsys, run_directory=tmp_path / "run") == named
    assert values_of(capsys, run_directory=tmp_path / "model.json") == named


def test_this_machine_is_predicted_by_its_prices(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prices = {"all": (1e-6, 1e-12, 1e-10, 0.0)}
    rates = FittedRates(prices, 0.1, 42)
    monkeypatch.setattr(whatif, "rates_here", lambda refresh, told: rates)
    values = values_of(capsys, device="this")
    likely = values["step_seconds"]["likely"]  # type: ignore[index]
    assert values["step_seconds"]["high"] == pytest.approx(1.1 * likely)  # type: ignore[index]
    assert values["basis"].startswith("prices of ops fitted to 42 steps")  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "h1000"}, "expected one of this, a100-80gb"),
        ({"count": 8, "parallel": ParallelConfig(data=3)}, "3 ranks, but 8 were given"),
        ({"count": 3}, "data: got 3 for a batch of 8"),
        ({"count": 0}, "--count 0"),
        ({"parallel": ParallelConfig(tensor=3)}, "tensor: got 3"),
        ({"price_per_hour": 0.0}, "--price-per-hour 0.0"),
        ({"model": "transfromer"}, "expected one of transformer"),
        ({"count": 4, "accumulation": 4}, "accumulation: got 4 for 2 sequences a rank"),
    ],
)
def test_what_cannot_be_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small(**options).run()


def test_a_layout_that_does_not_fit_names_some_that_do(monkeypatch: pytest.MonkeyPatch) -> None:
    tight = dataclasses.replace(device("h100"), memory_bytes=2_000_000)
    monkeypatch.setattr(whatif, "device_named", lambda name: tight)
    with pytest.raises(InputError, match=r"memory: a rank needs .*h100-sxm has for tensors; these fit: "):
        small(width=64, batch=64, length=128, count=2).run()
