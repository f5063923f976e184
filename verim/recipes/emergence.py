"""Abilities that seem to appear at a size, from a loss that falls smoothly: k answers that must all be right.

    verim recipe run emergence          a few minutes on two cores
    verim recipe run emergence --quick  the same in small

Transformers of rising size read the same bytes. Counted on held-out text: the loss a byte, the share p of bytes that
are the model's first guess (the text before them given), and the share of runs of k bytes that are right throughout.
An exam of k questions from as many texts, all to be right, is passed with p^k: nothing for small p, then steep, with
no step anywhere in p (Schaeffer et al. 2023, arXiv 2304.15004, explain emergence so). The k bytes of a run are no
such exam: what is easy stands together, so runs are right far more often, and rise far less. Both are shown.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from rich.console import Console
from torch import Tensor, nn

from verim.data.corpus import load_corpus
from verim.errors import InputError
from verim.models import LanguageModel, architecture_config
from verim.recipes.command import run_command
from verim.recipes.results import markdown_table, write_section
from verim.report.figures import axis
from verim.report.parts import Column, panel, paragraph, plot, section, table
from verim.report.sheet import figure, line, write_sheet
from verim.report.words import quantity, significant
from verim.runtime.files import write_json
from verim.train.rules import EVALUATION_BYTES, LENGTH, recipe
from verim.train.step import update
from verim.train.task import ByteLanguageModelling

RUNS = (1, 4, 16, 64)
"""Bytes in a row that all have to be right."""


@dataclass(frozen=True)
class Experiment:
    """What is trained, and where the results go."""

    out: Path = Path("studies/emergence")
    """Directory of result.json and page.html."""
    results: Path | None = None
    """A Markdown page whose section on this recipe is written anew."""
    paths: tuple[str, ...] = ()
    """Files and folders of text; Python's standard library where none is given."""
    widths: tuple[int, ...] = (16, 32, 48, 64, 96)
    """Sizes of the transformer, by their width."""
    tokens: float = 6e5
    """Bytes that each reads."""
    seed: int = 0
    """Seed of weights and batches."""
    quick: bool = False
    """Two tiny sizes and a few steps: to see that all of it runs."""

    def __post_init__(self) -> None:
        if self.quick:
            object.__setattr__(self, "widths", (16, 32))
            object.__setattr__(self, "tokens", 2e4)
        if not self.widths or any(width < 16 or width % 16 for width in self.widths):
            raise InputError(f"widths: got {self.widths}, expected multiples of 16, the channels of a head")
        if not (math.isfinite(self.tokens) and self.tokens >= 1e4):
            raise InputError(f"tokens: got {self.tokens}, expected at least 1e4")
        if self.seed < 0:
            raise InputError(f"seed: got {self.seed}, expected at least 0")


class Judged(NamedTuple):
    """What a model of `parameters` (non-embedding) does on held-out text: `exact` by the length of the run."""

    parameters: int
    bits_per_byte: float
    accuracy: float
    exact: dict[int, float]


def exact_match(right: Bool[Tensor, "rows length"], run: int) -> float:
    """The share of runs of `run` positions in a row, within the rows, that are right throughout.

    >>> exact_match(torch.tensor([[True, True, False, True, True]]), 2)
    0.5
    """
    return float(right.unfold(1, run, 1).all(-1).double().mean())


@torch.no_grad()
def judge(model: LanguageModel, task: ByteLanguageModelling) -> Judged:
    """The model on all held-out bytes of the task."""
    rows = []
    for inputs, targets in task.evaluation.batches:
        logits, _ = model(inputs)
        right = logits.argmax(-1) == targets
        rows.append(right)
    longest = max(row.shape[1] for row in rows)
    right = torch.cat([row for row in rows if row.shape[1] == longest])
    return Judged(
        model.parameter_count().non_embedding,
        task.evaluate(model)["bits_per_byte"],
        exact_match(right, 1),
        {run: exact_match(right, run) for run in RUNS},
    )


def train(model: nn.Module, task: ByteLanguageModelling, tokens: float) -> None:
    """The rules of the ladder, without its record."""
    how = recipe(tokens)
    optimiser, schedule = how.trainer.optimiser.build(model), how.trainer.schedule
    for step in range(how.trainer.steps):
        for group in optimiser.param_groups:
            group["lr"] = group["base_rate"] * schedule(step)
        update(model, optimiser, task.loss(model, task.batch(step)), clip=1.0)


