"""Which module an op belongs to: of the forward pass the one that runs, of the backward pass that of the forward op.

Autograd numbers its nodes in the order in which the forward pass makes them, so the numbers that were given while a
module ran are that module's, and a node that runs in the backward pass names its module by its number.
"""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook


class Attribution:
    """Follows the calls of `models`, by the names in `names_of`; modules that are not theirs are their caller's."""

    def __init__(self, models: tuple[nn.Module, ...]) -> None:
        self._names = {id(module): name for name, module in reversed(list(named_modules(models)))}
        self._weights = module_of_weights(models)
        self._stack: list[str] = []
        self._numbers: list[int] = []
        self._modules: list[str] = []
        self._outer: int | None = None  # modules open when the backward pass began
        self.calls: dict[str, int] = {}

    def enter(self, module: nn.Module) -> None:
        name = self._names.get(id(module))
        if name is None:
            name = self._stack[-1] if self._stack else ""
        else:
            self.calls[name] = self.calls.get(name, 0) + 1
        self._stack.append(name)
        self._note()

    def take_up(self, model: nn.Module) -> None:
        """`model` runs, and was entered before anyone followed: its call began the step."""
        if not self._stack:
            self.enter(model)

    def finish(self) -> None:
        """The step is over: calls that go on now began the next one."""
        for name in self._stack:
            self.calls[name] -= 1

    def leave(self, module: nn.Module) -> None:
        if self._stack:  # a call that began before the recording is not ours
            self._stack.pop()
            self._note()

    def _note(self) -> None:
        """From this number on autograd's nodes are the module's that runs now."""
        self._numbers.append(torch._C._autograd._get_sequence_nr())
        self._modules.append(self._stack[-1] if self._stack else "")

    def begin_backward(self) -> None:
        if self._outer is None:
            self._outer = len(self._stack)

    def end_backward(self) -> None:
        self._outer = None

    def is_recomputing(self) -> bool:
        """Whether a forward pass runs within the backward pass: activation checkpointing."""
        return self._outer is not None and len(self._stack) > self._outer

    def is_in_module(self) -> bool:
        """Whether a module runs."""
        return bool(self._stack)

    def current(self) -> str:
        """The module of the op that runs now."""
        node: Any = torch._C._current_autograd_node()
        if node is None or self.is_recomputing():
            return self._stack[-1] if self._stack else ""
        if node.name() == "torch::autograd::AccumulateGrad":
            weight: Tensor = node.variable
            return self._weights.get(id(weight), "")
        place = bisect_right(self._numbers, node._sequence_nr()) - 1
        return self._modules[place] if place >= 0 else ""

    @contextmanager
    def following(self) -> Iterator[None]:
        """Sees every call of a module while the context lasts, those that end by an exception too."""
        before = register_module_forward_pre_hook(lambda module, arguments: self.enter(module))
        after = register_module_forward_hook(lambda module, arguments, result: self.leave(module), always_call=True)
        try:
            yield
        finally:
            before.remove()
            after.remove()


def named_modules(models: tuple[nn.Module, ...]) -> Iterator[tuple[str, nn.Module]]:
    """Every module once, by its dotted name; several models have their number and class before it, one has not."""
    for name, model in named_models(models):
        yield from model.named_modules(prefix=name)


def named_models(models: tuple[nn.Module, ...]) -> list[tuple[str, nn.Module]]:
    """The models with the prefixes of their modules' names."""
    if len(models) == 1:
        return [("", models[0])]
    return [(f"{number}-{type(model).__name__}", model) for number, model in enumerate(models)]


def module_of_weights(models: tuple[nn.Module, ...]) -> dict[int, str]:
    """The module of every parameter, by the parameter's id: of a shared one the first."""
    owners: dict[int, str] = {}
    for name, module in named_modules(models):
        for weight in module.parameters(recurse=False):
            owners.setdefault(id(weight), name)
    return owners
