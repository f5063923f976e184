"""Activation checkpointing: blocks that keep little of their forward pass and compute it again in the backward pass."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from verim.errors import InputError
from verim.nn import auxiliary_losses

_PRODUCTS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten.bmm.default,
    torch.ops.aten.baddbmm.default,
    torch.ops.aten._grouped_mm.default,
}
_ALONG_THE_SEQUENCE = ("attention", "scan", "recurrence", "wkv", "dual")
"""Of these the names of our kernels are made whose results are worth keeping: they cost as much as products."""


def recompute(blocks: Iterable[nn.Module], what: str, every: int = 1) -> None:
    """Every `every`-th of `blocks` computes its forward pass again in the backward pass, in place.

    - "full": it keeps its input alone.
    - "selective": and the results of matrix products and of kernels along the sequence (attention, scans). The rest
      (norms, activations, rotations, convolutions, copies) is quick to compute and makes most of the bytes. torch's
      own recurrences change their products in place: a block with an RNN, GRU or LSTM keeps its input alone.

    Gradients are the same to the bit; auxiliary losses count once, and buffers change once.
    """
    if what not in ("selective", "full"):
        raise InputError(f"activation_checkpointing: got {what!r}, expected 'selective' or 'full'")
    for index, block in enumerate(blocks):
        if index % every == 0:
            selective = what == "selective" and not any(isinstance(part, nn.RNNBase) for part in block.modules())
            block.forward = _Recomputed(block, block.forward, selective)


class _Recomputed:
    """`forward` of `block`, which remembers little."""

    def __init__(self, block: nn.Module, forward: Callable[..., Any], selective: bool) -> None:
        self.block, self.forward, self.selective = block, forward, selective

    def __call__(self, *arguments: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*arguments)
        return checkpoint(
            self.forward, *arguments, use_reentrant=False, context_fn=self._contexts, preserve_rng_state=True
        )

    def _contexts(self) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        """What surrounds the forward pass, and what its repetition."""
        again = _without_traces(self.block)
        if not self.selective:
            return _nothing(), again
        first, second = create_selective_checkpoint_contexts(_policy)
        return first, _both(again, second)


def _policy(context: Any, operator: Any, *arguments: Any, **keywords: Any) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if is_kept(operator) else CheckpointPolicy.PREFER_RECOMPUTE


def is_kept(operator: Any) -> bool:
    """Whether "selective" keeps what the operator makes."""
    if operator in _PRODUCTS:
        return True
    space, _, name = operator.name().partition("::")
    return space == "verim" and any(word in name for word in _ALONG_THE_SEQUENCE)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


@contextmanager
def _both(one: AbstractContextManager[Any], other: AbstractContextManager[Any]) -> Iterator[None]:
    with one, other:
        yield


@contextmanager
def _without_traces(block: nn.Module) -> Iterator[None]:
    """What the repetition leaves behind is undone: buffers that a layer counts in, and losses that it hands out."""
    kept = [(buffer, buffer.clone()) for buffer in block.buffers()]
    try:
        with auxiliary_losses():
            yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)
