"""The minimum of one budget's curve of loss over size (Approach 2 of Hoffmann et al. 2203.15556), and power
laws through the minima.

Known bias. At a constant budget a loss surface E + A/N^α + B/D^β is no parabola in ln N: unless α = β its
arms rise unequally, and the vertex shifts towards the slower one. Without any noise this misplaces the
optimum by 5 % in D at 1e24 FLOPs on Chinchilla-like surfaces, by up to 23 % on asymmetric ones, and by up
to 35 % where the sampled sizes drift off centre from budget to budget (Open-Athena, scaling-law-analysis);
on our tiny ladders by 2 to 5 % in N. The surface fit (`verim.scaling.fit`) has no such bias: the minima
here are for the eye, for the verdict at a budget, and for warning that a ladder misses its minimum. `parabola_bias`
says what the bias is for given sizes and a given surface.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike
from scipy import stats

from verim.errors import InputError
from verim.scaling.columns import positive
from verim.scaling.laws import Law

MINIMUM_SIZES = 3
_WINDOW = 4.0  # runs within this factor of the best size
_WINDOW_RUNS = 5  # and never fewer than this many, where there are
_BAD_RUN = 4.0  # standard deviations from what the other runs predict, where the noise is given
_BAD_RUN_RISK = 0.01  # and the false alarms a curve, where it must be estimated from the curve itself
_CONFIDENCE = 0.9


@dataclass(frozen=True)
class IsoFlopMinimum:
    """The minimum of one budget's curve.

    `coefficients` are c of ln L = c₀ + c₁ ln N + c₂ (ln N)². `used` are the indices of the runs fitted, `bad`
    those set aside because all others contradict them. `N_interval` is 90 % (Fieller's, exact for the ratio
    −c₁/2c₂): it holds the noise, not the bias above, and is None where nothing tells the noise or where the
    noise leaves it unbounded. `loss_error` is the standard error of `loss`, where the noise was given.

    `interior`: the vertex lies strictly inside the sampled sizes, the best sampled size is neither the
    smallest nor the largest, and the curve is convex. Otherwise `N` and `loss` are those of the best run, and
    `warning` says why in a sentence.
    """

    N: float
    loss: float
    coefficients: tuple[float, float, float]
    interior: bool
    warning: str | None
    used: tuple[int, ...]
    bad: tuple[int, ...]
    N_interval: tuple[float, float] | None
    loss_error: float | None

    def curve(self, N: Float[np.ndarray, "points"]) -> Float[np.ndarray, "points"]:
        """The fitted parabola's loss at sizes N, for drawing."""
        c0, c1, c2 = self.coefficients
        x = np.log(N)
        return np.exp(c0 + c1 * x + c2 * x**2)


@dataclass(frozen=True)
class PowerLaw:
    """value = coefficient · C^exponent. `interval` of the exponent is 90 %, None through two points only."""

    exponent: float
    coefficient: float
    interval: tuple[float, float] | None

    def value(self, C: float) -> float:
        """The law at C."""
        return self.coefficient * C**self.exponent


class ParabolaBias(NamedTuple):
    """How far a parabola through noise-free runs of budget C misses the optimum: (found − true) / true."""

    C: float
    N: float
    D: float


def parabola_bias(law: Law, N: ArrayLike, D: ArrayLike, budgets: ArrayLike) -> tuple[ParabolaBias, ...]:
    """What the method alone gets wrong, at each budget, with runs of these N and D on the surface `law`.

    The losses of the law itself stand in for measured ones. Budgets with fewer than three sizes, or without a
    minimum inside them, are passed over: what they lack is no bias of the parabola.
    """
    n, d, labels = positive("N", N), positive("D", D), positive("budgets", budgets)
    if not n.size == d.size == labels.size:
        raise InputError(f"N, D and budgets have {n.size}, {d.size} and {labels.size} entries: give one for each run")
    found = []
    for C in np.unique(labels):
        sizes, tokens = n[labels == C], d[labels == C]
        if len(np.unique(sizes)) < MINIMUM_SIZES:
            continue
        vertex = minimum(sizes, law.loss(sizes, tokens))
        if vertex.interior:
            best = law.optimum(6 * float(np.exp(np.log(sizes * tokens).mean())))
            found.append(ParabolaBias(float(C), vertex.N / best.N - 1, best.N / vertex.N - 1))
    return tuple(found)


