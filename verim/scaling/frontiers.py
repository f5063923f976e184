"""Hoffmann's three projections of the optimum (2203.15556, Tables 3 and A3), and the frontiers through them.

Approaches 1 (the envelope of the training curves) and 2 (IsoFLOP parabolas) give no loss, only where a budget goes.
The paper prints their exponents with two digits, 0.50 and 0.49; the projections made with the exponents that were
not rounded stand in its tables, and a power law through each table recovers those.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from verim.scaling.isoflop import power_law
from verim.scaling.laws import Frontier
from verim.scaling.published import Counted


class Projection(NamedTuple):
    """A row of Hoffmann's tables: for N parameters, the budget whose optimum they are, and its tokens."""

    N: float
    C: float
    D: float


@dataclass(frozen=True)
class PublishedFrontier:
    """Where a paper sends a budget; `rounded` as for `PublishedLaw`."""

    name: str
    source: str
    frontier: Frontier
    counts: Counted
    rounded: bool


_SIZES = (400e6, 1e9, 10e9, 67e9, 175e9, 280e9, 520e9, 1e12, 10e12)


def _table(budgets: tuple[float, ...], tokens: tuple[float, ...]) -> tuple[Projection, ...]:
    return tuple(Projection(*row) for row in zip(_SIZES, budgets, tokens, strict=True))


APPROACH_1 = _table(
    (1.92e19, 1.21e20, 1.23e22, 5.76e23, 3.85e24, 9.90e24, 3.43e25, 1.27e26, 1.30e28),
    (8.0e9, 20.2e9, 205.1e9, 1.5e12, 3.7e12, 5.9e12, 11.0e12, 21.2e12, 216.2e12),
)
"""Table 3."""

APPROACH_2 = _table(
    (1.84e19, 1.20e20, 1.32e22, 6.88e23, 4.54e24, 1.18e25, 4.19e25, 1.59e26, 1.75e28),
    (7.7e9, 20.0e9, 219.5e9, 1.7e12, 4.3e12, 7.1e12, 13.4e12, 26.5e12, 292.0e12),
)
"""Table A3, left."""

APPROACH_3 = _table(
    (2.21e19, 1.62e20, 2.46e22, 1.71e24, 1.26e25, 3.52e25, 1.36e26, 5.65e26, 8.55e28),
    (9.2e9, 27.1e9, 410.1e9, 4.1e12, 12.0e12, 20.1e12, 43.5e12, 94.1e12, 1425.5e12),
)
"""Table A3, right. Its row of 175 B is printed with 1.26e24 FLOPs, ten times too few for 6 · 175e9 · 12.0e12 = 1.26e25
and below the row of 67 B: corrected here."""


def _through(rows: tuple[Projection, ...]) -> Frontier:
    """The power laws N(C) and D(C) through a table, written at Gopher's budget."""
    N, C, D = np.array(rows).T
    size, tokens = power_law(C, N), power_law(C, D)
    return Frontier(_GOPHER, size.value(_GOPHER), tokens.value(_GOPHER), size.exponent, tokens.exponent)


_GOPHER = 5.76e23
_PRINTED = "arXiv 2203.15556: exponents of Table 2, from the projection at Gopher's 5.76e23 FLOPs in"
PUBLISHED_FRONTIERS = (
    PublishedFrontier(
        "Hoffmann et al., Approach 1 (envelope)",
        "a power law through the rows of arXiv 2203.15556, Table 3",
        _through(APPROACH_1),
        "total",
        rounded=False,
    ),
    PublishedFrontier(
        "Hoffmann et al., Approach 1 (envelope), as printed",
        f"{_PRINTED} figure 2",
        Frontier(_GOPHER, 67e9, 1.5e12, 0.50, 0.50),
        "total",
        rounded=True,
    ),
    PublishedFrontier(
        "Hoffmann et al., Approach 2 (IsoFLOP parabolas)",
        "a power law through the rows of arXiv 2203.15556, Table A3",
        _through(APPROACH_2),
        "total",
        rounded=False,
    ),
    PublishedFrontier(
        "Hoffmann et al., Approach 2 (IsoFLOP parabolas), as printed",
        f"{_PRINTED} figure 3",
        Frontier(_GOPHER, 63e9, 1.4e12, 0.49, 0.51),
        "total",
        rounded=True,
    ),
)
