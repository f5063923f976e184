"""All ways to lay a step over a number of devices, which of them fits and is fastest, and why the others lose."""

import math
import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from verim.errors import InputError
from verim.scaling.planning.cost import CAUSES, Cost, Job, Layout, Step, cost
from verim.scaling.planning.fleet import Fleet
from verim.train.parallel import ParallelConfig
from verim.train.parallel.config import DIMENSIONS
from verim.train.parallel.splits import divisors

SHOWN = 5
_RECOMPUTE = ("none", "selective", "full")
_WORDS = {
    "products": "matrix products",
    "elements": "reading and writing activations",
    "recomputation": "recomputation",
    "update": "the optimiser's update",
    "bubble": "the pipeline's bubble",
    "link": "communication within a machine",
    "network": "communication over the network",
    "host": "waiting for the CPU (offload)",
}


@dataclass(frozen=True)
class Ranking:
    """The layouts of a job by the seconds of a step. `fitting` rising, one a division of the ranks, each at its best
    settings; `too_large`: those whose least memory is more than there is, rising in memory; `refused`: what
    `ParallelConfig` says of divisions that cannot be, and of how many."""

    fitting: tuple[Cost, ...]
    too_large: tuple[Cost, ...]
    refused: tuple[tuple[str, int], ...]
    available: float

    @property
    def best(self) -> Cost | None:
        return self.fitting[0] if self.fitting else None

    def why(self, other: Cost) -> str:
        """Why `other` is not the best: of what it takes more, in seconds a step, or how much memory is missing."""
        if other.memory_bytes > self.available:
            part, most = max(other.memory.items(), key=lambda item: item[1])
            return (
                f"memory: {other.memory_bytes / 1e9:,.1f} GB of {self.available / 1e9:,.1f} GB, "
                f"{most / 1e9:,.1f} of them {part}"
            )
        best = self.best
        if best is None or other is best:
            return "the fastest that fits"
        cause = max(CAUSES, key=lambda name: other.seconds[name] - best.seconds[name])
        more = other.seconds[cause] - best.seconds[cause]
        if more <= 0:
            return "as fast"
        return f"{_WORDS[cause]}: {other.seconds[cause]:.3g} s a step, {more:.3g} s more"

    def losers(self) -> list[tuple[str, int, str]]:
        """Beyond those that are shown: the cause, how many layouts lose by it, and the figure of the nearest."""
        found: dict[str, list[str]] = {}
        for other in (*self.fitting[SHOWN:], *self.too_large):
            cause, _, figure = self.why(other).partition(": ")
            found.setdefault(cause, []).append(figure)
        return [(cause, len(figures), figures[0]) for cause, figures in found.items()]


def rank(job: Job, fleet: Fleet) -> Ranking:
    """Every division of the devices over data, shard, tensor, pipeline, context and expert, each with the settings at
    which it is fastest among those that fit: ZeRO's stage, sequence parallelism, micro-batches, what is computed again.
    Where nothing fits so, what is kept may lie with the CPU (`offload`).
    """
    refused: Counter[str] = Counter()
    accepted = list(_accepted(job, fleet.count, refused))
    ranking = _ranked(job, fleet, accepted, False, refused)
    if ranking.best is None and fleet.can_offload:
        ranking = _ranked(job, fleet, accepted, True, refused)
    return ranking


def unsharded(job: Job, fleet: Fleet) -> Cost:
    """Copies alone, at the least memory: row by row, and everything is computed again."""
    division = ParallelConfig(data=math.gcd(fleet.count, job.batch), zero=1, activation_checkpointing="full")
    parts = job.batch // division.rows
    return cost(job, Layout(division, parts), fleet)