def minimum(N: ArrayLike, L: ArrayLike, sigma: float | None = None) -> IsoFlopMinimum:
    """The vertex of a parabola in ln N through the ln L of runs of equal FLOPs.

    `sigma` is the relative noise of one run's loss (0.005 for half a percent), from repeated seeds; without
    it the curve's own residuals stand in, where there are more than three runs.

    Chosen by simulation on surfaces with α 0.3 to 0.6, β 0.2 to 0.4, 5 or 6 sizes, noise 0.3 to 0.7 %. A
    parabola through the three runs around the best one has the least bias (0.4 % in N against 2.4 %) but
    nearly three times the error (15 % against 6 % at 0.5 % noise), and its minimum is too low, since it
    follows the luckiest run. So all runs count within a factor 4 of the best size, and at least five: on
    wider ladders the arms bend away from any parabola. ln L instead of L leaves the loss at the vertex
    unbiased (−0.1 % otherwise). A run that all others contradict is set aside and reported; with `sigma`
    two in three runs that are 4 % off are found, without it only gross ones, as two degrees of freedom tell
    little.

    Raises `InputError` for fewer than three different sizes, mismatched lengths, or numbers not above 0.
    """
    n, losses = positive("N", N), positive("L", L)
    if n.size != losses.size:
        raise InputError(f"N has {n.size} entries and L {losses.size}: give one loss for each size")
    if len(np.unique(n)) < MINIMUM_SIZES:
        raise InputError(
            f"N has {len(np.unique(n))} different sizes: a minimum needs at least {MINIMUM_SIZES} at a budget"
        )
    if sigma is not None and not (math.isfinite(sigma) and sigma > 0):
        raise InputError(f"sigma is {sigma}: give the relative noise of a run's loss, above 0, or None")

    x, y = np.log(n), np.log(losses)
    near = _window(x, y)
    bad = _bad_run(x[near], y[near], sigma)
    used = near if bad is None else np.delete(near, bad)
    set_aside = () if bad is None else (int(near[bad]),)
    kept = np.setdiff1d(np.arange(n.size), set_aside)

    centre = x[used].mean()
    design = np.stack([np.ones(used.size), x[used] - centre, (x[used] - centre) ** 2], 1)
    c, *_ = np.linalg.lstsq(design, y[used], rcond=None)
    variance = _variance(y[used] - design @ c, sigma)
    best = kept[y[kept].argmin()]
    vertex = centre - c[1] / (2 * c[2]) if c[2] > 0 else math.nan
    warning = _warning(n[kept], n[best], c[2], vertex)
    interval, log_error = None, None
    if variance is not None and warning is None:
        covariance = variance * np.linalg.inv(design.T @ design)
        interval = _fieller(c, covariance, _quantile(used.size - 3, sigma), centre)
        at = np.array([1.0, vertex - centre, (vertex - centre) ** 2])
        log_error = math.sqrt(at @ covariance @ at) if sigma is not None else None
    loss = math.exp(c[0] - c[1] ** 2 / (4 * c[2])) if warning is None else float(losses[best])
    return IsoFlopMinimum(
        N=math.exp(vertex) if warning is None else float(n[best]),
        loss=loss,
        coefficients=(
            float(c[0] - c[1] * centre + c[2] * centre**2),
            float(c[1] - 2 * c[2] * centre),
            float(c[2]),
        ),
        interior=warning is None,
        warning=warning,
        used=tuple(int(i) for i in used),
        bad=set_aside,
        N_interval=interval,
        loss_error=None if log_error is None else log_error * loss,
    )


def power_law(C: ArrayLike, values: ArrayLike) -> PowerLaw:
    """value = k · C^exponent through the minima of several budgets, by least squares of the logarithms.

    The 90 % interval is Student's with n − 2 degrees of freedom: wide (±6.3 standard errors) through three
    budgets, as it must be. It holds the scatter about the line, not the bias of the minima (see above).
    """
    budgets, heights = positive("C", C), positive("values", values)
    if budgets.size != heights.size:
        raise InputError(f"C has {budgets.size} entries and values {heights.size}: give one value for each C")
    if len(np.unique(budgets)) < 2:
        raise InputError(f"C has {len(np.unique(budgets))} different budgets: an exponent needs at least 2")
    x, y = np.log(budgets), np.log(heights)
    centred = x - x.mean()
    slope = float(centred @ y / (centred @ centred))
    residuals = y - y.mean() - slope * centred
    interval = None
    if x.size > 2:
        error = math.sqrt(float(residuals @ residuals) / (x.size - 2) / float(centred @ centred))
        reach = float(stats.t.ppf((1 + _CONFIDENCE) / 2, x.size - 2)) * error
        interval = (slope - reach, slope + reach)
    return PowerLaw(slope, math.exp(y.mean() - slope * x.mean()), interval)


