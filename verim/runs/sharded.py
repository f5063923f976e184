"""A checkpoint of several ranks: a folder with a shard of each and an index, which is written last.

shard-00001-of-00004.safetensors   a rank's tensors and pieces of tensors, with their SHA-256
index.json                         the record, where the pieces of each tensor lie, the SHA-256 of every shard
"""

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from verim.errors import CorruptError
from verim.runs.checkpoint import Checkpoint, Record
from verim.runs.ranks import Ranks
from verim.runs.shards import Piece, ShardedTensors, layout_of, offsets_for_torch, share_out, whole_parts
from verim.runtime.files import read_json, replace_folder, write_json
from verim.runtime.tensors import read_record, tensors_digest, write_tensors

_INDEX = "index.json"


class ShardWriter:
    """Writes what the `ranks` hold together; its methods are collective."""

    def __init__(self, ranks: Ranks) -> None:
        self._ranks = ranks
        self._digests: list[str] = []
        self._keys: list[set[str]] = []
        self._tensors: dict[str, Any] = {}

    def own(self, step: int, pieces: Mapping[str, Piece]) -> dict[str, Piece]:
        """Those of `pieces` that this rank is to write.

        The ranks tell each other what they hold only when that has changed on some rank."""
        layout = json.dumps(layout_of(pieces), sort_keys=True)
        told = self._ranks.gather(f"{step} {hashlib.sha256(layout.encode()).hexdigest()}")
        steps, digests = zip(*(text.split() for text in told), strict=True)
        assert len(set(steps)) == 1, f"ranks save different steps: {steps}"
        if list(digests) != self._digests:
            self._keys, self._tensors = share_out([json.loads(text) for text in self._ranks.gather(layout)])
            self._digests = list(digests)
        return {key: piece for key, piece in pieces.items() if key in self._keys[self._ranks.rank]}

    def write(
        self, folder: Path, record: dict[str, Any], pieces: Mapping[str, Piece], held: Mapping[str, Tensor]
    ) -> None:
        """Writes `held`, the tensors of the `pieces` that `own` returned last: `folder` is whole or not there."""
        partial, count = folder.with_name(f".{folder.name}.partial"), self._ranks.count

        def file(rank: int) -> str:
            return f"shard-{rank + 1:05d}-of-{count:05d}.safetensors"

        def write() -> str:
            partial.mkdir(parents=True, exist_ok=True)
            own = json.dumps({"step": record["step"], "rank": self._ranks.rank, "ranks": count})
            return write_tensors(partial / file(self._ranks.rank), held, own, offsets_for_torch(pieces))

        def seal() -> None:
            shards = [{"file": file(rank), "sha256": digest} for rank, digest in enumerate(digests)]
            content = {"record": record, "shards": shards, "tensors": self._tensors}
            write_json(partial / _INDEX, {"sha256": _digest(content), "content": content})
            replace_folder(partial, folder)

        try:
            digests = self._ranks.on_each(write)
            self._ranks.on_first(seal)
        except BaseException:
            if self._ranks.rank == 0:  # the room that a full disk is short of
                shutil.rmtree(partial, ignore_errors=True)
            raise


def read_sharded(folder: Path, ranks: Ranks) -> Checkpoint:
    """The checkpoint in `folder`, whatever the number of ranks that wrote it; the ranks share its examination.

    Raises `CorruptError` where the index or a shard is missing, damaged, or of another checkpoint."""
    content = ranks.on_first(lambda: _read_index(folder / _INDEX))
    shards = [(folder / shard["file"], shard["sha256"]) for shard in content["shards"]]

    def examine() -> None:
        for path, expected in shards[ranks.rank :: ranks.count]:
            if _examined(path) != expected:
                raise CorruptError(f"{path} is whole but not the shard that {_INDEX} was written for")

    ranks.on_each(examine)
    stored = ranks.together(lambda: ShardedTensors([path for path, _ in shards], content["tensors"]))
    tensors = dict(stored) if ranks.count == 1 else stored
    return Record.of(content["record"], folder).with_tensors(tensors)


def read_file_on_each(path: Path, ranks: Ranks) -> Checkpoint:
    """The checkpoint that one process wrote to `path`, for several ranks: each reads just what it needs."""
    ranks.on_first(lambda: _examined(path))
    stored = ranks.together(lambda: ShardedTensors([path], whole_parts(path)))
    return Record.of(json.loads(read_record(path)), path).with_tensors(stored)


def sharded_figures(folder: Path) -> dict[str, float | None]:
    """What was measured at the checkpoint in `folder`. Raises `CorruptError` where its index cannot be read."""
    return Record.of(_read_index(folder / _INDEX)["record"], folder).figures


def _examined(path: Path) -> str:
    try:
        return tensors_digest(path)
    except FileNotFoundError as error:
        raise CorruptError(f"{path} is not there") from error


def _read_index(path: Path) -> Any:
    try:
        index = read_json(path)
        found = _digest(index["content"])
        if found != index["sha256"]:
            raise CorruptError(f"{path} is damaged: its content has SHA-256 {found[:12]}…")
        return index["content"]
    except FileNotFoundError as error:
        raise CorruptError(f"{path} is not there") from error
    except (KeyError, TypeError) as error:
        raise CorruptError(f"{path} is not the index of a checkpoint ({error!r})") from error


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