def run(experiment: Experiment, console: Console) -> Path:
    """Trains and judges every size, writes result.json and the page; returns the page's path."""
    corpus = load_corpus(experiment.paths)
    batch, judged = recipe(experiment.tokens).batch, []
    task = ByteLanguageModelling(corpus.train, corpus.held_out, batch, LENGTH, experiment.seed, EVALUATION_BYTES)
    for width in experiment.widths:
        torch.manual_seed(experiment.seed)
        model = LanguageModel(architecture_config("transformer", width))
        train(model, task, experiment.tokens)
        judged.append(judge(model, task))
        said = ", ".join(f"{heading} {cell}" for heading, cell in zip(HEADINGS, cells(judged[-1]), strict=True))
        console.print(said, highlight=False, soft_wrap=True)
    settings = {name: value for name, value in asdict(experiment).items() if name not in ("out", "results")}
    experiment.out.mkdir(parents=True, exist_ok=True)
    record = {"recipe": "emergence", "corpus": corpus.name, "sha256": corpus.sha256, "settings": settings}
    write_json(experiment.out / "result.json", record | {"sizes": [model._asdict() for model in judged]})
    page = experiment.out / "page.html"
    said = (
        f"`verim recipe run emergence`: transformers of {len(judged)} sizes, each {quantity(experiment.tokens)} bytes "
        f"of {corpus.name}, seed {experiment.seed}. In brackets p^k, the share of exams of k questions "
        "from different texts that are passed."
    )
    write_page(page, judged, said)
    if experiment.results is not None:
        text = "\n\n".join(
            ("## Exact matches from a smooth loss", said, markdown_table(HEADINGS, list(map(cells, judged))))
        )
        write_section(experiment.results, "emergence", text, "Scaling: experiments")
    return page


HEADINGS = ("parameters", "bits per byte", *(f"{run} right" for run in RUNS))


def cells(judged: Judged) -> list[str]:
    """A row of the table: what was counted, and p^k beside it."""
    shares = [f"{significant(judged.exact[run])} ({significant(judged.accuracy**run)})" for run in RUNS[1:]]
    return [quantity(judged.parameters), f"{judged.bits_per_byte:.3f}", f"{judged.accuracy:.3f}", *shares]


def write_page(page: Path, judged: Sequence[Judged], said: str) -> None:
    """The loss, the shares over the size, and the table."""
    sizes = [model.parameters for model in judged]
    across: dict[str, Any] = axis("non-embedding parameters") | {"type": "log"}
    loss = [line(sizes, [model.bits_per_byte for model in judged], "arch-0", "loss")]
    shares = []
    for index, run in enumerate(RUNS[1:3]):
        runs, exams = [model.exact[run] for model in judged], [model.accuracy**run for model in judged]
        for values, name, dash in ((runs, f"{run} in a row", "solid"), (exams, f"exam of {run}", "dash")):
            relative = [value / values[-1] if values[-1] else 0.0 for value in values]
            style = {"color": f"arch-{index}", "width": 2, "dash": dash}
            shares.append(line(sizes, relative, f"arch-{index}", name, line=style))
    figures = {
        "loss": figure(loss, across, axis("bits per byte")),
        "shares": figure(shares, across, axis("share, of the largest model's"), showlegend=True),
    }
    sections = [
        section(
            "The loss is smooth",
            panel(plot("loss", "Bits per byte over the size of the model")),
        ),
        section(
            "Its powers look sudden, where answers are independent",
            paragraph(
                "Dashed: exams of k questions from different texts. Drawn through: k bytes in a row of one text."
            ),
            panel(plot("shares", "Share of exams passed and of runs right over the size, by their length")),
            panel(table("shares", [Column(heading) for heading in HEADINGS], [cells(model) for model in judged])),
            paragraph(said.replace("`", ""), quiet=True),
        ),
    ]
    first, last = judged[0], judged[-1]
    rise = last.accuracy / first.accuracy if first.accuracy else math.inf
    lead = (
        f"From {quantity(first.parameters)} to {quantity(last.parameters)} parameters the share of right bytes rises "
        f"{rise:.2f} times, that of exams of 16 questions passed {significant(rise**16)} times."
    )
    write_sheet(page, "Emergence from a smooth loss", lead, sections, figures, "verim recipe run emergence")


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line `arguments`, by default the process's."""
    run_command(Experiment, run, "verim recipe run emergence", arguments)


if __name__ == "__main__":
    main()
