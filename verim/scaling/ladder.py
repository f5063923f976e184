"""The ladder: which models to train on which budgets, so that it fits into the time and brackets every minimum."""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from verim.errors import InputError
from verim.scaling.speed import Candidate
from verim.train.rules import EVALUATION_BYTES, LENGTH, recipe
from verim.train.task import EVALUATION_BATCH

RUNG_RATIO = 3.0
"""How much larger a budget is than the one below it."""
LEAST_BUDGET = 2e9
"""FLOPs below which a run has too few steps to say anything about scale."""
LEAST_RUNGS, MOST_RUNGS = 3, 5
EXTRA_RUNG_BUDGET = 3e10
"""A fourth or fifth rung below the others is added from so many FLOPs up: less than that is no power law yet."""
SIZES = 5
SIZE_RATIO = 1.6
"""Five sizes 1.6× apart span 6.6×: a minimum may lie 2.5× off the expected one and is still inside."""
REPEATED_RUNGS = 2
"""On so many of the lowest rungs one run of each architecture is repeated with another seed: that is the noise."""

LEAST_STRETCH = 3.0
"""The proof's budget is at least this many times the largest rung: a plan that was not measured already."""
_START_SECONDS = 0.2

EXPECTED_OPTIMUM = {"transformer": (2.4e4, 1e11, 0.45), "mamba": (3.2e4, 1e11, 0.45)}
"""Where to look for the minimum: N = N₀ (C / C₀)^a, (N₀, C₀, a) as measured on the default corpus (docs/LOG.md).

An architecture that was never measured is looked for where the transformer's is.
"""


@dataclass(frozen=True)
class RunSpec:
    """One run of the study. `budget` is the FLOPs of its rung; `tokens` is what the budget buys at this size."""

    architecture: str
    width: int
    budget: float
    tokens: float
    seed: int
    evaluations: int
    expected_seconds: float

    @classmethod
    def of(cls, candidate: Candidate, budget: float, seed: int, evaluations: int = 1) -> "RunSpec":
        """The run of a size on a budget."""
        tokens = budget / candidate.flops_per_token
        seconds = expected_seconds(candidate, tokens, evaluations)
        return cls(candidate.architecture, candidate.width, budget, tokens, seed, evaluations, seconds)

    @property
    def id(self) -> str:
        return f"{self.architecture}-w{self.width:04d}-{self.budget:.2e}-seed{self.seed}".replace("+", "")


@dataclass(frozen=True)
class Ladder:
    """Budgets in FLOPs, rising; the runs; the seconds they are expected to take, `workers` of them side by side."""

    budgets: tuple[float, ...]
    runs: tuple[RunSpec, ...]
    workers: int
    seconds: float

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Ladder":
        return cls(
            tuple(value["budgets"]), tuple(RunSpec(**run) for run in value["runs"]), value["workers"], value["seconds"]
        )


def expected_seconds(candidate: Candidate, tokens: float, evaluations: int = 1) -> float:
    """Seconds of a run over `tokens` tokens, by the measured time of a step; an evaluation is forward passes alone."""
    how = recipe(tokens, length=candidate.length)
    training = how.trainer.steps * candidate.step_seconds(how.batch)
    rows = max(1, EVALUATION_BATCH * LENGTH // candidate.length)
    evaluation = EVALUATION_BYTES / (rows * candidate.length) * candidate.step_seconds(rows) / 3
    return training + evaluations * evaluation + _START_SECONDS


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Seconds until all jobs are done when a free worker always takes the longest one left."""
    busy = [0.0] * workers
    for job in sorted(seconds, reverse=True):
        heapq.heappush(busy, heapq.heappop(busy) + job)
    return max(busy)


def rung(candidates: Sequence[Candidate], budget: float) -> list[Candidate]:
    """The sizes of one architecture for `budget`, around the size that is expected to be best for it."""
    least, at, exponent = EXPECTED_OPTIMUM.get(candidates[0].architecture, EXPECTED_OPTIMUM["transformer"])
    centre = least * (budget / at) ** exponent
    wanted = [centre * SIZE_RATIO ** (k - (SIZES - 1) / 2) for k in range(SIZES)]
    chosen: list[Candidate] = []
    for size in wanted:
        free = [c for c in candidates if c not in chosen]
        if free:
            chosen.append(min(free, key=lambda c: abs(math.log(c.non_embedding / size))))
    return sorted(chosen, key=lambda c: c.non_embedding)


def ladder_for(candidates: Mapping[str, Sequence[Candidate]], largest: float, workers: int, seed: int) -> Ladder:
    """The ladder whose largest budget is `largest`; one run of each architecture again with another seed."""
    rungs = 1 + math.floor(math.log(largest / EXTRA_RUNG_BUDGET, RUNG_RATIO) + 1e-9)
    rungs = min(MOST_RUNGS, max(LEAST_RUNGS, rungs))
    budgets = [largest / RUNG_RATIO**k for k in reversed(range(rungs))]
    runs = []
    for sizes in candidates.values():
        for budget in budgets:
            chosen = rung(sizes, budget)
            runs += [RunSpec.of(candidate, budget, seed) for candidate in chosen]
            if budget in budgets[:REPEATED_RUNGS]:
                runs.append(RunSpec.of(chosen[len(chosen) // 2], budget, seed + 1))
    return Ladder(tuple(budgets), tuple(runs), workers, makespan([run.expected_seconds for run in runs], workers))


def next_size(
    trained: Sequence[tuple[RunSpec, float]], candidates: Sequence[Candidate], budget: float, seed: int
) -> RunSpec | None:
    """A size beyond the edge of a rung, where its best run (spec, loss) lies on the edge; None where it does not."""
    widths = sorted({spec.width for spec, _ in trained})
    best = min(trained, key=lambda run: run[1])[0].width
    if best == widths[0]:
        beyond = [c for c in candidates if c.width < best][-1:]
    elif best == widths[-1]:
        beyond = [c for c in candidates if c.width > best][:1]
    else:
        return None
    return RunSpec.of(beyond[0], budget, seed) if beyond else None


def fit_ladder(
    candidates: Mapping[str, Sequence[Candidate]],
    seconds: float,
    workers: int,
    seed: int,
    proof: Mapping[str, Sequence[Candidate]],
    proof_seconds: float,
) -> Ladder:
    """The largest ladder that takes at most `seconds` and leaves a proof that does not take over `proof_seconds`.

    `proof` holds the candidates as the proof would run them. Budgets lie on a grid of ten to the decade. Raises
    `InputError` where not even the smallest ladder fits.
    """
    lowest = round(10 * math.log10(LEAST_BUDGET * RUNG_RATIO ** (LEAST_RUNGS - 1)))
    best = None
    for tenths in range(lowest, 10 * 20):
        largest = 10 ** (tenths / 10)
        ladder = ladder_for(candidates, largest, workers, seed)
        stretch = LEAST_STRETCH * largest
        shortest = min(
            expected_seconds(size, stretch / size.flops_per_token) for sizes in proof.values() for size in sizes
        )
        if ladder.seconds > seconds or shortest > proof_seconds:
            if best is None:
                raise InputError(
                    f"minutes: the smallest ladder takes {ladder.seconds:.0f} s here and {max(0.0, seconds):.0f} s are "
                    f"left for it; its proof takes {shortest:.0f} of {proof_seconds:.0f} s: give more --minutes, or "
                    "fewer --architectures"
                )
            break
        best = ladder
    assert best is not None, "the grid of budgets is not empty"
    return best
