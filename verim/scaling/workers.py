"""Training runs in processes of their own: several small ones side by side, a large one on all cores.

A tiny model keeps one core busy and no more, so a ladder trains as many at once as there are cores, each process
with one thread: twice the work in the time, and bits that do not depend on what runs beside.
"""

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch

import verim
from verim.anatomy.machine import machine_card
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
_DYING_OWNER_SECONDS = 10.0
_PROGRESS_SECONDS = 0.25


_KILLED = (
    "a training process was killed or found no memory: free some and go on with --resume, or begin again with fewer "
    "--minutes"
)


class Job(NamedTuple):
    """A run to train: where, what, and on how many threads."""

    directory: Path
    spec: RunSpec
    threads: int


class Workers:
    """A pool of processes; they end with this process, however it ends."""

    def __init__(self, processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.processes = processes
        self.progress = context.SimpleQueue()
        self._pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_begin, initargs=(self.progress,))

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=kind is None, cancel_futures=True)
        if kind is not None:
            for process in multiprocessing.active_children():
                process.terminate()

    def train(self, job: Job) -> "Future[dict[str, Any]]":
        return self._submit(train_run, job)

    def measure(
        self, architecture: str, widths: tuple[int, ...], seconds: float, threads: int
    ) -> "Future[list[Candidate]]":
        return self._submit(_measure, architecture, widths, seconds, threads)

    def _submit(self, work: Callable[..., Any], *arguments: Any) -> "Future[Any]":
        try:
            return self._pool.submit(work, *arguments)
        except BrokenProcessPool as error:
            raise VerimError(_KILLED) from error


def result_of(future: "Future[Any]") -> Any:
    """The future's result; a process that died or found no memory is said in a sentence."""
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise VerimError(_KILLED) from error
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
            raise VerimError(_KILLED) from error
        raise


def train_run(job: Job) -> dict[str, Any]:
    """Trains one run, from where it stopped if it did; a finished one is only read."""
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
        return trainer.train(description, _reporter(job.spec.id, how.trainer.steps), _environment(job.threads))


def _measure(architecture: str, widths: tuple[int, ...], seconds: float, threads: int) -> list[Candidate]:
    torch.set_num_threads(threads)
    return measure(architecture, widths, seconds)


def _environment(threads: int) -> dict[str, Any]:
    """What a run needs said to be reproduced."""
    return {"verim": verim.__version__, "threads": threads} | machine_card()


_progress: Any = None


def _begin(progress: Any) -> None:
    """Sets up a worker: its memory, and its end when its parent ends."""
    global _progress
    _progress = progress
    follow_parent()
    keep_freed_blocks()


def _reporter(run: str, steps: int) -> Progress:
    told = time.monotonic()

    def report(record: dict[str, float]) -> None:
        nonlocal told
        if _progress is not None and time.monotonic() - told > _PROGRESS_SECONDS:
            told = time.monotonic()
            _progress.put((run, record["step"] / steps))

    return report
