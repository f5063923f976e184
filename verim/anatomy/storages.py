"""Which memory tensors hold at every moment: storages seen when they are made, and when they die."""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from verim.anatomy.memory import CATEGORIES, Category, Memory, ModuleMemory, Timeline

_POINTS = 2000  # of a timeline
_CUDA_BLOCK = 512  # bytes, of which torch's allocator on CUDA gives whole ones


@dataclass
class Block:
    """One storage. `born` and `died` are numbers of events, None while it lives."""

    bytes: int
    born: int
    part: str
    module: str
    category: Category | None
    died: int | None = None
    is_recomputed: bool = False


@dataclass
class _Event:
    second: float
    part: str
    op: str
    module: str
    transient: int = 0  # bytes that an op held inside


@dataclass
class Storages:
    """The storages of a step. `at` is called before what happens at a second; `hold` and `see` then say what exists.

    `on_death` is told of every block that dies. A storage is followed by a weak reference of Python's object for it,
    which torch keeps for as long as the memory.
    """

    blocks: list[Block] = field(default_factory=list)
    events: list[_Event] = field(default_factory=list)
    on_death: Callable[[Block], None] = lambda block: None
    _living: dict[int, Block] = field(default_factory=dict)

    def at(self, second: float, part: str, op: str, module: str, transient: int = 0) -> None:
        """What comes now happens in `op`, which held `transient` bytes inside."""
        self.events.append(_Event(second, part, op, module, transient))

    def see(self, tensor: Tensor, category: Category | None = None, is_recomputed: bool = False) -> Block | None:
        """The block of `tensor`, new where it was not known; None for a tensor without memory of its own kind."""
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:  # sparse tensors have none
            return None
        key = storage._cdata
        block = self._living.get(key)
        if block is None:
            now = self.events[-1]
            size = storage.nbytes()
            if tensor.is_cuda:
                size = -(-size // _CUDA_BLOCK) * _CUDA_BLOCK
            block = Block(size, len(self.events) - 1, now.part, now.module, category, None, is_recomputed)
            self.blocks.append(block)
            self._living[key] = block
            weakref.finalize(storage, self._die, key).atexit = False
        return block

    def hold(self, tensors: Iterable[Tensor], category: Category, module: str | None = None) -> None:
        """The memory of these belongs to `category` (and `module`), whatever it was thought to be."""
        for tensor in tensors:
            block = self.see(tensor, category)
            if block is not None:
                block.category = category
                block.module = block.module if module is None else module

    def knows(self, tensor: Tensor) -> bool:
        """Whether the memory of `tensor` has been seen."""
        try:
            return tensor.untyped_storage()._cdata in self._living
        except NotImplementedError:
            return True

    def living(self) -> list[Block]:
        """What lies in memory now."""
        return list(self._living.values())

    def keep_activations(self, parts: frozenset[str], recomputed: bool = False) -> None:
        """What was made in `parts` (or recomputed) and still lives is kept for the backward pass."""
        for block in self._living.values():
            if block.category is None and (block.is_recomputed if recomputed else block.part in parts):
                block.category = "activations"

    def close(self) -> None:
        """The step is over: what it made and left is a cache; later deaths are of no interest."""
        for block in self._living.values():
            if block.category in (None, "activations") and block.born > 0:
                block.category = "caches"
        self._living = {}

    def count_events(self) -> None:
        """Where no time passes: the n-th event happens at second n."""
        for number, event in enumerate(self.events):
            event.second = float(number)

    def _die(self, key: int) -> None:
        block = self._living.pop(key, None)
        if block is not None:
            block.died = len(self.events)  # before the next event
            self.on_death(block)

    def memory(self, source: Any, parts: tuple[tuple[str, float], ...] = ()) -> Memory:
        """The whole as values."""
        assert self.events, "a timeline needs at least one event"
        count = len(self.events)
        changes: list[dict[Category, int]] = [{} for _ in range(count + 1)]
        for block in self.blocks:
            category = block.category or "temporary"
            for place, sign in ((block.born, 1), (count if block.died is None else block.died, -1)):
                changes[place][category] = changes[place].get(category, 0) + sign * block.bytes
        level = dict.fromkeys(CATEGORIES, 0)
        levels: list[dict[Category, int]] = []
        peak, at_peak, highest = -1, dict(level), self.events[0]
        for event, change in zip(self.events, changes, strict=False):
            for category, difference in change.items():
                level[category] += difference
            now = dict(level)
            now["temporary"] += event.transient
            levels.append(now)
            if sum(now.values()) > peak:
                peak, at_peak, highest = sum(now.values()), now, event
        return Memory(
            source=source,
            peak_bytes=peak,
            at_peak={name: size for name, size in at_peak.items() if size},
            peak_part=highest.part,
            peak_op=highest.op,
            peak_module=highest.module,
            timeline=self._timeline(levels, parts),
            modules=self._modules(count),
        )

    def _timeline(self, levels: list[dict[Category, int]], parts: tuple[tuple[str, float], ...]) -> Timeline:
        """The highest moment of each stretch: thinning loses no maximum of the whole."""
        step = max(1, -(-len(levels) // _POINTS))
        totals = [sum(level.values()) for level in levels]
        chosen = [
            max(range(first, min(first + step, len(levels))), key=totals.__getitem__)
            for first in range(0, len(levels), step)
        ]
        used = [name for name in CATEGORIES if any(level[name] for level in levels)]
        return Timeline(
            seconds=tuple(self.events[index].second for index in chosen),
            bytes={name: tuple(levels[index][name] for index in chosen) for name in used},
            parts=parts,
        )

    def _modules(self, count: int) -> tuple[ModuleMemory, ...]:
        """By module; its activations at the moment when they are most."""
        sums: dict[str, dict[str, int]] = {}
        moves: dict[str, list[tuple[int, int]]] = {}
        for block in self.blocks:
            if block.category == "activations":
                end = count if block.died is None else block.died
                moves.setdefault(block.module, []).extend([(block.born, block.bytes), (end, -block.bytes)])
            elif block.category in ("parameters", "gradients", "optimiser"):
                own = sums.setdefault(block.module, {})
                own[block.category] = own.get(block.category, 0) + block.bytes
        for module, steps in moves.items():
            level = highest = 0
            for _, change in sorted(steps):
                level += change
                highest = max(highest, level)
            sums.setdefault(module, {})["activations"] = highest
        return tuple(
            ModuleMemory(
                name,
                own.get("parameters", 0),
                own.get("gradients", 0),
                own.get("optimiser", 0),
                own.get("activations", 0),
            )
            for name, own in sums.items()
        )


def hold_model(storages: Storages, models: Iterable[tuple[str, nn.Module]]) -> None:
    """Parameters, buffers and gradients that lie there, by module."""
    for prefix, model in models:
        for name, module in model.named_modules(prefix=prefix):
            storages.hold(module.buffers(recurse=False), "parameters", name)
            weights = [weight for weight in module.parameters(recurse=False) if weight is not None]
            storages.hold(weights, "parameters", name)
            storages.hold([weight.grad for weight in weights if weight.grad is not None], "gradients", name)


def hold_optimiser(storages: Storages, optimiser: Any, module_of: dict[int, str]) -> None:
    """The state of `optimiser`; `module_of` a parameter by its id."""
    for weight, state in optimiser.state.items():
        tensors = [value for value in state.values() if isinstance(value, Tensor)] if isinstance(state, dict) else []
        storages.hold(tensors, "optimiser", module_of.get(id(weight), ""))
