"""The stages of a pipeline: a language model cut into runs of blocks that take about as long."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from verim.errors import InputError
from verim.models import Block, LanguageModel
from verim.nn import auxiliary_losses


def cut(model: LanguageModel, stages: int, length: int) -> list[range]:
    """The blocks of each of `stages` stages, so that the one with the most training FLOPs has as few as can be.

    The head counts with the last block; the embedding, a look-up, does not. `length` is that of the sequences:
    attention grows with it, recurrences do not.

    Raises `InputError` where there are more stages than blocks.
    """
    if model.config.recursion is not None:
        raise InputError(
            "pipeline: the model applies blocks several times (recursion), which a stage cannot; expected recursion "
            "None, or pipeline 1"
        )
    costs = [
        sum(sum(layer.flops(length)) for layer in block.layers()) for block in model.blocks if isinstance(block, Block)
    ]
    costs[-1] += 3 * 2 * model.head.weight.numel()
    if not 0 < stages <= len(costs):
        raise InputError(
            f"pipeline: got {stages} stages for {len(costs)} blocks; expected 1 to {len(costs)}, or another depth"
        )
    return balanced(costs, stages)


def balanced(costs: Sequence[float], parts: int) -> list[range]:
    """Neighbours in `parts` ranges, none empty, of which the most expensive is as cheap as can be; of several such
    divisions one whose ranges before the last are the cheapest so too.

    >>> balanced([1, 1, 1, 3], 2)
    [range(0, 3), range(3, 4)]
    """
    sums = [0.0, *accumulate(costs)]
    best = {(count, 1): (sums[count], 0) for count in range(1, len(costs) + 1)}  # the worst range, and where it begins
    for number in range(2, parts + 1):
        for count in range(number, len(costs) + 1):
            best[count, number] = min(
                (max(best[begin, number - 1][0], sums[count] - sums[begin]), begin)
                for begin in range(number - 1, count)
            )
    ranges, end = [], len(costs)
    for number in range(parts, 0, -1):
        begin = best[end, number][1]
        ranges.append(range(begin, end))
        end = begin
    return ranges[::-1]


class Stage(nn.Module):
    """Some neighbouring blocks of a model; the first stage has the embedding too, the last the norm and the head.

    Its weights have the names that they have in the model. From tokens, or from what the stage before gives, to what
    the next one takes; the last gives what the head reads. Auxiliary losses of its layers do not travel: their
    gradients enter here, in its backward pass, each micro-batch's with its share of the batch.
    """

    def __init__(self, model: LanguageModel, blocks: range) -> None:
        super().__init__()
        self.is_first, self.is_last = blocks.start == 0, blocks.stop == len(model.blocks)
        self.embedding = model.embedding if self.is_first else None
        self.embedding_norm = model.embedding_norm if self.is_first else None
        self.blocks = nn.ModuleDict({str(index): model.blocks[index] for index in blocks})
        self.norm = model.norm if self.is_last else None
        self.head = model.head if self.is_last else None
        self._shares: list[float] = []
        self._auxiliary: list[Tensor] = []

    def begin(self, shares: Sequence[float]) -> None:
        """Of a step, whose micro-batches have these shares of the batch's loss."""
        self._shares, self._auxiliary = list(shares), []

    def auxiliary(self) -> Tensor | float:
        """The auxiliary losses of the step's forward passes, weighted with their shares."""
        return sum(self._auxiliary)

    def forward(self, x: Tensor) -> Float[Tensor, "batch length width"]:
        if self.embedding is not None:
            x = self.embedding(x)
            if self.embedding_norm is not None:
                x = self.embedding_norm(x)
        with auxiliary_losses() as losses:
            for block in self.blocks.values():
                x, _ = block(x)
        if losses and torch.is_grad_enabled():
            loss = sum(losses[1:], losses[0]) * self._shares.pop(0)
            self._auxiliary.append(loss.detach())
            x = _WithLoss.apply(x, loss)
        return x if self.norm is None else self.norm(x)


class _WithLoss(torch.autograd.Function):
    """`x` as it is; backward, `loss` gets the gradient 1, as if it were part of what is differentiated."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, loss: Tensor) -> Tensor:
        ctx.like = loss.detach()
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        return gradients[0], torch.ones_like(ctx.like)
