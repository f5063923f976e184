"""What a ladder's runs say: noise, minima, laws, verdicts; and the study's result as one JSON object."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np

import verim
from verim.errors import InputError
from verim.scaling.fit import MINIMUM_RUNS, FittedLaw, fit_law, leave_budget_out
from verim.scaling.isoflop import IsoFlopMinimum, minimum, power_law
from verim.scaling.ladder import Ladder, RunSpec
from verim.scaling.plan import Plan
from verim.scaling.published import PUBLISHED_EXPONENTS
from verim.scaling.speed import Candidate
from verim.train.rules import LENGTH, RULES, recipe

CONVENTIONS = {
    "flops": "Training FLOPs, forward and backward; a multiply-add is 2; causal attention counts its lower triangle.",
    "parameters": "Non-embedding: all weights but the input embedding; the output head counts.",
    "loss": "Bits per byte on held-out documents that no run has trained on.",
}
_LACK_OF_FIT = 1.5
_CURVE_POINTS = 60
_FRESH_EPOCHS = 4.0
_BEYOND_NOISE = 2.0
"""A margin counts from this many standard errors of a difference of two minima."""
_LEAST_NOISE = 1e-4
"""Two seeds may agree by chance; no smaller relative noise is believed."""


@dataclass(frozen=True)
class Trained:
    """A run and what came of it."""

    spec: RunSpec
    result: dict[str, Any]

    @property
    def loss(self) -> float:
        return float(self.result["bits_per_byte"])

    def on(self, architecture: str, budget: float) -> bool:
        return self.spec.architecture == architecture and self.spec.budget == budget


@dataclass
class Findings:
    """The analysis of a ladder, by architecture."""

    runs: list[Trained]
    sizes: dict[tuple[str, int], Candidate]
    minima: dict[str, dict[float, IsoFlopMinimum]]
    laws: dict[str, FittedLaw]
    noise: float
    repeated: list[dict[str, Any]]
    verdicts: list[dict[str, Any]]
    warnings: list[str]
    predictions: dict[str, Plan] = field(default_factory=dict)

    def size(self, spec: RunSpec) -> Candidate:
        return self.sizes[spec.architecture, spec.width]


def analyse(
    runs: list[Trained],
    budgets: Sequence[float],
    measured: Mapping[str, Sequence[Candidate]],
    architectures: Sequence[str],
) -> Findings:
    """Minima, laws and verdicts of the runs. `noise` is relative: of one run's loss, from the repeated seeds."""
    sizes = {(c.architecture, c.width): c for candidates in measured.values() for c in candidates}
    repeated, noise = _noise(runs)
    minima: dict[str, dict[float, IsoFlopMinimum]] = {}
    laws, warnings = {}, []
    for name in architectures:
        minima[name] = {}
        for budget in budgets:
            rung = [run for run in runs if run.on(name, budget)]
            found = minimum([sizes[name, r.spec.width].non_embedding for r in rung], [r.loss for r in rung], noise)
            minima[name][budget] = found
            if found.warning:
                warnings.append(f"{name} at {budget:.1e} FLOPs: {found.warning}")
            bad = [rung[index].spec.id for index in found.bad]
            warnings += [f"{run} is set aside at its minimum: all other runs contradict it" for run in bad]
        mine = [run for run in runs if run.spec.architecture == name]
        laws[name], kept = _law_where_it_holds(mine, sizes)
        if len(kept) < len(mine):
            warnings.append(
                f"{name}: the law leaves out the runs of {min(run.spec.budget for run in mine):.1e} FLOPs, which "
                "lie off it, as small runs do that learn less than a power law says"
            )
            mine = kept
        outliers = ", ".join(mine[i].spec.id for i in laws[name].outliers)
        if outliers:
            warnings.append(f"{name}: the law sets little weight on {outliers}, far from what all other runs say")
    verdicts = [_verdict(budget, {name: minima[name][budget] for name in architectures}, noise) for budget in budgets]
    return Findings(runs, sizes, minima, laws, noise, repeated, verdicts, warnings)


def _law_where_it_holds(
    runs: list[Trained], sizes: Mapping[tuple[str, int], Candidate]
) -> tuple[FittedLaw, list[Trained]]:
    """The law of one architecture's runs and the runs it is fitted to.

    The smallest runs have too few steps to lie on any power law, and a law bent to them is wrong beyond the ladder.
    Without the smallest budget the residuals' spread falls by the factor `_LACK_OF_FIT` or more exactly where that
    budget does not belong; then it is left out, as long as two budgets remain. (On the default corpus: 0.8 % with it,
    0.24 % without, and the prediction at 5 times the largest budget 2.6 % off or 0.3 %.)
    """
    whole = _fit(runs, sizes)
    least = min(run.spec.budget for run in runs)
    above = [run for run in runs if run.spec.budget > least]
    if len({run.spec.budget for run in above}) < 2 or len(above) <= MINIMUM_RUNS + 2:
        return whole, runs
    part = _fit(above, sizes)
    return (part, above) if part.spread * _LACK_OF_FIT < whole.spread else (whole, runs)