def _window(x: Float[np.ndarray, "runs"], y: Float[np.ndarray, "runs"]) -> np.ndarray:
    """Indices of the runs within the window around the best size, in the order given."""
    distance = np.abs(x - x[y.argmin()])
    nearest = np.sort(distance)[: min(_WINDOW_RUNS, x.size)][-1]
    return np.flatnonzero(distance <= max(math.log(_WINDOW), nearest) + 1e-9)


def _bad_run(x: Float[np.ndarray, "runs"], y: Float[np.ndarray, "runs"], sigma: float | None) -> int | None:
    """The run that the parabola through all the others contradicts, if there is one; needs five runs.

    Its deletion residual is compared with the given noise, or with the others' residuals by Student's t,
    Bonferroni-corrected for having looked at every run.
    """
    if x.size < MINIMUM_SIZES + 2:
        return None
    centred = x - x.mean()
    design = np.stack([np.ones(x.size), centred, centred**2], 1)
    basis, _ = np.linalg.qr(design)
    leverage = (basis**2).sum(1)
    residuals = y - basis @ (basis.T @ y)
    free = np.maximum(1 - leverage, 1e-9)
    freedom = x.size - 4
    if sigma is not None:
        score, limit = np.abs(residuals) / np.sqrt(free) / sigma, _BAD_RUN
    else:
        others = np.maximum((residuals @ residuals - residuals**2 / free) / freedom, 1e-30)
        score = np.abs(residuals) / np.sqrt(free * others)
        limit = float(stats.t.ppf(1 - _BAD_RUN_RISK / (2 * x.size), freedom))
    worst = int(score.argmax())
    return worst if score[worst] > limit else None


def _variance(residuals: Float[np.ndarray, "runs"], sigma: float | None) -> float | None:
    if sigma is not None:
        return sigma**2
    return float(residuals @ residuals) / (residuals.size - 3) if residuals.size > 3 else None


def _quantile(freedom: int, sigma: float | None) -> float:
    upper = (1 + _CONFIDENCE) / 2
    return float(stats.norm.ppf(upper) if sigma is not None else stats.t.ppf(upper, freedom))


def _fieller(
    c: Float[np.ndarray, "3"], covariance: Float[np.ndarray, "3 3"], quantile: float, centre: float
) -> tuple[float, float] | None:
    """The sizes at which a slope c₁ + 2c₂x of 0 is not refuted; None where that is no bounded interval."""
    q2 = quantile**2
    square = 4 * (c[2] ** 2 - q2 * covariance[2, 2])
    linear = 4 * (c[1] * c[2] - q2 * covariance[1, 2])
    constant = c[1] ** 2 - q2 * covariance[1, 1]
    inside = linear**2 - 4 * square * constant
    if square <= 0 or inside < 0:
        return None
    ends = (-linear + np.array([-1.0, 1.0]) * math.sqrt(inside)) / (2 * square) + centre
    return (math.exp(ends[0]), math.exp(ends[1]))


def _warning(sizes: Float[np.ndarray, "runs"], best: float, curvature: float, vertex: float) -> str | None:
    smallest, largest = sizes.min(), sizes.max()
    if best in (smallest, largest):
        edge, add = ("smallest", "smaller") if best == smallest else ("largest", "larger")
        return (
            f"the best of the {sizes.size} sizes is the {edge} ({best:.4g} parameters), so the minimum may "
            f"lie outside the ladder: add {add} sizes at this budget"
        )
    if not curvature > 0:
        return (
            "the losses do not curve upwards in the logarithm of the size, so they show no minimum: "
            "widen the range of sizes or lower the noise at this budget"
        )
    if not math.log(smallest) < vertex < math.log(largest):
        return (
            f"the fitted minimum lies outside the sizes trained ({smallest:.4g} to {largest:.4g} "
            "parameters): widen their range at this budget"
        )
    return None