def divisions(count: int) -> Iterator[ParallelConfig]:
    """All factorisations of `count` into the six dimensions."""

    def split(rest: int, names: tuple[str, ...]) -> Iterator[dict[str, int]]:
        if not names:
            if rest == 1:
                yield {}
            return
        for size in divisors(rest):
            for others in split(rest // size, names[1:]):
                yield {names[0]: size} | others

    for sizes in split(count, DIMENSIONS):
        yield ParallelConfig(**sizes, zero=1)  # type: ignore[arg-type]


def _accepted(job: Job, count: int, refused: Counter[str]) -> Iterator[ParallelConfig]:
    for division in divisions(count):
        try:
            division.check(job.size.config, count, job.batch, job.size.length)
        except InputError as error:
            refused[_rule(str(error))] += 1
            continue
        yield division


def _rule(message: str) -> str:
    """A refusal without its figures, to count it by: "pipeline with tensor, which do not go together"."""
    said = message.split("; ")[0].split(", expected")[0].replace(": got", "", 1)
    return re.sub(r" =? ?\d+(?= |,|$)", "", said)


def _ranked(job: Job, fleet: Fleet, accepted: list[ParallelConfig], offload: bool, refused: Counter[str]) -> Ranking:
    fitting, too_large = [], []
    for division in accepted:
        found = [_first_fitting(job, group, fleet) for group in _groups(job, division, offload)]
        if not found:
            continue
        fits = [each for each in found if each.memory_bytes <= fleet.memory_bytes]
        if fits:
            fitting.append(min(fits, key=lambda each: each.step_seconds))
        else:
            too_large.append(min(found, key=lambda each: each.memory_bytes))
    return Ranking(
        tuple(sorted(fitting, key=lambda each: each.step_seconds)),
        tuple(sorted(too_large, key=lambda each: each.memory_bytes)),
        tuple(refused.most_common()),
        fleet.memory_bytes,
    )


def _first_fitting(job: Job, group: Iterator[Layout], fleet: Fleet) -> Cost:
    """The first layout of the group that fits, which is its fastest; or the smallest where none does.

    From the second on, the more parts a layout has the less it holds (gradients that are added up over parts make the
    second hold more than the first), so that a bisection finds it.
    """

    def held(layout: Layout) -> float:
        return sum(Step(job, layout, fleet).memory.values())

    first, *others = group
    if held(first) <= fleet.memory_bytes or not others:
        return cost(job, first, fleet)
    place = bisect_left(others, True, key=lambda layout: held(layout) <= fleet.memory_bytes)
    return cost(job, others[place] if place < len(others) else min(first, others[-1], key=held), fleet)


def _groups(job: Job, division: ParallelConfig, offload: bool) -> Iterator[Iterator[Layout]]:
    """The settings of a division in groups; within a group they differ in their number of parts, and get slower."""
    if offload and division.pipeline > 1:
        return  # stages are not FSDP's, which is what offloads
    zeros = (2, 3) if offload else (1, 2, 3) if division.shard > 1 else (1,)
    sequence = (False, True) if division.tensor > 1 else (False,)
    schedules = ("1f1b", "interleaved") if division.pipeline > 1 else ("1f1b",)
    rows = job.batch // division.rows
    for zero, parallel_sequence, recompute, schedule in product(zeros, sequence, _RECOMPUTE, schedules):
        config = replace(
            division,
            zero=zero,  # type: ignore[arg-type]
            offload=offload,
            sequence_parallel=parallel_sequence,
            activation_checkpointing=recompute,  # type: ignore[arg-type]
            pipeline_schedule=schedule,  # type: ignore[arg-type]
        )
        if not _is_accepted(job, config):
            continue
        if division.pipeline == 1:
            yield (Layout(config, parts) for parts in divisors(rows))
            continue
        per_rank = 2 if schedule == "interleaved" else 1
        if per_rank * division.pipeline > job.size.config.blocks:
            continue
        for parts in divisors(rows):
            if per_rank == 1 or parts % min(division.pipeline, parts) == 0:
                yield iter([Layout(replace(config, micro_batches=parts))])


def _is_accepted(job: Job, config: ParallelConfig) -> bool:
    try:
        config.check(job.size.config, config.ranks, job.batch, job.size.length)
    except InputError:
        return False
    return True
