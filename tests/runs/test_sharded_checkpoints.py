"""Checkpoints of several ranks: what 2 ranks wrote, 4 ranks take up, and then one process; and what goes wrong.

The checks run inside the processes (ranks_of_a_run.py).
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import ranks_of_a_run
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from verim.errors import InputError
from verim.runs import Checkpoint, RunDirectory, SliceOf
from verim.runs.shards import ShardedTensors, layout_of, pieces_by_key, share_out
from verim.runtime.tensors import write_tensors

SECONDS = 120


def on_ranks(ranks: int, folder: Path, *checks: str, killed: tuple[int, ...] = ()) -> None:
    """Runs the checks on so many processes."""
    script = Path(ranks_of_a_run.__file__)
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "error", str(script), str(rank), str(ranks), str(folder), *checks],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        said = [process.communicate(timeout=SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for rank in set(range(ranks)) - set(killed):
        result = folder / f"{rank}.json"
        assert result.exists(), said[rank]
        came_out = json.loads(result.read_text())
        assert came_out == dict.fromkeys(checks), "\n".join(text for text in came_out.values() if text)
        result.unlink()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that two ranks begin; the tests below go on with it in turn."""
    folder = tmp_path_factory.mktemp("ranks")
    on_ranks(
        2, folder, "to_step_6", "written_once", "torch_reads_it", "another_model", "own_generators", "shapes_differ"
    )
    return folder


def test_two_ranks_begin_four_go_on_and_one_ends(folder: Path) -> None:
    on_ranks(4, folder, "to_step_11", "one_run_is_in_use", "settings_differ")
    run = RunDirectory(folder / "run")
    assert [line["step"] for line in run.metrics()] == list(range(1, 12))
    assert run.checkpoint_steps() == [8, 10]
    checkpoint = run.latest_checkpoint()
    assert checkpoint is not None
    assert checkpoint.figures == {"bits_per_byte": 0.1}
    for name, tensor in ranks_of_a_run.whole(10).items():
        assert torch.equal(checkpoint.tensors[name], tensor), name


def test_what_one_rank_finds_wrong_all_are_told(tmp_path: Path) -> None:
    on_ranks(2, tmp_path, "to_step_6", "a_missing_shard", "full_disk_on_one_rank", "all_damaged")
    on_ranks(2, tmp_path, "a_rank_dies", killed=(1,))
    assert RunDirectory(tmp_path / "run").checkpoint_steps() == [4, 8]


def damaged(folder: Path, damage: str) -> Path:
    """Damages the newest checkpoint in the way of that name; the file that was touched."""
    older, newest = sorted((folder / "checkpoints").glob("step-????????"))
    shard, index = sorted(newest.glob("shard-*"))[0], newest / "index.json"
    path = index if "index" in damage else shard
    content = bytearray(path.read_bytes())
    if damage == "a bit of a shard":
        content[-1] ^= 1
    elif damage == "a bit of a shard's head":
        content[30] ^= 1
    elif damage == "the end of a shard":
        del content[-9:]
    elif damage == "a shard of another step":
        content = bytearray((older / shard.name).read_bytes())
    elif damage == "a digit of the index":
        content = content.replace(b'"metrics_bytes": ', b'"metrics_bytes": 1')
    elif damage == "the end of the index":
        del content[-20:]
    elif damage == "another index":
        content = bytearray((older / "index.json").read_bytes())
    elif damage == "no JSON object in the index":
        content = bytearray(b"[1, 2]")
    path.write_bytes(content)
    if damage in ("no shard", "no index"):
        path.unlink()
    return path


