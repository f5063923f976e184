"""Layers that need the state before their piece of a sequence before they begin: rank by rank, one after the other."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from verim.errors import InputError
from verim.nn.layer import Layer
from verim.nn.state import TensorState
from verim.ops.distributed import Ranks

_ALIKE = ("the state", "recording gradients")


def pass_state_on(name: str, layer: Layer, group: ProcessGroup) -> None:
    """Makes `layer` go on from the state of the rank before in `group`, and give its own to the next, with gradients.

    `y, state = layer(x, state)` is all that it needs: the layer must have a `TensorState`. Rank r waits for rank r - 1
    forward, and for rank r + 1 backward. What travels is the state, once each way.
    """
    passage = _Passage(name, group)
    layer.register_forward_pre_hook(passage.take)
    layer.register_forward_hook(passage.hand_on)


class _Passage:
    """The hooks of a layer before and after its forward pass."""

    def __init__(self, name: str, group: ProcessGroup) -> None:
        self.name, self.group = name, group

    def take(self, layer: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """The arguments, with the state of the rank before."""
        x = arguments[0]
        ranks = self._ranks()
        with torch.no_grad():
            _, like = layer.forward(x[:, :1])
        if not isinstance(like, TensorState):
            raise InputError(
                f"context: {self.name}, {type(layer).__name__}, has no rule for a sequence on several ranks; expected "
                "a layer that looks along the sequence by `along` alone (verim.nn.along), one whose state is a "
                "TensorState, or context 1"
            )
        agreement = ranks.describe(
            {
                "the state": [[*tensor.shape, str(tensor.dtype)] for tensor in like.tensors()],
                "recording gradients": torch.is_grad_enabled(),
            }
        )
        agreement.calls(_ALIKE)
        if ranks.is_first:
            return (x,)
        if torch.is_grad_enabled():
            tensors = _Take.apply(ranks, torch.zeros((), requires_grad=True), *like.tensors())
        else:
            tensors = _receive(ranks, like.tensors(), ranks.position - 1)
        return x, type(like)(*tensors)

    def hand_on(self, layer: nn.Module, arguments: tuple[Any, ...], result: tuple[Tensor, Any]) -> tuple[Tensor, Any]:
        """The result, with the state sent to the next rank."""
        y, state = result
        ranks = self._ranks()
        if not ranks.is_last:
            if torch.is_grad_enabled():
                y = y + _HandOn.apply(ranks, *state.tensors())
            else:
                _send(ranks, state.tensors(), ranks.position + 1)
        return y, state

    def _ranks(self) -> Ranks:
        return Ranks(self.name, self.group, False)


class _Take(torch.autograd.Function):
    """The state of the rank before, whose gradient goes back there. The anchor makes it a node of the graph."""

    @staticmethod
    def forward(ctx: Any, ranks: Ranks, anchor: Tensor, *like: Tensor) -> tuple[Tensor, ...]:
        ctx.ranks = ranks
        return tuple(_receive(ranks, like, ranks.position - 1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        _send(ctx.ranks, gradients, ctx.ranks.position - 1)
        return None, None, *(None for _ in gradients)


class _HandOn(torch.autograd.Function):
    """Zero, to be added to what the loss depends on: its backward pass is where the next rank's gradient comes in."""

    @staticmethod
    def forward(ctx: Any, ranks: Ranks, *tensors: Tensor) -> Tensor:
        ctx.ranks = ranks
        ctx.like = [(tensor.shape, tensor.dtype, tensor.device) for tensor in tensors]
        _send(ranks, tensors, ranks.position + 1)
        return tensors[0].new_zeros(())

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        like = [torch.empty(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.like]
        return None, *_receive(ctx.ranks, like, ctx.ranks.position + 1)


def _send(ranks: Ranks, tensors: tuple[Tensor, ...], to: int) -> None:
    ranks.exchange([(tensor, to) for tensor in tensors], {}).received()


def _receive(ranks: Ranks, like: Any, source: int) -> list[Tensor]:
    wanted = {str(index): (tensor, source) for index, tensor in enumerate(like)}
    return list(ranks.exchange([], wanted).received().values())
