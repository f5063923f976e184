"""The envelope of training curves (Approach 1 of Hoffmann et al. 2203.15556, section 3.1).

Every size leaves a curve of loss over FLOPs. At a budget the lowest of the curves names the size to take; power laws
through these sizes, and the tokens they have read by then, say where a budget goes.

What to know of it. (1) A point on the way counts only where the learning rate had fallen to its end there: a run
whose schedule is longer stands too high (Hoffmann's objection to Kaplan). Where points halfway are 0.5 % too high,
the optimum of 1e20 FLOPs moves to 22 % more tokens, simulated on Hoffmann's surface. Give the ends of runs, or curves
of constant rate with short decays.
(2) The answer is one of the sizes that were trained, so N(C) is a staircase: the exponent needs many sizes, some ten
a decade of FLOPs. (3) At both ends the best size is an edge of what was trained; such budgets are left out. The
surface (`verim.scaling.fit`) has none of these troubles, and needs no curves.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from verim.errors import InputError
from verim.scaling.columns import positive
from verim.scaling.isoflop import PowerLaw, power_law

LEAST_CURVES = 3
_LEVELS = (5.0, 95.0)


@dataclass(frozen=True)
class Envelope:
    """The lowest curve at each budget, and N = k C^a and D = l C^b through them.

    `C`, `N`, `D` and `L` are the budgets at which an inner size is best, that size, its tokens and its loss.
    `N_interval` and `D_interval` are 90 % intervals of the exponents, from resampling the curves; None where too few
    resamples have an envelope. (The intervals of the `PowerLaw`s are of a line through independent points, which a
    staircase is not, and are left away.)
    """

    C: Float[np.ndarray, "budgets"]
    N: Float[np.ndarray, "budgets"]
    D: Float[np.ndarray, "budgets"]
    L: Float[np.ndarray, "budgets"]
    size: PowerLaw
    tokens: PowerLaw
    N_interval: tuple[float, float] | None
    D_interval: tuple[float, float] | None


def envelope(
    N: ArrayLike,
    D: ArrayLike,
    L: ArrayLike,
    C: ArrayLike | None = None,
    *,
    budgets: int = 200,
    resamples: int = 100,
    seed: int = 0,
) -> Envelope:
    """The envelope of points (N, D, L), whose rows of one N are one curve, at `budgets` log-spaced budgets.

    C are the FLOPs of each point, by default 6·N·D. Between its points a curve is a straight line of ln L over ln C.
    Raises `InputError` where fewer than three sizes have curves of two points or more, or where no budget has an
    inner size as its best.
    """
    n, d, losses = positive("N", N), positive("D", D), positive("L", L)
    flops = 6 * n * d if C is None else positive("C", C)
    if not n.size == d.size == losses.size == flops.size:
        raise InputError(f"N, D, L and C have {n.size}, {d.size}, {losses.size} and {flops.size} entries: give as many")
    if budgets < 2:
        raise InputError(f"budgets is {budgets}: a power law needs at least 2, Hoffmann took 1500")
    curves = _curves(n, d, losses, flops)
    if len(curves) < LEAST_CURVES:
        raise InputError(
            f"N has {len(curves)} sizes with two points or more: an envelope needs the curves of at least "
            f"{LEAST_CURVES}"
        )
    inner = np.sort([end for _, points in curves for end in (points[0, 0], points[-1, 0])])[1:-1]
    grid = np.linspace(inner[0], inner[-1], budgets)
    found = _lowest(curves, grid)
    if len(found) < 2 or len(np.unique(found[:, 1])) < 2:
        raise InputError(
            "L: at hardly a budget is one of the inner sizes the best, so the curves have no envelope: "
            "train them to more tokens, or add sizes"
        )
    C_found, N_found, D_found, L_found = found.T
    N_interval, D_interval = _intervals(curves, grid, resamples, seed)
    return Envelope(
        C=C_found,
        N=N_found,
        D=D_found,
        L=L_found,
        size=power_law(C_found, N_found),
        tokens=power_law(C_found, D_found),
        N_interval=N_interval,
        D_interval=D_interval,
    )


Curve = tuple[float, Float[np.ndarray, "points 3"]]


def _curves(
    n: Float[np.ndarray, "runs"],
    d: Float[np.ndarray, "runs"],
    losses: Float[np.ndarray, "runs"],
    flops: Float[np.ndarray, "runs"],
) -> list[Curve]:
    """For each size its points ln C, ln D, ln L in the order of C; the lower of two at one C."""
    curves = []
    for size in np.unique(n):
        mine = np.flatnonzero(n == size)
        mine = mine[np.lexsort((losses[mine], flops[mine]))]
        _, first = np.unique(flops[mine], return_index=True)
        points = np.log(np.stack([flops, d, losses], 1)[mine[first]])
        if len(points) >= 2:
            curves.append((float(size), points))
    return curves


def _lowest(curves: list[Curve], grid: Float[np.ndarray, "budgets"]) -> Float[np.ndarray, "found 4"]:
    """C, N, D, L of the lowest curve at each budget where it is neither the smallest nor the largest there."""
    heights = np.stack([np.interp(grid, p[:, 0], p[:, 2], left=np.inf, right=np.inf) for _, p in curves])
    present = np.isfinite(heights)
    best = heights.argmin(0)
    smallest, largest = present.argmax(0), len(curves) - 1 - present[::-1].argmax(0)
    rows = []
    for index in np.flatnonzero((present.sum(0) >= LEAST_CURVES) & (best > smallest) & (best < largest)):
        size, points = curves[best[index]]
        tokens = np.exp(np.interp(grid[index], points[:, 0], points[:, 1]))
        rows.append((np.exp(grid[index]), size, tokens, np.exp(heights[best[index], index])))
    return np.array(rows).reshape(-1, 4)


def _intervals(
    curves: list[Curve], grid: Float[np.ndarray, "budgets"], resamples: int, seed: int
) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """90 % intervals of both exponents, from envelopes of curves drawn with repetition."""
    generator = np.random.default_rng(seed)
    exponents = []
    for _ in range(resamples):
        drawn = [curves[i] for i in np.unique(generator.integers(len(curves), size=len(curves)))]
        found = _lowest(drawn, grid) if len(drawn) >= LEAST_CURVES else np.empty((0, 4))
        if len(found) >= 2 and len(np.unique(found[:, 1])) >= 2:
            C, sizes, tokens, _ = found.T
            exponents.append((power_law(C, sizes).exponent, power_law(C, tokens).exponent))
    if len(exponents) < max(2, resamples // 2):
        return None, None
    low, high = np.percentile(exponents, _LEVELS, axis=0)
    return (float(low[0]), float(high[0])), (float(low[1]), float(high[1]))
