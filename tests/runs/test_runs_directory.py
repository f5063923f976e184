"""A run directory: what is read back, what survives a kill, a damaged file and a full disk."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verim.errors import BusyError, CorruptError, InputError, SpaceError
from verim.runs import RunDirectory, locked, metrics

CONFIG = {"width": 32, "betas": (0.9, 0.95)}


def tensors_at(step: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {"weight": torch.randn(3, 5, generator=generator), "step": torch.tensor(float(step))}


def train(run: RunDirectory, last: int, every: int = 3) -> None:
    """A pretended run: a line a step, a checkpoint every few steps."""
    with run.writing():
        checkpoint = run.start(CONFIG)
        for step in range(checkpoint.step + 1 if checkpoint else 1, last + 1):
            run.log({"step": step, "loss": 1 / step})
            if step % every == 0:
                run.save_checkpoint(step, tensors_at(step), {"seen": step * 10})


@contextmanager
def file_size_limit(limit: int) -> Iterator[None]:
    """No file of this process may grow beyond `limit` bytes: writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_checkpoint_comes_back_bit_for_bit(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    shared = torch.arange(6.0)
    tensors = {
        "bfloat16": torch.randn(4, 4).bfloat16(),
        "transposed": torch.randn(3, 2).T,
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 4),
        "bytes": torch.arange(5, dtype=torch.uint8),
        "whole": shared,
        "tied": shared,
        "slice": shared[2:4],
        "weight with gradient": torch.nn.Parameter(torch.randn(2)),
    }
    with run.writing():
        assert run.start(CONFIG) is None
        run.save_checkpoint(12, tensors, {"lr": 0.1, "names": ["ä", "<b>"], "none": None})
    checkpoint = run.latest_checkpoint()
    assert checkpoint is not None
    assert checkpoint.step == 12
    assert checkpoint.warning is None
    assert checkpoint.state == {"lr": 0.1, "names": ["ä", "<b>"], "none": None}
    assert checkpoint.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert checkpoint.tensors[name].dtype == tensor.dtype
        assert torch.equal(checkpoint.tensors[name], tensor)


def test_only_the_last_two_checkpoints_stay(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    train(run, 12)
    names = sorted(path.name for path in (run.path / "checkpoints").iterdir())
    assert names == ["step-00000009.safetensors", "step-00000012.safetensors"]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 20), max_size=4), st.integers(1, 5))
def test_a_run_stopped_anywhere_ends_with_the_same_files(
    tmp_path_factory: pytest.TempPathFactory, stops: list[int], every: int
) -> None:
    folder = tmp_path_factory.mktemp("stops")
    undisturbed, stopped = RunDirectory(folder / "undisturbed"), RunDirectory(folder / "stopped")
    train(undisturbed, 20, every)
    for last in [*stops, 20]:
        train(stopped, last, every)
    # A run that was asked for fewer steps than it had done is cut back to its checkpoint: finish it.
    train(stopped, 20, every)
    assert (stopped.path / "metrics.jsonl").read_bytes() == (undisturbed.path / "metrics.jsonl").read_bytes()
    first, second = undisturbed.latest_checkpoint(), stopped.latest_checkpoint()
    assert (first is None) == (second is None)
    if first is not None and second is not None:
        assert (first.step, first.state, first.metrics_bytes) == (
            second.step,
            second.state,
            second.metrics_bytes,
        )
        assert torch.equal(first.tensors["weight"], second.tensors["weight"])


