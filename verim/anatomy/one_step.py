"""One step under way, recorded in the way of its kind."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any, Literal

import torch
from torch import Tensor, nn

from verim.anatomy.allocations import AllocatorPeak, allocator_peak, process_peak_bytes
from verim.anatomy.assembly import Observed
from verim.anatomy.attribution import Attribution, module_of_weights, named_models
from verim.anatomy.clock import clock_for
from verim.anatomy.memory import Memory
from verim.anatomy.observer import BEFORE_BACKWARD, Call, Observer, Run, run_it
from verim.anatomy.parts import Parts
from verim.anatomy.storages import Storages, hold_model, hold_optimiser
from verim.runtime.phases import Phase

Kind = Literal["ops", "parts", "unrecorded", "allocator"]


class Step:
    """Between `begin` and `end` it is told of phases, of calls of models and of optimisers' steps.

    In a step of ops, `run` computes them and `storages` follows the memory.
    """

    def __init__(
        self,
        kind: Kind,
        models: tuple[nn.Module, ...],
        optimisers: list[torch.optim.Optimizer],
        device: torch.device,
        run: Run = run_it,
    ) -> None:
        self.kind, self._models, self._optimisers, self._device = kind, models, optimisers, device
        self._clock, self._run = clock_for(device), run
        self._stack = ExitStack()
        self._peak = AllocatorPeak()
        self._attribution = Attribution(models)
        self._storages = Storages()
        self._owners: dict[int, str] = {}
        self.depth = 0  # of open phases
        self.has_begun = False
        self._first: Phase | None = None
        self._is_timed = kind in ("ops", "parts")

    def begin(self) -> None:
        """Whatever takes time is done before the clock starts."""
        self._storages.at(0.0, "rest", "", "")
        self._held = 0
        if self.kind in ("ops", "allocator"):
            self._hold()
            self._held = sum(block.bytes for block in self._storages.living())
        self.parts = Parts(self._clock)
        if self.kind == "ops":
            self._owners = module_of_weights(self._models)
            self._stack.enter_context(self._attribution.following())
            self._observer = Observer(self._clock, self.parts, self._attribution, self._storages, self._run)
            self._stack.enter_context(self._observer)
        elif self.kind == "allocator":
            self._peak = self._stack.enter_context(allocator_peak(self._device))
            self._storages.on_death = lambda block: self._peak.freed(block.bytes)

    def _hold(self) -> None:
        hold_model(self._storages, named_models(self._models))
        for optimiser in self._optimisers:
            hold_optimiser(self._storages, optimiser, self._owners)

    def enter(self, name: Phase) -> None:
        self._first = self._first if self.has_begun else name
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
        if self.kind == "allocator" and self._first == "forward" and self.depth == 1:
            self._hold_batch(given)
        if self.kind == "ops":
            self._attribution.take_up(model)
            self._storages.hold([tensor for tensor in given if isinstance(tensor, Tensor)], "inputs")

    def _hold_batch(self, given: tuple[Any, ...]) -> None:
        """A batch that was made before the call that began the step: the allocator's records do not have it."""
        self._first = None
        for tensor in given:
            if isinstance(tensor, Tensor) and not self._storages.knows(tensor):
                self._storages.hold([tensor], "inputs")
                self._held += tensor.untyped_storage().nbytes()

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

    def memory(self) -> Memory:
        """Of a step of ops that is over, by numbers of ops."""
        self._storages.close()
        self._storages.count_events()
        return self._storages.memory("predicted")

    def calls(self) -> Sequence[Call]:
        """Of a step of ops that is over, every call in its order."""
        return self._observer.calls

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
