"""A data set: what was read and nothing twice, whole or not at all, in memory that does not grow with the text."""

import errno
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from verim.data import BuildConfig, Dataset, build, load_corpus
from verim.errors import BusyError, InputError, SpaceError

WORDS = [f"{a}{b}" for a in ("ba", "do", "ki", "lu", "me") for b in ("r", "st", "n", "l")]


def text(number: int, words: int = 120) -> str:
    drawn = np.random.default_rng(number).integers(len(WORDS), size=words)
    return " ".join(WORDS[index] for index in drawn) + f". {number}\n"


def write_texts(folder: Path, count: int, first: int = 0) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    texts = [text(number) for number in range(first, first + count)]
    for number, content in enumerate(texts):
        (folder / f"{number:03d}.txt").write_text(content)
    return texts


def documents(data: Dataset) -> tuple[list[bytes], list[bytes]]:
    """The texts of both parts, of byte tokens."""
    parts = []
    for part in (data.train, data.held_out):
        found = [part.document(number) for number in range(part.documents)]
        assert all(int(tokens[-1]) == data.separator and len(tokens) == size + 1 for tokens, size in found)
        parts.append([bytes(tokens[:-1].tolist()) for tokens, _ in found])
    return parts[0], parts[1]


def test_every_kind_of_file_gives_the_same_documents_once(tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "in" / "text", 40)
    lines = "".join(json.dumps({"text": text}) + "\n" for text in [*texts[20:], text(99)])
    (tmp_path / "in" / "more.jsonl").write_text(lines)
    (tmp_path / "in" / "more.txt.gz").write_bytes(gzip.compress(texts[3].encode()))
    manifest = build([tmp_path / "in"], tmp_path / "out", BuildConfig())
    data = Dataset(tmp_path / "out")
    train, held_out = documents(data)
    assert sorted(train + held_out) == sorted(text.encode() for text in [*texts, text(99)])
    assert manifest == data.manifest
    assert manifest.duplicates == 21
    assert (data.train.documents, data.held_out.documents) == (len(train), len(held_out))
    assert data.train.bytes == sum(map(len, train))
    assert manifest.bytes_per_token == 1
    sources = [json.loads(line) for line in (tmp_path / "out" / "sources.jsonl").read_text().splitlines()]
    assert sum(source["documents"] for source in sources) == 62
    assert {Path(source["path"]).name for source in sources} >= {"more.jsonl", "more.txt.gz", "000.txt"}
    assert not list(tmp_path.glob(".out*"))


def test_the_same_is_held_out_as_by_the_corpus_of_a_study(tmp_path: Path) -> None:
    """Also where large documents are cut."""
    write_texts(tmp_path / "in", 80)
    (tmp_path / "one.txt").write_text("\n".join(text(number) for number in range(300)))
    for path in ("in", "one.txt"):
        corpus = load_corpus([tmp_path / path])
        build([tmp_path / path], tmp_path / f"{path}.data", BuildConfig())
        data = Dataset(tmp_path / f"{path}.data")
        assert data.manifest.corpus_sha256 == corpus.sha256
        assert torch.equal(data.train.read(0, len(data.train)), corpus.train.long())
        assert sorted(documents(data)[1]) == sorted(corpus.held_out.numpy().tobytes().split(b"\0")[:-1])
        assert data.manifest.notes == corpus.notes


