"""The products of experts: tokens sorted by expert, one product per expert over its contiguous rows.

Nothing of the size tokens × experts × capacity is made, no weight of an expert without tokens is read, and every sum
over the rows of a token runs in one order, so that results do not depend on the schedule of threads.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import embedding_bag

from verim import ops
from verim.nn.routing import Assignment
from verim.ops.derivatives import refuse_second_derivative
from verim.ops.precision import follow_autocast

_ALIGNED = 8
"""Channels of a row in torch's grouped product on CUDA come in multiples of so many: 16 bytes."""


def swiglu_experts(
    x: Float[Tensor, "tokens width"],
    gate_and_in: Float[Tensor, "experts two_hidden width"],
    out: Float[Tensor, "experts width hidden"],
    assignment: Assignment,
) -> Float[Tensor, "tokens width"]:
    """y_t = Σ over the rows i of token t: gate_i · W_out[e] (silu(W_gate[e] x_t) ⊙ W_in[e] x_t), e the row's expert.

    A token without rows is zero. Follows `torch.autocast` as torch's own matrix products do. It is not
    differentiable twice.
    """
    x, gate_and_in, out = follow_autocast(x, gate_and_in, out, lower=True)
    rows = _Rows.of(assignment, len(x))
    hidden = ops.swiglu(_Gathered.apply(x, gate_and_in, rows))
    y: Tensor = _Combined.apply(hidden, out, assignment.gates.to(hidden.dtype), rows)
    return y


@dataclass(frozen=True)
class _Rows:
    """Rows sorted by expert, and for each token where they are: order[starts[t] : starts[t + 1]]."""

    tokens: Int[Tensor, "rows"]
    load: Int[Tensor, "experts"]
    order: Int[Tensor, "rows"]
    starts: Int[Tensor, "tokens"]

    @staticmethod
    def of(assignment: Assignment, count: int) -> "_Rows":
        order = assignment.tokens.argsort(stable=True)
        numbers = torch.arange(count, device=order.device)
        starts = torch.searchsorted(assignment.tokens.index_select(0, order), numbers)
        return _Rows(assignment.tokens, assignment.load, order, starts)

    def gather(self, x: Float[Tensor, "tokens width"]) -> Float[Tensor, "rows width"]:
        return x.index_select(0, self.tokens)

    def combine(
        self, rows: Float[Tensor, "rows width"], gates: Float[Tensor, "rows"] | None = None
    ) -> Float[Tensor, "tokens width"]:
        """The sum of every token's rows, weighted with their gates."""
        if not len(rows):
            return rows.new_zeros(len(self.starts), rows.shape[1])
        weights = None if gates is None else gates.index_select(0, self.order)
        return embedding_bag(self.order, rows, self.starts, mode="sum", per_sample_weights=weights)


class _Gathered(torch.autograd.Function):
    """Row i is W[e] x[tokens[i]]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rows: _Rows) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.rows = rows
        return products(rows.gather(x), weight, rows.load)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("swiglu_experts")
        x, weight = ctx.saved_tensors
        rows: _Rows = ctx.rows
        dx = dweight = None
        if ctx.needs_input_grad[0]:
            dx = rows.combine(products(gradients[0], weight.transpose(1, 2), rows.load))
        if ctx.needs_input_grad[1]:
            dweight = outer_products(gradients[0], rows.gather(x), rows.load)
        return dx, dweight, None


class _Combined(torch.autograd.Function):
    """y_t = Σ_i gate_i W[e] hidden_i. The products W[e] hidden_i are not kept: Wᵀ dy serves the gates' gradient too."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, gates: Tensor, rows: _Rows) -> Tensor:
        ctx.save_for_backward(hidden, weight, gates)
        ctx.rows = rows
        return rows.combine(products(hidden, weight, rows.load), gates)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("swiglu_experts")
        hidden, weight, gates = ctx.saved_tensors
        rows: _Rows = ctx.rows
        dy = rows.gather(gradients[0])
        dhidden = products(dy, weight.transpose(1, 2), rows.load)
        dgates = torch.linalg.vecdot(dhidden, hidden)
        dhidden *= gates[:, None]
        dy *= gates[:, None]
        dweight = outer_products(dy, hidden, rows.load) if ctx.needs_input_grad[1] else None
        return dhidden, dweight, dgates, None


def products(
    rows: Float[Tensor, "rows in_features"],
    stack: Float[Tensor, "experts out in_features"],
    load: Int[Tensor, "experts"],
) -> Float[Tensor, "rows out"]:
    """Row i times the matrix of its expert, transposed: rows @ Wᵀ."""
    if _has_one_kernel(rows, *stack.shape[1:]):
        return grouped_products(rows, stack, load)
    result = rows.new_empty(len(rows), stack.shape[1])
    for expert, part in _parts(load):
        if part.stop > part.start:
            torch.mm(rows[part], stack[expert].t(), out=result[part])
    return result


def outer_products(
    left: Float[Tensor, "rows out"], right: Float[Tensor, "rows in_features"], load: Int[Tensor, "experts"]
) -> Float[Tensor, "experts out in_features"]:
    """The sum of left_i right_iᵀ over the rows of every expert; zero without rows."""
    if _has_one_kernel(left, left.shape[1], right.shape[1]):
        return grouped_outer_products(left, right, load)
    result = left.new_empty(len(load), left.shape[1], right.shape[1])
    for expert, part in _parts(load):
        torch.mm(left[part].t(), right[part], out=result[expert])
    return result


def grouped_products(rows: Tensor, stack: Tensor, load: Tensor) -> Tensor:
    """`products` as one kernel, which reads the load on the device."""
    return torch.nn.functional.grouped_mm(rows, stack.transpose(1, 2), offs=load.cumsum(0, dtype=torch.int32))


def grouped_outer_products(left: Tensor, right: Tensor, load: Tensor) -> Tensor:
    """`outer_products` as one kernel."""
    return torch.nn.functional.grouped_mm(left.t(), right, offs=load.cumsum(0, dtype=torch.int32))


def _has_one_kernel(rows: Tensor, *sizes: int) -> bool:
    """Whether torch multiplies all groups in one kernel. On the CPU its grouped product is this module's loop."""
    return rows.is_cuda and rows.dtype == torch.bfloat16 and all(size % _ALIGNED == 0 for size in sizes)


def _parts(load: Int[Tensor, "experts"]) -> Iterator[tuple[int, slice]]:
    """Every expert with its range of rows."""
    start = 0
    for expert, count in enumerate(load.tolist()):
        yield expert, slice(start, start + count)
        start += count
