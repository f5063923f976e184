"""Exchanges between ranks with their derivatives: what one does forward, its transpose does backward.

`all` is a tensor that every rank holds alike, `part` a term of a sum over ranks, `slice` a range of positions.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, distributed
from torch.distributed import ProcessGroup

from verim.errors import InputError

Sequence = Float[Tensor, "batch length width"]
Exchange = Callable[[Tensor, ProcessGroup], Tensor]

# torch 2.13 renamed them; 2.11 has the old names alone
_all_gather = getattr(distributed, "all_gather_single", None) or distributed.all_gather_into_tensor
_reduce_scatter = getattr(distributed, "reduce_scatter_single", None) or distributed.reduce_scatter_tensor


def enter(x: Tensor, group: ProcessGroup) -> Tensor:
    """`x` as it is. Its gradients on the ranks are parts, and are summed: ranks use the same `x` for different things.

    (f of Shoeybi et al. 2019, arXiv 1909.08053, section 3.)
    """
    return _apply(as_it_is, sum_over, x, group)


def leave(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum of the ranks' parts `x`; its gradient is that of every part (g of Shoeybi et al. 2019, section 3)."""
    return _apply(sum_over, as_it_is, x, group)


def total(x: Tensor, group: ProcessGroup) -> Tensor:
    """The sum of the ranks' parts, which every rank uses for something else: summed in both directions."""
    return enter(leave(x, group), group)


def slice_positions(x: Sequence, group: ProcessGroup) -> Sequence:
    """This rank's positions of an `x` that all hold alike; backward the slices are gathered."""
    return _apply(own_slice, joined, x, group)


def gather_positions(x: Sequence, group: ProcessGroup) -> Sequence:
    """All positions, for work that all ranks do alike; backward each takes its slice."""
    return _apply(joined, own_slice, x, group)


def gather_to_enter(x: Sequence, group: ProcessGroup) -> Sequence:
    """All positions, for work that ranks divide: `gather_positions`, with the ranks' gradients summed as by `enter`."""
    return _apply(joined, sum_of_slice, x, group)


def leave_to_slice(x: Sequence, group: ProcessGroup) -> Sequence:
    """This rank's positions of the sum of the ranks' parts: `leave`, of which each keeps its slice."""
    return _apply(sum_of_slice, joined, x, group)


def _apply(there: Exchange, back: Exchange, x: Tensor, group: ProcessGroup) -> Tensor:
    result: Tensor = _Adjoint.apply(x, group, there, back)
    return result


def as_it_is(x: Tensor, group: ProcessGroup) -> Tensor:
    """`x` itself, under a name of its own in the graph."""
    return x.view_as(x)


def sum_over(x: Tensor, group: ProcessGroup) -> Tensor:
    """A new tensor, the sum of the ranks' `x`."""
    result = x.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(result, group=group)
    return result


def joined(x: Sequence, group: ProcessGroup) -> Sequence:
    """The ranks' positions, one after the other."""
    ranks = group.size()
    parts = x.new_empty(ranks * x.shape[0], *x.shape[1:])
    _all_gather(parts, x.contiguous(), group=group)
    return parts.unflatten(0, (ranks, -1)).movedim(0, 1).flatten(1, 2)


def sum_of_slice(x: Sequence, group: ProcessGroup) -> Sequence:
    """This rank's positions of the sum of the ranks' `x`."""
    ranks = group.size()
    rows = x.unflatten(1, (ranks, -1)).movedim(1, 0).flatten(0, 1).contiguous()
    result = x.new_empty(x.shape[0], x.shape[1] // ranks, *x.shape[2:])
    _reduce_scatter(result, rows, group=group)
    return result


def own_slice(x: Sequence, group: ProcessGroup) -> Sequence:
    """This rank's positions of `x`."""
    if x.shape[1] % group.size():
        raise InputError(
            f"sequence_parallel: {x.shape[1]} positions on {group.size()} tensor ranks; expected a multiple of them"
        )
    return x.chunk(group.size(), dim=1)[group.rank()].contiguous()


class _Adjoint(torch.autograd.Function):
    """`there` forward, `back`, its transpose, backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: ProcessGroup, there: Exchange, back: Exchange) -> Tensor:
        ctx.group, ctx.back = group, back
        return there(x, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        return ctx.back(gradients[0], ctx.group), None, None, None