def _fit(runs: Sequence[Trained], sizes: Mapping[tuple[str, int], Candidate]) -> FittedLaw:
    return fit_law(
        [sizes[run.spec.architecture, run.spec.width].non_embedding for run in runs],
        [run.result["tokens"] for run in runs],
        [run.loss for run in runs],
    )


def _noise(runs: Sequence[Trained]) -> tuple[list[dict[str, Any]], float]:
    """The repeated runs, and the pooled relative standard deviation of the loss over seeds."""
    groups: dict[tuple[str, float, int], list[Trained]] = {}
    for run in runs:
        groups.setdefault((run.spec.architecture, run.spec.budget, run.spec.width), []).append(run)
    repeated, squares, freedom = [], 0.0, 0
    for (architecture, budget, width), group in groups.items():
        if len(group) < 2:
            continue
        logs = np.log([run.loss for run in group])
        squares += float(((logs - logs.mean()) ** 2).sum())
        freedom += len(group) - 1
        repeated.append(
            {
                "architecture": architecture,
                "budget": budget,
                "width": width,
                "seeds": [run.spec.seed for run in group],
                "bits_per_byte": [run.loss for run in group],
            }
        )
    if not freedom:
        raise InputError("runs: none is repeated with another seed, so nothing tells the noise; repeat one")
    return repeated, max(_LEAST_NOISE, math.sqrt(squares / freedom))


def _verdict(budget: float, minima: Mapping[str, IsoFlopMinimum], noise: float) -> dict[str, Any]:
    ranked = sorted(minima, key=lambda name: minima[name].loss)
    best = minima[ranked[0]].loss
    margin: float | None
    ahead: str | None = ranked[0]
    errors = [minima[name].loss_error or noise * minima[name].loss for name in ranked[:2]]
    threshold = _BEYOND_NOISE * math.hypot(*errors)
    if len(ranked) == 1:
        margin, text = None, f"{ranked[0]} alone: {best:.3f} bits per byte"
    else:
        margin = minima[ranked[1]].loss - best
        if margin <= threshold:
            ahead = None
        text = (
            f"{ranked[0]} is ahead of {ranked[1]} by {margin:.3f} bits per byte"
            if ahead
            else f"{ranked[0]} and {ranked[1]} are {margin:.3f} bits per byte apart, within the noise ({threshold:.3f})"
        )
        edges = [name for name in ranked[:2] if not minima[name].interior]
        if edges:
            text += f"; the minimum of {' and '.join(edges)} lies on the edge of the ladder and may be lower"
    return {
        "budget": budget,
        "ahead": ahead,
        "margin_bits_per_byte": margin,
        "noise_bits_per_byte": threshold,
        "text": text,
    }


def assemble(
    corpus: dict[str, Any],
    machine: dict[str, Any],
    options: dict[str, Any],
    ladder: Ladder,
    findings: Findings,
    plan: Plan,
    target: dict[str, Any],
    seconds: dict[str, Any],
) -> dict[str, Any]:
    """The content of study.json."""
    predicted, achieved = plan.predicted, float(target["bits_per_byte"])
    return {
        "format": 1,
        "verim_version": verim.__version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "corpus": corpus,
        "machine": machine,
        "options": options,
        "conventions": CONVENTIONS,
        "rules": RULES,
        "budgets": list(ladder.budgets),
        "architectures": {name: _architecture(name, ladder, findings) for name in findings.laws},
        "noise": {
            "relative": findings.noise,
            "standard_deviation_bits_per_byte": findings.noise
            * float(np.mean([loss for group in findings.repeated for loss in group["bits_per_byte"]])),
            "runs": findings.repeated,
        },
        "verdicts": findings.verdicts,
        "recommended": plan.description(),
        "epochs": plan.tokens / corpus["train_bytes"],
        "predicted_bits_per_byte": predicted.loss,
        "interval": [predicted.low, predicted.high],
        "achieved_bits_per_byte": achieved,
        "relative_error": predicted.loss / achieved - 1,
        "target": {"curve": target["curve"], "seconds": target["seconds"], "sample": target["sample"]},
        "seconds": seconds,
        "warnings": [*findings.warnings, *_repeated_text(plan, corpus["train_bytes"]), *corpus["notes"]],
    }


def _repeated_text(plan: Plan, train_bytes: int) -> list[str]:
    epochs = plan.tokens / train_bytes
    if epochs <= _FRESH_EPOCHS:
        return []
    return [
        f"the proof passes {epochs:.1f} times over the text; beyond {_FRESH_EPOCHS:.0f} a law that takes every byte "
        "for fresh is too hopeful (Muennighoff et al. 2023, arXiv 2305.16264)"
    ]


