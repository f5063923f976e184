"""The memory of a training step before it runs: the step itself, run on tensors without memory."""

import copy
from collections.abc import Callable

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeCopyMode

from verim.anatomy.detect import detecting
from verim.anatomy.imagined import Imagination
from verim.anatomy.memory import Memory
from verim.anatomy.one_step import Step
from verim.anatomy.workload import OptimiserOf, Workload, adamw
from verim.models import LanguageModel, LanguageModelConfig
from verim.runtime.phases import listen, stop_listening


def predict_memory(
    model: LanguageModel | LanguageModelConfig, workload: Workload, optimiser: OptimiserOf = adamw
) -> Memory:
    """The memory of a step of a language model, from shapes alone: nothing of its size is allocated or computed.

    The second step is meant, in which the optimiser has its state. See `predict_step` for what is known how well.
    """
    return imagine(model, workload, optimiser).memory()


def imagine(model: LanguageModel | LanguageModelConfig, workload: Workload, optimiser: OptimiserOf = adamw) -> Step:
    """The same step with all that is known of it: its memory, and every op with its cost in FLOPs and bytes."""
    config = model.config if isinstance(model, LanguageModel) else model

    def build() -> LanguageModel:
        built = LanguageModel(config)
        workload.prepare(built)
        return built

    def step(built: nn.Module, steps: torch.optim.Optimizer) -> None:
        assert isinstance(built, LanguageModel), "it is what build makes"
        workload.step(built, steps, workload.draw(built))

    return _imagine(build, step, optimiser)


def predict_step(
    model: nn.Module | Callable[[], nn.Module],
    step: Callable[[nn.Module, torch.optim.Optimizer], None],
    optimiser: OptimiserOf = adamw,
) -> Memory:
    """The memory of `step(model, optimiser)` when it is called the second time, of any model.

    The step runs on tensors that have shapes and no memory, with everything that observes a real step, so that no
    formula has to be kept true by hand. `model` is copied, or built by a function (then no weight is ever allocated);
    `step` makes its batch itself. It must not depend on numbers that are not computed: the choice of experts is taken
    to be even, any other raises `InputError`.
    """
    return _imagine(model, step, optimiser).memory()


def _imagine(
    model: nn.Module | Callable[[], nn.Module],
    step: Callable[[nn.Module, torch.optim.Optimizer], None],
    optimiser: OptimiserOf,
) -> Step:
    imagination = Imagination()
    if isinstance(model, nn.Module):
        with FakeCopyMode(imagination.mode):
            imagined = copy.deepcopy(model)
    with imagination.imagining():
        if not isinstance(model, nn.Module):
            imagined = model()
        steps = optimiser(imagined)
        with imagination.running():  # makes the optimiser's state
            for weight in imagined.parameters():
                if weight.requires_grad:
                    weight.grad = torch.empty_like(weight)
            steps.step()
            steps.zero_grad(set_to_none=True)
        return _run(imagination, imagined, steps, step)


def _run(
    imagination: Imagination,
    model: nn.Module,
    optimiser: torch.optim.Optimizer,
    step: Callable[[nn.Module, torch.optim.Optimizer], None],
) -> Step:
    watcher = Step("ops", (model,), [optimiser], torch.device("cpu"), imagination.run)
    watcher.begin()
    try:
        listen(watcher)
        try:
            with detecting(watcher, (model,), on_accelerator=False):
                step(model, optimiser)
        finally:
            stop_listening()
    finally:
        watcher.end()
    return watcher
