"""`record`: a context around any training code that keeps the ledger of its steps."""

import itertools
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from verim.anatomy.assembly import Observed, assemble
from verim.anatomy.ceilings import Ceilings
from verim.anatomy.clock import clock_for
from verim.anatomy.detect import detecting
from verim.anatomy.ledger import Record
from verim.anatomy.one_step import Kind, Step
from verim.errors import InputError
from verim.runtime.phases import Phase, listen, stop_listening

_BEGINNERS = frozenset({"data", "copy", "forward", "loss"})  # what a step can begin with


def record(*models: nn.Module, ceilings: Ceilings | None = None) -> "Recording":
    """Keeps the ledger of the training steps inside the context; `models`: one, or all that are trained together.

        with record(model) as recording:
            for x, y in loader:
                loss_function(model(x), y).backward()
                optimiser.step()
                optimiser.zero_grad()
        recording.result.parts

    A step ends where a new one begins after an optimiser's step; code without an optimiser, or with steps of another
    kind, says where by `recording.step()`. Steps take turns: in one every op is seen (time, cost, module, memory), in
    one only the parts are timed, one is not recorded at all, and once the allocator's own records are taken. So five
    steps give all there is, and more steps better medians; the first of each kind, which warms up, is left out where
    there are others.

    Phases that the code opens (`verim.runtime.phases.phase`) are parts of the step. Where it opens none, the forward
    pass is a call of a model, the loss what follows it up to the backward pass, and so on (`verim.anatomy.detect`).

    `ceilings`: of the machine, measured (about 1 s, once a process) where none are given.

    Raises `InputError` without a model, inside another recording, and for `result` where no step was complete.
    An exception of the code inside goes on unchanged, and leaves torch as it was.
    """
    return Recording(models, ceilings)


class Recording:
    """What `record` returns; see there."""

    def __init__(self, models: tuple[nn.Module, ...], ceilings: Ceilings | None) -> None:
        for model in models:
            if not isinstance(model, nn.Module):
                raise InputError(f"record: got {type(model).__name__}, expected a torch.nn.Module")
        if not models:
            raise InputError("record: got no model, expected the torch.nn.Module whose steps are recorded")
        self._models, self._ceilings = models, ceilings
        weights = [weight for model in models for weight in model.parameters()]
        self._device = weights[0].device if weights else torch.device("cpu")
        self._clock = clock_for(self._device)
        self._step: Step | None = None
        self._optimisers: dict[int, torch.optim.Optimizer] = {}
        self._has_stepped = self._is_marked = False
        self._observed = Observed()
        self._result: Record | None = None
        self._stack = ExitStack()

    def __enter__(self) -> "Recording":
        if self._result is not None or self._step is not None:
            raise InputError("record: this recording was used already; make another")
        with ExitStack() as stack:
            listen(self)
            stack.callback(stop_listening)
            stack.enter_context(detecting(self, self._models, self._device.type != "cpu"))
            self._kinds = _order()
            self._stack = stack.pop_all()
        self._begin()
        return self

    def __exit__(self, kind: type[BaseException] | None, *others: object) -> None:
        with self._stack:
            assert self._step is not None, "a step goes on while the context lasts"
            is_whole = self._has_stepped or not (self._is_marked or self._observed.steps)
            self._end(keep=kind is None and is_whole and self._step.has_begun)
        if kind is None and self._observed.steps:
            self._result = assemble(self._observed, self._models, str(self._device), self._ceilings)

    @property
    def result(self) -> Record:
        """The ledger, after the context."""
        if self._result is None:
            raise InputError(
                "record: there is no ledger: no step was complete inside the context, or it was not left yet; a step "
                "ends with an optimiser's step, or where recording.step() says so"
            )
        return self._result

    def step(self) -> None:
        """A step is over now: for code whose steps do not end with an optimiser's."""
        self._is_marked = True
        self._next()

    def enter(self, name: Phase) -> None:
        """A phase begins; for `verim.runtime.phases` and `verim.anatomy.detect`."""
        step = self._current()
        if self._has_stepped and not self._is_marked and not step.depth and name in _BEGINNERS:
            self._next()
            step = self._current()
        step.enter(name)

    def leave(self, name: Phase) -> None:
        """It ends."""
        self._current().leave(name)

    def called(self, model: nn.Module, given: tuple[Any, ...]) -> None:
        """A model is about to run."""
        self._current().called(model, given)

    def stepped(self, optimiser: torch.optim.Optimizer) -> None:
        """An optimiser has made its step."""
        self._has_stepped = True
        self._optimisers[id(optimiser)] = optimiser
        self._current().stepped(optimiser)

    def _current(self) -> Step:
        assert self._step is not None, "a step goes on while the context lasts"
        return self._step

    def _next(self) -> None:
        self._end(keep=True)
        self._begin()

    def _begin(self) -> None:
        self._has_stepped = False
        self._step = Step(next(self._kinds), self._models, list(self._optimisers.values()), self._device)
        self._step.begin()

    def _end(self, keep: bool) -> None:
        step = self._current()
        step.end()
        if keep:
            step.give(self._observed)


def _order() -> Iterator[Kind]:
    """The kinds of the steps: every kind within the first four, and ops again, now that the optimiser has its state."""
    first: Iterable[Kind] = ("ops", "parts", "unrecorded", "allocator")
    then: Iterable[Kind] = ("ops", "unrecorded", "parts")
    return itertools.chain(first, itertools.cycle(then))
