"""A study's runs on the machines of a Ray cluster: `verim study --ray ADDRESS`.

Each run takes one CPU of the cluster, the planned one as many as the largest machine has. A run whose process or
machine was lost is started again by Ray, where there is room, and goes on from its last checkpoint.
"""

import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from uuid import uuid4

import torch

import verim
from verim.errors import InputError, VerimError
from verim.runtime.allocator import keep_freed_blocks
from verim.scaling.speed import Candidate
from verim.scaling.workers import Job, measure_sizes, train_run

Result = TypeVar("Result")
_ANSWER_SECONDS = 5.0
_MOST_LOSSES = 3
"""So often a run is started again because its machine or process was lost."""


class RayWorkers:
    """The CPUs of the Ray cluster at `address`: "HOST:PORT", "auto", "ray://HOST:10001"; "local" makes one.

    Every machine must see `directory` under the same path and have the same Verim and torch (`InputError` names those
    that do not); they should be alike, for the ladder counts on the times that one of them measures.
    """

    def __init__(self, address: str, directory: Path) -> None:
        try:
            import ray
        except ImportError as error:
            raise InputError("ray: it is not installed: pip install 'verim[ray]'") from error
        self._ray = ray
        _connect(ray, address)
        try:
            nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU", 0) >= 1]
            if not nodes:
                raise InputError(f"ray: the cluster at {address} has no machine with a CPU to give: add one")
            _check_alike(ray, nodes, directory)
            self.processes = int(sum(node["Resources"]["CPU"] for node in nodes))
            self.threads = int(max(node["Resources"]["CPU"] for node in nodes))
            from ray.util.queue import Queue

            self._told = Queue(actor_options={"num_cpus": 0})
        except BaseException:
            ray.shutdown()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ray.shutdown()  # ends what this process has started there

    def train(self, job: Job) -> "Future[dict[str, Any]]":
        here = job._replace(directory=job.directory.resolve())
        return self._submit(_train, job.threads, here, self._told)

    def measure(
        self, architecture: str, widths: tuple[int, ...], seconds: float, threads: int
    ) -> "Future[list[Candidate]]":
        return self._submit(_measure, threads, architecture, widths, seconds, threads)

    def result(self, future: "Future[Result]") -> Result:
        try:
            return future.result()
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            raise VerimError(
                f"a training process of the Ray cluster was lost {_MOST_LOSSES + 1} times "
                f"({type(error).__name__}): look at its machine, then go on with --resume"
            ) from error

    def news(self) -> Iterator[tuple[str, float]]:
        yield from self._told.get_nowait_batch(self._told.qsize())

    def _submit(self, work: Callable[..., Any], cpus: int, *arguments: Any) -> "Future[Any]":
        task = self._ray.remote(num_cpus=cpus, max_retries=_MOST_LOSSES)(work)
        future: Future[Any] = task.remote(*arguments).future()
        return future


def _connect(ray: Any, address: str) -> None:
    found = re.fullmatch(r"(?:ray://)?(?P<host>[^:/]+):(?P<port>\d+)", address)
    try:
        if found:  # Ray itself would ask for many minutes
            socket.create_connection((found["host"], int(found["port"])), _ANSWER_SECONDS).close()
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, OverflowError, ValueError, RuntimeError) as error:
        raise InputError(
            f"ray: no cluster answers at {address!r} ({str(error).splitlines()[0]}); start one with `ray start --head` "
            "and give the address that it prints, or --ray local; a cluster with a token wants RAY_AUTH_MODE=token here"
        ) from error


def _check_alike(ray: Any, nodes: list[dict[str, Any]], directory: Path) -> None:
    """Raises `InputError` for machines that do not see `directory`, or have another Verim or torch."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    mark = directory.resolve() / f".{uuid4().hex}.partial"
    mark.touch()
    try:
        asked = []
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            asked.append(ray.remote(num_cpus=0, scheduling_strategy=there)(_card).remote(mark))
        found = ray.get(asked)
    except ray.exceptions.RayError as error:
        raise InputError(
            f"ray: a machine of the cluster cannot run Verim ({str(error).splitlines()[-1]}): install the same version "
            "there"
        ) from error
    finally:
        mark.unlink()
    here = _card(mark)
    for node, (sees, versions) in zip(nodes, found, strict=True):
        name = node["NodeManagerHostname"]
        if not sees:
            raise InputError(
                f"ray: {name} does not see {directory.resolve()}; name a directory (--out) on a file system that all "
                "machines of the cluster share"
            )
        if versions != here[1]:
            raise InputError(f"ray: {name} has {versions}, this machine {here[1]}: install the same versions")


def _card(mark: Path) -> tuple[bool, str]:
    """Whether this machine sees a file, and its versions."""
    return mark.exists(), f"verim {verim.__version__}, torch {torch.__version__}"


def _train(job: Job, told: Any) -> dict[str, Any]:
    keep_freed_blocks()
    return train_run(job, lambda run, fraction: told.put((run, fraction)))


def _measure(architecture: str, widths: tuple[int, ...], seconds: float, threads: int) -> list[Candidate]:
    keep_freed_blocks()
    return measure_sizes(architecture, widths, seconds, threads)
