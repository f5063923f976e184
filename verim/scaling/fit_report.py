"""All that runs can say together: the law, what fixes it, how it does on runs it has not seen, and where to go next."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from verim.errors import InputError
from verim.scaling.envelope import Envelope, envelope
from verim.scaling.fit import PARAMETERS, BudgetError, FittedLaw, Prediction, fit_law
from verim.scaling.held_out import leave_each_budget_out, nominal_budgets
from verim.scaling.isoflop import (
    MINIMUM_SIZES,
    IsoFlopMinimum,
    ParabolaBias,
    PowerLaw,
    minimum,
    parabola_bias,
    power_law,
)
from verim.scaling.laws import Optimum
from verim.scaling.published import FittedRange
from verim.scaling.runs_file import RunsTable

_FAR_OFF = 0.02
"""A relative error of extrapolation from which the report warns."""


@dataclass(frozen=True)
class BudgetPlan:
    """Where the fitted law puts a budget, and the 90 % interval of a run's loss there."""

    C: float
    optimum: Optimum
    predicted: Prediction


@dataclass(frozen=True)
class FitReport:
    """A fit with all its checks. `exponents_of_minima` and `envelope` are Approaches 2 and 1, where the runs allow."""

    table: RunsTable
    budgets: tuple[float, ...]
    fitted: FittedLaw
    left_out: tuple[BudgetError, ...]
    minima: dict[float, IsoFlopMinimum]
    exponents_of_minima: PowerLaw | None
    parabola_bias: tuple[ParabolaBias, ...]
    envelope: Envelope | None
    plans: tuple[BudgetPlan, ...]
    warnings: tuple[str, ...]

    @property
    def range(self) -> FittedRange:
        """The budgets that the runs spent."""
        return FittedRange(float(self.table.C.min()), float(self.table.C.max()), "the runs given")

    def to_json(self) -> dict[str, Any]:
        """The report as JSON; the keys are told in `verim scale fit --help`."""
        law, fitted = self.fitted.law, self.fitted
        return {
            "runs": fitted.runs,
            "columns": self.table.columns._asdict(),
            "law": {name: getattr(law, name) for name in PARAMETERS},
            "intervals": {name: _finite(fitted.intervals[name]) for name in PARAMETERS},
            "identified": {name: bool(fitted.identified[name]) for name in PARAMETERS},
            "exponents": {
                "direct": {name: getattr(law.exponents, name) for name in ("a", "b")}
                | {"intervals": {name: _finite(fitted.intervals[name]) for name in ("a", "b")}},
                "isoflop": _approach_2(self.exponents_of_minima),
                "envelope": _approach_1(self.envelope),
            },
            "residual": fitted.spread,
            "outlier_lines": [self.table.lines[index] for index in fitted.outliers],
            "conditioning": {"projected": fitted.conditioning, "five_parameters": fitted.conditioning_full},
            "leave_budget_out": [error._asdict() | {"errors": list(error.errors)} for error in self.left_out],
            "minima": [
                {"budget": C, "N": found.N, "loss": found.loss, "interior": found.interior, "warning": found.warning}
                for C, found in self.minima.items()
            ],
            "parabola_bias": [{"budget": bias.C, "N": bias.N, "D": bias.D} for bias in self.parabola_bias],
            "fitted_range": [self.range.low, self.range.high],
            "optimum": [
                {
                    "budget": plan.C,
                    "N": plan.optimum.N,
                    "D": plan.optimum.D,
                    "loss": plan.optimum.L,
                    "interval": [plan.predicted.low, plan.predicted.high],
                    "decades_outside": self.range.decades_outside(plan.C),
                }
                for plan in self.plans
            ],
            "warnings": list(self.warnings),
        }


def report_fit(
    table: RunsTable, budgets: Sequence[float] = (), *, resamples: int = 200, seed: int = 0, huber: float | None = None
) -> FitReport:
    """Fits the law to a table's runs, checks it, and plans `budgets` (by default the largest, and ten times that)."""
    rungs = nominal_budgets(table.C)
    fitted = fit_law(table.N, table.D, table.L, resamples=resamples, seed=seed, huber=huber)
    warnings = [*table.notes, *fitted.notes]
    if fitted.outliers:
        lines = ", ".join(str(table.lines[index]) for index in fitted.outliers)
        warnings.append(f"far from what all other runs say, and of little weight in the fit: line {lines}")
    left_out, text = _left_out(table, rungs)
    warnings += text
    minima = _minima(table, rungs)
    interior = [(C, found.N) for C, found in minima.items() if found.interior]
    through = power_law(*zip(*interior, strict=True)) if len(interior) >= 2 else None
    range_ = FittedRange(float(table.C.min()), float(table.C.max()), "the runs given")
    wanted = tuple(budgets) or (range_.high, 10 * range_.high)
    plans = []
    if fitted.law.A > 0 and fitted.law.B > 0:
        for C in wanted:
            outside = range_.warning(C, "this law")
            warnings += [outside] if outside else []
            best = fitted.law.optimum(C)
            plans.append(BudgetPlan(C, best, fitted.predict(best.N, best.D)))
        bias = parabola_bias(fitted.law, table.N, table.D, rungs) if through else ()
    else:
        warnings.append("a law without one of its terms has no optimum: the runs must differ more in N and in D")
        bias = ()
    return FitReport(
        table,
        tuple(float(C) for C in np.unique(rungs)),
        fitted,
        left_out,
        minima,
        through,
        bias,
        _envelope(table, resamples, seed),
        tuple(plans),
        tuple(warnings),
    )


def _left_out(table: RunsTable, rungs: np.ndarray) -> tuple[tuple[BudgetError, ...], list[str]]:
    try:
        errors = leave_each_budget_out(table.N, table.D, table.L, rungs)
    except InputError as error:
        return (), [f"nothing tests the law on runs it has not seen: {error}"]
    last = errors[-1]
    if last.budget < rungs.max():
        return errors, ["nothing tests the law beyond the runs: too few remain without the largest budget"]
    if abs(last.mean) > _FAR_OFF:
        return errors, [
            f"fitted without the largest budget, the law is {last.mean:+.1%} off its runs: further on, expect more"
        ]
    return errors, []


def _minima(table: RunsTable, rungs: np.ndarray) -> dict[float, IsoFlopMinimum]:
    """Approach 2, at the budgets that have enough sizes. Runs that are no IsoFLOP runs have none."""
    found: dict[float, IsoFlopMinimum] = {}
    for C in np.unique(rungs):
        rung = rungs == C
        is_one_budget = np.ptp(np.log(table.C[rung])) <= math.log(1.5)
        if is_one_budget and len(np.unique(table.N[rung])) >= MINIMUM_SIZES:
            found[float(C)] = minimum(table.N[rung], table.L[rung])
    return found


def _envelope(table: RunsTable, resamples: int, seed: int) -> Envelope | None:
    """Approach 1, where sizes were trained to several lengths."""
    try:
        return envelope(table.N, table.D, table.L, table.C, resamples=min(100, resamples), seed=seed)
    except InputError:
        return None


def _approach_1(found: Envelope | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {"a": found.size.exponent, "a_interval": found.N_interval and list(found.N_interval)} | {
        "b": found.tokens.exponent,
        "b_interval": found.D_interval and list(found.D_interval),
    }


def _approach_2(found: PowerLaw | None) -> dict[str, Any] | None:
    return {"a": found.exponent, "a_interval": found.interval and list(found.interval)} if found else None


def _finite(interval: tuple[float, float]) -> list[float] | None:
    return list(interval) if all(map(math.isfinite, interval)) else None
