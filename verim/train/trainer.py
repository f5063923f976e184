"""The trainer: a model, a task, an optimiser, a schedule, and a run directory to stop and go on in."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from verim.errors import InputError
from verim.runs import Checkpoint, RunDirectory, random_state, restore_random_state
from verim.runs.shards import Held
from verim.runtime.phases import phase
from verim.train.averaging import WeightAverage
from verim.train.compilation import compiled
from verim.train.config import TrainerConfig
from verim.train.meter import Meter
from verim.train.optimisers import clipped_step, gradient_norm, restore_state, state_tensors
from verim.train.parallel import Parallel
from verim.train.parallel.checkpoint import held_by, take_up
from verim.train.spikes import SpikeDetector
from verim.train.step import backward, parts_of
from verim.train.task import Batch, Task

Progress = Callable[[dict[str, float]], None]
"""Told of every step: its line of the metrics."""


@dataclass
class Standing:
    """Where a run stands, beside its tensors: what a checkpoint says as JSON.

    - `passed_over`: so many batches of the task were left out by going back behind a spike of the loss.
    - `best`: the best value of the task's objective; `evaluations_since_best`: those after it.
    """

    seconds: float = 0.0
    passed_over: int = 0
    best: float | None = None
    evaluations_since_best: int = 0
    averaged_updates: int = 0
    loss_scale: dict[str, Any] = field(default_factory=dict)
    spikes: dict[str, Any] | None = None


class Trainer:
    """Trains `model` on `task` in `run`, from its latest checkpoint if it has one.

    A run that was stopped at any moment and goes on has the same bits as one that never stopped, on the CPU with
    the same number of threads: weights, the optimiser's state, averages, random state and the step are in the
    checkpoint; the batch and the rate follow from the step. `meter` adds the figures of pace to each line of the
    metrics.

    On several ranks, each makes a trainer of its part of the model (`parallel.module`) with the run of all of them;
    `task` is the same on each, and its batch that of all. Of the configuration, averages, float16, weights that are
    halves, and compilation are for one rank alone (`InputError`).
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        config: TrainerConfig,
        run: RunDirectory,
        meter: Meter | None = None,
        parallel: Parallel | None = None,
    ) -> None:
        self.model, self.task, self.config, self.run, self.meter = model, task, config, run, meter
        self.parallel = parallel
        if parallel is not None:
            assert model is parallel.module, "of the ranks, each trains its own part"
            _refuse_on_ranks(config)
        self.device = next(model.parameters()).device
        self.optimiser = config.precision.build(config.optimiser, model)
        if parallel is not None:
            parallel.prepare(self.optimiser)
        self.average = config.averaging.build(model) if config.averaging is not None else None
        self.spikes = SpikeDetector(config.spikes) if config.spikes is not None else None
        self.standing = Standing()
        self.warnings: list[str] = []
        """What the user should know: a damaged checkpoint passed over, a compiler that failed."""
        self._scaler = config.precision.scaler(self.device.type)
        self._called = model
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
        if step == 0 and self.spikes is not None:
            self._save(0)  # to roll back to
        self._compile(step)
        began = time.perf_counter() - self.standing.seconds
        saved = time.perf_counter()
        figures: dict[str, float] = {}
        if self.meter is not None:
            self.meter.begin(step)
        while step < self.config.steps and not self._out_of_patience():
            record = self._step(step)
            if record is None:
                step = self._roll_back(step)
                continue
            step += 1
            evaluated = step in self._evaluation_steps
            if evaluated:
                figures = self.evaluate()
                self._judge(figures)
                record |= figures
            self.standing.seconds = time.perf_counter() - began
            record = {"step": step, "seconds": round(self.standing.seconds, 4), **record}
            if self.meter is not None:
                record |= self.meter.read(step)
            self.run.log(record)
            due = evaluated or time.perf_counter() - saved >= self.config.checkpoint_seconds
            if self.parallel is not None and not evaluated:
                due = self.parallel.agreed(due)
            if due and step < self.config.steps:
                self._save(step, figures if evaluated else None)
                saved = time.perf_counter()
            progress(record)
        figures = figures or self.evaluate()  # killed after the last checkpoint, before the result
        result = {"steps": step, "tokens": step * self.task.tokens_per_step, "seconds": time.perf_counter() - began}
        self._save(step, figures)
        self.run.finish(result | figures)
        return result | figures

    def evaluate(self) -> dict[str, float]:
        """The task's figures on held-out data, with the averaged weights where there are some, in evaluation mode."""
        self.model.eval()
        weights: AbstractContextManager[None] = self.average.applied() if self.average is not None else nullcontext()
        with weights, self._autocast():
            evaluate = self.task.evaluate
            figures = evaluate(self.model) if self.parallel is None else self.parallel.run(evaluate)
        self.model.train()
        return figures

    @property
    def _cast(self) -> "_Cast":
        return _Cast(self.task, self._autocast)

    def _autocast(self) -> AbstractContextManager[object]:
        return self.config.precision.autocast(self.device.type)

    def _step(self, step: int) -> dict[str, float] | None:
        """One update; the loss before it, the norm of its gradient and its learning rate. None: roll back."""
        factor = self.config.schedule(step)
        for group in self.optimiser.param_groups:
            group["lr"] = group["base_rate"] * factor
        with phase("data"):
            batch = self.task.batch(step + self.standing.passed_over)
        loss, norm = self._gradient(batch)
        value, length = loss.item(), norm.item()
        record = {"loss": value, **self.task.figures(value), "gradient_norm": length}
        decision = self._decide(step, value, length)
        if decision == "go on":
            with phase("optimiser"):
                self._update(norm)
                if self.average is not None and math.isfinite(length):  # not after an overflow, which made no step
                    self.average.update()
        else:
            record["skipped"] = 1
        if self._scaler.is_enabled():
            record["loss_scale"] = self._scaler.get_scale()
            self._scaler.update()
        self.optimiser.zero_grad(set_to_none=True)
        if decision == "roll back":
            return None
        return record | {"learning_rate": factor * self.config.optimiser.learning_rate}

    def _gradient(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Computes the gradient of `batch`; its loss, and the gradient's norm. On ranks it is clipped already."""
        if self.parallel is not None:
            parts = parts_of(self.parallel.share(batch), self.config.accumulation)
            own = [tuple(tensor.to(self.device) for tensor in part) for part in parts]
            loss = self.parallel.backward(self._cast, *own)
            with phase("clip"):
                return loss, self.parallel.clip(self.config.clip)
        loss = backward(self._cast, self._called, batch, self.config.accumulation, self._scaler.scale, self.device)
        with phase("clip"):
            if self._scaler.is_enabled():
                self._scaler.unscale_(self.optimiser)
            return loss, gradient_norm(self.model.parameters())

    def _update(self, norm: Tensor) -> None:
        if self.parallel is not None:
            self.optimiser.step()
        else:
            scaler = self._scaler if self._scaler.is_enabled() else None
            clipped_step(self.optimiser, norm, self.config.clip, scaler)

    def _decide(self, step: int, loss: float, norm: float) -> str:
        """What to do with a step: "go on", "skip" or "roll back". Raises `InputError` for a loss that is not finite
        where nobody watches for spikes."""
        overflow = self._scaler.is_enabled() and math.isfinite(loss) and not math.isfinite(norm)
        if overflow:
            return "go on"  # the scaler makes no step and lowers the scale
        if self.spikes is not None:
            return self.spikes.decide(loss, norm)
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is {loss} at step {step}: lower the learning rate, watch for spikes, or look at the data "
                "there"
            )
        return "go on"

    def _roll_back(self, step: int) -> int:
        """Back to the last checkpoint before the spikes; the batches from there to that of `step` are passed over."""
        assert self.config.spikes is not None, "who watches for spikes decides to roll back"
        self.run.wait()  # the checkpoint that is being written takes the place of an old one
        passed_over, steps = self.standing.passed_over, self.run.checkpoint_steps()
        before = [held for held in steps if held <= step - self.config.spikes.patience]
        checkpoint = self.run.rewind(max(before, default=min(steps)))
        assert checkpoint is not None, "a run that watches for spikes has a checkpoint of step 0"
        again = self._take_up(checkpoint)
        self.standing.passed_over = passed_over + step + 1 - again
        self.warnings.append(
            f"the loss spiked at step {step}: went back to step {again} and left out {step + 1 - again} batches"
        )
        return again

    def _compile(self, step: int) -> None:
        if self.config.compile:
            part = next(parts_of(self.task.batch(step), self.config.accumulation))
            self._called, reason = compiled(self.model, self._cast, part, self.device)
            if reason is not None:
                self.warnings.append(f"{reason}: training goes on without it")

    def _judge(self, figures: dict[str, float]) -> None:
        """Counts the evaluations since the best one."""
        value, best = figures[self.task.objective.figure], self.standing.best
        if best is None or self.task.objective.better(value, best):
            self.standing.best, self.standing.evaluations_since_best = value, 0
        else:
            self.standing.evaluations_since_best += 1

    def _out_of_patience(self) -> bool:
        return 0 < self.config.patience <= self.standing.evaluations_since_best

    def _save(self, step: int, figures: dict[str, float] | None = None) -> None:
        self.standing.loss_scale = self._scaler.state_dict()
        self.standing.spikes = self.spikes.state() if self.spikes is not None else None
        tensors: dict[str, Held] = {}
        if self.parallel is not None:
            tensors |= held_by(self.parallel, self.optimiser) | random_state(f"random.{self.run.ranks.rank}")
        else:
            parts = {"model": self.model.state_dict(), "optimiser": state_tensors(self.model, self.optimiser)}
            if self.average is not None:
                parts["average"] = self._averages(self.average)
                self.standing.averaged_updates = self.average.updates
            for part, held in parts.items():
                tensors |= {f"{part}.{name}": tensor for name, tensor in held.items()}
            tensors |= random_state("random.0")
        self.run.save_checkpoint(step, tensors, vars(self.standing), figures)

    def _averages(self, average: WeightAverage) -> dict[str, Tensor]:
        """The averages by every name of their weights: tied ones have several, and a model is loaded by all."""
        names = {id(weight): name for name, weight in self.model.named_parameters()}
        held = average.tensors()
        return {name: held[names[id(w)]] for name, w in self.model.named_parameters(remove_duplicate=False)}

    def _take_up(self, checkpoint: Checkpoint | None) -> int:
        """Puts the checkpoint's content in place; the step to go on with (0 where there is none)."""
        if checkpoint is None:
            return 0
        if checkpoint.warning is not None:
            self.warnings.append(checkpoint.warning)
        self.standing = Standing(**checkpoint.state)
        if self.parallel is not None:
            take_up(self.parallel, self.optimiser, checkpoint)
        else:
            self.model.load_state_dict(part_of(checkpoint, "model"))
            restore_state(self.model, self.optimiser, part_of(checkpoint, "optimiser"))
        if self.average is not None:
            averages, names = part_of(checkpoint, "average"), self.average.tensors()
            self.average.restore({name: averages[name] for name in names}, self.standing.averaged_updates)
        if self.standing.loss_scale:
            self._scaler.load_state_dict(self.standing.loss_scale)
        if self.spikes is not None and self.standing.spikes is not None:
            self.spikes.restore(self.standing.spikes)
        restore_random_state(checkpoint.tensors, f"random.{self.run.ranks.rank}")
        return int(checkpoint.step)


@dataclass
class _Cast:
    """A task whose loss is computed under autocast."""

    task: Task
    autocast: Callable[[], AbstractContextManager[object]]

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        with self.autocast():
            return self.task.loss(model, batch)

    def weight(self, batch: Batch) -> float:
        return self.task.weight(batch)


def _refuse_on_ranks(config: TrainerConfig) -> None:
    for name, is_asked in (
        ("averaging", config.averaging is not None),
        ("precision", config.precision.kind not in ("float32", "bfloat16")),
        ("compile", config.compile),
    ):
        if is_asked:
            raise InputError(f"{name}: got {getattr(config, name)}, which is for one rank alone: leave it out")


def part_of(checkpoint: Checkpoint, part: str) -> dict[str, Tensor]:
    """The tensors of "model", "optimiser" or "average" in a trainer's checkpoint, by their own names."""
    prefix = f"{part}."
    return {name.removeprefix(prefix): value for name, value in checkpoint.tensors.items() if name.startswith(prefix)}


def model_weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """What to generate with and to judge by, for `load_state_dict`: the averaged weights where there are some."""
    weights = part_of(checkpoint, "model")
    return weights | {name: value.to(weights[name].dtype) for name, value in part_of(checkpoint, "average").items()}
