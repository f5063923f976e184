"""`verim anatomy`: tables, one JSON object, a trace and a picture; and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest

from verim.anatomy.words import size_words, time_words
from verim.cli import anatomy
from verim.cli.anatomy import AnatomyCommand
from verim.errors import InputError
from verim.models import architecture_config
from verim.runs import RunDirectory


def small(**options: object) -> AnatomyCommand:
    return AnatomyCommand(**{"width": 16, "batch": 2, "length": 16, "steps": 6, **options})  # type: ignore[arg-type]


def test_tables_a_trace_and_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trace, picture = tmp_path / "trace.json", tmp_path / "memory.svg"
    small(trace=trace, memory_picture=picture).run()
    said = capsys.readouterr().out
    for word in ("A step takes", "forward", "backward", "optimiser", "remainder", "blocks.0", "Memory predicted"):
        assert word in said
    events = json.loads(trace.read_text())["traceEvents"]
    assert {event["ph"] for event in events} == {"M", "X", "C"}
    assert all(event["dur"] >= 0 and event["ts"] >= 0 for event in events if event["ph"] == "X")
    assert {event["cat"] for event in events if event["ph"] == "X"} == {"part", "module", "op"}
    assert trace.stat().st_size < 20e6 and picture.stat().st_size < 1e6
    assert picture.read_text().startswith("<svg") and "activations" in picture.read_text()


def test_a_page_says_what_the_ledger_says(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "step.html"
    small(html=page, json=True).run()
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!doctype html>") and page.stat().st_size < 1e6
    memory = values["memory"]
    assert time_words(values["step_seconds"]) in text
    assert size_words(memory["allocator_peak_bytes"] or memory["peak_bytes"]) in text
    assert "transformer, width 16" in text and "32 a step" in text

    def names(module: dict[str, Any]) -> list[str]:
        return [module["name"], *(name for child in module["children"] for name in names(child))]

    assert all(name in text for name in names(values["modules"]))


def test_json_of_a_run_is_the_last_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = architecture_config("mamba", 16)
    run = RunDirectory(tmp_path / "run")
    with run.writing():
        run.start({"model": config.to_json()})
    small(run_directory=tmp_path / "run", json=True).run()
    values = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert values["model"] == json.loads(json.dumps(config.to_json()))
    assert values["step_seconds"] > 0
    assert sum(values["parts"].values()) + values["remainder_seconds"] == pytest.approx(values["step_seconds"])
    assert values["memory"]["peak_bytes"] > 0 and values["modules"]["children"]


def test_a_step_that_does_not_fit_is_refused_before_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anatomy, "machine_card", lambda: {"memory_available_bytes": 3e5})
    with pytest.raises(InputError, match=r"memory: a step needs .* these fit: "):
        small(batch=8, length=32).run()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 4}, "--steps 4: expected 5 or more"),
        ({"threads": 0}, "--threads 0"),
        ({"model": "transfromer"}, "expected one of transformer"),
        ({"accumulation": 3}, "accumulation: got 3 for batch 2"),
        ({"trace": Path("/nowhere/trace.json")}, "there is no folder /nowhere"),
        ({"html": Path("/nowhere/step.html")}, "there is no folder /nowhere"),
    ],
    ids=["steps", "threads", "model", "accumulation", "trace", "html"],
)
def test_what_cannot_be_done_is_said(options: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small(**options).run()
