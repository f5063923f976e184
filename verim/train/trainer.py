"""The trainer: a model, a task, an optimiser, a schedule, and a run directory to stop and go on in."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from verim.errors import InputError
from verim.runs import Checkpoint, RunDirectory
from verim.train.optimiser import AdamWConfig
from verim.train.schedule import WarmupStableDecay
from verim.train.step import update
from verim.train.task import Task


@dataclass(frozen=True)
class TrainerConfig:
    """`steps` updates; the rate rises over the first `warmup` steps and falls over the last `decay`.

    The gradient is scaled down to norm `clip` where it is larger. Held-out figures are taken `evaluations` times,
    evenly spread, the last after the last step. A checkpoint is written every `checkpoint_seconds`.
    """

    steps: int
    optimiser: AdamWConfig
    warmup: int
    decay: int
    clip: float = 1.0
    evaluations: int = 1
    checkpoint_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("evaluations", 1)):
            if getattr(self, name) < least:
                raise InputError(f"{name}: got {getattr(self, name)}, expected at least {least}")
        if not self.clip > 0:
            raise InputError(f"clip: got {self.clip}, expected a positive norm")


class Trainer:
    """Trains `model` on `task` in `run`, from its latest checkpoint if it has one.

    A run that was stopped at any moment and goes on has the same bits as one that never stopped, on the CPU with
    the same number of threads: weights, both moments and the step are in the checkpoint; the batch and the rate
    follow from the step.
    """

    def __init__(self, model: nn.Module, task: Task, config: TrainerConfig, run: RunDirectory) -> None:
        self.model, self.task, self.config, self.run = model, task, config, run
        self.optimiser = config.optimiser.build(model)
        self.schedule = WarmupStableDecay(config.steps, config.warmup, config.decay)
        self.seconds = 0.0
        every = config.steps / config.evaluations
        self._evaluation_steps = {round(every * (k + 1)) for k in range(config.evaluations)}

    def train(
        self,
        description: dict[str, Any],
        progress: Callable[[int], None] = lambda step: None,
        environment: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Runs all steps that are left and returns the result, which is also written into the run.

        `description` is the run's configuration: a directory that holds another one is refused (`InputError`).
        `progress(step)` is called after every step; an exception that it raises stops the run where it is.
        The run must be held for writing (`with run.writing():`).
        """
        step = self._take_up(self.run.start(description, environment))
        began = time.perf_counter() - self.seconds
        saved = time.perf_counter()
        figures: dict[str, float] = {}
        while step < self.config.steps:
            record = self._step(step)
            step += 1
            self.seconds = time.perf_counter() - began
            if step in self._evaluation_steps:
                figures = self.evaluate()
                record |= figures
            self.run.log({"step": step, "seconds": round(self.seconds, 4), **record})
            if time.perf_counter() - saved >= self.config.checkpoint_seconds and step < self.config.steps:
                self.seconds = time.perf_counter() - began
                self._save(step)
                saved = time.perf_counter()
            progress(step)
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
        factor = self.schedule(step)
        for group in self.optimiser.param_groups:
            group["lr"] = group["base_rate"] * factor
        loss = self.task.loss(self.model, step)
        value = loss.item()
        if not math.isfinite(value):
            raise InputError(f"the loss is {value} at step {step}: lower the learning rate, or look at the data there")
        norm = update(self.model, self.optimiser, loss, self.config.clip)
        rate = factor * self.config.optimiser.learning_rate
        return {"loss": value, "gradient_norm": norm.item(), "learning_rate": rate}

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {f"model.{name}": weight for name, weight in self.model.state_dict().items()}
        for name, weight in self.model.named_parameters():
            for moment, value in self.optimiser.state[weight].items():
                tensors[f"optimiser.{moment}.{name}"] = value
        return tensors

    def _save(self, step: int) -> None:
        self.run.save_checkpoint(step, self._tensors(), {"seconds": self.seconds})

    def _take_up(self, checkpoint: Checkpoint | None) -> int:
        """Puts the checkpoint's content in place; the step to go on with (0 where there is none)."""
        if checkpoint is None:
            return 0
        self.model.load_state_dict(model_weights(checkpoint))
        weights = dict(self.model.named_parameters())
        for key, value in checkpoint.tensors.items():
            part, _, rest = key.partition(".")
            if part == "optimiser":
                moment, _, name = rest.partition(".")
                self.optimiser.state[weights[name]][moment] = value
        self.seconds = float(checkpoint.state["seconds"])
        return int(checkpoint.step)


def model_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The model's part of a checkpoint, for `load_state_dict`."""
    prefix = "model."
    return {name.removeprefix(prefix): value for name, value in checkpoint.tensors.items() if name.startswith(prefix)}
