"""Checkpoints of one process: written while training goes on, kept by a rule, gone back to, never half there."""

import os
import random
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verim.errors import CorruptError, InputError, SpaceError
from verim.runs import Retention, RunDirectory, random_state, restore_random_state, store
from verim.runs.staging import Staging
from verim.runtime import files
from verim.runtime.files import recover_folder, replace_folder


@pytest.fixture
def held_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Checkpoints are not written before this event is set."""
    go, write = threading.Event(), store.write_tensors

    def wait_and_write(*arguments: object) -> str:
        assert go.wait(20)
        return write(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "write_tensors", wait_and_write)
    yield go
    go.set()


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, held_up: threading.Event) -> None:
    """The values are those of the moment of the call, and the metrics too."""
    run, weight, state = RunDirectory(tmp_path / "run"), torch.ones(1000), {"list": [1]}
    with run.writing():
        run.start({})
        run.log({"step": 1})
        run.save_checkpoint(1, {"weight": weight}, state)
        weight.add_(1)
        state["list"].append(2)
        run.log({"step": 2})
        assert run.checkpoint_steps() == []
        held_up.set()
        run.wait()
        assert run.checkpoint_steps() == [1]
        weight.add_(1)
        run.save_checkpoint(2, {"weight": weight}, state)  # into the same buffers
    first, second = run.checkpoint(1), run.checkpoint(2)
    assert first.tensors["weight"].unique().tolist() == [1] and second.tensors["weight"].unique().tolist() == [3]
    assert first.state == {"list": [1]} and second.state == {"list": [1, 2]}
    assert first.metrics_bytes == len('{"step": 1}\n')


def test_the_next_checkpoint_waits_for_the_one_before(tmp_path: Path, held_up: threading.Event) -> None:
    run, weight = RunDirectory(tmp_path / "run"), torch.ones(10)
    with run.writing():
        run.start({})
        run.save_checkpoint(1, {"weight": weight}, {})
        second = threading.Thread(target=run.save_checkpoint, args=(2, {"weight": weight}, {}))
        second.start()
        second.join(0.1)
        assert second.is_alive()
        held_up.set()
        second.join(20)
    assert run.checkpoint_steps() == [1, 2]


@pytest.mark.parametrize("call", ["log", "save_checkpoint", "wait", "finish", "the end"])
def test_what_went_wrong_with_a_checkpoint_comes_up_once_at_the_next_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*arguments: object) -> str:
        raise SpaceError(28, "no space left to write it")

    run = RunDirectory(tmp_path / "run")
    calls = {
        "log": lambda: run.log({}),
        "save_checkpoint": lambda: run.save_checkpoint(2, {}, {}),
        "wait": run.wait,
        "finish": lambda: run.finish({}),
        "the end": lambda: None,
    }

    def train() -> None:
        with run.writing():
            run.start({})
            with monkeypatch.context() as broken:
                broken.setattr(store, "write_tensors", fail)
                run.save_checkpoint(1, {}, {})
                while run._checkpoints._background._error is None:
                    pass
            calls[call]()

    with pytest.raises(SpaceError, match="no space left to write it"):
        train()
    assert not run.finished
    with run.writing():
        assert run.start({}) is None
        run.save_checkpoint(1, {}, {})
    assert run.checkpoint_steps() == [1]


def test_an_error_of_the_training_is_not_hidden_by_one_of_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> str:
        raise SpaceError(28, "no space left to write it")

    monkeypatch.setattr(store, "write_tensors", fail)
    run = RunDirectory(tmp_path / "run")

    def train() -> None:
        with run.writing():
            run.start({})
            run.save_checkpoint(1, {}, {})
            raise ZeroDivisionError("of the training")

    with pytest.raises(ZeroDivisionError, match="of the training") as caught:
        train()
    assert "the last checkpoint could not be written: [Errno 28] no space left" in caught.value.__notes__[0]


def test_in_the_foreground_nothing_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Staging, "copy", lambda *_: pytest.fail("a copy was made"))
    run = RunDirectory(tmp_path / "run", asynchronous=False)
    with run.writing():
        run.start({})
        run.save_checkpoint(1, {"weight": torch.ones(2)}, {})
        assert run.checkpoint_steps() == [1]


def test_buffers_are_kept_and_tied_tensors_share_one() -> None:
    staging, tied = Staging(), torch.ones(3)
    first = staging.copy({"one": tied, "two": tied, "none": torch.zeros(0), "turned": torch.ones(2, 3).T})
    assert first["one"].data_ptr() == first["two"].data_ptr() != tied.data_ptr()
    assert first["turned"].is_contiguous()
    second = staging.copy({"one": tied + 1, "two": tied + 2, "none": torch.zeros(0), "turned": torch.ones(3, 3)})
    assert second["one"].data_ptr() == first["one"].data_ptr() != second["two"].data_ptr()
    assert [second[name].unique().tolist() for name in ("one", "two", "turned")] == [[2], [3], [1]]


FIGURES = {
    1: {"loss": 5.0},
    2: {"loss": 3.0},
    3: {},
    4: {"loss": 3.0},
    5: {"loss": None},
    6: {"loss": 4.0},
    7: {"other": 0.0},
}


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        (Retention(), {6, 7}),
        (Retention(last=1), {7}),
        (Retention(best="loss"), {4, 6, 7}),
        (Retention(best="loss", lowest=False), {1, 6, 7}),
        (Retention(last=1, every=3), {3, 6, 7}),
        (Retention(last=99), set(FIGURES)),
        (Retention(last=1, best="none"), {7}),
    ],
    ids=repr,
)
def test_the_rule_keeps_the_last_the_best_and_every_so_often(rule: Retention, kept: set[int], tmp_path: Path) -> None:
    assert rule.kept(FIGURES) == kept
    run = RunDirectory(tmp_path / "run", rule)
    with run.writing():
        run.start({})
        for step, figures in FIGURES.items():
            run.save_checkpoint(step, {}, {}, {key: float("nan") if v is None else v for key, v in figures.items()})
    assert set(run.checkpoint_steps()) >= kept  # one that is the best for a while may have been kept for that
    assert run.checkpoint_steps()[-1] == 7
    if rule.best != "loss":
        assert set(run.checkpoint_steps()) == kept


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.integers(0, 50), st.floats(-5, 5), min_size=1, max_size=12),
    st.integers(1, 4),
    st.one_of(st.none(), st.integers(1, 7)),
)
def test_what_is_kept_after_each_checkpoint_is_what_is_kept_of_all(
    losses: dict[int, float], last: int, every: int | None
) -> None:
    rule = Retention(last, "loss", True, every)
    kept: dict[int, dict[str, float | None]] = {}
    for step in sorted(losses):
        kept[step] = {"loss": losses[step]}
        kept = {each: kept[each] for each in rule.kept(kept)}
    assert kept.keys() == rule.kept({step: {"loss": loss} for step, loss in losses.items()})


@pytest.mark.parametrize("wrong", [{"last": 0}, {"every": 0}], ids=str)
def test_an_impossible_rule_names_its_field(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match=rf"{next(iter(wrong))}: got 0"):
        Retention(**wrong)


def steps_to(run: RunDirectory, first: int, last: int) -> None:
    for step in range(first, last + 1):
        run.log({"step": step})
        run.save_checkpoint(step, {"weight": torch.full((3,), float(step))}, {})


def test_going_back_undoes_what_came_after(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run", Retention(last=4))
    with run.writing():
        run.start({})
        steps_to(run, 1, 6)
        checkpoint = run.rewind(4)
        assert checkpoint is not None and checkpoint.step == 4 and checkpoint.warning is None
        assert [line["step"] for line in run.metrics()] == [1, 2, 3, 4]
        assert run.checkpoint_steps() == [3, 4]
        steps_to(run, 5, 5)
        run.wait()
        assert len(list(run.path.glob("checkpoints/aside-*"))) == 1  # step 6: nothing newer is whole yet
        steps_to(run, 6, 6)
        run.wait()
        assert not list(run.path.glob("checkpoints/aside-*"))
        assert run.rewind(2) is None
        assert run.metrics() == [] and run.checkpoint_steps() == []


def test_who_may_read_a_run_may_read_its_checkpoints(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with run.writing():
        run.start({})
        steps_to(run, 1, 1)
    (file,) = run.path.glob("checkpoints/*")
    assert file.stat().st_mode == (run.path / "config.json").stat().st_mode


def test_a_checkpoint_is_found_by_its_step(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with run.writing():
        run.start({})
        steps_to(run, 1, 2)
    assert run.checkpoint(1).tensors["weight"].tolist() == [1, 1, 1]
    with pytest.raises(CorruptError, match=r"step-00000007\.safetensors is not there"):
        run.checkpoint(7)


def test_a_reader_whose_checkpoint_is_removed_meanwhile_takes_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, read = RunDirectory(tmp_path / "run"), store.read_tensors
    with run.writing():
        run.start({})
        steps_to(run, 1, 2)
        run.wait()

        def train_meanwhile(path: Path) -> object:
            monkeypatch.setattr(store, "read_tensors", read)
            steps_to(run, 3, 5)
            run.wait()
            return read(path)

        monkeypatch.setattr(store, "read_tensors", train_meanwhile)
        found = RunDirectory(run.path).latest_checkpoint()
    assert found is not None and found.step == 5 and found.warning is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "is not there: expected the directory of a run"),
        (lambda path: path.write_text(""), "is a file: expected the directory of a run"),
        (lambda path: path.mkdir(), "has no config.json: no run was started there"),
        (lambda path: (path.mkdir(), (path / "study.json").write_text("{}")), "is a study: name one of its runs"),
    ],
    ids=["nothing", "file", "folder", "study"],
)
def test_a_run_that_is_not_there_is_refused(make: object, message: str, tmp_path: Path) -> None:
    make(tmp_path / "run")  # type: ignore[operator]
    with pytest.raises(InputError, match=message):
        RunDirectory.existing(tmp_path / "run")


def test_another_model_is_refused_and_nothing_is_changed(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with run.writing():
        run.start({})
        run.save_checkpoint(1, {"a": torch.ones(2), "b": torch.ones(2, 2), "s": torch.tensor(3.0)}, {})
    checkpoint = run.checkpoint(1)
    targets = {"a": torch.zeros(2), "b": torch.zeros(2), "c": torch.zeros(1), "s": torch.zeros(())}
    words = r"of another model: b is \(2, 2\) in the checkpoint, \(2,\) here; c is not there in the checkpoint, \(1,\)"
    with pytest.raises(InputError, match=words):
        checkpoint.load_into(targets)
    assert targets["a"].tolist() == [0, 0]
    checkpoint.load_into({"a": targets["a"], "s": targets["s"]})
    assert targets["a"].tolist() == [1, 1] and targets["s"].item() == 3


def test_every_generator_goes_on_where_it_was() -> None:
    np.random.standard_normal()  # noqa: NPY002 - half of a pair is kept back: that is part of the state
    saved = random_state("rank 3")

    def draw() -> list[float]:
        return [torch.rand(1).item(), random.gauss(0, 1), float(np.random.standard_normal())]  # noqa: NPY002

    first = draw()
    assert draw() != first
    assert restore_random_state(saved, "rank 3")
    assert draw() == first
    assert not restore_random_state(saved, "rank 4")


@pytest.mark.parametrize("dies_at", [1, 2, 3])
def test_a_folder_is_replaced_or_not_wherever_a_kill_comes(
    dies_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new, target = tmp_path / ".new", tmp_path / "target"
    for folder, text in ((new, "new"), (target, "old")):
        folder.mkdir()
        (folder / "file").write_text(text)
    calls = iter(range(1, 9))

    def dying(real: object) -> object:
        def call(*arguments: object, **options: object) -> object:
            if next(calls) == dies_at:
                raise KeyboardInterrupt
            return real(*arguments, **options)  # type: ignore[operator]

        return call

    with monkeypatch.context() as patched:
        patched.setattr(files.os, "replace", dying(os.replace))
        patched.setattr(files.shutil, "rmtree", dying(shutil.rmtree))
        with pytest.raises(KeyboardInterrupt):
            replace_folder(new, target)
    for old in tmp_path.glob(".*.old"):
        recover_folder(old)
    assert (target / "file").read_text() == ("new" if dies_at == 3 else "old")
    assert not list(tmp_path.glob(".*.old"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no file system may be mounted here; test_a_full_disk_leaves… limits the size of files instead")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_stops_the_run_and_leaves_it_resumable(small_disk: Path) -> None:
    run, filler = RunDirectory(small_disk / "run"), small_disk / "filler"

    def train() -> None:
        with run.writing():
            run.start({})
            steps_to(run, 1, 2)
            run.wait()
            filler.write_bytes(bytes(600_000))
            run.log({"step": 3})
            run.save_checkpoint(3, {"weight": torch.zeros(150_000)}, {})
            run.wait()

    with pytest.raises(SpaceError, match=r"no space left to write .*step-00000003.*: free some space"):
        train()
    assert not list(run.path.glob("checkpoints/.*"))
    filler.unlink()
    with run.writing():
        checkpoint = run.start({})
        assert checkpoint is not None and checkpoint.step == 2 and checkpoint.warning is None
        assert [line["step"] for line in run.metrics()] == [1, 2]
        steps_to(run, 3, 4)
    assert run.checkpoint_steps() == [3, 4]
