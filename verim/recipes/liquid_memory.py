"""What a liquid remembers of a stream of bits, and the parity of two past ones, which no linear readout can tell.

    verim recipe run liquid-memory          half a minute on two cores
    verim recipe run liquid-memory --quick  the same in small

A random bit lasts 30 ms: two channels fire while it is 1, two others while it is 0. At the end of each bit linear
readouts are asked, for delays of 0 to 5 bits, for the bit so long ago, and for the parity of it and the one before.
A delay line of the input remembers bits perfectly, that is what it is; the parity it cannot tell, since that is the
exclusive or. A liquid has to do both, by its own fading memory.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from verim.errors import InputError
from verim.neuro import ColumnConfig, Liquid, RidgeClassifier
from verim.neuro.liquid import filtered, regular
from verim.ops.spiking import Events
from verim.recipes.command import run_command
from verim.recipes.liquid_templates import RESULTS_TITLE, raster_figure
from verim.recipes.results import markdown_table, mean_and_error, percent, write_section
from verim.report.figures import axis
from verim.report.parts import Column, panel, paragraph, plot, section, table
from verim.report.sheet import figure, line, write_sheet
from verim.runtime.files import write_json

BIT, STEP, RATE = 30.0, 0.5, 100.0
DELAYS = 6
READOUTS = ("liquid", "input", "delay line")
QUESTIONS = ("bit", "parity")
_WARM_UP = 20  # first bits, which are not asked for


@dataclass(frozen=True)
class Experiment:
    """What is tried, and where the results go."""

    out: Path = Path("studies/liquid-memory")
    """Directory of result.json and page.html."""
    results: Path | None = None
    """A Markdown page whose section on this recipe is written anew."""
    seeds: int = 5
    """Liquids and bits are drawn anew for each."""
    bits: int = 3000
    """Of a stream; the first two thirds teach the readouts."""
    size: tuple[int, int, int] = (15, 6, 3)
    """Of the column's grid."""
    quick: bool = False
    """One seed and few bits: to see that all of it runs."""

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.bits < 100:
            raise InputError(f"seeds and bits: got {self.seeds} and {self.bits}, expected at least 1 and 100")
        if self.quick:
            object.__setattr__(self, "seeds", 1)
            object.__setattr__(self, "bits", 300)


def stream(bits: Tensor) -> Events:
    """The spikes of four channels for `bits` [count]."""
    on = bits.repeat_interleave(round(BIT / STEP)).float()
    rates = RATE * torch.stack([on, on, 1 - on, 1 - on], 1)[None]
    phases = rates * torch.tensor([1.0, 0.9, 1.0, 0.9])  # not all at the same moments
    return regular(phases, STEP)


