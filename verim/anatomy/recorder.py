"""`record`: a context around any training code that keeps the ledger of its steps."""

import itertools
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn

from verim.anatomy.allocations import AllocatorPeak, allocator_peak, process_peak_bytes
from verim.anatomy.assembly import Observed, assemble
from verim.anatomy.attribution import Attribution, module_of_weights, named_models
from verim.anatomy.ceilings import Ceilings
from verim.anatomy.clock import clock_for
from verim.anatomy.detect import detecting
from verim.anatomy.ledger import Record
from verim.anatomy.observer import BEFORE_BACKWARD, Observer
from verim.anatomy.parts import Parts
from verim.anatomy.storages import Storages, hold_model, hold_optimiser
from verim.errors import InputError
from verim.runtime.phases import Phase, listen, stop_listening

Kind = Literal["ops", "parts", "unrecorded", "allocator"]
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
    one only the parts are timed, one is not recorded at all, and once the allocator's own records are taken. So four
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
        self._step: _Step | None = None
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

    def _current(self) -> "_Step":
        assert self._step is not None, "a step goes on while the context lasts"
        return self._step

    def _next(self) -> None:
        self._end(keep=True)
        self._begin()

    def _begin(self) -> None:
        self._has_stepped = False
        self._step = _Step(next(self._kinds), self._models, list(self._optimisers.values()), self._device)
        self._step.begin()

    def _end(self, keep: bool) -> None:
        step = self._current()
        step.end()
        if keep:
            step.give(self._observed)


def _order() -> Iterator[Kind]:
    """The kinds of the steps: every kind within the first four."""
    first: Iterable[Kind] = ("ops", "parts", "unrecorded", "allocator")
    then: Iterable[Kind] = ("ops", "unrecorded", "parts", "unrecorded", "parts")
    return itertools.chain(first, itertools.cycle(then))


class _Step:
    """One step under way, recorded in the way of its kind."""

    def __init__(
        self, kind: Kind, models: tuple[nn.Module, ...], optimisers: list[torch.optim.Optimizer], device: torch.device
    ) -> None:
        self.kind, self._models, self._optimisers, self._device = kind, models, optimisers, device
        self._clock = clock_for(device)
        self._stack = ExitStack()
        self._peak = AllocatorPeak()
        self._attribution = Attribution(models)
        self._storages = Storages()
        self._owners: dict[int, str] = {}
        self.depth = 0  # of open phases
        self.has_begun = False
        self._is_timed = kind in ("ops", "parts")

    def begin(self) -> None:
        """Whatever takes time is done before the clock starts."""
        self._storages.at(0.0, "rest", "", "")
        self._held = 0
        if self.kind in ("ops", "allocator"):
            self._hold()
            self._held = sum(block.bytes for block in self._storages.living())
        self.parts = Parts(self._clock)
        self._host = time.perf_counter()
        if self.kind == "ops":
            self._owners = module_of_weights(self._models)
            self._stack.enter_context(self._attribution.following())
            self._observer = Observer(self._clock, self.parts, self._attribution, self._storages)
            self._stack.enter_context(self._observer)
        elif self.kind == "allocator":
            self._peak = self._stack.enter_context(allocator_peak(self._device))
            self._storages.on_death = lambda block: self._peak.freed(block.bytes)

    def _hold(self) -> None:
        hold_model(self._storages, named_models(self._models))
        for optimiser in self._optimisers:
            hold_optimiser(self._storages, optimiser, self._owners)

    def enter(self, name: Phase) -> None:
        self.has_begun = True
        self.depth += 1
        if not self._is_timed:
            return
        if name == "backward":
            self.parts.set_ambient("rest")
            if self.kind == "ops":
                self._attribution.begin_backward()
                self._storages.keep_activations(BEFORE_BACKWARD)
        self.parts.enter(name)

    def leave(self, name: Phase) -> None:
        self.depth -= 1
        if not self._is_timed:
            return
        self.parts.leave()
        if name == "forward" and torch.is_grad_enabled() and not self.depth:
            self.parts.set_ambient("loss")
        if name == "backward" and self.kind == "ops":
            self._attribution.end_backward()
            hold_model(self._storages, named_models(self._models))

    def called(self, model: nn.Module, given: tuple[Any, ...]) -> None:
        if self.kind == "ops":
            self._attribution.take_up(model)
            self._storages.hold([tensor for tensor in given if isinstance(tensor, Tensor)], "inputs")

    def stepped(self, optimiser: torch.optim.Optimizer) -> None:
        if self._is_timed:
            self.parts.set_ambient("rest")
        if self.kind == "ops":
            hold_optimiser(self._storages, optimiser, self._owners)

    def end(self) -> None:
        self._stack.close()
        self._attribution.finish()
        self.parts.finish()
        self._clock.settle()

    def give(self, observed: Observed) -> None:
        """Adds what was found to what is known."""
        observed.steps += 1
        total = self._clock.seconds(self.parts.begin, self.parts.last)
        if self.kind == "unrecorded":
            observed.unrecorded.append(total)
        elif self.kind == "parts":
            observed.parts.append(self.parts.seconds())
        elif self.kind == "allocator":
            observed.allocator_peak = None if self._peak.bytes is None else self._held + self._peak.bytes
        else:
            self._storages.close()
            observed.add_ops(self._clock, self.parts, self._observer.calls, self._attribution.calls, self._storages)
        observed.process_peak = process_peak_bytes()
