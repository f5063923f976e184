"""Which mixer solves which synthetic task, and how large it has to be for it.

    python -m verim.recipes.mixers --page docs/results/mixers.md      about an hour on two cores
    python -m verim.recipes.mixers --quick                            the same in small, under a minute

Every mixer learns every task in a model of two blocks. Widths rise, and at each the learning rates take turns, until
one solves the task: at least 99 % of the answers on held-out sequences are right. What solved it is repeated with
other seeds. Results are kept line by line in OUT/trials.jsonl: a killed experiment goes on where it was.
"""

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from verim.anatomy.machine import usable_cores
from verim.data.synthetic import AssociativeRecall, InductionHeads, Parity, SelectiveCopying, SyntheticTask
from verim.errors import InputError
from verim.models import BlockConfig, LanguageModel, LanguageModelConfig
from verim.nn import LayerConfig, SwiGLUConfig
from verim.nn.mixers import MIXERS
from verim.recipes.command import run_command
from verim.recipes.mixers_page import SOLVED, write_page
from verim.runs.lock import locked
from verim.runs.metrics import MetricsLog, read_metrics
from verim.runtime.allocator import keep_freed_blocks
from verim.runtime.files import read_json, write_json
from verim.runtime.processes import follow_parent
from verim.train import AdamWConfig, WarmupStableDecay
from verim.train.step import update
from verim.train.synthetic_task import SyntheticTraining, accuracy

TASKS: dict[str, SyntheticTask] = {
    "selective_copying": SelectiveCopying(length=48, memorised=4, vocab=16),
    "induction_heads": InductionHeads(length=32, vocab=16),
    "associative_recall": AssociativeRecall(length=32, pairs=4, vocab=32),
    "parity": Parity(length=16),
}
QUICK_TASKS: dict[str, SyntheticTask] = {
    "selective_copying": SelectiveCopying(length=8, memorised=2, vocab=6),
    "induction_heads": InductionHeads(length=8, vocab=6),
    "associative_recall": AssociativeRecall(length=8, pairs=2, vocab=8),
    "parity": Parity(length=4),
}
LONGER = (2, 4)
"""Extrapolation is measured at these multiples of the trained length."""

