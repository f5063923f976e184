"""Where a curve bends: the work from which a machine is no longer idle, and the threads beyond which it is again.

Time grows with work n as t(n) = a + b·n: what every step costs, and what each unit of work costs. The rate
n / t(n) tends to 1/b and has reached the share s of it at n = s/(1−s) · a/b. At s = 1/2 that is a/b, "n½" of Hockney
and Jesshope (Parallel Computers, 1981, section 1.3.2, r∞ = 1/b). With p threads t(p) = a + b/p (Amdahl, 1967), and the
efficiency t(1)/(p·t(p)) is s at p = ((a + b)/s − b)/a.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import brentq, least_squares, nnls

from verim.errors import InputError

FULL = 0.8
"""The share of the highest rate from which the machine counts as busy."""
EFFICIENT = 0.5
"""The share of a thread's full use below which more threads are not worth their cores."""
_OUTLIER = 0.1  # points further off than this share count less


@dataclass(frozen=True)
class Knee:
    """The bend of one curve.

    - `at`: where it lies, in the units of what was given; infinite where the curve does not bend.
    - `side`: "inside" what was measured, "before" or "beyond" it (then `at` is an extrapolation).
    - `fixed_seconds`, `seconds_each`: a and b. `error`: the mean share by which the points lie off the curve.
    """

    at: float
    side: Literal["before", "inside", "beyond"]
    fixed_seconds: float
    seconds_each: float
    error: float

    @property
    def half(self) -> float:
        """a/b: where fixed and proportional time are equal."""
        return _ratio(self.fixed_seconds, self.seconds_each)


def saturation_knee(work: Sequence[float], seconds: Sequence[float], share: float = FULL) -> Knee:
    """The work at which the rate `work / seconds` is `share` of what it tends to.

    Robust against single points that are off (a busy machine). Raises `InputError` for fewer than three points, for
    work that does not rise, and for what is not positive.
    """
    a, b, error = _fit(work, seconds, lambda values: values)
    return _placed(share / (1 - share) * _ratio(a, b), work, a, b, error)


def threads_knee(threads: Sequence[int], seconds: Sequence[float], share: float = EFFICIENT) -> Knee:
    """The number of threads beyond which each does less than `share` of what one alone does.

    Two points suffice, and fix the curve. Raises `InputError` as `saturation_knee` does.
    """
    a, b, error = _fit(threads, seconds, lambda values: 1 / values, fewest=2)
    return _placed(_ratio((a + b) / share - b, a), threads, a, b, error)


def place_of(values: Sequence[float], work: Sequence[float], target: float) -> float:
    """The value at which `work` is `target`: on straight lines between logarithms, and beyond the ends on the last.

    >>> round(place_of([1, 2, 4], [10.0, 20.0, 40.0], 30.0), 3)
    3.0
    """
    if not 0 < target < math.inf:
        return target
    along, across = np.log(np.asarray(work, float)), np.log(np.asarray(values, float))
    index = int(np.clip(np.searchsorted(along, math.log(target)), 1, len(along) - 1))
    slope = (across[index] - across[index - 1]) / (along[index] - along[index - 1])
    return float(np.exp(across[index - 1] + slope * (math.log(target) - along[index - 1])))


def largest_that_fits(
    needed: Callable[[int], float], known: Sequence[tuple[int, float]], limit: float, unit: int = 1, most: int = 2**31
) -> int:
    """The largest multiple of `unit` up to `most` with `needed(n) <= limit`, for what grows with n; 0 for none.

    `known`: pairs of n and `needed(n)`, two at least. Each next n is where a line through the two outermost points
    meets the limit, or, between points on both sides of it, a parabola; ends within 3 % below the limit, or after
    eight. The last that was seen to fit is returned.
    """
    points = dict(known)
    for _ in range(8):
        low = max((n for n in points if points[n] <= limit), default=0)
        high = min((n for n in points if points[n] > limit), default=most + unit)
        if low >= most or high - low <= unit or (low and points[low] >= 0.97 * limit):
            break
        guess = _between(points, low, high, limit) if low and high <= most else _outside(points, low, limit, most)
        place = min(max(unit * math.floor(min(guess, most) / unit), low + unit), high - unit)
        points[place] = needed(place)
    return max((n for n in points if points[n] <= limit), default=0)


def _outside(points: dict[int, float], low: int, limit: float, most: int) -> float:
    """Where the line through the two largest, or where all are too large the two smallest, meets the limit."""
    first, second = sorted(points)[-2:] if low else sorted(points)[:2]
    slope = (points[second] - points[first]) / (second - first)
    return first + (limit - points[first]) / slope if slope > 0 else most


def _between(points: dict[int, float], low: int, high: int, limit: float) -> float:
    """Where the parabola through `low`, `high` and the point nearest to the limit beside them meets the limit."""
    others = sorted(points.keys() - {low, high}, key=lambda n: abs(points[n] - limit))
    chosen = [low, high, *others[:1]]
    curve = np.polyfit([n / high for n in chosen], [points[n] / limit - 1 for n in chosen], len(chosen) - 1)
    if points[low] == limit or np.polyval(curve, low / high) * np.polyval(curve, 1.0) >= 0:
        return (low + high) / 2
    return high * float(brentq(lambda share: np.polyval(curve, share), low / high, 1.0))


def _ratio(a: float, b: float) -> float:
    return a / b if b > 0 else math.inf


def _placed(at: float, values: Sequence[float], a: float, b: float, error: float) -> Knee:
    side: Literal["before", "inside", "beyond"] = "inside"
    if at <= values[0]:
        side = "before"
    elif at > values[-1]:
        side = "beyond"
    return Knee(at, side, a, b, error)


def _fit(
    values: Sequence[float], seconds: Sequence[float], of: Callable[[np.ndarray], np.ndarray], fewest: int = 3
) -> tuple[float, float, float]:
    """a, b ≥ 0 of `seconds` = a + b · of(`values`) by the shares that the points lie off, and their mean."""
    if len(values) != len(seconds) or len(values) < fewest:
        raise InputError(f"knee: got {len(values)} values and {len(seconds)} times, expected {fewest} or more of each")
    if any(later <= earlier for earlier, later in itertools.pairwise(values)):
        raise InputError(f"knee: got values {list(values)}, expected ascending ones")
    x, t = of(np.asarray(values, float)), np.asarray(seconds, float)
    if not (np.isfinite(x).all() and np.isfinite(t).all() and (x > 0).all() and (t > 0).all()):
        raise InputError("knee: got values or times that are not positive, expected numbers above zero")
    scale = np.array([t.min(), t.max() / x.max()])  # both unknowns near one
    design = np.stack([np.ones_like(x), x], axis=1) * scale / t[:, None]
    start, _ = nnls(design, np.ones_like(x))
    found = least_squares(
        lambda p: design @ p - 1, np.maximum(start, 1e-12), bounds=(0, np.inf), loss="soft_l1", f_scale=_OUTLIER
    )
    a, b = np.where(found.x < 1e-9, 0.0, found.x) * scale
    return float(a), float(b), float(np.abs(a + b * x - t).mean() / t.mean())