def test_two_builds_are_the_same_bytes(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", 60)
    for out in ("a", "b"):
        build([tmp_path / "in"], tmp_path / out, BuildConfig("bpe:300", near_duplicates=0.8))
    contents = [{path.name: path.read_bytes() for path in (tmp_path / out).iterdir()} for out in ("a", "b")]
    assert contents[0] == contents[1]
    assert contents[0].keys() >= {"manifest.json", "tokenizer.json", "train-00000.tokens", "held_out-00000.index"}


def test_near_duplicates_go_and_only_if_asked(tmp_path: Path) -> None:
    texts = write_texts(tmp_path / "in", 40)
    (tmp_path / "in" / "zz.txt").write_text(texts[7].replace(texts[7].split()[60], "another", 1).upper())
    assert build([tmp_path / "in"], tmp_path / "all", BuildConfig()).near_duplicates == 0
    assert build([tmp_path / "in"], tmp_path / "far", BuildConfig(near_duplicates=0.8)).near_duplicates == 1
    train, held_out = documents(Dataset(tmp_path / "far"))
    assert sorted(train + held_out) == sorted(text.encode() for text in texts)


def test_no_part_is_held_out_if_none_is_wanted(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", 3)
    build([tmp_path / "in"], tmp_path / "out", BuildConfig(held_out=0))
    data = Dataset(tmp_path / "out")
    assert (data.train.documents, data.held_out.documents, len(data.held_out)) == (3, 0, 0)
    with pytest.raises(InputError, match="nothing held out"):
        data.evaluation(4, 16)


def test_the_held_out_part_has_a_largest_size(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", 100)
    build([tmp_path / "in"], tmp_path / "out", BuildConfig(held_out_bytes=2000))
    assert 1200 < Dataset(tmp_path / "out").held_out.bytes < 2500


def test_what_cannot_be_built_is_said(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "image.gif").write_bytes(b"\0")
    (tmp_path / "small.txt").write_text("a")
    out = tmp_path / "out"
    for paths, message in (
        ([], "paths: got none"),
        ([tmp_path / "empty"], r"has no text \(1 binary left out\)"),
        ([tmp_path / "none"], "does not exist"),
        ([tmp_path / "small.txt"], "too little to hold 7% out.*--held-out 0"),
    ):
        with pytest.raises(InputError, match=message):
            build(paths, out, BuildConfig())
        assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "small.txt"]
    write_texts(tmp_path / "in", 40)
    (tmp_path / "in" / "bad.txt").write_bytes(b"ab\xff")
    with pytest.raises(InputError, match=r"bad\.txt is not UTF-8 at byte 2"):
        build([tmp_path / "in"], out, BuildConfig())
    assert build([tmp_path / "in"], out, BuildConfig(skip_invalid=True)).skipped == {"undecodable": 1}
    with pytest.raises(InputError, match=r"out exists: remove it, or name another"):
        build([tmp_path / "in"], out, BuildConfig())


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tokenizer": "bpe:256"}, r"tokenizer: got 'bpe:256', expected bpe:VOCAB with a vocabulary from 257"),
        ({"tokenizer": "bpe:99999999"}, "tokenizer: got 'bpe:99999999'"),
        ({"tokenizer": "bpe:many"}, "tokenizer: got 'bpe:many'"),
        ({"tokenizer": "words"}, "tokenizer: got 'words', expected byte, bpe:VOCAB, hf:NAME"),
        ({"tokenizer": "hf:"}, "tokenizer: got 'hf:'"),
        ({"separator": "</s>"}, "separator: got '</s>', but byte has one of its own"),
        ({"held_out": 0.5}, r"held_out: got 0\.5"),
        ({"held_out": float("nan")}, "held_out: got nan"),
        ({"near_duplicates": 0.0}, r"near_duplicates: got 0\.0"),
        ({"shard_tokens": 0}, "shard_tokens: got 0"),
        ({"sample_bytes": 0}, "sample_bytes: got 0"),
        ({"held_out_bytes": 0}, "held_out_bytes: got 0"),
    ],
)
def test_options_that_cannot_work_are_refused(fields: dict, named: str) -> None:
    with pytest.raises(InputError, match=named):
        BuildConfig(**fields)


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_texts(tmp_path / "in", 20)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SpaceError, match=r"no space left to build .*out"):
        build([tmp_path / "in"], tmp_path / "out", BuildConfig())
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_two_processes_do_not_build_the_same(tmp_path: Path) -> None:
    write_texts(tmp_path / "in", 20)
    (tmp_path / ".out.partial").mkdir()
    with FileLock(tmp_path / ".out.partial" / ".lock"), pytest.raises(BusyError, match="another process is building"):
        build([tmp_path / "in"], tmp_path / "out", BuildConfig())
    build([tmp_path / "in"], tmp_path / "out", BuildConfig())
    Dataset(tmp_path / "out")


KILLED = """
import sys, time
from pathlib import Path
from verim.data import BuildConfig, build

def slowly(stage, done, total):
    print(stage, flush=True)
    if stage == sys.argv[3]:
        time.sleep(60)

build([Path(sys.argv[1])], Path(sys.argv[2]), BuildConfig("bpe:300"), slowly)
"""


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["reading", "training the tokenizer", "writing tokens"])
def test_a_killed_build_leaves_no_data_set_and_the_next_one_is_right(tmp_path: Path, stage: str) -> None:
    write_texts(tmp_path / "in", 60)
    arguments = [sys.executable, "-c", KILLED, str(tmp_path / "in"), str(tmp_path / "out"), stage]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while process.stdout.readline().strip() != stage:
            assert process.poll() is None
        time.sleep(0.1)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    assert list(tmp_path.glob(".out*"))
    build([tmp_path / "in"], tmp_path / "out", BuildConfig("bpe:300"))
    build([tmp_path / "in"], tmp_path / "again", BuildConfig("bpe:300"))
    assert not list(tmp_path.glob(".out*"))
    assert Dataset(tmp_path / "out").manifest == Dataset(tmp_path / "again").manifest


MEASURED = """
import resource, sys
from pathlib import Path
from verim.data import BuildConfig, Dataset, Loader, build

small, large, folder = map(Path, sys.argv[1:4])
config = BuildConfig(near_duplicates=0.9, shard_tokens=1 << 24)
build([small], folder / "small.data", config)  # compiles, and takes what does not grow
data_bytes = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_DATA, (data_bytes + int(sys.argv[4]), ) * 2)
print(build([large], folder / "large.data", config).total("bytes"))
"""


def letters(seed: int, count: int) -> str:
    drawn = np.random.default_rng(seed).integers(64, size=count, dtype=np.uint8)
    return (
        np.frombuffer(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ     .....\n\n", np.uint8)[drawn]
        .tobytes()
        .decode()
    )


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="limits on data memory are Linux's")
def test_a_corpus_larger_than_memory_is_built(tmp_path: Path) -> None:
    """Three times as much text as the process may still take: in one file, in one packed file, and JSON lines."""
    size, room = 16_000_000, 16 << 20
    (tmp_path / "small.txt").write_text(letters(0, 200_000))
    large = tmp_path / "large"
    large.mkdir()
    (large / "a.txt").write_text(letters(1, size))
    (large / "b.txt.gz").write_bytes(gzip.compress(letters(2, size).encode(), 1))
    with (large / "c.jsonl").open("w") as lines:
        for number in range(160):
            lines.write(json.dumps({"text": letters(3 + number, size // 150)}) + "\n")
    arguments = [str(tmp_path / "small.txt"), str(large), str(tmp_path), str(room)]
    done = subprocess.run([sys.executable, "-c", MEASURED, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == 2 * size + 160 * (size // 150)
    assert int(done.stdout) > 2.9 * room
    Dataset(tmp_path / "large.data")
