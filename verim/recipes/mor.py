"""Mixture-of-Recursions beside plain and recursive transformers, at equal tokens, FLOPs and parameters; decoding.

    python -m verim.recipes.mor --page docs/results/mor.md      hours: see the page for what its runs took
    python -m verim.recipes.mor --quick                         the same in small, a few minutes

Every trial is a process of its own, so that its peak memory is its own. Results are kept line by line in
OUT/trials.jsonl: a killed experiment goes on where it was. The paper (arXiv 2507.10524) counts forward FLOPs alone;
here forward and backward count, three times as much, for all models alike.
"""

import resource
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from verim.anatomy.machine import usable_cores
from verim.data.corpus import load_corpus
from verim.errors import InputError
from verim.models import BlockConfig, LanguageModel, LanguageModelConfig
from verim.nn import SwiGLUConfig
from verim.nn.mixers import AttentionConfig
from verim.nn.recursion import RecursionConfig
from verim.nn.recursion_routing import ExpertChoiceConfig
from verim.recipes.command import run_command
from verim.recipes.mor_decoding import decoding_records
from verim.recipes.mor_page import write_page
from verim.runs.lock import locked
from verim.runs.metrics import MetricsLog, read_metrics
from verim.runtime.files import read_json, write_json
from verim.runtime.processes import follow_parent
from verim.train import AdamWConfig, WarmupStableDecay
from verim.train.step import update
from verim.train.task import ByteLanguageModelling

RECURSIONS = (2, 3, 4)
MODELS = ("vanilla", *(f"{kind}-{n}" for n in RECURSIONS for kind in ("recursive", "mor", "small")))
"""`small-N` is a plain transformer with as many blocks as recursive-N and mor-N have of their own."""


@dataclass(frozen=True)
class Trial:
    """One training run; `budget`: "tokens" (those of all), or "flops" (those of the plain transformer on them)."""

    model: str
    budget: str
    seed: int


