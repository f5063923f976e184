"""`verim scale`: a scaling law from anybody's runs, the published ones, and models over the years."""

import json as json_module
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from verim.report.fits import fit_lines, law_lines, model_lines
from verim.scaling.fit_report import report_fit
from verim.scaling.model_table import PUBLISHED_MODELS
from verim.scaling.published import LAWS
from verim.scaling.runs_file import Columns, read_runs


@dataclass(frozen=True)
class Fit:
    """Fit L(N, D) = E + A/N^α + B/D^β to the runs of a file, and say what the runs can and cannot carry.

    The file is CSV with a header, or JSON lines: a run a line, with its parameters N, its training tokens D and its
    loss L; other columns are ignored. Numbers may be written 7e9, 7,000,000,000 or 7B. Six runs are the least, some
    fifteen over three budgets are good.

    --json prints one object: runs, columns (which were read), law {E, A, B, alpha, beta}, intervals (90 %, null where
    not finite), identified (whether the runs fix a parameter), exponents (of N ∝ C^a and D ∝ C^b: direct, isoflop and
    envelope, the last two null where the runs are not made for them), residual (relative standard deviation),
    outlier_lines, conditioning {projected, five_parameters}, leave_budget_out [{budget, errors, mean, worst}]
    (predicted over seen, less 1), minima [{budget, N, loss, interior, warning}], parabola_bias [{budget, N, D}],
    fitted_range (FLOPs), optimum [{budget, N, D, loss, interval, decades_outside}], warnings.
    """

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The table of runs: .csv, .tsv, .jsonl or .ndjson."""

    budgets: Annotated[tuple[float, ...], tyro.conf.arg(metavar="FLOPS ...")] = ()
    """Budgets in FLOPs whose optimum is wanted (where none is given: the runs' largest, and ten times that)."""

    parameters: str | None = None
    """The column of N, where it is not recognised (N, params, parameters, model size, non_embedding, ...)."""

    tokens: str | None = None
    """The column of D (D, tokens, training tokens, ...); without one, D = FLOPs / 6N."""

    loss: str | None = None
    """The column of L (L, loss, val_loss, bits_per_byte, ...)."""

    flops: str | None = None
    """The column of training FLOPs (C, flops, compute, budget, ...); without one, 6ND."""

    skip_bad: bool = False
    """Leave out rows that cannot be read, instead of naming them and stopping."""

    resamples: int = 200
    """Resamples of the bootstrap behind the intervals."""

    seed: int = 0
    """Seed of the bootstrap."""

    huber: float | None = None
    """Relative residual from which the fit's loss is linear (from the runs' own noise; Hoffmann took 1e-3)."""

    json: bool = False
    """Print one JSON object as the last line of standard output, instead of text."""

    def run(self) -> None:
        """Reads, fits, prints."""
        columns = Columns(self.parameters, self.tokens, self.loss, self.flops)
        table = read_runs(self.file, columns, skip_bad=self.skip_bad)
        report = report_fit(table, self.budgets, resamples=self.resamples, seed=self.seed, huber=self.huber)
        _show(fit_lines(report), report.to_json(), self.json)


@dataclass(frozen=True)
class Laws:
    """The published laws: constants, source, the N they count, the budgets they were fitted to, and their optima.

    --json prints {"laws": [{name, title, source, counts, rounded, fitted_range, optimum [{budget, N, D, loss}]}]}.
    """

    flops: Annotated[tuple[float, ...], tyro.conf.arg(metavar="FLOPS ...")] = (1e18, 1e20, 1e22, 5.76e23)
    """Budgets in FLOPs whose optima are shown (Gopher's and Chinchilla's was 5.76e23)."""

    json: bool = False
    """Print one JSON object as the last line of standard output, instead of text."""

    def run(self) -> None:
        """Prints the laws."""
        laws = [
            {
                "name": name,
                "title": law.name,
                "source": law.source,
                "counts": law.counts,
                "rounded": law.rounded,
                "fitted_range": [law.fitted.low, law.fitted.high],
                "optimum": [
                    dict(zip(("N", "D", "loss"), law.optimum(C), strict=True)) | {"budget": C} for C in self.flops
                ],
            }
            for name, law in LAWS.items()
        ]
        _show(law_lines(self.flops), {"laws": laws}, self.json)


@dataclass(frozen=True)
class Models:
    """Language models over the years: parameters, training tokens, and how many of these a parameter got.

    --json prints {"models": [{name, year, parameters, active, tokens, tokens_per_parameter, training_flops, source}]}.
    """

    json: bool = False
    """Print one JSON object as the last line of standard output, instead of text."""

    def run(self) -> None:
        """Prints the table."""
        names = ("name", "year", "parameters", "active", "tokens", "tokens_per_parameter", "training_flops", "source")
        models = [{name: getattr(model, name) for name in names} for model in PUBLISHED_MODELS]
        _show(model_lines(), {"models": models}, self.json)


@dataclass(frozen=True)
class ScaleCommand:
    """Scaling laws: fitted to your runs, and published."""

    action: Annotated[
        Annotated[Fit, tyro.conf.subcommand("fit")]
        | Annotated[Laws, tyro.conf.subcommand("laws")]
        | Annotated[Models, tyro.conf.subcommand("models")],
        tyro.conf.arg(name=""),
    ]

    def run(self) -> None:
        """Does what was chosen."""
        self.action.run()


def _show(lines: list[str], record: dict[str, object], json: bool) -> None:
    if json:
        print(json_module.dumps(record, allow_nan=False))
        return
    console = Console()
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