FIELDS: dict[str, Callable[[int], dict[str, Any]]] = {
    "attention": lambda width: {"heads": max(1, width // 16)},
    "mamba2": lambda width: {"state": 32, "head_dim": 16},  # the defaults of both are for widths of hundreds
    "rwkv7": lambda width: {"head_dim": 16, "decay_rank": 8, "rate_rank": 8, "gate_rank": 16},
}
"""Fields that are not left at their defaults, by kind of mixer and width."""

DEPTH = 2
BLOCK_WEIGHTS = 12
"""Weights of a block in units of width²: a transformer's, 4 of attention and 8 of its feed-forward layer."""

BATCH = 32
EVALUATE_EVERY = 100
WATCHED_ROWS, EVALUATED_ROWS = 256, 1024
"""Held-out sequences on which a trial is watched while it learns, and on which it is judged at its end."""


@dataclass(frozen=True)
class Trial:
    """One training run."""

    task: str
    mixer: str
    width: int
    learning_rate: float
    seed: int


@dataclass(frozen=True)
class Experiment:
    """What is tried, and where the results go."""

    out: Path = Path("studies/mixers")
    """Directory of the results: trials.jsonl, and what they are of, experiment.json."""
    page: Path | None = None
    """Where the table is written; OUT/mixers.md where nothing is said."""
    mixers: tuple[str, ...] = tuple(MIXERS)
    tasks: tuple[str, ...] = tuple(TASKS)
    widths: tuple[int, ...] = (16, 32, 64)
    learning_rates: tuple[float, ...] = (0.003, 0.01)
    seeds: int = 3
    """The first that solves a task is repeated with other seeds, to so many in all."""
    steps: int = 2000
    """Of a trial that does not solve its task."""
    cooldown: int = 300
    """Last steps, over which the learning rate falls to zero; they begin as soon as the task is solved."""
    processes: int = field(default_factory=usable_cores)
    """Trials side by side, a thread each."""
    quick: bool = False
    """Tiny tasks, one width and learning rate, a few steps: to see that all of it runs."""

    def __post_init__(self) -> None:
        for name, known in (("mixers", MIXERS), ("tasks", TASKS)):
            unknown = [given for given in getattr(self, name) if given not in known]
            if unknown or not getattr(self, name):
                raise InputError(f"{name}: got {unknown or 'none'}, expected some of {', '.join(known)}")
        if not self.widths or any(width < 16 or width % 16 for width in self.widths):
            raise InputError(f"widths: got {self.widths}, expected multiples of 16, the channels of a head")
        if not self.learning_rates:
            raise InputError("learning_rates: got none, expected at least one")
        for name in ("seeds", "steps", "cooldown", "processes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, expected at least 1")
        if self.cooldown > self.steps:
            raise InputError(f"cooldown: got {self.cooldown}, expected at most steps, {self.steps}")
        if self.quick:
            small: dict[str, Any] = {"widths": (16,), "learning_rates": (0.01,), "seeds": 1, "steps": 20, "cooldown": 5}
            for name, value in small.items():
                object.__setattr__(self, name, value)

    def task(self, name: str) -> SyntheticTask:
        return (QUICK_TASKS if self.quick else TASKS)[name]

    def settings(self) -> dict[str, Any]:
        """What the results depend on besides their trial, as JSON values."""
        sizes = {name: vars(self.task(name)) for name in TASKS}
        return {"steps": self.steps, "cooldown": self.cooldown, "batch": BATCH, "depth": DEPTH, "tasks": sizes}


Results = dict[Trial, dict[str, Any]]


def next_trial(experiment: Experiment, task: str, mixer: str, results: Results) -> Trial | None:
    """What to train after `results`; None where this pair is settled."""
    for width, rate in itertools.product(experiment.widths, experiment.learning_rates):
        trials = [Trial(task, mixer, width, rate, seed) for seed in range(experiment.seeds)]
        if trials[0] not in results:
            return trials[0]
        if results[trials[0]]["accuracy"] >= SOLVED:
            return next((trial for trial in trials if trial not in results), None)
    return None


def block(mixer: str, width: int) -> BlockConfig:
    """The mixer, and a SwiGLU layer of whatever it leaves of 12 width² weights: so all models are equally large."""
    layer: LayerConfig = MIXERS[mixer](**FIELDS.get(mixer, lambda width: {})(width))
    taken = sum(weight.numel() for weight in layer.build(width, 0, DEPTH).parameters())
    hidden = 8 * round((BLOCK_WEIGHTS * width**2 - taken) / (3 * width) / 8)
    return BlockConfig(layer, SwiGLUConfig(hidden) if hidden >= 8 else None)


def train(trial: Trial, experiment: Experiment) -> dict[str, Any]:
    """Trains one model: accuracy at the end and at longer lengths, the step at which it was seen to solve the task."""
    task = experiment.task(trial.task)
    torch.manual_seed(trial.seed)
    model = LanguageModel(LanguageModelConfig((block(trial.mixer, trial.width),), trial.width, DEPTH, task.vocab))
    training = SyntheticTraining(
        task, BATCH, trial.seed, EVALUATED_ROWS, tuple(factor * task.length for factor in LONGER)
    )
    optimiser = AdamWConfig(trial.learning_rate).build(model)
    warmup = min(50, experiment.steps - experiment.cooldown)
    schedule = WarmupStableDecay(experiment.steps, warmup, experiment.cooldown)
    solved_at, diverged, step, began = None, False, 0, time.perf_counter()
    while step < schedule.steps:
        for group in optimiser.param_groups:
            group["lr"] = group["base_rate"] * schedule(step)
        loss = training.loss(model, training.batch(step))
        if not math.isfinite(loss.item()):
            diverged = True
            break
        update(model, optimiser, loss, clip=1.0)
        step += 1
        if solved_at is None and step % EVALUATE_EVERY == 0 and accuracy(model, task, WATCHED_ROWS) >= SOLVED:
            solved_at = step
            schedule = WarmupStableDecay(min(experiment.steps, step + experiment.cooldown), warmup, experiment.cooldown)
    figures = training.evaluate(model)
    return {
        "accuracy": figures["accuracy"],
        "longer": [figures[f"accuracy_at_{length}"] for length in training.lengths],
        "solved_at": solved_at,
        "steps": step,
        "diverged": diverged,
        "parameters": model.parameter_count().non_embedding,
        "feed_forward": model.config.pattern[0].feed_forward is not None,
        "seconds": time.perf_counter() - began,
    }


def run(experiment: Experiment, console: Console) -> Path:
    """Trains what is not trained yet and writes the page; returns its path."""
    with locked(experiment.out, wait_seconds=0.0):
        results = take_up(experiment)
        train_all(experiment, results, console)
    page = experiment.page or experiment.out / "mixers.md"
    tasks = {name: experiment.task(name) for name in experiment.tasks}
    write_page(page, tasks, experiment.settings(), [asdict(trial) | held for trial, held in results.items()])
    return page


def train_all(experiment: Experiment, results: Results, console: Console) -> None:
    """Trains what is not in `results` yet, several trials side by side, and adds it there and to the log."""
    path = experiment.out / "trials.jsonl"
    log = MetricsLog(path, path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0)
    pairs = deque(itertools.product(experiment.tasks, experiment.mixers))
    with (
        ProcessPoolExecutor(experiment.processes, get_context("spawn"), _begin) as pool,
        Progress(console=console, disable=not console.is_terminal) as bar,
    ):
        settled = bar.add_task("pairs of task and mixer", total=len(pairs))
        running: dict[Future[dict[str, Any]], Trial] = {}
        try:
            while pairs or running:
                while pairs and len(running) < experiment.processes:
                    trial = next_trial(experiment, *pairs[0], results)
                    if trial is not None:
                        running[pool.submit(train, trial, experiment)] = trial
                    else:
                        bar.advance(settled)
                    pairs.popleft()
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    trial = running.pop(future)
                    results[trial] = future.result()
                    log.append(asdict(trial) | results[trial])
                    console.print(sentence(trial, results[trial]), highlight=False, soft_wrap=True)
                    pairs.append((trial.task, trial.mixer))  # at the end: no long row of trials is left to the last
        except BaseException:
            for process in active_children():  # what they were at is done again when the experiment goes on
                process.terminate()
            raise
        finally:
            log.close()


def take_up(experiment: Experiment) -> Results:
    """The results that the directory holds, none in a new one. Raises `InputError` where they are of other settings."""
    experiment.out.mkdir(parents=True, exist_ok=True)
    path = experiment.out / "experiment.json"
    if not path.exists():
        write_json(path, experiment.settings())
    if read_json(path) != experiment.settings():
        raise InputError(f"--out {experiment.out} holds results of other settings ({path}): name another directory")
    names = Trial.__dataclass_fields__
    records = read_metrics(experiment.out / "trials.jsonl")
    return {
        Trial(**{name: record[name] for name in names}): {k: v for k, v in record.items() if k not in names}
        for record in records
    }


def sentence(trial: Trial, result: dict[str, Any]) -> str:
    """A finished trial in a line."""
    longer = ", ".join(
        f"{100 * share:.1f} % at {factor}×" for factor, share in zip(LONGER, result["longer"], strict=True)
    )
    return (
        f"{trial.task}, {trial.mixer}, width {trial.width}, rate {trial.learning_rate:g}, seed {trial.seed}: "
        f"{100 * result['accuracy']:.1f} % ({longer}) after {result['steps']} steps, {result['seconds']:.0f} s"
    )


def _begin() -> None:
    torch.set_num_threads(1)
    follow_parent()
    keep_freed_blocks()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line `arguments`, by default the process's."""
    run_command(Experiment, run, "python -m verim.recipes.mixers", arguments)


if __name__ == "__main__":
    main()