@pytest.mark.parametrize(
    "damage",
    [
        "a bit of a shard",
        "a bit of a shard's head",
        "the end of a shard",
        "a shard of another step",
        "no shard",
        "a digit of the index",
        "the end of the index",
        "another index",
        "no JSON object in the index",
        "no index",
    ],
)
def test_a_damaged_part_is_named_and_the_checkpoint_before_is_used(folder: Path, tmp_path: Path, damage: str) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    older, _ = run.checkpoint_steps()
    path = damaged(run.path, damage)
    with run.writing():
        checkpoint = run.start({"width": 3})
    assert checkpoint is not None and checkpoint.step == older and checkpoint.warning is not None
    assert path.name in checkpoint.warning or path.parent.name in checkpoint.warning
    assert f"going on from step {older} instead" in checkpoint.warning
    assert torch.equal(checkpoint.tensors["rows"], ranks_of_a_run.whole(older)["rows"])
    assert [line["step"] for line in run.metrics()] == list(range(1, older + 1))
    assert run.checkpoint_steps() == [older]  # the damaged one lies aside until its step is done again


def test_a_file_of_one_process_follows_the_shards_of_several(folder: Path, tmp_path: Path) -> None:
    """Also at the same step: what was written last counts."""
    shutil.copytree(folder / "run", tmp_path / "run")
    run = RunDirectory(tmp_path / "run")
    with run.writing():
        checkpoint = run.start({"width": 3})
        assert checkpoint is not None
        run.save_checkpoint(checkpoint.step, {"rows": torch.ones(2)}, {})
    again = run.latest_checkpoint()
    assert again is not None
    assert again.step == checkpoint.step and again.tensors["rows"].tolist() == [1, 1]


SIZES = st.integers(0, 6)


@settings(max_examples=150, deadline=None)
@given(st.data(), st.lists(SIZES, min_size=1, max_size=3), st.integers(1, 4), st.integers(1, 4))
def test_slices_of_any_shape_are_written_once_and_come_back(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, shape: list[int], before: int, after: int
) -> None:
    """However many ranks divide a tensor by hand, some parts of it whole on all: another number reads the same."""
    dim = data.draw(st.integers(0, len(shape) - 1))
    cuts = sorted(data.draw(st.lists(st.integers(0, shape[dim]), max_size=3)))
    common = data.draw(st.lists(st.booleans(), min_size=len(cuts) + 1, max_size=len(cuts) + 1))
    whole = torch.randn(shape)

    def slices(ranks: int, tensor: torch.Tensor) -> list[SliceOf]:
        held = []
        for rank in range(ranks):
            ranges = []
            for start, stop, shared in zip([0, *cuts], [*cuts, shape[dim]], common, strict=True):
                size = stop - start
                part = (0, size) if shared else (size * rank // ranks, size * (rank + 1) // ranks)
                ranges.append((start + part[0], start + part[1]))
            kept = torch.cat([tensor.narrow(dim, start, stop - start) for start, stop in ranges], dim)
            held.append(SliceOf(kept, tuple(shape), dim, ranges))
        return held

    pieces = [pieces_by_key({"weight": held}) for held in slices(before, whole)]
    keys, tensors = share_out([layout_of(own) for own in pieces])
    folder = tmp_path_factory.mktemp("slices")
    files = [folder / f"{rank}.safetensors" for rank in range(before)]
    for file, own, written in zip(files, pieces, keys, strict=True):
        write_tensors(file, {key: own[key].tensor for key in written})
    stored = ShardedTensors(files, tensors)
    assert torch.equal(stored["weight"], whole)
    checkpoint = Checkpoint(1, stored, {}, 0)
    targets = slices(after, torch.zeros(shape))
    for target, expected in zip(targets, slices(after, whole), strict=True):
        checkpoint.load_into({"weight": target})
        assert torch.equal(target.tensor, expected.tensor)


def test_a_slice_that_does_not_fit_its_ranges_is_refused() -> None:
    with pytest.raises(InputError, match=r"ranges: got \[\(0, 2\)\] along dimension 1 of \(3, 4\), expected a tensor"):
        SliceOf(torch.zeros(3, 3), (3, 4), 1, [(0, 2)])
