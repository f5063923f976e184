"""Training runs in processes of their own: several small ones side by side, a large one on all cores.

A tiny model keeps one core busy and no more, so a ladder trains as many at once as there are cores, each process
with one thread: twice the work in the time, and bits that do not depend on what runs beside.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self, TypeVar

import torch

import verim
from verim.anatomy.machine import machine_card, usable_cores
from verim.data.tokens import load_tokens
from verim.errors import VerimError
from verim.models import LanguageModel, architecture_config
from verim.runs import RunDirectory
from verim.runtime.allocator import keep_freed_blocks
from verim.runtime.processes import follow_parent
from verim.scaling.ladder import RunSpec
from verim.scaling.speed import Candidate, measure
from verim.train import ByteLanguageModelling, Trainer
from verim.train.rules import EVALUATION_BYTES, recipe
from verim.train.trainer import Progress

CORPUS_FILE = "corpus.safetensors"
_WORKER_BYTES = 1_500_000_000
_DYING_OWNER_SECONDS = 10.0
_PROGRESS_SECONDS = 0.25


_KILLED = (
    "a training process was killed or found no memory: free some and go on with --resume, or begin again with fewer "
    "--minutes"
)


Result = TypeVar("Result")
Tell = Callable[[str, float], None]
"""Hears that a run is so far, as a fraction."""


class Job(NamedTuple):
    """A run to train: where, what, and on how many threads."""

    directory: Path
    spec: RunSpec
    threads: int


class Workers(Protocol):
    """Who trains a study's runs, each in a process of its own.

    - `processes`: how many runs of one thread are trained at once
    - `threads`: the most that one run can have
    """

    processes: int
    threads: int

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def train(self, job: Job) -> "Future[dict[str, Any]]":
        """Trains a run, from where it stopped if it did."""
        ...

    def measure(
        self, architecture: str, widths: tuple[int, ...], seconds: float, threads: int
    ) -> "Future[list[Candidate]]":
        """Measures the speed of an architecture's sizes."""
        ...

    def result(self, future: "Future[Result]") -> Result:
        """The future's result; a process that was lost is said in a sentence (`VerimError`)."""
        ...

    def news(self) -> Iterator[tuple[str, float]]:
        """How far runs are, by their names, as far as they have told since the last call."""
        ...


class LocalWorkers:
    """A pool of processes of this machine; they end with this process, however it ends.

    As many as there are cores, as far as memory goes.
    """

    def __init__(self, processes: int | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self.processes = processes or _most_processes()
        self.threads = usable_cores()
        self._told = context.SimpleQueue()
        self._pool = ProcessPoolExecutor(self.processes, mp_context=context, initializer=_begin, initargs=(self._told,))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=kind is None, cancel_futures=True)
        if kind is not None:
            for process in multiprocessing.active_children():
                process.terminate()

    def train(self, job: Job) -> "Future[dict[str, Any]]":
        return self._submit(_train, job)

    def measure(
        self, architecture: str, widths: tuple[int, ...], seconds: float, threads: int
    ) -> "Future[list[Candidate]]":
        return self._submit(measure_sizes, architecture, widths, seconds, threads)

    def result(self, future: "Future[Result]") -> Result:
        try:
            return future.result()
        except BrokenProcessPool as error:
            raise VerimError(_KILLED) from error
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
                raise VerimError(_KILLED) from error
            raise

    def news(self) -> Iterator[tuple[str, float]]:
        while not self._told.empty():
            yield self._told.get()

    def _submit(self, work: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        try:
            return self._pool.submit(work, *arguments)
        except BrokenProcessPool as error:
            raise VerimError(_KILLED) from error


def _most_processes() -> int:
    available = machine_card()["memory_available_bytes"]
    return max(1, min(usable_cores(), int(available // _WORKER_BYTES) if available else usable_cores()))


def train_run(job: Job, tell: Tell) -> dict[str, Any]:
    """Trains one run, from where it stopped if it did; a finished one is only read. `tell` hears how far it is."""
    torch.set_num_threads(job.threads)
    run = RunDirectory(job.directory)
    if run.finished:
        return run.result()
    torch.manual_seed(job.spec.seed)
    model = LanguageModel(architecture_config(job.spec.architecture, job.spec.width))
    how = recipe(job.spec.tokens, job.spec.evaluations)
    corpus = load_tokens(job.directory.parent.parent / CORPUS_FILE)
    task = ByteLanguageModelling(
        corpus["train"], corpus["held_out"], how.batch, how.length, job.spec.seed, EVALUATION_BYTES
    )
    trainer = Trainer(model, task, how.trainer, run)
    description = {"run": asdict(job.spec), "model": model.config.to_json(), "training": how.to_json()}
    with run.writing(wait_seconds=_DYING_OWNER_SECONDS):
        return trainer.train(description, _reporter(job.spec.id, how.trainer.steps, tell), _environment(job.threads))


def measure_sizes(architecture: str, widths: tuple[int, ...], seconds: float, threads: int) -> list[Candidate]:
    torch.set_num_threads(threads)
    return measure(architecture, widths, seconds)


def _environment(threads: int) -> dict[str, Any]:
    """What a run needs said to be reproduced."""
    return {"verim": verim.__version__, "threads": threads} | machine_card()


def _reporter(run: str, steps: int, tell: Tell) -> Progress:
    told = time.monotonic()

    def report(record: dict[str, float]) -> None:
        nonlocal told
        if time.monotonic() - told > _PROGRESS_SECONDS:
            told = time.monotonic()
            tell(run, record["step"] / steps)

    return report


_told: Any = None
"""In a process of the pool: where it tells how far its run is."""


def _begin(told: Any) -> None:
    """Sets up a process of the pool: its memory, and its end when its parent ends."""
    global _told
    _told = told
    follow_parent()
    keep_freed_blocks()


def _train(job: Job) -> dict[str, Any]:
    return train_run(job, lambda run, fraction: _told.put((run, fraction)))
