"""Trackers: what the real packages hold afterwards, and that none of them can stop or slow down a training."""

import struct
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from verim.errors import InputError
from verim.runs import trackers as package
from verim.runs.trackers import TRACKERS, trackers

CONFIG = {"width": 32, "model": {"mixer": "mamba", "layers": [1, 2]}}
RESULT = {"bits_per_byte": 1.5, "steps": 1200, "note": "whole"}


class Recorder:
    """Keeps what it is told."""

    def __init__(self, directory: Path) -> None:
        self.told: list[Any] = []

    def start(self, config: Mapping[str, Any], step: int) -> None:
        self.told.append(("start", dict(config), step))

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self.told.append((step, dict(figures)))

    def finish(self, result: Mapping[str, Any] | None) -> None:
        self.told.append(("finish", result))


class Failing(Recorder):
    """Its server goes away at step 3."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        if step >= 3:
            raise ConnectionError("server\naway")
        super().log(step, figures)


class Hanging(Recorder):
    """Its server never answers."""

    released = threading.Event()

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        self.released.wait(60)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorder]:
    """The trackers above under names of installed packages, as they are made."""
    made: dict[str, Recorder] = {}

    def register(name: str, kind: type[Recorder]) -> None:
        def make(directory: Path) -> Recorder:
            made[name] = kind(directory)
            return made[name]

        monkeypatch.setitem(TRACKERS, name, make)

    register("json", Recorder)
    register("csv", Failing)
    register("io", Hanging)
    return made


def test_every_tracker_hears_everything_in_order(made: dict[str, Recorder], tmp_path: Path) -> None:
    with trackers(["json"], tmp_path, pytest.fail) as followers:
        followers.start(CONFIG, 4)
        followers.log(5, {"loss": 2, "text": "no number", "flag": True})
        followers.log(6, {"loss": 1.5})
        followers.finish(RESULT)
    assert made["json"].told == [
        ("start", CONFIG, 4),
        (5, {"loss": 2.0}),
        (6, {"loss": 1.5}),
        ("finish", RESULT),
    ]


def test_a_stopped_run_is_told_so(made: dict[str, Recorder], tmp_path: Path) -> None:
    with suppress(KeyboardInterrupt), trackers(["json"], tmp_path, pytest.fail) as followers:
        followers.start(CONFIG, 0)
        raise KeyboardInterrupt
    assert made["json"].told[-1] == ("finish", None)


def test_a_tracker_that_fails_is_named_once_and_the_others_go_on(made: dict[str, Recorder], tmp_path: Path) -> None:
    said: list[str] = []
    with trackers(["csv", "json"], tmp_path, said.append) as followers:
        followers.start(CONFIG, 0)
        for step in range(1, 8):
            followers.log(step, {"loss": 1 / step})
        followers.finish(RESULT)
    assert said == [
        "tracker csv failed and is left out from here on (ConnectionError: server away): training goes on, and all "
        "figures are in metrics.jsonl"
    ]
    assert [told[0] for told in made["csv"].told] == ["start", 1, 2]
    assert len(made["json"].told) == 9


def test_a_tracker_that_hangs_costs_nothing_and_is_left_at_the_end(made: dict[str, Recorder], tmp_path: Path) -> None:
    said: list[str] = []
    try:
        began = time.monotonic()
        with trackers(["io"], tmp_path, said.append, patience_seconds=0.2) as followers:
            followers.start(CONFIG, 0)
            for step in range(1, 1000):
                followers.log(step, {"loss": 1 / step})
        assert time.monotonic() - began < 10
        assert len(said) == 1 and "it had not taken everything 0 s after the end" in said[0]
    finally:
        Hanging.released.set()


def test_a_tracker_too_far_behind_is_left_out(
    made: dict[str, Recorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package.tracker, "_LONGEST_QUEUE", 5)
    Hanging.released.clear()
    said: list[str] = []
    try:
        with trackers(["io"], tmp_path, said.append, patience_seconds=0.2) as followers:
            for step in range(1, 20):
                followers.log(step, {"loss": 1.0})
        assert len(said) == 1 and "it is 5 steps behind" in said[0]
    finally:
        Hanging.released.set()


def test_a_tracker_that_there_is_not_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="tracker: got 'neptune', expected any of tensorboard, mlflow, wandb"),
        trackers(["neptune"], tmp_path, pytest.fail),
    ):
        pass


@pytest.mark.parametrize("name", TRACKERS)
def test_a_package_that_is_missing_names_its_extra(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with (
        pytest.raises(InputError, match=rf"tracker {name}: .*pip install 'verim\[{name}\]'"),
        trackers([name], tmp_path, pytest.fail),
    ):
        pass


def track(name: str, directory: Path) -> None:
    """1 200 steps, stopped after step 700 and taken up again from step 600."""
    directory.mkdir()
    for first, last in ((0, 700), (600, 1200)):
        with trackers([name], directory, pytest.fail) as followers:
            followers.start(CONFIG, first)
            for step in range(first + 1, last + 1):
                followers.log(step, {"loss": step + (0.5 if first else 0), "norm": float("nan")})
            if last == 1200:
                followers.finish(RESULT)


EXPECTED = [(step, step + (0.5 if step > 600 else 0)) for step in range(1, 1201)]


def test_tensorboard_holds_each_step_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="pip install 'verim[tensorboard]'")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track("tensorboard", tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == EXPECTED
    assert b'"mixer": "mamba"' in events.Tensors("config/text_summary")[0].tensor_proto.string_val[0]


@pytest.mark.filterwarnings("ignore")  # MLflow's own, of what it is built on
def test_mlflow_holds_every_figure_and_the_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow", reason="pip install 'verim[mlflow]'")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    track("mlflow", tmp_path / "run")
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'run' / 'mlflow.db'}")
    (experiment,) = [found for found in client.search_experiments() if found.name == "verim"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED" and run.info.run_name == "run"
    assert run.data.params == {"width": "32", "model.mixer": "mamba", "model.layers": "[1, 2]"}
    assert run.data.metrics["result.bits_per_byte"] == 1.5
    last = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "loss")}
    assert sorted(last.items()) == EXPECTED


@pytest.mark.filterwarnings("ignore")
def test_mlflow_without_its_server_stops_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="pip install 'verim[mlflow]'")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    said: list[str] = []
    with trackers(["mlflow"], tmp_path, said.append) as followers:
        followers.start(CONFIG, 0)
        for step in range(10):
            followers.log(step, {"loss": 1.0})
    assert len(said) == 1 and said[0].startswith("tracker mlflow failed and is left out from here on")


def leveldb_records(content: bytes) -> Iterator[bytes]:
    """The records of W&B's file: LevelDB's log format (blocks of 32 KiB) behind a head of 7 bytes."""
    place, record = 7, b""
    while place < len(content):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[place : place + 7])
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


@pytest.mark.filterwarnings("ignore")
def test_wandb_writes_every_figure_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="pip install 'verim[wandb]'")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.delenv("WANDB_MODE", raising=False)
    track("wandb", tmp_path / "run")
    found: dict[int, float] = {}
    files = sorted((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1  # one run in two pieces, as `wandb sync` joins
    summary = config = ""
    for file in files:
        for content in leveldb_records(file.read_bytes()):
            record = Record.FromString(content)
            items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
            if "loss" in items:
                found[int(items["_step"])] = float(items["loss"])
            summary += "".join(f"{item.key}={item.value_json};" for item in record.summary.update)
            config += "".join(f"{item.key}={item.value_json};" for item in record.run.config.update)
    assert sorted(found.items()) == EXPECTED
    assert "bits_per_byte=1.5" in summary
    assert "width=32" in config
