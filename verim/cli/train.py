"""`verim train`: a language model on your data, within the time that you have."""

import json
import shutil
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro
from rich.console import Console
from rich.table import Table

from verim.cli.training_lines import TrainingLines
from verim.data import BuildConfig, build
from verim.data.manifest import MANIFEST
from verim.errors import InputError, VerimError
from verim.models.interop.tokenizer import TOKENIZER
from verim.runs import Retention, RunDirectory
from verim.runtime.allocator import keep_freed_blocks
from verim.runtime.files import write_bytes
from verim.scaling.budget import Budget
from verim.scaling.pretraining import PlannedRun, Request, expected_run_seconds, plan_run
from verim.train.averaging import AveragingConfig
from verim.train.config import TrainerConfig
from verim.train.optimisers import OPTIMISERS, OptimiserConfig
from verim.train.parallel import ParallelConfig
from verim.train.parallel.start import is_restarted, started_ranks
from verim.train.precision import Kind, Precision
from verim.train.pretraining import Pretraining, check_documents, pretrain
from verim.train.rules import LENGTH, Recipe
from verim.train.schedules import SCHEDULES, Schedule
from verim.train.spikes import SpikeConfig
from verim.train.task import LanguageModelling


@dataclass(frozen=True)
class TrainCommand:
    """Train a language model on a data set that `verim data build` has made, or on text, whose bytes are then tokens.

    With the data and --minutes alone, the architecture's size, batch, learning rate and schedule are chosen by rule
    and said before training begins. The run's directory is enough to go on with it (--resume), to generate from it
    (verim generate RUN) and to look into it.
    """

    data: tyro.conf.Positional[tuple[str, ...]] = ()
    """A data set's directory, or files and folders of text."""
    minutes: float | None = None
    """The budget: minutes of training. One of --minutes, --tokens and --flops."""
    tokens: float | None = None
    """The budget: tokens to train on."""
    flops: float | None = None
    """The budget: training FLOPs, forward and backward."""
    architecture: str = "transformer"
    """Which kind of model."""
    width: int | None = None
    """Channels of the model; the rest of its shape follows (chosen for the budget where not given)."""
    model: Path | None = None
    """A JSON file with a model's configuration, instead of --architecture and --width."""
    batch: int | None = None
    """Sequences a step (chosen for the number of tokens where not given)."""
    length: int = LENGTH
    """Tokens a sequence."""
    within_documents: bool = False
    """Keep attention inside each document; else a row of several is read as one text."""
    optimiser: Annotated[str, tyro.conf.arg(metavar="|".join(OPTIMISERS))] = "adamw"
    """Which optimiser. The rule of the learning rate is for AdamW: give --learning-rate with the others."""
    learning_rate: float | None = None
    """Of embeddings; matrices and vectors take their share of it by the rule of their width."""
    schedule: Annotated[str, tyro.conf.arg(metavar="|".join(SCHEDULES))] = "warmup_stable_decay"
    """How the learning rate rises and falls."""
    precision: Kind = "float32"
    """In what to compute: halves by autocast, or bfloat16 weights with a float32 copy in the optimiser."""
    average: float | None = None
    """Keep, evaluate and generate from an exponential moving average of the weights with this decay (0.999, say)."""
    spikes: bool = False
    """Skip steps whose loss or gradient stands out, and go back behind a row of them."""
    accumulation: int = 1
    """Compute a batch in so many parts, to save memory."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    evaluations: int = 10
    """How often held-out text is looked at, the end included."""
    patience: int = 0
    """Stop after so many evaluations without a better one; 0: never."""
    compile: bool = False
    """Use torch.compile, where it succeeds."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; auto: on a GPU where there is one."""
    seed: int = 0
    """Seed of weights and batches."""
    checkpoint_seconds: float = 60.0
    """A checkpoint is written so often, at every evaluation, and at the end."""
    keep: int = 2
    """How many of the last checkpoints stay; the best one does besides."""
    tracker: Annotated[str, tyro.conf.arg(metavar="NAME,NAME")] = ""
    """Where the figures go besides metrics.jsonl: tensorboard, mlflow, wandb."""
    out: Path | None = None
    """Directory of the run (runs/DATE-TIME where not given)."""
    resume: Path | None = None
    """Go on with the run in this directory; what was asked of it then holds."""
    json: bool = False
    """Print the result as JSON as the last line."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    """What several ranks share, and how; torchrun starts them (see verim launch)."""

    def run(self) -> None:
        keep_freed_blocks()
        device = self._device()
        with started_ranks(device) as ranks:
            console = Console(stderr=True, quiet=ranks.rank > 0)
            directory, described = ranks.on_first(lambda: self._begun(console, ranks.count))
            pretraining = Pretraining.from_json(described)
            parallel = self.parallel if ranks.count > 1 or self.parallel != ParallelConfig() else None
            retention = Retention(self.keep, LanguageModelling.objective.figure)
            run = RunDirectory(directory, retention, ranks)
            with TrainingLines(console, run.path, pretraining.trainer.steps) as lines:
                names = [name.strip() for name in self.tracker.split(",") if name.strip()]
                result, warnings = pretrain(pretraining, run, device, lines.step, names, lines.warn, parallel)
            for warning in warnings:
                _say(console, f"warning: {warning}")
            if ranks.rank == 0:
                self._print(run, result)

    def _print(self, run: RunDirectory, result: dict[str, Any]) -> None:
        figures = ", ".join(f"{value:.4f} {name.replace('_', ' ')}" for name, value in result.items() if "per_" in name)
        print(
            f"{run.path}: {result['steps']:,} steps, {result['tokens']:,} tokens, {result['seconds']:.1f} s: {figures}"
        )
        if self.json:
            print(json.dumps({"run": str(run.path), "result": result, "config": run.config()}, allow_nan=False))

    def _begun(self, console: Console, ranks: int) -> tuple[str, dict[str, Any]]:
        """The run's directory and its configuration, taken up or planned; checked. By the first rank alone."""
        self.parallel.check_ranks(ranks)
        again = self.out is not None and is_restarted() and (self.out / "config.json").is_file()
        if self.resume is not None or again:
            return self._resumed(console, self.out if again else None)
        if ranks > 1 and self.minutes is not None:
            raise InputError("minutes: got it on several ranks, whose speed is not known before: give tokens or flops")
        if ranks > 1 and self.out is None:
            raise InputError("out: got none on several ranks: name the run's directory, so that a restart finds it")
        directory = self.out or Path("runs") / datetime.now().strftime("%Y-%m-%d-%H%M%S")
        if directory.exists() and any(path.name != ".lock" for path in directory.iterdir()):
            raise InputError(
                f"out: {directory} is not empty; name another directory, or go on with --resume {directory}"
            )
        try:
            planned = self._planned(directory, console)
            run = planned.pretraining
            self.parallel.check(run.model, ranks, run.batch, run.length)
            if run.within_documents:
                check_documents(run.model, self.parallel)
        except (VerimError, OSError, KeyboardInterrupt):
            shutil.rmtree(directory, ignore_errors=True)  # nothing was in it
            raise
        _say_plan(console, planned)
        for warning in planned.warnings:
            _say(console, f"warning: {warning}")
        return str(directory), planned.pretraining.to_json()

    def _device(self) -> torch.device:
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("device: got cuda, but torch finds no GPU: give --device cpu")
        return torch.device("cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu")

    def _resumed(self, console: Console, restarted: Path | None) -> tuple[str, dict[str, Any]]:
        mine = replace(self, resume=None, json=False, device="auto", tracker="", keep=2, parallel=ParallelConfig())
        if restarted is None and mine != TrainCommand():
            raise InputError(
                "resume: got other options beside it; a run goes on with what it was asked: give --resume alone, or "
                "with --device, --tracker, --keep or --parallel"
            )
        directory = restarted or self.resume
        assert directory is not None, "a run is taken up by its directory"
        run = RunDirectory.existing(directory)
        if run.finished:
            _say(console, f"{run.path} is finished: its result is read")
        return str(directory), Pretraining.from_json(run.config()).to_json()

    def _planned(self, directory: Path, console: Console) -> PlannedRun:
        """What is to be trained in `directory`; the data set and the tokenizer are put there where it needs them."""
        seconds = 60 * self.minutes if self.minutes is not None else None
        budget = Budget(seconds, self.tokens, self.flops)
        data = self._data(directory, console)
        _say(console, "measuring the speed of the sizes")
        request = Request(
            data=data,
            budget=budget,
            architecture=self.architecture,
            width=self.width,
            model=self.model,
            batch=self.batch,
            length=self.length,
            seed=self.seed,
            evaluations=self.evaluations,
            within_documents=self.within_documents,
            settle=self._settle,
        )
        planned = plan_run(request)
        if (data / TOKENIZER).is_file():
            directory.mkdir(parents=True, exist_ok=True)
            write_bytes(directory / TOKENIZER, (data / TOKENIZER).read_bytes())
        return planned

    def _data(self, directory: Path, console: Console) -> Path:
        """The data set: the one that was named, or one made of the text that was named."""
        if not self.data:
            raise InputError("data: got none, expected a data set's directory, or files and folders of text")
        paths = [Path(path) for path in self.data]
        if len(paths) == 1 and (paths[0] / MANIFEST).is_file():
            return paths[0]
        _say(console, f"building a data set of bytes in {directory / 'data'}")
        directory.mkdir(parents=True, exist_ok=True)
        build(paths, directory / "data", BuildConfig())
        return directory / "data"

    def _settle(self, rules: Recipe) -> TrainerConfig:
        """The trainer's configuration: the rules', but for what was asked."""
        trainer = rules.trainer
        return replace(
            trainer,
            optimiser=self._optimiser(trainer.optimiser),
            schedule=self._schedule(trainer.schedule),
            accumulation=self.accumulation,
            clip=self.clip,
            precision=Precision(self.precision),
            averaging=AveragingConfig(self.average) if self.average is not None else None,
            spikes=SpikeConfig() if self.spikes else None,
            patience=self.patience,
            compile=self.compile,
            checkpoint_seconds=self.checkpoint_seconds,
        )

    def _optimiser(self, rule: OptimiserConfig) -> OptimiserConfig:
        if self.optimiser not in OPTIMISERS:
            raise InputError(f"optimiser: got {self.optimiser!r}, expected one of {', '.join(OPTIMISERS)}")
        kind = OPTIMISERS[self.optimiser]
        if self.learning_rate is None and kind is not type(rule):
            raise InputError(f"learning-rate: none given, and there is no rule of it for {self.optimiser}: give one")
        return kind(rule.learning_rate if self.learning_rate is None else self.learning_rate)

    def _schedule(self, rule: Schedule) -> Schedule:
        if self.schedule not in SCHEDULES:
            raise InputError(f"schedule: got {self.schedule!r}, expected one of {', '.join(SCHEDULES)}")
        kind = SCHEDULES[self.schedule]
        return rule if kind is type(rule) else kind(rule.steps, warmup=rule.warmup)


def _say_plan(console: Console, planned: PlannedRun) -> None:
    """What will be trained, before it is."""
    size, run = planned.choice.candidate, planned.pretraining
    table = Table(title="The plan", title_justify="left", box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column()
    trainer = run.trainer
    for name, value in (
        ("model", f"{size.architecture}, width {size.width}, depth {size.depth}"),
        ("parameters", f"{size.total:,} total, {size.non_embedding:,} non-embedding"),
        ("tokens", f"{planned.tokens:,}: {trainer.steps:,} steps of {run.batch} sequences of {run.length}"),
        (
            "optimiser",
            f"{type(trainer.optimiser).__name__.removesuffix('Config')}, {trainer.optimiser.learning_rate:g}",
        ),
        ("training FLOPs", f"{planned.flops:.3g}"),
        ("expected", _duration(expected_run_seconds(planned))),
    ):
        table.add_row(name, value)
    console.print(table)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} minutes"


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