@dataclass(frozen=True)
class Experiment:
    """What is trained, and where the results go."""

    out: Path = Path("studies/mor")
    """Directory of the results."""
    page: Path | None = None
    """Where the page is written; OUT/mor.md where nothing is said."""
    models: tuple[str, ...] = MODELS
    width: int = 128
    depth: int = 14
    """Applications of blocks: 2 more than a multiple of 12 suits 2, 3 and 4 recursions."""
    length: int = 256
    batch: int = 16
    tokens: float = 1e6
    """Of a run at equal tokens."""
    learning_rate: float = 0.01
    alpha: float = 0.1
    """Of the routed update; the paper's."""
    seeds: int = 3
    evaluation_bytes: int = 2**17
    processes: int = field(default_factory=usable_cores)
    """Trials side by side, a thread each."""
    quick: bool = False
    """Tiny models and runs, one seed: to see that all of it runs."""

    def __post_init__(self) -> None:
        if self.quick:
            small: dict[str, Any] = {
                "width": 32, "length": 64, "batch": 4, "tokens": 5e3, "seeds": 1, "evaluation_bytes": 2**12,
            }  # fmt: skip
            for name, value in small.items():
                object.__setattr__(self, name, value)
        unknown = [name for name in self.models if name not in MODELS]
        if unknown or not self.models:
            raise InputError(f"models: got {unknown or 'none'}, expected some of {', '.join(MODELS)}")
        if self.width < 16 or self.width % 16:
            raise InputError(f"width: got {self.width}, expected a multiple of 16, the channels of a head")
        for name in ("length", "batch", "seeds", "processes", "evaluation_bytes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}: got {getattr(self, name)}, expected at least 1")
        for name in self.models:
            self.config(name)

    def config(self, name: str) -> LanguageModelConfig:
        """The configuration of a model of the comparison."""
        block = BlockConfig(AttentionConfig(heads=self.width // 16), SwiGLUConfig(8 * round(self.width / 3)))
        whole = LanguageModelConfig((block,), self.width, self.depth)
        kind, _, recursions = name.partition("-")
        if kind == "vanilla":
            return whole
        recursion = RecursionConfig(int(recursions))
        if kind == "small":
            return replace(whole, depth=recursion.unique(self.depth))
        routing = ExpertChoiceConfig(alpha=self.alpha) if kind == "mor" else None
        return replace(whole, recursion=replace(recursion, routing=routing))

    def trials(self) -> list[Trial]:
        """At equal tokens every model but the small ones; at equal FLOPs every one that is not the same there."""
        both = {"vanilla": ("tokens",), "recursive": ("tokens",), "mor": ("tokens", "flops"), "small": ("flops",)}
        return [
            Trial(name, budget, seed)
            for seed in range(self.seeds)
            for name in self.models
            for budget in both[name.partition("-")[0]]
        ]

    def settings(self) -> dict[str, Any]:
        """What the results depend on besides their trial, as JSON values."""
        others = ("out", "page", "models", "seeds", "processes", "quick")
        return {name: value for name, value in asdict(self).items() if name not in others}


def train(trial: Trial, experiment: Experiment) -> dict[str, Any]:
    """Trains one model: held-out bits per byte, seconds of its steps, memory above what the process had before."""
    corpus = load_corpus()
    torch.manual_seed(trial.seed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    model = LanguageModel(experiment.config(trial.model))
    flops, tokens = model.flops(experiment.length), experiment.tokens
    if trial.budget == "flops":
        tokens *= LanguageModel(experiment.config("vanilla")).flops(experiment.length) / flops
    steps = max(10, round(tokens / (experiment.batch * experiment.length)))
    task = ByteLanguageModelling(
        corpus.train, corpus.held_out, experiment.batch, experiment.length, trial.seed, experiment.evaluation_bytes
    )
    optimiser = AdamWConfig(experiment.learning_rate).build(model)
    schedule = WarmupStableDecay(steps, warmup=max(1, steps // 20), decay=steps // 5)
    accuracies: list[list[float]] = []
    began = time.perf_counter()
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = group["base_rate"] * schedule(step)
        update(model, optimiser, task.loss(model, task.batch(step)), clip=1.0)
        if model.routed is not None and step >= steps - 10:
            accuracies.append(model.routed.router.sampling_accuracy)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    dead = None if model.routed is None or model.routed.depths is None else model.routed.depths.dead
    figures = task.evaluate(model.eval())
    depths = None if model.routed is None else model.routed.depths
    return {
        "bits_per_byte": figures["bits_per_byte"],
        "seconds": seconds,
        "peak_bytes": 1024 * peak,
        "tokens": steps * experiment.batch * experiment.length,
        "flops": steps * experiment.batch * experiment.length * flops,
        "parameters": model.parameter_count().non_embedding,
        "sampling_accuracy": None if not accuracies else [sum(c) / len(c) for c in zip(*accuracies, strict=True)],
        "dead": dead,
        "mean_depth": None if depths is None else depths.mean,
        "largest_violation": None if depths is None else depths.largest_violation,
    }


def run(experiment: Experiment, console: Console) -> Path:
    """Trains what is not trained yet, measures decoding, and writes the page; returns its path."""
    experiment.out.mkdir(parents=True, exist_ok=True)
    with locked(experiment.out, wait_seconds=0.0):
        settings = experiment.out / "experiment.json"
        if not settings.exists():
            write_json(settings, experiment.settings())
        if read_json(settings) != experiment.settings():
            raise InputError(f"--out {experiment.out} holds results of other settings ({settings}): name another one")
        path = experiment.out / "trials.jsonl"
        held = read_metrics(path) if path.exists() else []
        done = {Trial(record["model"], record["budget"], record["seed"]): record for record in held}
        train_all(experiment, done, path, console)
        speeds = decoding_records(experiment.config, 2 if experiment.quick else 32, 16 if experiment.quick else 128)
    page = experiment.page or experiment.out / "mor.md"
    wanted = [done[trial] for trial in experiment.trials()]
    write_page(page, wanted, speeds, experiment.settings())
    return page


def train_all(experiment: Experiment, done: dict[Trial, dict[str, Any]], path: Path, console: Console) -> None:
    """Trains what is not in `done`, each in a process of its own, and adds it there and to the log at `path`."""
    log = MetricsLog(path, path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0)
    left = [trial for trial in experiment.trials() if trial not in done]
    with ProcessPoolExecutor(experiment.processes, get_context("spawn"), _begin, max_tasks_per_child=1) as pool:
        try:
            futures = {pool.submit(train, trial, experiment): trial for trial in left}
            for future in as_completed(futures):
                trial = futures[future]
                done[trial] = asdict(trial) | future.result()
                log.append(done[trial])
                told = done[trial]
                console.print(
                    f"{trial.model}, equal {trial.budget}, seed {trial.seed}: {told['bits_per_byte']:.3f} bits per "
                    f"byte after {told['tokens']:.3g} tokens, {told['seconds']:.0f} s",
                    highlight=False,
                    soft_wrap=True,
                )
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
        finally:
            log.close()


def _begin() -> None:
    torch.set_num_threads(1)
    follow_parent()


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line `arguments`, by default the process's."""
    run_command(Experiment, run, "python -m verim.recipes.mor", arguments)


if __name__ == "__main__":
    main()
