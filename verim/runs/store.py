"""The folder of a run's checkpoints: written behind the training's back, each whole or not there.

step-00001234.safetensors        by one process: the tensors and the record, with their SHA-256
step-00001234/                   by several ranks: see verim.runs.sharded
aside-step-…                     what a resumed run went back behind: damaged, or undone
"""

import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from verim.errors import CorruptError
from verim.runs.background import Background
from verim.runs.checkpoint import Checkpoint, Record
from verim.runs.ranks import Ranks
from verim.runs.retention import Retention
from verim.runs.sharded import ShardWriter, read_file_on_each, read_sharded, sharded_figures
from verim.runs.shards import Held, Piece, pieces_by_key, whole_of
from verim.runs.staging import Staging
from verim.runtime.files import recover_folder
from verim.runtime.tensors import read_record, read_tensors, write_tensors

_NAME = re.compile(r"(aside-)?step-(\d+)(\.safetensors)?")


class CheckpointStore:
    """Writes into `folder` and reads from it; with several `ranks`, saving and reading are collective."""

    def __init__(self, folder: Path, ranks: Ranks, retention: Retention, asynchronous: bool) -> None:
        self.folder, self._ranks, self._retention, self._asynchronous = folder, ranks, retention, asynchronous
        self._background = Background("checkpoint")
        self._staging = Staging()
        self._shard_writer = ShardWriter(ranks)

    def save(self, record: Record, tensors: Mapping[str, Held], before: Callable[[], None]) -> None:
        """Begins to write a checkpoint; returns when the tensors may change again. `before` is done first.

        Raises what went wrong with the checkpoint before, `ValueError` where the state holds NaN or infinity."""
        self.wait()
        text = json.dumps(vars(record), allow_nan=False)  # now: the caller may change the state meanwhile
        pieces: dict[str, Piece] = {}
        if self._ranks.count > 1:
            pieces = self._shard_writer.own(record.step, pieces_by_key(tensors))
            held = {key: piece.tensor for key, piece in pieces.items()}
        else:
            held = {name: whole_of(name, tensor) for name, tensor in tensors.items()}
        if self._asynchronous:
            held = self._staging.copy(held)
        folder, file = self.folder / f"step-{record.step:08d}", self.folder / f"step-{record.step:08d}.safetensors"

        def write() -> None:
            self.folder.mkdir(exist_ok=True)
            before()
            if self._ranks.count > 1:
                self._shard_writer.write(folder, json.loads(text), pieces, held)
            else:
                write_tensors(file, held, text)
            if self._ranks.rank == 0:
                _remove(file if self._ranks.count > 1 else folder)  # of a run on another number of ranks
                self._remove_superfluous()

        if self._asynchronous:
            self._background.start(write)
        else:
            write()

    def check(self) -> None:
        """Raises what went wrong with the checkpoint being written; does not wait for it."""
        self._background.check()

    def wait(self) -> None:
        """Returns when no checkpoint is being written. Raises what went wrong with it."""
        self._background.wait()

    def steps(self) -> list[int]:
        """The steps of the checkpoints, whole or damaged, rising."""
        return sorted({step for step, _ in self._found()})

    def newest(self, up_to: int | None = None) -> Checkpoint | None:
        """The newest whole checkpoint (of a step no later than `up_to`), None where there is none at all.

        Raises `CorruptError` where there are some but none is whole."""
        damaged: list[str] = []
        steps: list[int] = self._ranks.on_first(self.steps)
        while steps:
            step = steps.pop()
            if up_to is not None and step > up_to:
                continue
            try:
                checkpoint = self.read(step)
            except CorruptError as error:
                if self._ranks.count == 1 and any(newer > step for newer in self.steps()) and not damaged:
                    steps = self.steps()  # another process trains here and removed this one
                else:
                    damaged.append(str(error))
                continue
            return replace(checkpoint, warning=_warning(damaged, step))
        if damaged:
            raise CorruptError(
                f"no checkpoint can be read: {'; '.join(damaged)}. "
                f"Restore one, or remove {self.folder.parent} to run it from the start"
            )
        return None

    def read(self, step: int) -> Checkpoint:
        """The checkpoint of `step`. Raises `CorruptError` where it is not there, not whole or not what was written."""
        folder, file = self.folder / f"step-{step:08d}", self.folder / f"step-{step:08d}.safetensors"
        if self._ranks.on_first(folder.is_dir):
            return read_sharded(folder, self._ranks)
        if self._ranks.count > 1:
            return read_file_on_each(file, self._ranks)
        try:
            tensors, text = read_tensors(file)
            return Record.of(json.loads(text), file).with_tensors(tensors)
        except FileNotFoundError as error:
            raise CorruptError(f"{file} is not there") from error
        except json.JSONDecodeError as error:
            raise CorruptError(f"{file} is not a checkpoint of Verim ({error})") from error

    def tidy(self) -> None:
        """Removes what a killed process was writing or removing: nobody else writes here."""
        for path in [*self.folder.glob(".*.partial"), *self.folder.glob(".tmp*")]:  # the latter are safetensors' own
            _remove(path)
        for path in self.folder.glob(".*.old"):
            recover_folder(path)

    def set_aside_after(self, step: int) -> None:
        """Renames the checkpoints after `step`: the run goes on from there, and they would be taken for the newest."""
        for later, path in self._found():
            if later > step:
                aside = path.with_name(f"aside-{path.name}")
                _remove(aside)
                os.replace(path, aside)

    def _remove_superfluous(self) -> None:
        """Removes what the rule does not keep, and what lies aside of steps that were done again since."""
        figures = {step: _figures(path) for step, path in self._found()}
        kept = self._retention.kept(figures)
        for step, path in self._found():
            if step not in kept:
                _remove(path)
        for step, path in self._found(aside=True):
            if step <= max(figures):
                _remove(path)

    def _found(self, aside: bool = False) -> list[tuple[int, Path]]:
        if not self.folder.is_dir():
            return []
        matched = ((_NAME.fullmatch(path.name), path) for path in self.folder.iterdir())
        return [(int(match[2]), path) for match, path in matched if match and bool(match[1]) == aside]


def _warning(damaged: list[str], step: int) -> str | None:
    return f"{'; '.join(damaged)}: going on from step {step} instead" if damaged else None


def _figures(path: Path) -> Mapping[str, float | None]:
    """What was measured at a checkpoint; nothing where it cannot be read."""
    try:
        return sharded_figures(path) if path.is_dir() else Record.of(json.loads(read_record(path)), path).figures
    except (CorruptError, json.JSONDecodeError):
        return {}


def _remove(path: Path) -> None:
    """Removes a file or a folder, if it is there; a folder so that a kill leaves nothing that looks whole."""
    if path.is_dir():
        hidden = path if path.name.startswith(".") else path.with_name(f".{path.name}.partial")
        os.replace(path, hidden)
        shutil.rmtree(hidden)
    else:
        path.unlink(missing_ok=True)
