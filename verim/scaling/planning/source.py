"""The law that a plan goes by: a published one by its name, or that of a study by its directory."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from verim.errors import InputError
from verim.runtime.files import read_json
from verim.scaling.fit import MINIMUM_RUNS, FittedLaw, fit_law
from verim.scaling.kaplan import KaplanLaw
from verim.scaling.laws import Law, Optimum, Surface
from verim.scaling.planning.sizes import Size
from verim.scaling.published import LAWS, FittedRange, PublishedLaw, published_law

STUDY = "study.json"


class Band(NamedTuple):
    """An interval of the loss, of `level` percent."""

    low: float
    high: float
    level: int


@dataclass(frozen=True)
class PlanLaw:
    """A law with what a plan must know of it.

    - `counts`: which parameters its N are ("total", "non_embedding", or Kaplan's "non_embedding without the head").
    - `unit` of its loss. `is_of_bytes`: it was fitted to runs of ours, on bytes.
    - `interval(N, D)`: of the loss of a run; None where the law came without.
    - `follows_frontier`: its own frontier says where a budget goes and what that gives, not its surface.
    """

    name: str
    source: str
    surface: Surface
    counts: str
    unit: str
    fitted: FittedRange
    interval: Callable[[float, float], Band | None]
    notes: tuple[str, ...] = ()
    is_of_bytes: bool = False
    follows_frontier: bool = False

    def count(self, size: Size) -> float:
        """The parameters of `size` as the law counts them."""
        if self.counts == "total":
            return size.total
        without_head = self.counts != "non_embedding"
        return size.non_embedding - (size.config.vocab * size.width if without_head else 0)

    def loss(self, N: float, D: float) -> float:
        return self.surface.loss(N, D)

    def optimum(self, C: float, size: Size | None = None) -> Optimum:
        """Where C FLOPs go; with `size`, at the FLOPs a parameter and token that it spends."""
        return self.surface.optimum(C, 6.0 if size is None else size.flops_per_token / self.count(size))

    def warnings(self, C: float) -> list[str]:
        """What to say beside a plan for C FLOPs."""
        outside = self.fitted.warning(C, self.name)
        return [*([outside] if outside else []), *self.notes]


def law_of(name: str, architecture: str) -> PlanLaw:
    """The law `name`: one of `verim.scaling.published`, or a study's directory, of which that of `architecture`.

    Raises `InputError` for what is neither, and for a study that is not finished.
    """
    path = Path(name)
    if name in LAWS:
        return _published(published_law(name))
    if path.is_dir():
        return _of_study(path, architecture)
    published_law(name)
    raise AssertionError("an unknown name is refused")


def _published(law: PublishedLaw) -> PlanLaw:
    is_kaplan = isinstance(law.law, KaplanLaw)
    notes = law.warnings(math.sqrt(law.fitted.low * law.fitted.high))  # within its range: what always holds
    if not law.intervals:
        notes = (*notes, f"{law.name}: no intervals of its constants are published, so the loss has no band")
    return PlanLaw(
        name=law.name,
        source=law.source,
        surface=law,
        counts="non_embedding without the head" if is_kaplan else law.counts,
        unit=law.unit,
        fitted=law.fitted,
        interval=lambda N, D: _pivoted(law, N, D),
        notes=tuple(notes),
        follows_frontier=is_kaplan,
    )


def _pivoted(law: PublishedLaw, N: float, D: float) -> Band | None:
    """Floor and exponents at the ends of their published intervals, one at a time, the deviations added in squares.

    A term's coefficient follows its exponent so that the term keeps its value in the middle of the fitted range: that
    is the ridge along which the two trade against each other in a fit, and the intervals of coefficients taken alone
    (a factor of 5 for B) are mostly this. What the floor and the terms make up for is not known from intervals, so the
    band is rather too wide.
    """
    known = {name: (low, high) for name, low, high in law.intervals}
    if not known or not isinstance(law.law, Law):
        return None
    fit = law.law
    middle = fit.optimum(math.sqrt(law.fitted.low * law.fitted.high))
    terms = {"alpha": (fit.A, N, middle.N), "beta": (fit.B, D, middle.D)}
    below = above = 0.0
    for name, ends in known.items():
        if name == "E":
            deviations = [end - fit.E for end in ends]
        elif name in terms:
            coefficient, at, pivot = terms[name]
            exponent = getattr(fit, name)
            term = coefficient * at**-exponent
            deviations = [term * (at / pivot) ** (exponent - end) - term for end in ends]
        else:
            continue
        below += min(*deviations, 0.0) ** 2
        above += max(*deviations, 0.0) ** 2
    loss = law.loss(N, D)
    return Band(loss - math.sqrt(below), loss + math.sqrt(above), 95)


def _of_study(path: Path, architecture: str) -> PlanLaw:
    study = _read(path)
    try:
        known = study["architectures"]
        if architecture not in known:
            raise InputError(
                f"architecture: got {architecture!r}, which the study {path} has not trained; expected one of "
                f"{', '.join(known)}"
            )
        runs, stored = known[architecture]["runs"], known[architecture]["law"]
        fitted = _refitted(runs, float(stored["E"]))
        budgets = [float(budget) for budget in study["budgets"]]
        fitted_range = FittedRange(min(budgets), max(budgets), f"the budgets of {path}")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"law: {path / STUDY} is not whole ({type(error).__name__}: {error}); name a finished study"
        ) from error

    def interval(N: float, D: float) -> Band:
        predicted = fitted.predict(N, D)
        return Band(predicted.low, predicted.high, 90)

    return PlanLaw(
        name=f"the law of {architecture} in {path}",
        source=str(path / STUDY),
        surface=fitted.law,
        counts="non_embedding",
        unit="bits per byte",
        fitted=fitted_range,
        interval=interval,
        notes=fitted.notes,
        is_of_bytes=True,
    )


def _read(path: Path) -> dict[str, Any]:
    if not (path / STUDY).is_file():
        raise InputError(
            f"law: {path} has no {STUDY}: the study there is not finished; go on with it (verim study --resume), "
            f"or take one of {', '.join(LAWS)}"
        )
    content = read_json(path / STUDY)
    if not isinstance(content, dict):
        raise InputError(f"law: {path / STUDY} holds no study; name the directory of a finished one")
    return content


def _refitted(runs: list[dict[str, Any]], floor: float) -> FittedLaw:
    """The study's law with what its intervals need: of all runs, or without the smallest budget, as it was fitted."""
    least = min(run["budget"] for run in runs)
    above = [run for run in runs if run["budget"] > least]
    fits = [
        fit_law(
            [run["non_embedding"] for run in kept],
            [run["tokens"] for run in kept],
            [run["bits_per_byte"] for run in kept],
        )
        for kept in (runs, above)
        if len(kept) >= MINIMUM_RUNS
    ]
    if not fits:
        raise ValueError(f"{len(runs)} runs, fewer than a law needs")
    return min(fits, key=lambda fitted: abs(fitted.law.E - floor))
