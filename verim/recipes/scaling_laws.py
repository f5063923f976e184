"""The published scaling laws as a page: both figures of the power law, the frontier, models over the years, inference.

verim recipe run scaling-laws                 seconds: nothing is trained
verim recipe run scaling-laws --law kaplan    the same by another law
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from verim.errors import InputError
from verim.recipes.command import run_command
from verim.report.figures import Figure, axis
from verim.report.parts import Column, panel, paragraph, plot, section, table
from verim.report.sheet import figure, line, write_sheet
from verim.report.words import percent, quantity, significant
from verim.scaling.lifecycle import LifeCycle, cheapest_for_loss
from verim.scaling.model_table import PUBLISHED_MODELS
from verim.scaling.published import PublishedLaw, published_law

SIZES = (1e7, 1e8, 1e9, 1e10, 1e11)
TOKENS = (1e9, 1e10, 1e11, 1e12, 1e13)
USES = (0.0, 1e11, 1e12, 1e13, 1e14)
"""Tokens that a model is asked for over its life."""
_POINTS = 60

Height = Callable[[float, float], float]


@dataclass(frozen=True)
class Experiment:
    """Which law is drawn, and where the page goes."""

    out: Path = Path("studies/scaling-laws")
    """Directory of page.html."""
    law: str = "epoch"
    """chinchilla, epoch, kaplan or chinchilla-rounded."""
    flops: float = 1e23
    """The training budget whose quality the section on inference asks for."""

    def __post_init__(self) -> None:
        published_law(self.law)
        if not (math.isfinite(self.flops) and self.flops > 0):
            raise InputError(f"flops: got {self.flops}, expected a finite number above 0")


def run(experiment: Experiment, console: Console) -> Path:
    """Draws the page and returns its path."""
    law = published_law(experiment.law)
    experiment.out.mkdir(parents=True, exist_ok=True)
    page = experiment.out / "page.html"
    quality, lives = over_a_life(law, experiment.flops)
    for used, life in zip(USES, lives, strict=True):
        console.print(f"{quantity(used)} tokens of use: {quantity(life.N)} parameters on {quantity(life.D)} tokens")
    write_page(page, experiment, law, quality, lives)
    return page


def over_a_life(law: PublishedLaw, flops: float) -> tuple[float, list[LifeCycle]]:
    """The loss that `flops` of training buy at best, and the cheapest model of that loss for each of `USES`."""
    best = law.optimum(flops)
    quality = law.loss(best.N, best.D)
    return quality, [cheapest_for_loss(law, quality, used) for used in USES]


def _log(title: str) -> Figure:
    return axis(title) | {"type": "log", "exponentformat": "power"}


def _curves(x: Sequence[float], given: Sequence[float], what: str, height: Height) -> list[Figure]:
    """A curve of `height(x, value)` for each of the values `given`, named by them."""
    return [
        line(x, [height(at, value) for at in x], f"arch-{index}", f"{quantity(value)} {what}", mode="lines")
        for index, value in enumerate(given)
    ]


def figures(law: PublishedLaw, quality: float, lives: Sequence[LifeCycle]) -> dict[str, Figure]:
    """The figures of the page by name."""
    sizes, tokens = np.geomspace(1e7, 1e12, _POINTS).tolist(), np.geomspace(1e8, 1e14, _POINTS).tolist()
    flops = np.geomspace(1e15, 1e26, _POINTS).tolist()
    loss = f"loss, {law.unit}"
    by_size = _curves(sizes, TOKENS, "tokens", law.loss)
    by_tokens = _curves(tokens, SIZES, "parameters", lambda D, N: law.loss(N, D))
    by_flops = _curves(flops, SIZES, "parameters", lambda C, N: law.loss(N, C / 6 / N))
    best = [law.optimum(C) for C in flops]
    reached = [law.loss(point.N, point.D) for point in best]
    by_flops.append(line(flops, reached, "ink", "frontier", mode="lines", line={"color": "ink", "width": 3}))
    years = {
        "type": "scatter",
        "mode": "markers+text",
        "x": [model.year for model in PUBLISHED_MODELS],
        "y": [model.tokens_per_parameter for model in PUBLISHED_MODELS],
        "text": [model.name for model in PUBLISHED_MODELS],
        "textposition": [("middle right", "middle left")[index % 2] for index in range(len(PUBLISHED_MODELS))],
        "name": "models",
        "marker": {"color": "arch-0", "size": 8},
    }
    room = {"range": [2018.8, 2027.2], "dtick": 1}
    return {
        "by-size": figure(by_size, _log(f"N, {law.counts.replace('_', '-')} parameters"), _log(loss), showlegend=True),
        "by-tokens": figure(by_tokens, _log("D, tokens"), _log(loss), showlegend=True),
        "by-flops": figure(
            by_flops, _log("C = 6ND, FLOPs"), _log(loss) | {"range": [math.log10(1.7), 1.0]}, showlegend=True
        ),
        "years": figure([years], axis("year") | room, _log("tokens a parameter"), height=420, showlegend=False),
        "life": figure(
            _life_curves(law, quality, lives),
            _log("N, parameters"),
            _log("FLOPs of a life / of training"),
            showlegend=True,
        ),
    }


def _life_curves(law: PublishedLaw, quality: float, lives: Sequence[LifeCycle]) -> list[Figure]:
    """Training and use over N, at one quality, for each use; in units of the cheapest training."""
    least, unit = law.least_parameters(quality), lives[0].total_flops
    sizes = [least * factor for factor in np.geomspace(1.05, 30, _POINTS)]

    def cost(N: float, used: float) -> float:
        return (6 * N * law.tokens_for(N, quality) + 2 * N * used) / unit

    return _curves(sizes, USES, "tokens of use", cost)


def life_rows(lives: Sequence[LifeCycle]) -> Sequence[Sequence[str]]:
    """Use, cheapest size, tokens, tokens a parameter, and what is saved against the model that is cheapest to train."""
    trained = lives[0]
    rows = []
    for used, life in zip(USES, lives, strict=True):
        otherwise = trained.total_flops + 2 * trained.N * used
        saved = percent(1 - life.total_flops / otherwise)
        rows.append((quantity(used), quantity(life.N), quantity(life.D), significant(life.tokens_per_parameter), saved))
    return rows


def write_page(
    page: Path, experiment: Experiment, law: PublishedLaw, quality: float, lives: Sequence[LifeCycle]
) -> None:
    """All sections."""
    models = [
        (
            model.name,
            str(model.year),
            quantity(model.parameters),
            quantity(model.tokens),
            significant(model.tokens_per_parameter),
            model.source,
        )
        for model in PUBLISHED_MODELS
    ]
    headings = [Column("model", "text"), *map(Column, ("year", "parameters", "tokens", "tokens a parameter"))]
    warned = [paragraph(f"{warning}.", quiet=True) for warning in law.warnings(experiment.flops)]
    life_columns = [Column(name) for name in ("tokens of use", "parameters", "training tokens", "a parameter", "saved")]
    sections = [
        section(
            "A power law in parameters, and in tokens",
            paragraph("Each curve bends to its own floor: what is not given enough of the other stops learning."),
            panel(plot("by-size", "Loss over parameters, a curve for each number of tokens")),
            panel(plot("by-tokens", "Loss over tokens, a curve for each size")),
        ),
        section(
            "Compute against loss, and the frontier",
            paragraph("Every size is best at one budget; the frontier touches each curve there."),
            panel(plot("by-flops", "Loss over training FLOPs for five sizes, and the frontier below them all")),
        ),
        section(
            "Models over the years",
            paragraph("Twenty tokens a parameter train best for their FLOPs. Since models are used, they got more."),
            panel(plot("years", "Tokens a parameter of published models by year", height=420)),
            panel(table("models", [*headings, Column("source", "wide")], models)),
        ),
        section(
            "Training against inference",
            paragraph(
                f"All these models reach the loss {quality:.3f}, which {experiment.flops:.3g} FLOPs buy at best. A "
                "token of training costs 6 FLOPs a parameter, one of use 2: the more a model is used, the smaller "
                "is the one that is cheapest over its life."
            ),
            panel(plot("life", "FLOPs of training and use over the size, a curve for each use")),
            panel(table("cheapest models", life_columns, life_rows(lives))),
            *warned,
        ),
    ]
    lead = f"By the law of {law.name} ({law.source}); N counts {law.counts.replace('_', '-')} parameters."
    command = f"verim recipe run scaling-laws --law {experiment.law}"
    write_sheet(page, "Scaling laws", lead, sections, figures(law, quality, lives), command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line `arguments`, by default the process's."""
    run_command(Experiment, run, "verim recipe run scaling-laws", arguments)


if __name__ == "__main__":
    main()
