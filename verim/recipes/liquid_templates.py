"""A liquid tells whether two jittered spike templates are the same; linear readouts of its input cannot.

    verim recipe run liquid-templates          a minute on two cores
    verim recipe run liquid-templates --quick  the same in small

Two templates, A and B, are Poisson spike trains on four channels. An input is one after the other, each drawn from A
and B, with every spike moved by a normal jitter (Maass, Natschläger & Markram 2002 classify such templates). Asked
are: which was first, which was second, and whether both were the same, the exclusive or of the two, which no linear
readout of the input can tell however long its memory. Read are, at the end of the input: the liquid; the input's own
traces; a delay line of them over all of the input. Beside the task: separation and the ranks of Legenstein & Maass
(2007) against the strength of the connections.
"""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor

from verim.errors import InputError
from verim.neuro import ColumnConfig, Liquid, RidgeClassifier
from verim.neuro.liquid import filtered, poisson
from verim.neuro.liquid.quality import jittered, ranks, separation
from verim.ops.spiking import Events
from verim.recipes.command import run_command
from verim.recipes.results import markdown_table, percent, write_section
from verim.report.figures import axis
from verim.report.parts import Column, panel, paragraph, plot, section, table
from verim.report.sheet import figure, line, raster, write_sheet
from verim.runtime.files import write_json

CHANNELS, RATE, SEGMENT, STEP = 4, 60.0, 100.0, 0.5
QUESTIONS = ("first", "second", "same or not")
READOUTS = ("liquid", "input", "delay line")
SHARES = (0.02, 0.05, 0.1, 0.2, 0.4, 1.0)


@dataclass(frozen=True)
class Experiment:
    """What is tried, and where the results go."""

    out: Path = Path("studies/liquid-templates")
    """Directory of result.json and page.html."""
    results: Path | None = None
    """A Markdown page whose section on this recipe is written anew."""
    seeds: int = 5
    """Liquids, templates and inputs are drawn anew for each."""
    samples: int = 600
    """Inputs of a seed; half of them teach the readouts."""
    jitter: float = 3.0
    """Standard deviation of a spike's time, in milliseconds."""
    strengths: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
    """Of the column's connections, where separation and ranks are measured."""
    quick: bool = False
    """One seed, few inputs and strengths: to see that all of it runs."""

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.samples < 8 or self.jitter < 0 or not self.strengths:
            raise InputError("seeds: at least 1; samples: at least 8; jitter: 0 or more; strengths: at least one")
        if self.quick:
            for name, value in (("seeds", 1), ("samples", 60), ("strengths", (0.0, 2.0))):
                object.__setattr__(self, name, value)


def draw(seed: int, samples: int, jitter: float) -> tuple[Events, Tensor]:
    """Inputs, and which template (0 or 1) came first and second, [samples, 2]."""
    generator = torch.Generator().manual_seed(seed)
    length = round(SEGMENT / STEP)
    rates = torch.full((1, length, CHANNELS), RATE)
    templates = [poisson(rates, STEP, generator) for _ in range(2)]
    labels = torch.randint(0, 2, (samples, 2), generator=generator)
    halves = []
    for place in range(2):
        first, second = (jittered(template, samples, jitter, generator).dense() for template in templates)
        halves.append(torch.where(labels[:, place, None, None] == 0, first, second))
    return Events.from_dense(torch.cat(halves, 1), STEP), labels


def classify(experiment: Experiment, seed: int) -> dict[str, dict[str, float]]:
    """Accuracy of each readout on each question, on inputs that it has not been taught with."""
    inputs, labels = draw(seed, experiment.samples, experiment.jitter)
    liquid = Liquid(ColumnConfig(inputs=CHANNELS, step=STEP, seed=seed))
    features = {
        "liquid": liquid.states(inputs, every=2 * SEGMENT)[:, -1],
        "input": filtered(inputs, liquid.time, 2 * SEGMENT)[:, -1],
        "delay line": filtered(inputs, liquid.time, 5.0).flatten(1),
    }
    answers = dict(zip(QUESTIONS, (labels[:, 0], labels[:, 1], labels[:, 0] ^ labels[:, 1]), strict=True))
    taught = experiment.samples // 2
    return {
        name: {
            question: RidgeClassifier(0.1).fit(x[:taught], y[:taught]).score(x[taught:], y[taught:])
            for question, y in answers.items()
        }
        for name, x in features.items()
    }


