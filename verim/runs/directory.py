"""A directory that holds one training run and is enough to resume, report or reproduce it.

    config.json     what was asked, and the environment it runs in
    metrics.jsonl   a line a step or evaluation
    checkpoints/    those that the rule keeps, each whole and with its checksums (verim.runs.store)
    result.json     written once, at the end: where it lies, the run is finished

Reading needs no lock. Writing happens inside `with run.writing():`, which keeps other processes out.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from verim.errors import InputError
from verim.runs.checkpoint import Checkpoint, Record
from verim.runs.lock import locked
from verim.runs.metrics import MetricsLog, finite, read_metrics
from verim.runs.ranks import Ranks
from verim.runs.retention import Retention
from verim.runs.shards import Held
from verim.runs.store import CheckpointStore
from verim.runtime.files import read_json, write_json


class RunDirectory:
    """The run in `path`. Making this object neither reads nor writes anything.

    `retention` says which checkpoints stay. They are written while training goes on, from copies of the tensors;
    with `asynchronous` False from the tensors themselves, which takes no memory but the training waits.

    With several `ranks`, each process makes this object for the same path and calls the same methods in the same
    order: rank 0 keeps the lock and writes configuration, metrics and result, and each rank its part of the
    checkpoints. An error of one rank is raised on all.

    >>> import tempfile, torch
    >>> run = RunDirectory(Path(tempfile.mkdtemp()) / "run")
    >>> with run.writing():
    ...     assert run.start({"width": 32}) is None  # nothing to resume from
    ...     run.log({"step": 1, "loss": 5.5})
    ...     run.save_checkpoint(1, {"weight": torch.ones(2)}, {"lr": 0.1})
    ...     run.log({"step": 2, "loss": 5.4})
    >>> with run.writing():
    ...     checkpoint = run.start({"width": 32})
    ...     checkpoint.step, run.metrics()
    (1, [{'step': 1, 'loss': 5.5}])
    """

    def __init__(
        self,
        path: str | Path,
        retention: Retention | None = None,
        ranks: Ranks | None = None,
        asynchronous: bool = True,
    ) -> None:
        self.path = Path(path)
        self.ranks = ranks or Ranks()
        self._checkpoints = CheckpointStore(
            self.path / "checkpoints", self.ranks, retention or Retention(), asynchronous
        )
        self._log: MetricsLog | None = None
        self._writing = self._started = False

    @classmethod
    def existing(cls, path: str | Path, **options: Any) -> "RunDirectory":
        """The run that was started in `path`. Raises `InputError` where there is none, saying what is there."""
        path = Path(path)
        if not path.is_dir():
            raise InputError(f"{path} is {'a file' if path.exists() else 'not there'}: expected the directory of a run")
        if (path / "study.json").is_file():
            raise InputError(f"{path} is a study: name one of its runs, {path}/runs/NAME")
        if not (path / "config.json").is_file():
            raise InputError(f"{path} has no config.json: no run was started there")
        return cls(path, **options)

    @contextmanager
    def writing(self, wait_seconds: float = 0.0) -> Iterator["RunDirectory"]:
        """Keeps the directory (created where needed) for this process while the context lasts.

        At its end the checkpoint that is being written is waited for. Raises `BusyError` where another process
        keeps the directory for more than `wait_seconds`, and what went wrong with that checkpoint."""
        with ExitStack() as held:
            self.ranks.on_first(lambda: held.enter_context(locked(self.path, wait_seconds)))
            held.callback(self._close)
            self._writing = True
            try:
                yield self
            except BaseException as error:
                try:
                    self._checkpoints.wait()
                except Exception as other:
                    error.add_note(f"Beside that, the last checkpoint could not be written: {other}")
                raise
            self._checkpoints.wait()

    def start(self, config: Mapping[str, Any], environment: Mapping[str, Any] | None = None) -> Checkpoint | None:
        """Begins the run or takes it up again: the checkpoint to go on from, None where it starts at step 0.

        Writes `config` (JSON values) where the directory is new. The metrics are cut back to what they were
        when that checkpoint was saved, so the file of a resumed run equals that of an undisturbed one.
        `environment` (versions, machine, number of ranks) is kept beside the configuration and may differ at a resume.

        Raises `InputError` where the directory holds a run with another configuration, `CorruptError` where
        there are checkpoints but none is whole, or the metrics are shorter than the checkpoint says.
        """
        self._assert_writing()
        text = json.dumps(dict(config), sort_keys=True)  # tuples become lists, as in the file
        for rank, other in enumerate(self.ranks.gather(text)):
            _assert_same(json.loads(text), json.loads(other), f"rank {self.ranks.rank} runs", f"rank {rank}")
        self.ranks.on_first(lambda: self._settle(json.loads(text), dict(environment or {})))
        return self.rewind()

    def rewind(self, up_to: int | None = None) -> Checkpoint | None:
        """Goes back to the newest whole checkpoint (of a step no later than `up_to`), as a resume would.

        Later checkpoints are put aside and later metrics cut off: the run goes on from here. Returns None, with the
        metrics emptied, where there is no checkpoint to go back to. Raises `CorruptError` as `start` does.
        """
        self._assert_writing()
        checkpoint = self.latest_checkpoint(up_to)
        self.ranks.on_first(lambda: self._cut_back(checkpoint))
        self._started = True
        return checkpoint

    def log(self, record: Mapping[str, Any]) -> None:
        """Adds one line to the metrics (JSON values; NaN and infinity become null). Costs some µs.

        Raises, here already, what went wrong with the checkpoint that was being written."""
        assert self._started, "RunDirectory.log before start"
        self._checkpoints.check()
        if self._log is not None:
            self._log.append(record)

    def save_checkpoint(
        self,
        step: int,
        tensors: Mapping[str, Held],
        state: Mapping[str, Any],
        figures: Mapping[str, float] | None = None,
    ) -> None:
        """Begins to write the checkpoint of `step`, whole or not at all, and returns when `tensors` may change again.

        The writing goes on behind the training; `wait` waits for it, and so do the next save and the end of
        `writing`. When it is done, the checkpoints that the rule of retention does not keep are removed; `figures`
        (held-out figures of this step) tell it which is the best. Whatever was logged before this call belongs to
        the checkpoint: resuming from it keeps those lines.

        With several ranks a tensor is a `DTensor` or a `SliceOf`, whose pieces lie on the ranks, or a plain tensor,
        which is the same on all ranks that name it: what a rank has for itself needs a name of its own. `state`
        (JSON values) is that of rank 0. Raises what went wrong with the checkpoint before.
        """
        self._assert_writing()
        assert self._started, "RunDirectory.save_checkpoint before start"
        assert step >= 0, f"a step counts from 0, got {step}"
        log = self._log
        record = Record(step, dict(state), log.bytes if log else 0, finite(figures or {}))
        self._checkpoints.save(record, tensors, before=log.sync if log else lambda: None)

    def wait(self) -> None:
        """Returns when the last checkpoint is on the disk. Raises what went wrong with it."""
        self._checkpoints.wait()

    def checkpoint_steps(self) -> list[int]:
        """The steps of the checkpoints that are there, whole or damaged, rising."""
        return self._checkpoints.steps()

    def checkpoint(self, step: int) -> Checkpoint:
        """The checkpoint of that step. Raises `CorruptError` where it is not there or damaged."""
        self.wait()
        return self._checkpoints.read(step)

    def latest_checkpoint(self, up_to: int | None = None) -> Checkpoint | None:
        """The newest whole checkpoint (of a step no later than `up_to`), None where there is none at all.

        Where a newer one is damaged, the one before it is returned and its `warning` names the damaged file.
        Raises `CorruptError` where there are checkpoints but none is whole."""
        self.wait()
        return self._checkpoints.newest(up_to)

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes the result (JSON values) when the last checkpoint is on the disk; from now on the run is finished."""
        self._assert_writing()
        self.wait()
        self.ranks.on_first(lambda: write_json(self.path / "result.json", dict(result)))

    @property
    def finished(self) -> bool:
        """Whether the run has its result."""
        return (self.path / "result.json").exists()

    def result(self) -> dict[str, Any]:
        """What `finish` wrote."""
        return self._read("result.json", "the run is not finished")

    def config(self) -> dict[str, Any]:
        """The configuration the run was started with."""
        return dict(self._read("config.json", "no run was started there")["config"])

    def environment(self) -> dict[str, Any]:
        """The environment that was given when the run was first started."""
        return dict(self._read("config.json", "no run was started there")["environment"])

    def metrics(self) -> list[dict[str, Any]]:
        """The lines logged so far, also while another process is writing them."""
        return read_metrics(self.path / "metrics.jsonl")

    def _settle(self, config: dict[str, Any], environment: dict[str, Any]) -> None:
        """Removes what a killed process was writing; writes the configuration or compares it with what is there."""
        for partial in self.path.glob(".*.partial"):
            partial.unlink()
        self._checkpoints.tidy()
        path = self.path / "config.json"
        if path.exists():
            _assert_same(self.config(), config, f"{self.path} holds a run", "asked")
        else:
            write_json(path, {"config": config, "environment": environment})

    def _cut_back(self, checkpoint: Checkpoint | None) -> None:
        self._checkpoints.set_aside_after(checkpoint.step if checkpoint else -1)
        if self._log is not None:
            self._log.close()
            self._log = None
        self._log = MetricsLog(self.path / "metrics.jsonl", checkpoint.metrics_bytes if checkpoint else 0)

    def _read(self, name: str, missing: str) -> dict[str, Any]:
        try:
            return dict(read_json(self.path / name))
        except FileNotFoundError as error:
            raise InputError(f"{self.path} has no {name}: {missing}") from error

    def _close(self) -> None:
        self._writing = self._started = False
        if self._log is not None:
            self._log.close()
            self._log = None

    def _assert_writing(self) -> None:
        assert self._writing, "write to a RunDirectory inside `with run.writing():`"


def _assert_same(held: Mapping[str, Any], asked: Mapping[str, Any], holder: str, asker: str) -> None:
    """Raises `InputError` naming the first setting in which two configurations differ."""
    for key in sorted(held.keys() | asked.keys()):
        if held.get(key, ...) != asked.get(key, ...):
            raise InputError(
                f"{holder} with {key} = {held.get(key)!r}, {asker} for {asked.get(key)!r}: "
                "give it the same settings to resume it, or name another directory"
            )
