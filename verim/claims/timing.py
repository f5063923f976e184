"""Times of two sides that take turns in one process, as a ratio; and exponents of growth."""

import itertools
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from verim.bench.limits import Turn


@dataclass(frozen=True)
class Ratio:
    """How many times as long `slower` took as `faster`: the median over rounds.

    `interval`: the least and the greatest round; of n rounds they hold the median with probability 1 − 2^(1−n),
    98 % for seven.
    """

    value: float
    interval: tuple[float, float]
    slower_seconds: float
    faster_seconds: float


def time_ratio(slower: Callable[[], object], faster: Callable[[], object], rounds: int = 7) -> Ratio:
    """Both sides, warmed, take turns `rounds` times."""
    turns = Turn(slower), Turn(faster)
    times = [(turns[0].seconds(), turns[1].seconds()) for _ in range(rounds)]
    ratios = [one / other for one, other in times]
    return Ratio(
        statistics.median(ratios),
        (min(ratios), max(ratios)),
        *(statistics.median(side) for side in zip(*times, strict=True)),
    )


def median_seconds(runs: Sequence[Callable[[], object]], rounds: int = 7) -> list[float]:
    """The median time of each run; all take turns."""
    turns = [Turn(run) for run in runs]
    times = [[turn.seconds() for turn in turns] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


@dataclass(frozen=True)
class Growth:
    """y ∝ x^exponent; `interval`: the least and the greatest exponent between neighbouring points."""

    exponent: float
    interval: tuple[float, float]


def growth(x: Sequence[float], y: Sequence[float]) -> Growth:
    """Least squares of ln y on ln x; two points or more, all above 0.

    >>> growth([1, 2, 4], [3, 12, 48]).exponent
    2.0
    """
    logs = [(math.log(one), math.log(other)) for one, other in zip(x, y, strict=True)]
    slope = statistics.linear_regression(*zip(*logs, strict=True)).slope
    between = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.pairwise(logs)]
    return Growth(slope, (min(between), max(between)))
