"""A scan over a sequence whose pieces lie on the ranks of a group: every rank runs the local op on its own piece.

A piece maps the state before it to the state after it, and the map is known from two things of a state's size: what
is left of the state before (the decay), and the state that the piece reaches from an empty one. Maps compose
associatively, so an exclusive scan over the ranks' summaries gives every rank the state that it begins with.

    forward    first rank    runs from the initial state                             sends the state it reaches
               between       run from the empty state                                send their summaries
                             run from the state that the scan gives them
               last rank     runs from the state that the scan gives it
    backward   the same with the ends exchanged: gradients of states go from the last rank to the first

So the first and the last rank run once each way, those between them twice, and no rank waits for a chain of others.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd.graph import get_gradient_edge

from verim.errors import InputError
from verim.ops.derivatives import refuse_second_derivative
from verim.ops.distributed.ranks import Ranks

Tensors = Sequence[Tensor | None]
_ALIKE = (
    "the data type",
    "the device",
    "the shape of the state",
    "the data type of the state",
    "reverse",
    "return_state",
    "recording gradients",
)


@dataclass(frozen=True)
class PieceOp:
    """An op as the scan over ranks needs it. `tensors` are all its tensors but the state before.

    - `local(*tensors, state, return_state=True)`: the local op: y and the state after the piece.
    - `sequences`: which of the tensors are sequences [batch, length, ...].
    - `state_name`: of the argument that holds the state before.
    - `decay(tensors, state)`: what is left of a state after the piece; `state` is an empty one.
    - `follow(decay, reached, state)`: the state after a piece that reaches `reached` from an empty state.
    - `carry_back(decay, reached, state, gradient)`: of the state before, from the one of the state after.
    """

    name: str
    local: Callable[..., Any]
    sequences: tuple[int, ...]
    state_name: str
    decay: Callable[[Tensors, Tensor], Tensor]
    follow: Callable[[Tensor, Tensor, Tensor], Tensor]
    carry_back: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]

    def run(self, tensors: Tensors, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """y of the piece and the state after it."""
        y, after = self.local(*tensors, state, return_state=True)
        return y, after


@_disable_dynamo  # as torch.compiler.disable, which would load the compiler now
def run_piece(op: PieceOp, ranks: Ranks, tensors: Tensors, initial: Tensor | None, return_state: bool) -> Any:
    """y of this rank's piece, with `return_state` also the state after the whole sequence, on every rank."""
    if ranks.last == 0:
        y, final = op.run(tensors, initial)
        return (y, final) if return_state else y
    given = (initial, *tensors)
    records = torch.is_grad_enabled()
    try:
        first, empty = _checked(op, tensors, initial)
    except Exception as error:
        ranks.refuse(error)
    agreement = ranks.describe(  # travels while the summary is computed
        {
            "the data type": str(first.dtype),
            "the device": first.device.type,
            "the shape of the state": list(empty.shape),
            "the data type of the state": str(empty.dtype),
            "reverse": ranks.reverse,
            "return_state": return_state,
            "recording gradients": records,
            "needs gradients": records and any(tensor is not None and tensor.requires_grad for tensor in given),
            "has initial": initial is not None,
        }
    )
    summary = op.decay(_no_steps(op, tensors), empty), empty
    if not ranks.is_first and not ranks.is_last:
        with torch.no_grad():
            summary = op.decay(tensors, empty), op.run(tensors, None)[1]
    calls = agreement.calls(_ALIKE)
    begin = ranks.rank(0)
    for rank, call in enumerate(calls):
        if call["has initial"] and not calls[begin]["has initial"]:
            raise InputError(
                f"{op.name}: argument {op.state_name} is given on rank {rank} but not on rank {begin}, where the "
                "recurrence begins, the only one that reads it: give it there"
            )
    piece = _Piece(op, ranks, return_state, summary)
    initial = initial if ranks.is_first else None
    if any(call["needs gradients"] for call in calls):
        # Then all ranks take part in the backward pass, so each has a node for it, whatever its own tensors need.
        y, final = _OverRanks.apply(piece, torch.zeros((), requires_grad=True), initial, *tensors)
    else:
        y, final = piece.forward(initial, tensors, None)
    return (y, final) if return_state else y


