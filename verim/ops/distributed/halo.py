"""The rows before a piece, from the ranks that hold them: what convolutions, token shifts and windows look back at."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.distributed import ProcessGroup

from verim.errors import InputError
from verim.ops.causal_conv1d import causal_conv1d
from verim.ops.derivatives import refuse_second_derivative
from verim.ops.distributed.ranks import Ranks

_NAME = "rows_before"
_ALIKE = ("the data type", "the device", "the shape of a row", "count", "recording gradients")


@_disable_dynamo
def rows_before(
    x: Float[Tensor, "batch length *row"], count: int, group: ProcessGroup | None = None
) -> Float[Tensor, "batch before *row"]:
    """The last `count` rows before this rank's piece `x` of the sequence: fewer, where it begins less far in, or none.

    Rank r of `group` holds the r-th piece; the lengths may differ between the ranks, and be shorter than `count`: the
    rows then come from several ranks. Gradients go back to the ranks that hold the rows. As in
    `distributed_linear_recurrence`, all ranks call it, and run its backward pass, in the same order.

    **Cost.** One all-to-all each way. Every rank receives the rows that it returns and nothing else, and 512 bytes a
    rank that say how it was called.

    Raises `InputError`, on all ranks, where there is no process group or the ranks disagree.
    """
    ranks = Ranks(_NAME, group, False)
    if ranks.last == 0:
        return x[:, :0]
    if x.dim() < 2 or count < 0:
        ranks.refuse(
            InputError(
                f"{_NAME}: got x of shape {tuple(x.shape)} and count {count}, expected [batch, length"
                ", ...] and at least 0"
            )
        )
    records = torch.is_grad_enabled()
    agreement = ranks.describe(
        {
            "the data type": str(x.dtype),
            "the device": x.device.type,
            "the shape of a row": [x.shape[0], *x.shape[2:]],
            "count": count,
            "recording gradients": records,
            "needs gradients": records and x.requires_grad,
            "length": x.shape[1],
        }
    )
    calls = agreement.calls(_ALIKE)
    plan = _Plan(ranks, [call["length"] for call in calls], count)
    if any(call["needs gradients"] for call in calls):
        # every rank takes part in the backward pass, whatever its own rows need
        before: Tensor = _RowsBefore.apply(plan, torch.zeros((), requires_grad=True), x)
        return before
    return plan.fetch(x)


def distributed_causal_conv1d(
    x: Float[Tensor, "batch length channels"],
    weight: Float[Tensor, "channels kernel"],
    bias: Float[Tensor, "channels"] | None = None,
    activation: str | None = None,
    group: ProcessGroup | None = None,
) -> Float[Tensor, "batch length channels"]:
    """`verim.ops.causal_conv1d` of a sequence whose pieces lie on the ranks of a `torch.distributed` group.

    Rank r gives the r-th piece of `x`, and all ranks the same `weight` and `bias`, of whose gradient each gets the
    share of its piece: sum them. Before the whole sequence there are zeros. The rank before sends its last kernel - 1
    rows (`rows_before`).
    """
    past = weight.shape[1] - 1 if weight.dim() == 2 else 0
    if not past:
        return causal_conv1d(x, weight, bias, activation=activation)
    return causal_conv1d(x, weight, bias, initial=padded_rows_before(x, past, group), activation=activation)


def padded_rows_before(
    x: Float[Tensor, "batch length channels"], count: int, group: ProcessGroup | None = None
) -> Float[Tensor, "batch count channels"]:
    """`rows_before`, with zeros for those that lie before the whole sequence."""
    before = rows_before(x, count, group)
    return torch.nn.functional.pad(before, (0, 0, count - before.shape[1], 0))


class _Plan:
    """Who sends how many of the last rows of its piece to whom."""

    def __init__(self, ranks: Ranks, lengths: list[int], count: int) -> None:
        self.ranks, self.length = ranks, lengths[ranks.position]
        starts = [sum(lengths[:rank]) for rank in range(len(lengths))]

        def rows(sender: int, receiver: int) -> int:
            end = starts[sender] + lengths[sender]
            return max(0, end - max(starts[sender], starts[receiver] - count)) if sender < receiver else 0

        own = ranks.position
        self.sent = [rows(own, other) for other in range(len(lengths))]
        self.received = [rows(other, own) for other in range(len(lengths))]

    def fetch(self, x: Tensor) -> Tensor:
        """The rows before the piece `x`."""
        rows = x.transpose(0, 1)
        parts = [rows[self.length - sent :] for sent in self.sent]
        return self.ranks.all_to_all(torch.cat(parts), self.sent, self.received).transpose(0, 1)

    def give_back(self, gradient: Tensor) -> Tensor:
        """The gradient of the piece, from that of what `fetch` returned."""
        rows = self.ranks.all_to_all(gradient.transpose(0, 1), self.received, self.sent)
        of_piece = rows.new_zeros(self.length, *rows.shape[1:])
        for part in rows.split(self.sent):
            of_piece[self.length - len(part) :] += part
        return of_piece.transpose(0, 1)


class _RowsBefore(torch.autograd.Function):
    """The exchange as one node of the graph on every rank."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, anchor: Tensor, x: Tensor) -> Tensor:
        ctx.plan = plan
        return plan.fetch(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(_NAME)
        of_x = ctx.plan.give_back(gradients[0])
        return None, None, of_x if ctx.needs_input_grad[2] else None
