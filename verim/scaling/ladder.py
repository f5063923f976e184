"""The ladder: which models to train on which budgets, so that it fits into the time and brackets every minimum."""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from verim.errors import InputError
from verim.scaling.speed import Candidate
from verim.train.rules import recipe

RUNG_RATIO = 3.0
"""How much larger a budget is than the one below it."""
LEAST_BUDGET = 5e9
"""FLOPs below which a run has too few steps to say anything about scale."""
LEAST_RUNGS, MOST_RUNGS = 3, 5
SIZES = 5
SIZE_RATIO = 1.7
"""Five sizes 1.7× apart span 8×: a minimum may lie 2.9× off the expected one and is still inside."""
REPEATED_RUNGS = 2
"""On so many of the lowest rungs one run of each architecture is repeated with another seed: that is the noise."""

EXPECTED_OPTIMUM = {"transformer": (2.6e4, 1e11, 0.5), "mamba": (2.6e4, 1e11, 0.5)}
"""Where to look for the minimum: N = N₀ (C / C₀)^a, (N₀, C₀, a) as measured on the default corpus (docs/LOG.md)."""


@dataclass(frozen=True)
class RunSpec:
    """One run of the study. `budget` is the FLOPs of its rung; `tokens` is what the budget buys at this size."""

    architecture: str
    width: int
    budget: float
    tokens: float
    seed: int
    expected_seconds: float

    @classmethod
    def of(cls, candidate: Candidate, budget: float, seed: int) -> "RunSpec":
        """The run of a size on a budget."""
        tokens = budget / candidate.flops_per_token
        return cls(candidate.architecture, candidate.width, budget, tokens, seed, expected_seconds(candidate, tokens))

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


def expected_seconds(candidate: Candidate, tokens: float) -> float:
    """Seconds of a run over `tokens` tokens, by the measured time of a step."""
    plan = recipe(tokens)
    return plan.trainer.steps * candidate.step_seconds(plan.batch)


def makespan(seconds: Sequence[float], workers: int) -> float:
    """Seconds until all jobs are done when a free worker always takes the longest one left."""
    busy = [0.0] * workers
    for job in sorted(seconds, reverse=True):
        heapq.heappush(busy, heapq.heappop(busy) + job)
    return max(busy)


def rung(candidates: Sequence[Candidate], budget: float) -> list[Candidate]:
    """The sizes of one architecture for `budget`, around the size that is expected to be best for it."""
    least, at, exponent = EXPECTED_OPTIMUM[candidates[0].architecture]
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
    rungs = min(MOST_RUNGS, max(LEAST_RUNGS, 1 + math.floor(math.log(largest / LEAST_BUDGET, RUNG_RATIO) + 1e-9)))
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


def fit_ladder(candidates: Mapping[str, Sequence[Candidate]], seconds: float, workers: int, seed: int) -> Ladder:
    """The largest ladder that takes at most `seconds`. Budgets lie on a grid of ten to the decade.

    Raises `InputError` where not even the smallest one fits.
    """
    lowest = round(10 * math.log10(LEAST_BUDGET * RUNG_RATIO ** (LEAST_RUNGS - 1)))
    best = None
    for tenths in range(lowest, 10 * 20):
        ladder = ladder_for(candidates, 10 ** (tenths / 10), workers, seed)
        if ladder.seconds > seconds:
            if best is None:
                raise InputError(
                    f"minutes: the smallest ladder takes {ladder.seconds:.0f} s here and {seconds:.0f} s are left for "
                    "it: give more --minutes, or fewer --architectures"
                )
            break
        best = ladder
    assert best is not None, "the grid of budgets is not empty"
    return best