class _Piece:
    """One call on one rank: its forward pass, and what its backward pass needs of it."""

    def __init__(self, op: PieceOp, ranks: Ranks, return_state: bool, summary: tuple[Tensor, Tensor]) -> None:
        self.op, self.ranks, self.return_state = op, ranks, return_state
        self.summary = summary  # decay and state reached; of no meaning on the first and the last rank
        self.passages: list[tuple[Tensor, Tensor, Tensor]] = []  # of every position: its summary, the state before it
        self.leaves: list[Tensor | None] = []  # the state before, and the tensors
        self.results: tuple[Any, Any] | None = None  # where the gradients of y and of the state after enter

    def forward(self, initial: Tensor | None, tensors: Tensors, needs: Sequence[bool] | None) -> tuple[Tensor, Tensor]:
        """y and the state after. `needs`: whether `initial` and each of the tensors needs a gradient; None records
        nothing."""
        first = self.ranks.is_first
        state = initial
        if first:
            y, final = self._run(initial, tensors, needs)
            self.summary = self.summary[0], final
        reached = self.ranks.gather(*self.summary)
        before = torch.zeros_like(self.summary[1])
        for position, (decay, state) in enumerate(reached):
            self.passages.append((decay, state, before))
            before = state if position == 0 else self.op.follow(decay, state, before)
        if not first:
            # what the state before gets goes to another rank, which may need it though nothing here does
            needs = None if needs is None else (True, *needs[1:])
            y, final = self._run(self.passages[self.ranks.position][2], tensors, needs)
        return y, self.ranks.from_last(final) if self.return_state else final

    def backward(self, dy: Tensor | None, dfinal: Tensor | None) -> Sequence[Tensor | None]:
        """The gradients of the state before the whole sequence (on its first rank) and of the tensors."""
        if self.results is None:
            raise InputError(f"{self.op.name}: a second backward pass through one call: call it a second time instead")
        ranks, zero = self.ranks, torch.zeros_like(self.summary[1])
        gradients: Sequence[Tensor | None] = [None]
        dfinal = ranks.sum(zero if dfinal is None else dfinal) if self.return_state else None
        if ranks.is_last:
            gradients = self._gradients(dy, dfinal)
        elif not ranks.is_first:
            gradients = self._gradients(dy, None, only_state=True)
        carries = [carry for (carry,) in ranks.gather(zero if gradients[0] is None else gradients[0])]
        if not ranks.is_last:
            carry = carries[-1]
            for position in range(ranks.last - 1, ranks.position, -1):
                carry = carries[position] + self.op.carry_back(*self.passages[position], carry)
            gradients = self._gradients(dy, carry)
        self.results, self.leaves = None, []
        return [gradients[0] if ranks.is_first else None, *gradients[1:]]

    def _run(self, state: Tensor | None, tensors: Tensors, needs: Sequence[bool] | None) -> tuple[Tensor, Tensor]:
        """The local op, recorded for `_gradients`."""
        if needs is None:
            return self.op.run(tensors, state)
        self.leaves = [
            None if tensor is None else tensor.detach().requires_grad_(needed)
            for tensor, needed in zip((state, *tensors), needs, strict=True)
        ]
        with torch.enable_grad():
            y, final = self.op.run(self.leaves[1:], self.leaves[0])
        y_edge, final_edge = (get_gradient_edge(result) if result.requires_grad else None for result in (y, final))
        self.results = y_edge, final_edge
        return y.detach(), final.detach()

    def _gradients(self, dy: Tensor | None, dfinal: Tensor | None, only_state: bool = False) -> Sequence[Tensor | None]:
        """Of the state before, unless `only_state` also of the tensors: None for what needs none, and zeros for what
        the result does not depend on: ranks with an empty piece, too, have a share to sum."""
        assert self.results is not None
        leaves = self.leaves[:1] if only_state else self.leaves
        wanted = [leaf for leaf in leaves if leaf is not None and leaf.requires_grad]
        given = [
            (edge, gradient)
            for edge, gradient in zip(self.results, (dy, dfinal), strict=True)
            if edge is not None and gradient is not None
        ]
        found: Sequence[Tensor] = [torch.zeros_like(leaf) for leaf in wanted]
        if wanted and given:
            edges, gradients = zip(*given, strict=True)
            found = torch.autograd.grad(edges, wanted, gradients, retain_graph=only_state, materialize_grads=True)
        rest = iter(found)
        return [next(rest) if leaf is not None and leaf.requires_grad else None for leaf in leaves]


class _OverRanks(torch.autograd.Function):
    """A piece as one node of the graph, so that every rank makes the same exchanges, whatever it runs between them."""

    @staticmethod
    def forward(
        ctx: Any, piece: _Piece, anchor: Tensor, initial: Tensor | None, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        ctx.piece = piece
        ctx.set_materialize_grads(False)
        return piece.forward(initial, tensors, ctx.needs_input_grad[2:])

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dfinal: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second_derivative(ctx.piece.op.name)
        return (None, None, *ctx.piece.backward(dy, dfinal))


def _no_steps(op: PieceOp, tensors: Tensors) -> list[Tensor | None]:
    """The tensors of a piece of length 0."""
    return [
        tensor[:, :0] if tensor is not None and index in op.sequences else tensor
        for index, tensor in enumerate(tensors)
    ]


def _checked(op: PieceOp, tensors: Tensors, initial: Tensor | None) -> tuple[Tensor, Tensor]:
    """The first tensor and the empty state. The local op checks all but the lengths, which are checked here."""
    first = tensors[0]
    for index in op.sequences:
        tensor = tensors[index]
        if first is None or tensor is None or tensor.dim() < 3 or tensor.shape[1] != first.shape[1]:
            op.run(tensors, initial)  # raises an error that names the argument
            raise AssertionError(f"{op.name}: the local op accepts sequences of different lengths")
    assert first is not None
    with torch.no_grad():
        if initial is not None:
            op.run(_no_steps(op, tensors), initial)
        return first, op.run(_no_steps(op, tensors), None)[1]
