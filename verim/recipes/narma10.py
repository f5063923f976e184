"""NARMA10 by an echo state network of 50 units and 1000 points, beside the best that a delay line can do.

    verim recipe run narma10          half a minute
    verim recipe run narma10 --quick  the same in small

The reservoir is tanh units at a small input, hence nearly linear; the readout sees the states and their squares, as
a photodetector does (Vinckier et al. 2015, NMSE 0.107 with 50 units). A linear shift register reaches 0.16
(Appeltant et al. 2011). Both are beside what is measured.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

from verim.errors import InputError
from verim.neuro.echo import EchoStateNetwork, Reservoir, ReservoirConfig, TunedRidge, narma10
from verim.recipes.command import run_command
from verim.recipes.liquid_templates import RESULTS_TITLE
from verim.recipes.results import markdown_table, mean_and_error, write_section
from verim.report.figures import axis
from verim.report.parts import Column, panel, paragraph, plot, section, table
from verim.report.sheet import figure, line, write_sheet
from verim.runtime.files import write_json

WASHOUT, POINTS = 200, 1000
PENALTIES = tuple(10.0**-power for power in range(4, 13))
READOUTS = ("states and squares", "states", "delay line")


@dataclass(frozen=True)
class Experiment:
    """What is tried, and where the results go."""

    out: Path = Path("studies/narma10")
    """Directory of result.json and page.html."""
    results: Path | None = None
    """A Markdown page whose section on this recipe is written anew."""
    seeds: int = 20
    """Signals and reservoirs are drawn anew for each."""
    units: int = 50
    """Of the reservoir, and taps of the delay line."""
    quick: bool = False
    """Two seeds: to see that all of it runs."""

    def __post_init__(self) -> None:
        if self.seeds < 1 or not 1 <= self.units <= WASHOUT:
            raise InputError(f"seeds and units: got {self.seeds} and {self.units}, expected at least 1, 1 … {WASHOUT}")
        if self.quick:
            object.__setattr__(self, "seeds", 2)


def predictions(experiment: Experiment, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """What each readout says of the points that it has not been taught with, and what they are."""
    u, y = narma10(WASHOUT + 2 * POINTS, seed)
    u, y = u[:, None] - 0.25, y[:, None]
    taught, tested = WASHOUT + POINTS, slice(WASHOUT + POINTS, None)
    config = ReservoirConfig(units=experiment.units, spectral_radius=0.8, input_scale=0.1, seed=seed)
    found = {}
    for name, squares in (("states and squares", True), ("states", False)):
        network = EchoStateNetwork(Reservoir(config), PENALTIES, WASHOUT, squares)
        network.fit(u[None, :taught], y[None, :taught])
        found[name] = network.predict(u[None])[0, tested, 0]
    line_of_delays = torch.cat([u.roll(delay, 0) for delay in range(experiment.units)], 1)
    readout = TunedRidge(PENALTIES).fit(line_of_delays[WASHOUT:taught], y[WASHOUT:taught])
    found["delay line"] = readout.predict(line_of_delays[tested])[:, 0]
    return found, y[tested, 0]


def run(experiment: Experiment, console: Console) -> Path:
    """Measures everything and writes result.json and the page; returns the page's path."""
    errors = []
    for seed in range(experiment.seeds):
        found, y = predictions(experiment, seed)
        errors.append({name: float((p - y).square().mean() / y.var(correction=0)) for name, p in found.items()})
        console.print(f"seed {seed}: NMSE " + ", ".join(f"{name} {error:.3f}" for name, error in errors[-1].items()))
    settings = {name: value for name, value in asdict(experiment).items() if name not in ("out", "results")}
    experiment.out.mkdir(parents=True, exist_ok=True)
    write_json(experiment.out / "result.json", {"recipe": "narma10", "settings": settings, "nmse": errors})
    page = experiment.out / "page.html"
    write_page(page, experiment, errors)
    if experiment.results is not None:
        write_section(experiment.results, "narma10", summary(experiment, errors), RESULTS_TITLE)
    return page


def rows(errors: Sequence[dict[str, float]]) -> list[tuple[str, str]]:
    """NMSE of each readout over the seeds, and what the literature has."""
    pairs = [(name, mean_and_error([error[name] for error in errors])) for name in READOUTS]
    own = [(name, f"{mean:.3f} ± {error:.3f}") for name, (mean, error) in pairs]
    return [*own, ("Vinckier et al. 2015, 50 units", "0.107"), ("linear bound, Appeltant et al. 2011", "0.16")]


def summary(experiment: Experiment, errors: Sequence[dict[str, float]]) -> str:
    """The section of the page of results."""
    said = (
        f"`verim recipe run narma10`: {experiment.units} units, {POINTS} points to teach, as many to test; "
        f"{len(errors)} seeds, mean and standard error of the error over the variance."
    )
    return "\n\n".join(("## NARMA10", said, markdown_table(("readout of", "NMSE"), rows(errors))))


def write_page(page: Path, experiment: Experiment, errors: Sequence[dict[str, float]]) -> None:
    """The table, and a stretch of the signal with what is said of it."""
    found, y = predictions(experiment, 0)
    shown = range(100)
    signals = {"signal": y} | {name: found[name] for name in ("states and squares", "delay line")}
    colours = ("arch-0", "arch-1", "arch-2")
    data = [
        line(shown, values[:100].tolist(), colour, name)
        for colour, (name, values) in zip(colours, signals.items(), strict=True)
    ]
    figures = {"signal": figure(data, axis("step"), axis("y"), showlegend=True)}
    best = rows(errors)[0][1]
    lead = f"A readout of {experiment.units} states and their squares predicts NARMA10 with an NMSE of {best}."
    columns = [Column("readout of", "text"), Column("NMSE")]
    sections = [
        section(
            "How well",
            paragraph(f"{len(errors)} seeds, {POINTS} points to teach and as many to test; mean and standard error."),
            panel(table("NMSE by readout", columns, rows(errors))),
        ),
        section("A hundred steps", panel(plot("signal", "NARMA10 over time with two predictions of it"))),
    ]
    write_sheet(page, "NARMA10", lead, sections, figures, "verim recipe run narma10")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line `arguments`, by default the process's."""
    run_command(Experiment, run, "verim recipe run narma10", arguments)


if __name__ == "__main__":
    main()