def strengths(experiment: Experiment) -> list[dict[str, Any]]:
    """Separation, ranks and firing rate of one column at every strength."""
    found = []
    for strength in experiment.strengths:
        liquid = Liquid(ColumnConfig(inputs=CHANNELS, step=STEP, strength=strength, seed=0))
        inputs, _ = draw(0, 20, experiment.jitter)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # beyond the edge saturation is what is shown
            distances, rank = separation(liquid, SHARES, trials=20), ranks(liquid)
            rate = float(liquid.spikes(inputs).rates().mean())
        found.append(
            {
                "strength": strength,
                "rate": rate,
                "input_distances": distances.inputs.tolist(),
                "state_distances": distances.states.tolist(),
                "chance": distances.chance,
                "kernel_rank": rank.kernel,
                "generalisation_rank": rank.generalisation,
            }
        )
    return found


def run(experiment: Experiment, console: Console) -> Path:
    """Measures everything and writes result.json and the page; returns the page's path."""
    scores = []
    for seed in range(experiment.seeds):
        scores.append(classify(experiment, seed))
        console.print(f"seed {seed}: same or not: liquid {100 * scores[-1]['liquid']['same or not']:.1f} %")
    quality = strengths(experiment)
    settings = {name: value for name, value in asdict(experiment).items() if name not in ("out", "results")}
    result = {"recipe": "liquid-templates", "settings": settings, "accuracy": scores, "strengths": quality}
    experiment.out.mkdir(parents=True, exist_ok=True)
    write_json(experiment.out / "result.json", result)
    page = experiment.out / "page.html"
    write_page(page, experiment, scores, quality)
    if experiment.results is not None:
        write_section(experiment.results, "liquid-templates", summary(experiment, scores, quality), RESULTS_TITLE)
    return page


RESULTS_TITLE = "Learning without backpropagation: results"


def rows(scores: Sequence[dict[str, dict[str, float]]]) -> list[tuple[str, ...]]:
    """A row a readout: its accuracy on each question over the seeds."""
    return [
        (readout, *(percent([score[readout][question] for score in scores]) for question in QUESTIONS))
        for readout in READOUTS
    ]


def summary(experiment: Experiment, scores: Sequence[Any], quality: Sequence[dict[str, Any]]) -> str:
    """The section of the page of results."""
    edge = [
        (
            f"{found['strength']:g}",
            f"{found['rate']:.1f}",
            f"{found['state_distances'][2]:.3f}",
            f"{found['chance']:.3f}",
            str(found["kernel_rank"]),
            str(found["generalisation_rank"]),
        )
        for found in quality
    ]
    columns = ("strength", "Hz a neuron", "state distance, 10 % redrawn", "chance", "kernel rank", "generalisation")
    return "\n\n".join(
        (
            "## Jittered spike templates",
            f"`verim recipe run liquid-templates`: two templates of {SEGMENT:.0f} ms on {CHANNELS} channels, jitter "
            f"{experiment.jitter:g} ms, one after the other; column of 135 neurons; {experiment.samples // 2} inputs "
            f"to teach, as many to test; {experiment.seeds} seeds, mean and standard error, chance 50 %. Whether "
            "both are the same is an exclusive or: no linear readout of the input can tell.",
            markdown_table(("readout of", *QUESTIONS), rows(scores)),
            "The column at other strengths of its connections; chance is the distance of states after the same input "
            "from other first voltages: where it comes near the distance that inputs make, the liquid no longer "
            "forgets where it began.",
            markdown_table(columns, edge),
        )
    )


