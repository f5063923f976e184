"""The parts of a step of code that names none: found by what torch is asked to do.

The forward pass is a call of the model, the backward pass one of autograd's engine, the optimiser a step or a
`zero_grad`; clipping, batches of a `DataLoader`, collectives and copies to the device are calls of functions of
torch's. All of it is put back when the context is left.
"""

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from verim.runtime.phases import Phase

_COLLECTIVES = (
    "all_reduce", "all_gather", "all_gather_into_tensor", "reduce_scatter", "reduce_scatter_tensor", "broadcast",
    "all_to_all", "all_to_all_single", "barrier",
)  # fmt: skip


class Watcher(Protocol):
    """Who is told what was found."""

    def enter(self, name: Phase) -> None: ...

    def leave(self, name: Phase) -> None: ...

    def called(self, model: nn.Module, given: tuple[Any, ...]) -> None:
        """A model is about to run on `given`."""
        ...

    def stepped(self, optimiser: torch.optim.Optimizer) -> None:
        """An optimiser has made its step."""
        ...


@contextmanager
def detecting(watcher: Watcher, models: tuple[nn.Module, ...], on_accelerator: bool) -> Iterator[None]:
    """Tells `watcher` while the context lasts."""
    with ExitStack() as stack:
        for model in models:
            _follow(stack, watcher, model)
        before = register_optimizer_step_pre_hook(lambda optimiser, given, named: watcher.enter("optimiser"))
        stack.callback(before.remove)
        after = register_optimizer_step_post_hook(lambda optimiser, given, named: _stepped(watcher, optimiser))
        stack.callback(after.remove)

        def patch(owner: Any, name: str, part: Phase, is_meant: Callable[..., bool] = lambda *given: True) -> None:
            if hasattr(owner, name):
                _replace(stack, owner, name, _within(getattr(owner, name), watcher, part, is_meant))

        patch(torch.autograd, "_engine_run_backward", "backward")
        clipping = nn.utils.clip_grad
        for name in ("_get_total_norm", "_clip_grads_with_norm_"):  # what every name of clip_grad_norm_ leads to
            patch(clipping, name, "clip")
        for owner in (nn.utils, clipping):
            patch(owner, "clip_grad_value_", "clip")
        patch(torch.optim.Optimizer, "zero_grad", "optimiser")
        patch(torch.utils.data.dataloader._BaseDataLoaderIter, "__next__", "data")
        if torch.distributed.is_available():
            for name in _COLLECTIVES:
                patch(torch.distributed, name, "communication")
        if on_accelerator:
            for name in ("to", "cuda"):
                patch(Tensor, name, "copy", lambda tensor, *others: tensor.device.type == "cpu")
        yield


def _follow(stack: ExitStack, watcher: Watcher, model: nn.Module) -> None:
    def before(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        watcher.enter("forward")
        watcher.called(module, (*given, *named.values()))

    def after(module: nn.Module, given: tuple[Any, ...], result: Any) -> None:
        watcher.leave("forward")

    stack.callback(model.register_forward_pre_hook(before, with_kwargs=True, prepend=True).remove)
    stack.callback(model.register_forward_hook(after, always_call=True).remove)


def _stepped(watcher: Watcher, optimiser: torch.optim.Optimizer) -> None:
    watcher.leave("optimiser")
    watcher.stepped(optimiser)


def _within(
    function: Callable[..., Any], watcher: Watcher, part: Phase, is_meant: Callable[..., bool]
) -> Callable[..., Any]:
    """`function`, in a phase of its own."""

    @functools.wraps(function)
    def call(*given: Any, **named: Any) -> Any:
        if not is_meant(*given):
            return function(*given, **named)
        watcher.enter(part)
        try:
            return function(*given, **named)
        finally:
            watcher.leave(part)

    return call


def _replace(stack: ExitStack, owner: Any, name: str, value: Any) -> None:
    """Sets the attribute, and puts back what was there: nothing, where it was inherited."""
    own = vars(owner)
    if name in own:
        stack.callback(setattr, owner, name, own[name])
    else:
        stack.callback(delattr, owner, name)
    setattr(owner, name, value)