def recall(experiment: Experiment, seed: int) -> dict[str, dict[str, list[float]]]:
    """Accuracy of each readout on both questions at each delay, on bits that it has not been taught with."""
    bits = torch.randint(0, 2, (experiment.bits,), generator=torch.Generator().manual_seed(seed))
    inputs = stream(bits)
    liquid = Liquid(ColumnConfig(experiment.size, inputs=inputs.channels, step=STEP, seed=seed))
    traces = filtered(inputs, liquid.time, BIT)[0]
    features = {
        "liquid": liquid.states(inputs, every=BIT)[0],
        "input": traces,
        "delay line": torch.cat([traces.roll(delay, 0) for delay in range(2 * DELAYS)], 1),
    }
    taught, tested = slice(_WARM_UP, 2 * len(bits) // 3), slice(2 * len(bits) // 3, len(bits))
    found = {}
    for name, x in features.items():
        found[name] = {
            question: [
                RidgeClassifier(1e-2).fit(x[taught], y[taught]).score(x[tested], y[tested])
                for y in answers(bits, question)
            ]
            for question in QUESTIONS
        }
    return found


def answers(bits: Tensor, question: str) -> list[Tensor]:
    """What is to be said at each bit, for every delay."""
    past = [bits.roll(delay) for delay in range(DELAYS + 1)]
    return past[:-1] if question == "bit" else [past[delay] ^ past[delay + 1] for delay in range(DELAYS)]


def run(experiment: Experiment, console: Console) -> Path:
    """Measures everything and writes result.json and the page; returns the page's path."""
    scores = []
    for seed in range(experiment.seeds):
        scores.append(recall(experiment, seed))
        console.print(f"seed {seed}: parity of the last two bits: {100 * scores[-1]['liquid']['parity'][0]:.1f} %")
    settings = {name: value for name, value in asdict(experiment).items() if name not in ("out", "results")}
    experiment.out.mkdir(parents=True, exist_ok=True)
    write_json(experiment.out / "result.json", {"recipe": "liquid-memory", "settings": settings, "accuracy": scores})
    page = experiment.out / "page.html"
    write_page(page, scores)
    if experiment.results is not None:
        write_section(experiment.results, "liquid-memory", summary(experiment, scores), RESULTS_TITLE)
    return page


def rows(scores: Sequence[Any]) -> list[tuple[str, ...]]:
    """A row a question and readout: its accuracy at each delay over the seeds."""
    return [
        (
            f"{question}, {readout}",
            *(percent([score[readout][question][delay] for score in scores]) for delay in range(DELAYS)),
        )
        for question in QUESTIONS
        for readout in READOUTS
    ]


def summary(experiment: Experiment, scores: Sequence[Any]) -> str:
    """The section of the page of results."""
    return "\n\n".join(
        (
            "## Memory of past bits, and delayed parity",
            f"`verim recipe run liquid-memory`: bits of {BIT:.0f} ms; a column of {math.prod(experiment.size)} "
            f"neurons; {experiment.bits} bits, two thirds to teach; {len(scores)} seeds, mean and standard error, "
            "chance 50 %. A delay line remembers bits by what it is; the parity of two it cannot tell.",
            markdown_table(("", *(f"{delay} bits ago" for delay in range(DELAYS))), rows(scores)),
        )
    )


def write_page(page: Path, scores: Sequence[Any]) -> None:
    """Tables, accuracy over the delay, and a raster."""
    figures = {}
    for question in QUESTIONS:
        data = []
        for colour, readout in zip(("arch-0", "arch-1", "arch-2"), READOUTS, strict=True):
            pairs = [mean_and_error([score[readout][question][delay] for score in scores]) for delay in range(DELAYS)]
            bars = {"type": "data", "array": [error for _, error in pairs], "color": colour, "width": 4}
            data.append(line(range(DELAYS), [mean for mean, _ in pairs], colour, readout) | {"error_y": bars})
        figures[question] = figure(
            data, axis("delay, bits") | {"dtick": 1}, axis("right answers") | {"range": [0.4, 1.03]}, showlegend=True
        )
    bits = torch.tensor([1, 0, 0, 1, 1, 1, 0, 1, 0, 0])
    liquid = Liquid(ColumnConfig(inputs=4, step=STEP, seed=0))
    figures["raster"] = raster_figure(stream(bits), liquid.spikes(stream(bits)))
    parity = [score["liquid"]["parity"][0] for score in scores]
    delayed = [score["liquid"]["parity"][1] for score in scores]
    other = [score["delay line"]["parity"][1] for score in scores]
    lead = (
        f"The parity of the last two bits a readout of the liquid says right in {percent(parity)}, a bit later "
        f"still in {percent(delayed)}; a readout of a delay line in {percent(other)}, where guessing gives 50 %."
    )
    columns = [Column("question, readout of", "text"), *(Column(f"{delay} ago") for delay in range(DELAYS))]
    sections = [
        section(
            "Parity of two past bits",
            paragraph("The exclusive or of the bit so long ago and the one before it; bars are standard errors."),
            panel(plot("parity", "Accuracy of the parity over the delay, for three readouts")),
        ),
        section(
            "The bits themselves",
            paragraph("A delay line remembers them by what it is; the liquid's memory fades."),
            panel(plot("bit", "Accuracy of the bit over the delay, for three readouts")),
        ),
        section("In numbers", panel(table("Accuracy by question, readout and delay", columns, rows(scores)))),
        section(
            "Ten bits",
            panel(plot("raster", "Spikes of the input channels and of 135 neurons", "Input channels lie below zero.")),
        ),
    ]
    write_sheet(page, "The memory of a liquid", lead, sections, figures, "verim recipe run liquid-memory")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line `arguments`, by default the process's."""
    run_command(Experiment, run, "verim recipe run liquid-memory", arguments)


if __name__ == "__main__":
    main()