def write_page(page: Path, experiment: Experiment, scores: Sequence[Any], quality: Sequence[dict[str, Any]]) -> None:
    """Tables, a raster of one input and its liquid, state trajectories, separation and ranks."""
    inputs, labels = draw(0, 4, experiment.jitter)
    liquid = Liquid(ColumnConfig(inputs=CHANNELS, step=STEP, seed=0))
    fired = liquid.spikes(inputs)
    figures = {"raster": raster_figure(inputs, fired), "states": trajectory_figure(filtered(fired, 30.0, 2.0), labels)}
    places = [found["strength"] for found in quality]
    figures["separation"] = figure(
        [
            line(found["input_distances"], found["state_distances"], f"arch-{k % 6}", f"strength {found['strength']:g}")
            for k, found in enumerate(quality)
        ],
        axis("distance of the inputs"),
        axis("distance of the states"),
        showlegend=True,
    )
    figures["edge"] = figure(
        [
            line(places, [found["kernel_rank"] for found in quality], "arch-0", "kernel rank"),
            line(places, [found["generalisation_rank"] for found in quality], "arch-1", "generalisation rank"),
            line(
                places,
                [found["kernel_rank"] - found["generalisation_rank"] for found in quality],
                "arch-2",
                "difference",
            ),
        ],
        axis("strength of the connections"),
        axis("rank of the states"),
        showlegend=True,
    )
    figures["chaos"] = figure(
        [
            line(places, [found["state_distances"][2] for found in quality], "arch-0", "a tenth of the input redrawn"),
            line(places, [found["chance"] for found in quality], "arch-1", "same input, other first voltages"),
        ],
        axis("strength of the connections"),
        axis("distance of the states"),
        showlegend=True,
    )
    same = [score["liquid"]["same or not"] for score in scores]
    line_same = [score["delay line"]["same or not"] for score in scores]
    lead = (
        f"Were both halves of the input the same template? A linear readout of the liquid says it right in "
        f"{percent(same)}, one of a delay line of the input in {percent(line_same)}, where guessing gives 50 %."
    )
    columns = [Column("readout of", "text"), *(Column(question) for question in QUESTIONS)]
    sections = [
        section(
            "Which template, and the same?",
            paragraph(
                f"Inputs that the readouts have not been taught with; mean and standard error over {len(scores)} seeds."
            ),
            panel(table("Accuracy of each readout", columns, rows(scores))),
        ),
        section(
            "One input, and what the column makes of it",
            panel(plot("raster", "Spikes of four input channels and of 135 neurons", "Input channels lie below zero.")),
        ),
        section(
            "State trajectories",
            panel(
                plot(
                    "states",
                    "The first two principal components of the liquid state over time, for four inputs",
                    "First two principal components of the liquid state, four inputs; a large point marks the end.",
                )
            ),
        ),
        section(
            "Separation",
            paragraph("Pairs of inputs, the second with a share of the first drawn anew, at several strengths."),
            panel(plot("separation", "Distance of states against distance of inputs")),
        ),
        section(
            "From fading to chaos",
            paragraph(
                "Where the same input from other first voltages leads as far away as another input does, the liquid "
                "no longer forgets where it began. The kernel rank says how many inputs a linear readout can tell "
                "apart, the generalisation rank how many jittered copies of one input look different."
            ),
            panel(plot("chaos", "Distance of states by strength, and chance")),
            panel(plot("edge", "Kernel and generalisation rank by strength")),
        ),
    ]
    write_sheet(page, "Same template or not", lead, sections, figures, "verim recipe run liquid-templates")


def raster_figure(inputs: Events, fired: Events) -> dict[str, Any]:
    """Spikes of the first row: neurons from 0 up, input channels below."""
    data = []
    for events, colour, name, place in (
        (fired, "arch-0", "neuron", 0),
        (inputs, "arch-1", "input", -4 * inputs.channels),
    ):
        row, steps = events.rows_and_steps()
        own = row == 0
        spread = 4 if place else 1
        channel = (place + spread * events.channel[own].long()).tolist()
        data.append(raster((steps[own] * events.step).tolist(), channel, colour, name))
    return figure(data, axis("milliseconds"), axis("neuron"), height=420)


def trajectory_figure(states: Tensor, labels: Tensor) -> dict[str, Any]:
    """Rows of states [batch, samples, neurons] in the plane of their first two principal components."""
    flat = states.flatten(0, 1)
    _, _, directions = torch.linalg.svd(flat - flat.mean(0), full_matrices=False)
    plane = (states - flat.mean(0)) @ directions[:2].T
    data = []
    for row, path in enumerate(plane):
        name = "".join("AB"[int(label)] for label in labels[row])
        sizes = [3.0] * (len(path) - 1) + [12.0]
        marker = {"color": f"arch-{row}", "size": sizes}
        data.append(line(path[:, 0].tolist(), path[:, 1].tolist(), f"arch-{row}", name) | {"marker": marker})
    return figure(data, axis("first component"), axis("second component"), height=420, showlegend=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line `arguments`, by default the process's."""
    run_command(Experiment, run, "verim recipe run liquid-templates", arguments)


if __name__ == "__main__":
    main()