def test_lines_beyond_the_checkpoint_and_a_torn_line_are_cut_away(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    train(run, 8)
    with open(run.path / "metrics.jsonl", "ab") as file:
        file.write(b'{"step": 9, "lo')
    assert [line["step"] for line in run.metrics()] == list(range(1, 9))
    with run.writing():
        checkpoint = run.start(CONFIG)
        assert checkpoint is not None
        assert checkpoint.step == 6
        assert [line["step"] for line in run.metrics()] == list(range(1, 7))


def test_metrics_without_a_checkpoint_start_anew(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    train(run, 2)
    with run.writing():
        assert run.start(CONFIG) is None
        assert run.metrics() == []


def test_metrics_shorter_than_their_checkpoint_are_refused(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    train(run, 6)
    os.truncate(run.path / "metrics.jsonl", 10)
    with run.writing(), pytest.raises(CorruptError, match=r"metrics\.jsonl has 10 bytes.*Remove"):
        run.start(CONFIG)


def test_metrics_are_opened_as_bytes_where_the_system_has_text_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, open_file, binary = [], os.open, 1 << 40  # no flag of any system

    def note(path: Path, flags: int, mode: int = 0o777) -> int:
        opened.append((path.name, bool(flags & binary)))
        return open_file(path, flags & ~binary, mode)

    monkeypatch.setattr(metrics, "_BINARY", binary)
    monkeypatch.setattr(metrics.os, "open", note)
    metrics.MetricsLog(tmp_path / "metrics.jsonl", 0).close()
    assert opened == [("metrics.jsonl", True)]


def test_numbers_json_lacks_become_null(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with run.writing():
        run.start(CONFIG)
        run.log({"loss": float("nan"), "norm": float("inf"), "step": 1})
    assert run.metrics() == [{"loss": None, "norm": None, "step": 1}]


@pytest.mark.parametrize("damage", ["header", "body", "end", "empty", "state"])
def test_a_damaged_checkpoint_is_passed_over_and_named(tmp_path: Path, damage: str) -> None:
    run = RunDirectory(tmp_path / "run")
    train(run, 6)
    newest = run.path / "checkpoints" / "step-00000006.safetensors"
    content = bytearray(newest.read_bytes())
    if damage == "header":
        content[3] ^= 0xFF
    elif damage == "body":
        content[-1] ^= 0x01
    elif damage == "end":
        del content[-7:]
    elif damage == "empty":
        content.clear()
    else:
        content = content.replace(b'\\"seen\\": 60', b'\\"seen\\": 61')
        assert b'\\"seen\\": 61' in content
    newest.write_bytes(content)
    checkpoint = run.latest_checkpoint()
    assert checkpoint is not None
    assert checkpoint.step == 3
    assert torch.equal(checkpoint.tensors["weight"], tensors_at(3)["weight"])
    assert checkpoint.warning is not None
    assert str(newest) in checkpoint.warning
    assert "step 3" in checkpoint.warning
    with run.writing():
        run.start(CONFIG)
        assert [line["step"] for line in run.metrics()] == [1, 2, 3]


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_changed_byte_of_tensors_or_state_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    run = RunDirectory(tmp_path_factory.mktemp("bytes") / "run")
    train(run, 3)
    path = run.path / "checkpoints" / "step-00000003.safetensors"
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    # In the header only its padding carries nothing.
    used = [place for place in range(len(content)) if place >= header or content[place : place + 1] != b" "]
    place = data.draw(st.sampled_from(used))
    content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    with pytest.raises(CorruptError):
        run.latest_checkpoint()


def test_no_whole_checkpoint_is_an_error_that_names_file_and_way_out(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    train(run, 6)
    for path in (run.path / "checkpoints").iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    with run.writing(), pytest.raises(CorruptError, match=r"step-00000003.*remove .*run"):
        run.start(CONFIG)


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    train(run, 3)
    with run.writing(), pytest.raises(InputError, match="width = 32, asked for 64"):
        run.start({**CONFIG, "width": 64})
    with run.writing():
        run.start(CONFIG, {"torch": "another"})
    assert run.config() == json.loads(json.dumps(CONFIG))


def test_the_result_says_that_the_run_is_finished(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    train(run, 3)
    assert not run.finished
    with pytest.raises(InputError, match="not finished"):
        run.result()
    with run.writing():
        run.start(CONFIG)
        run.finish({"loss": 1.5})
    assert run.finished
    assert run.result() == {"loss": 1.5}


def test_a_second_holder_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    with locked(tmp_path), pytest.raises(BusyError, match="in use by another process"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def test_the_lock_dies_with_its_process(tmp_path: Path) -> None:
    script = (
        "import sys, time, pathlib\n"
        "from verim.runs.lock import locked\n"
        "with locked(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    time.sleep(60)\n"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "held\n"
        with pytest.raises(BusyError, match=str(tmp_path)), locked(tmp_path, wait_seconds=0.1):
            pass
        owner.send_signal(signal.SIGKILL)
        begin = time.monotonic()
        with locked(tmp_path, wait_seconds=5):
            assert time.monotonic() - begin < 5
    finally:
        owner.kill()
        owner.wait()
        assert owner.stdout is not None
        owner.stdout.close()


def test_a_full_disk_leaves_the_old_checkpoint_and_nothing_half_written(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    train(run, 3)
    with run.writing():
        run.start(CONFIG)
        with file_size_limit(4096):
            run.save_checkpoint(4, {"weight": torch.zeros(10_000)}, {})
            with pytest.raises(SpaceError, match="no space left to write"):
                run.wait()
    assert [path.name for path in (run.path / "checkpoints").iterdir()] == ["step-00000003.safetensors"]


def test_a_full_disk_leaves_whole_lines_of_metrics(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    with run.writing():
        run.start(CONFIG)
        run.log({"step": 1})
        with file_size_limit(40), pytest.raises(SpaceError, match=r"no space left to write .*metrics\.jsonl"):
            run.log({"step": 2, "text": "x" * 100})
        assert (run.path / "metrics.jsonl").read_bytes() == b'{"step": 1}\n'
        run.log({"step": 2})
    assert [line["step"] for line in run.metrics()] == [1, 2]


def test_what_a_killed_process_was_writing_is_removed(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    train(run, 3)
    left = run.path / "checkpoints" / ".step-00000006.safetensors.99.partial"
    left.write_bytes(b"half")
    with run.writing():
        run.start(CONFIG)
    assert not left.exists()


def test_nothing_is_pickled() -> None:
    for path in (Path(__file__).parents[2] / "verim" / "runs").glob("*.py"):
        text = path.read_text()
        assert "pickle" not in text
        assert "torch.load" not in text
        assert "torch.save" not in text
