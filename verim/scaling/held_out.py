"""How far a law is off runs that it has not seen: every budget left out in turn."""

import math

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike

from verim.errors import InputError
from verim.scaling.columns import positive
from verim.scaling.fit import MINIMUM_RUNS, BudgetError, checked_runs, fit_law

_SAME_BUDGET = math.log(1.2)
"""Runs belong to one budget while the FLOPs of the next, in order, are within this of it."""
_WIDEST_BUDGET = math.log(1.5)
_SHARES = 4


def nominal_budgets(C: ArrayLike) -> Float[np.ndarray, "runs"]:
    """For every run the FLOPs of the rung that it belongs to: the geometric mean of the runs about it.

    Runs in steps of less than 20 % are one rung. Where that makes a rung wider than 50 %, these are no IsoFLOP runs,
    and the rungs are the quarters of all runs in order of FLOPs.
    """
    logs = np.log(positive("C", C))
    order = np.argsort(logs, kind="stable")
    steps = np.diff(logs[order])
    rung = np.concatenate([[0], np.cumsum(steps > _SAME_BUDGET)])
    widths = [np.ptp(logs[order][rung == index]) for index in range(rung[-1] + 1)]
    if max(widths) > _WIDEST_BUDGET:
        rung = np.arange(logs.size) * min(_SHARES, logs.size) // logs.size
    nominal = np.empty(logs.size)
    for index in np.unique(rung):
        members = order[rung == index]
        nominal[members] = math.exp(logs[members].mean())
    return nominal


def leave_each_budget_out(
    N: ArrayLike, D: ArrayLike, L: ArrayLike, budgets: ArrayLike, *, huber: float | None = None
) -> tuple[BudgetError, ...]:
    """The law without each budget against that budget's runs, smallest budget first.

    The last is the test of extrapolation, the others test whether one law holds along the ladder. Budgets without
    which too few runs or sizes remain are passed over; `InputError` where that leaves none.
    """
    n, d, losses = checked_runs(N, D, L)
    labels = positive("budgets", budgets)
    if labels.size != n.size:
        raise InputError(f"budgets has {labels.size} entries for {n.size} runs: give one for each run")
    errors = []
    for budget in np.unique(labels):
        out = labels == budget
        enough = (~out).sum() >= MINIMUM_RUNS and all(len(np.unique(values[~out])) >= 3 for values in (n, d))
        if not enough:
            continue
        law = fit_law(n[~out], d[~out], losses[~out], huber=huber, resamples=20).law
        errors.append(BudgetError.of(float(budget), law.loss(n[out], d[out]) / losses[out] - 1))
    if not errors:
        raise InputError(
            f"budgets: without any one of the {len(np.unique(labels))} budgets too few runs remain for a law of five "
            f"parameters (at least {MINIMUM_RUNS}, in 3 sizes and 3 lengths): add runs"
        )
    return tuple(errors)
