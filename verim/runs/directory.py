"""A directory that holds one training run and is enough to resume, report or reproduce it.

    config.json                          what was asked, and the environment it runs in
    metrics.jsonl                        a line a step or evaluation
    checkpoints/step-00001234.safetensors  the last few, each whole and with its checksum
    result.json                          written once, at the end: where it lies, the run is finished

Reading needs no lock. Writing happens inside `with run.writing():`, which keeps other processes out.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from verim.errors import CorruptError, InputError
from verim.runs.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from verim.runs.lock import locked
from verim.runs.metrics import MetricsLog, read_metrics
from verim.runtime.files import read_json, write_json

_KEEP = 2


class RunDirectory:
    """The run in `path`. Making this object neither reads nor writes anything.

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

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._log: MetricsLog | None = None
        self._writing = False

    @contextmanager
    def writing(self, wait_seconds: float = 0.0) -> Iterator["RunDirectory"]:
        """Keeps the directory (created where needed) for this process while the context lasts.

        Raises `BusyError` where another process keeps it for more than `wait_seconds`."""
        with locked(self.path, wait_seconds):
            self._writing = True
            try:
                yield self
            finally:
                self._writing = False
                if self._log is not None:
                    self._log.close()
                    self._log = None

    def start(self, config: Mapping[str, Any], environment: Mapping[str, Any] | None = None) -> Checkpoint | None:
        """Begins the run or takes it up again: the checkpoint to go on from, None where it starts at step 0.

        Writes `config` (JSON values) where the directory is new. The metrics are cut back to what they were
        when that checkpoint was saved, so the file of a resumed run equals that of an undisturbed one.
        `environment` (versions, machine) is kept beside the configuration and may differ at a resume.

        Raises `InputError` where the directory holds a run with another configuration, `CorruptError` where
        there are checkpoints but none is whole, or the metrics are shorter than the checkpoint says.
        """
        self._assert_writing()
        self._remove_partial_files()
        self._settle_config(dict(config), dict(environment or {}))
        checkpoint = self.latest_checkpoint()
        if self._log is not None:
            self._log.close()
        self._log = MetricsLog(self.path / "metrics.jsonl", checkpoint.metrics_bytes if checkpoint else 0)
        return checkpoint

    def log(self, record: Mapping[str, Any]) -> None:
        """Adds one line to the metrics (JSON values; NaN and infinity become null). Costs some µs."""
        assert self._log is not None, "RunDirectory.log before start"
        self._log.append(record)

    def save_checkpoint(self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Writes the checkpoint of `step`, whole or not at all, and then removes all but the last two.

        Whatever was logged before this call belongs to the checkpoint: resuming from it keeps those lines."""
        self._assert_writing()
        assert self._log is not None, "RunDirectory.save_checkpoint before start"
        assert step >= 0, f"a step counts from 0, got {step}"
        self._log.sync()
        self._checkpoints.mkdir(exist_ok=True)
        path = self._checkpoints / f"step-{step:08d}.safetensors"
        write_checkpoint(path, Checkpoint(step, dict(tensors), dict(state), self._log.bytes))
        for old in self._checkpoint_paths()[:-_KEEP]:
            old.unlink()

    def latest_checkpoint(self) -> Checkpoint | None:
        """The newest whole checkpoint, None where there is none at all.

        Where a newer one is damaged, the one before it is returned and its `warning` names the damaged file.
        Raises `CorruptError` where there are checkpoints but none is whole."""
        damaged: list[str] = []
        for path in reversed(self._checkpoint_paths()):
            try:
                whole = read_checkpoint(path)
            except CorruptError as error:
                damaged.append(str(error))
                continue
            warning = f"{'; '.join(damaged)}: going on from step {whole.step} instead" if damaged else None
            return Checkpoint(whole.step, whole.tensors, whole.state, whole.metrics_bytes, warning)
        if damaged:
            raise CorruptError(
                f"no checkpoint can be read: {'; '.join(damaged)}. "
                f"Restore one, or remove {self.path} to run it from the start"
            )
        return None

    def finish(self, result: Mapping[str, Any]) -> None:
        """Writes the result (JSON values); from now on the run is finished."""
        self._assert_writing()
        write_json(self.path / "result.json", dict(result))

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

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def _checkpoint_paths(self) -> list[Path]:
        return sorted(self._checkpoints.glob("step-*.safetensors"))

    def _settle_config(self, config: dict[str, Any], environment: dict[str, Any]) -> None:
        path = self.path / "config.json"
        config = json.loads(json.dumps(config))  # tuples become lists, as in the file it is compared with
        if not path.exists():
            write_json(path, {"config": config, "environment": environment})
            return
        held = self.config()
        different = sorted(key for key in held.keys() | config.keys() if held.get(key, ...) != config.get(key, ...))
        if different:
            key = different[0]
            raise InputError(
                f"{self.path} holds a run with {key} = {held.get(key)!r}, asked for {config.get(key)!r}: "
                "give it the same settings to resume it, or name another directory"
            )

    def _read(self, name: str, missing: str) -> dict[str, Any]:
        try:
            return dict(read_json(self.path / name))
        except FileNotFoundError as error:
            raise InputError(f"{self.path} has no {name}: {missing}") from error

    def _remove_partial_files(self) -> None:
        """Removes what a killed process was writing: nobody else writes here, we hold the lock."""
        for folder in (self.path, self._checkpoints):
            for partial in folder.glob(".*.partial"):
                partial.unlink()

    def _assert_writing(self) -> None:
        assert self._writing, "write to a RunDirectory inside `with run.writing():`"
