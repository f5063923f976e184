"""The products of experts: tokens sorted by expert, one product per expert over its contiguous rows.

Nothing of the size tokens × experts × capacity is made, no weight of an expert without tokens is read, and every sum
over the rows of a token runs in one order, so that results do not depend on the schedule of threads.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import embedding_bag

from verim import ops
from verim.nn.routing import Rows
from verim.ops.derivatives import is_recorded, refuse_second_derivative
from verim.ops.precision import follow_autocast

_ALIGNED = 8
"""Channels of a row in torch's grouped product on CUDA come in multiples of so many: 16 bytes."""
_STRIP = 128
"""Rows whose elementwise work is done while they are in the cache."""


def swiglu_experts(
    x: Float[Tensor, "tokens width"],
    gate_and_in: Float[Tensor, "experts two_hidden width"],
    out: Float[Tensor, "experts width hidden"],
    rows: Rows,
    gates: Float[Tensor, "rows"],
) -> Float[Tensor, "tokens width"]:
    """y_t = Σ over the rows i of token t: gate_i · W_out[e] (silu(W_gate[e] x_t) ⊙ W_in[e] x_t), e the row's expert.

    A token without rows is zero. Follows `torch.autocast` as torch's own matrix products do. It is not
    differentiable twice.
    """
    x, gate_and_in, out = follow_autocast(x, gate_and_in, out, lower=True)
    gates = gates.to(x.dtype)
    if not is_recorded(x, gate_and_in, out, gates):  # a token decoded alone notices what autograd takes
        hidden = ops.swiglu(products(x.index_select(0, rows.tokens), gate_and_in, rows))
        return combine(products(hidden, out, rows), rows, gates)
    y: Tensor = _Combined.apply(ops.swiglu(_Gathered.apply(x, gate_and_in, rows)), out, gates, rows)
    return y


class _Gathered(torch.autograd.Function):
    """Row i is W[e] x[tokens[i]]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, rows: Rows) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.rows = rows
        return products(x.index_select(0, rows.tokens), weight, rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("swiglu_experts")
        x, weight = ctx.saved_tensors
        rows: Rows = ctx.rows
        dx = dweight = None
        if ctx.needs_input_grad[0]:
            dx = combine(products(gradients[0], weight.transpose(1, 2), rows), rows)
        if ctx.needs_input_grad[1]:
            dweight = outer_products(gradients[0], x.index_select(0, rows.tokens), rows)
        return dx, dweight, None


class _Combined(torch.autograd.Function):
    """y_t = Σ_i gate_i W[e] hidden_i. The products W[e] hidden_i are not kept: Wᵀ dy serves the gates' gradient too."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, gates: Tensor, rows: Rows) -> Tensor:
        ctx.save_for_backward(hidden, weight, gates)
        ctx.rows = rows
        return combine(products(hidden, weight, rows), rows, gates)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("swiglu_experts")
        hidden, weight, gates = ctx.saved_tensors
        rows: Rows = ctx.rows
        dy = gradients[0].index_select(0, rows.tokens)
        dhidden = products(dy, weight.transpose(1, 2), rows)
        dgates = torch.empty_like(gates)
        step = _STRIP if hidden.is_cpu else len(hidden)
        for strip in (slice(start, start + step) for start in range(0, len(hidden), step)):
            torch.linalg.vecdot(dhidden[strip], hidden[strip], out=dgates[strip])
            dhidden[strip] *= gates[strip, None]
        dweight = outer_products(dy.mul_(gates[:, None]), hidden, rows) if ctx.needs_input_grad[1] else None
        return dhidden, dweight, dgates, None


def combine(
    values: Float[Tensor, "rows width"], rows: Rows, gates: Float[Tensor, "rows"] | None = None
) -> Float[Tensor, "tokens width"]:
    """The sum of every token's rows, weighted with their gates."""
    if not len(values):
        return values.new_zeros(len(rows.starts), values.shape[1])
    weights = None if gates is None else gates.index_select(0, rows.by_token)
    return embedding_bag(rows.by_token, values, rows.starts, mode="sum", per_sample_weights=weights)


def products(
    values: Float[Tensor, "rows in_features"], stack: Float[Tensor, "experts out in_features"], rows: Rows
) -> Float[Tensor, "rows out"]:
    """The matrix of its expert times every row: values[i] @ stack[e]ᵀ."""
    if _has_one_kernel(values, *stack.shape[1:]):
        return grouped_products(values, stack, rows)
    result = values.new_empty(len(values), stack.shape[1])
    for expert, part in enumerate(rows.parts):
        if part.stop > part.start:
            torch.mm(values[part], stack[expert].t(), out=result[part])
    return result


def outer_products(
    left: Float[Tensor, "rows out"], right: Float[Tensor, "rows in_features"], rows: Rows
) -> Float[Tensor, "experts out in_features"]:
    """The sum of left_i right_iᵀ over the rows of every expert; zero without rows."""
    if _has_one_kernel(left, left.shape[1], right.shape[1]):
        return grouped_outer_products(left, right, rows)
    result = left.new_empty(len(rows.load), left.shape[1], right.shape[1])
    for expert, part in enumerate(rows.parts):
        torch.mm(left[part].t(), right[part], out=result[expert])
    return result


def grouped_products(values: Tensor, stack: Tensor, rows: Rows) -> Tensor:
    """`products` as one kernel, which reads the load on the device."""
    ends = rows.load.cumsum(0, dtype=torch.int32)
    return torch.nn.functional.grouped_mm(values, stack.transpose(1, 2), offs=ends)


def grouped_outer_products(left: Tensor, right: Tensor, rows: Rows) -> Tensor:
    """`outer_products` as one kernel."""
    return torch.nn.functional.grouped_mm(left.t(), right, offs=rows.load.cumsum(0, dtype=torch.int32))


def _has_one_kernel(values: Tensor, *sizes: int) -> bool:
    """Whether torch multiplies all groups in one kernel. On the CPU its grouped product is this module's loop."""
    return values.is_cuda and values.dtype == torch.bfloat16 and all(size % _ALIGNED == 0 for size in sizes)
