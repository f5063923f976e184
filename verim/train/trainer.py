"""The trainer: a model, a task, an optimiser, a schedule, and a run directory to stop and go on in."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from verim.errors import InputError
from verim.runs import Checkpoint, RunDirectory
from verim.train.compilation import compiled
from verim.train.meter import Meter
from verim.train.optimiser import AdamWConfig
from verim.train.schedule import WarmupStableDecay
from verim.train.step import backward
from verim.train.task import Task


@dataclass(frozen=True)
class TrainerConfig:
    """`schedule.steps` updates by `optimiser`, whose rate the schedule scales.

    - `clip`: the gradient is scaled down to this norm where it is larger.
    - `accumulation`: a batch is computed in so many parts, one after the other, whose gradients add up to the whole's.
    - `evaluations`: how often held-out figures are taken, evenly spread, the last after the last step.
    - `patience`: training ends after so many evaluations in a row without a better objective; 0: it never ends early.
    - `checkpoint_seconds`: a checkpoint is written so often.
    - `compile`: `torch.compile` where it succeeds.
    """

    optimiser: AdamWConfig
    schedule: WarmupStableDecay
    clip: float = 1.0
    accumulation: int = 1
    evaluations: int = 1
    patience: int = 0
    checkpoint_seconds: float = 10.0
    compile: bool = False

    def __post_init__(self) -> None:
        for name, least in (("accumulation", 1), ("evaluations", 1), ("patience", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        if not self.clip > 0:
            raise InputError(f"clip: got {self.clip}, expected a positive norm")

    @property
    def steps(self) -> int:
        return self.schedule.steps


Progress = Callable[[dict[str, float]], None]
"""Told of every step: its line of the metrics."""


class Trainer:
    """Trains `model` on `task` in `run`, from its latest checkpoint if it has one.

    A run that was stopped at any moment and goes on has the same bits as one that never stopped, on the CPU with
    the same number of threads: weights, the optimiser's state, random state and the step are in the checkpoint; the
    batch and the rate follow from the step. `meter` adds the figures of pace to each line of the metrics.
    """

    def __init__(
        self, model: nn.Module, task: Task, config: TrainerConfig, run: RunDirectory, meter: Meter | None = None
    ) -> None:
        self.model, self.task, self.config, self.run, self.meter = model, task, config, run, meter
        self.device = next(model.parameters()).device
        self.optimiser = config.optimiser.build(model)
        self.seconds = 0.0
        self.warnings: list[str] = []
        """What the user should know: a damaged checkpoint passed over, a compiler that failed."""
        self._called = model
        self._best: float | None = None
        self._evaluations_since_best = 0
        every = config.steps / config.evaluations
        self._evaluation_steps = {round(every * (k + 1)) for k in range(config.evaluations)}

    def train(
        self,
        description: dict[str, Any],
        progress: Progress = lambda record: None,
        environment: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Runs all steps that are left and returns the result, which is also written into the run.

        `description` is the run's configuration: a directory that holds another one is refused (`InputError`).
        `progress(record)` is called after every step; an exception that it raises stops the run where it is.
        The run must be held for writing (`with run.writing():`).
        """
        step = self._take_up(self.run.start(description, environment))
        self._compile(step)
        began = time.perf_counter() - self.seconds
        saved = time.perf_counter()
        figures: dict[str, float] = {}
        if self.meter is not None:
            self.meter.begin(step)
        while step < self.config.steps and not self._out_of_patience():
            record = self._step(step)
            step += 1
            self.seconds = time.perf_counter() - began
            if step in self._evaluation_steps:
                figures = self.evaluate()
                self._judge(figures)
                record |= figures
            record = {"step": step, "seconds": round(self.seconds, 4), **record}
            if self.meter is not None:
                record |= self.meter.read(step)
            self.run.log(record)
            if time.perf_counter() - saved >= self.config.checkpoint_seconds and step < self.config.steps:
                self.seconds = time.perf_counter() - began
                self._save(step)
                saved = time.perf_counter()
            progress(record)
        figures = figures or self.evaluate()  # killed after the last checkpoint, before the result
        result = {"steps": step, "tokens": step * self.task.tokens_per_step, "seconds": time.perf_counter() - began}
        self._save(step)
        self.run.finish(result | figures)
        return result | figures

    def evaluate(self) -> dict[str, float]:
        """The task's figures on held-out data, the model in evaluation mode meanwhile."""
        self.model.eval()
        figures = self.task.evaluate(self.model)
        self.model.train()
        return figures

    def _step(self, step: int) -> dict[str, float]:
        """One update; the loss before it, the norm of its gradient and its learning rate."""
        factor = self.config.schedule(step)
        for group in self.optimiser.param_groups:
            group["lr"] = group["base_rate"] * factor
        loss = backward(self.task, self._called, self.task.batch(step), self.config.accumulation, device=self.device)
        value = loss.item()
        if not math.isfinite(value):
            raise InputError(f"the loss is {value} at step {step}: lower the learning rate, or look at the data there")
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip, foreach=True)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        rate = factor * self.config.optimiser.learning_rate
        return {"loss": value, **self.task.figures(value), "gradient_norm": norm.item(), "learning_rate": rate}

    def _compile(self, step: int) -> None:
        if self.config.compile:
            self._called, reason = compiled(self.model, self.task, self.task.batch(step), self.device)
            if reason is not None:
                self.warnings.append(f"{reason}: training goes on without it")

    def _judge(self, figures: dict[str, float]) -> None:
        """Counts the evaluations since the best one."""
        value = figures[self.task.objective.figure]
        if self._best is None or self.task.objective.better(value, self._best):
            self._best, self._evaluations_since_best = value, 0
        else:
            self._evaluations_since_best += 1

    def _out_of_patience(self) -> bool:
        return 0 < self.config.patience <= self._evaluations_since_best

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": weight for name, weight in self.model.state_dict().items()}
        for name, weight in self.model.named_parameters():
            for moment, value in self.optimiser.state[weight].items():
                tensors[f"optimiser.{moment}.{name}"] = value
        return tensors | {f"random.{name}": state for name, state in _random_state(self.device).items()}

    def _save(self, step: int) -> None:
        state = {
            "seconds": self.seconds,
            "best": self._best,
            "evaluations_since_best": self._evaluations_since_best,
        }
        self.run.save_checkpoint(step, self._tensors(), state)

    def _take_up(self, checkpoint: Checkpoint | None) -> int:
        """Puts the checkpoint's content in place; the step to go on with (0 where there is none)."""
        if checkpoint is None:
            return 0
        if checkpoint.warning is not None:
            self.warnings.append(checkpoint.warning)
        self.model.load_state_dict(model_weights(checkpoint))
        weights = dict(self.model.named_parameters())
        random: dict[str, Tensor] = {}
        for key, value in checkpoint.tensors.items():
            part, _, rest = key.partition(".")
            if part == "optimiser":
                moment, _, name = rest.partition(".")
                self.optimiser.state[weights[name]][moment] = value
            elif part == "random":
                random[rest] = value
        _restore_random_state(self.device, random)
        self.seconds = float(checkpoint.state["seconds"])
        self._best = checkpoint.state["best"]
        self._evaluations_since_best = checkpoint.state["evaluations_since_best"]
        return int(checkpoint.step)


def model_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The model's part of a checkpoint, for `load_state_dict`."""
    prefix = "model."
    return {name.removeprefix(prefix): value for name, value in checkpoint.tensors.items() if name.startswith(prefix)}


def _random_state(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's generators: dropout and what else draws in a model goes on as it would have."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def _restore_random_state(device: torch.device, state: dict[str, Tensor]) -> None:
    if "cpu" in state:
        torch.set_rng_state(state["cpu"])
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