def _architecture(name: str, ladder: Ladder, findings: Findings) -> dict[str, Any]:
    plan = findings.predictions[name]
    return {
        "runs": [_run(run, findings.size(run.spec)) for run in findings.runs if run.spec.architecture == name],
        "minima": [_minimum(budget, name, findings) for budget in ladder.budgets],
        "law": _law(name, findings),
        "exponents": _exponents(name, ladder, findings),
        "prediction": {
            "width": plan.candidate.width,
            "budget": plan.flops,
            "non_embedding": plan.candidate.non_embedding,
            "tokens": plan.tokens,
            "seconds": plan.seconds,
            "bits_per_byte": plan.predicted.loss,
            "interval": [plan.predicted.low, plan.predicted.high],
        },
    }


def _run(run: Trained, size: Candidate) -> dict[str, Any]:
    how = recipe(run.spec.tokens)
    tokens, seconds = run.result["tokens"], run.result["seconds"]
    return {
        "id": run.spec.id,
        "budget": run.spec.budget,
        "width": size.width,
        "depth": size.depth,
        "non_embedding": size.non_embedding,
        "total": size.total,
        "tokens": tokens,
        "batch_tokens": how.batch * LENGTH,
        "length": LENGTH,
        "learning_rate": how.trainer.optimiser.learning_rate,
        "steps": run.result["steps"],
        "seed": run.spec.seed,
        "bits_per_byte": run.loss,
        "seconds": seconds,
        "flops": tokens * size.flops_per_token,
        "flops_per_second": tokens * size.flops_per_token / seconds,
    }


def _minimum(budget: float, name: str, findings: Findings) -> dict[str, Any]:
    found = findings.minima[name][budget]
    sizes = [findings.size(run.spec) for run in findings.runs if run.on(name, budget)]
    nearest = min(sizes, key=lambda size: abs(math.log(size.non_embedding / found.N)))
    drawn = np.geomspace(*_ends([sizes[i].non_embedding for i in found.used]), _CURVE_POINTS)
    return {
        "budget": budget,
        "non_embedding": found.N,
        "non_embedding_interval": list(found.N_interval) if found.N_interval else None,
        "tokens": budget / (nearest.flops_per_token / nearest.non_embedding * found.N),
        "bits_per_byte": found.loss,
        "interior": found.interior,
        "warning": found.warning,
        "curve": [[float(n), float(loss)] for n, loss in zip(drawn, found.curve(drawn), strict=True)],
    }


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _left_out(name: str, findings: Findings) -> list[str]:
    """How far the law of the smaller budgets is off the largest one's runs: the nearest thing to a test of it."""
    runs = [run for run in findings.runs if run.spec.architecture == name]
    below = [run for run in runs if run.spec.budget < max(run.spec.budget for run in runs)]
    if len(below) < MINIMUM_RUNS:
        return []
    sizes = [findings.size(run.spec).non_embedding for run in runs]
    error = leave_budget_out(
        sizes, [r.result["tokens"] for r in runs], [r.loss for r in runs], [r.spec.budget for r in runs]
    )
    return [
        f"fitted without the largest budget, the law is {error.mean:+.1%} off that budget's runs on average, "
        f"{error.worst:+.1%} at worst"
    ]


def _law(name: str, findings: Findings) -> dict[str, Any]:
    fitted = findings.laws[name]
    names = ("E", "A", "B", "alpha", "beta")
    return {
        **{name: getattr(fitted.law, name) for name in names},
        "intervals": {name: _finite(fitted.intervals[name]) for name in names},
        "identified": {name: bool(fitted.identified[name]) for name in names},
        "residual": fitted.spread,
        "notes": [*fitted.notes, *_left_out(name, findings)],
    }


def _finite(interval: tuple[float, float]) -> list[float] | None:
    return [float(end) for end in interval] if all(map(math.isfinite, interval)) else None


def _exponents(name: str, ladder: Ladder, findings: Findings) -> dict[str, Any]:
    """N ∝ C^a and D ∝ C^b by the law; beside them what a line through the interior minima says."""
    fitted = findings.laws[name]
    interior = [(budget, found.N) for budget, found in findings.minima[name].items() if found.interior]
    through = power_law(*zip(*interior, strict=True)).exponent if len(interior) >= 2 else None
    return {
        "N": {"value": fitted.law.exponents.a, "interval": _finite(fitted.intervals["a"])},
        "D": {"value": fitted.law.exponents.b, "interval": _finite(fitted.intervals["b"])},
        "identified": bool(fitted.identified["a"]),
        "through_minima": through,
        "source": "the fitted law: a = β / (α + β), b = α / (α + β) (Hoffmann et al. 2022, equation 4)",
        "published": {row.name: {"N": row.a, "D": row.b, "source": row.source} for row in PUBLISHED_EXPONENTS},
    }
