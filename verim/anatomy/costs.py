"""What a call of any operator costs: FLOPs from one set of formulas, bytes from the tensors that it touches.

Our kernels carry their own cost. Attention of torch's is counted by our formula (torch's counts the whole square for
causal attention, and nothing at all on the CPU). Products and convolutions are torch's own formulas, and a few that it
lacks. Everything else is elementwise, or a reduction: `vector_flops`.
"""

import functools
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import flop_registry

from verim.ops.attention.cost import backward_cost as attention_backward
from verim.ops.attention.cost import forward_cost as attention_forward
from verim.ops.cost import Cost
from verim.ops.kernel import KERNELS

_aten = torch.ops.aten


@dataclass(frozen=True)
class OpCost:
    """`flops`: products, convolutions, attention and our kernels; `vector_flops`: the rest. Bytes: each tensor once.

    `recomputed_flops`: forward work that a backward pass does a second time, see `verim.ops.cost.Cost`.
    """

    flops: int
    vector_flops: int
    bytes_read: int
    bytes_written: int
    recomputed_flops: int = 0


FREE = OpCost(0, 0, 0, 0)


def tensors_in(value: Any) -> Iterable[Tensor]:
    """The tensors in an operator's arguments or results: themselves, or in lists of them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)


def cost_of(operator: Any, arguments: tuple[Any, ...], keywords: dict[str, Any], result: Any) -> OpCost:
    """What the call `result = operator(*arguments, **keywords)` costs. Views, and making empty tensors, are free."""
    packet = operator._overloadpacket
    roles = _roles(operator)
    if roles.is_free:
        return FREE
    results = [tensor for tensor in tensors_in(result) if tensor.numel()]
    if operator.namespace == "verim":
        cost: Cost = KERNELS[packet.__name__].cost(*arguments, **keywords)
        written = sum(map(_bytes, results))
        return OpCost(cost.flops, 0, max(cost.bytes - written, 0), written, cost.recomputed_flops)
    read, mutated = _touched(roles, arguments, keywords)
    written = sum(_bytes(tensor) for tensor in {id(tensor): tensor for tensor in [*results, *mutated]}.values())
    taken = _READS.get(packet)
    bytes_read = sum(map(_bytes, read)) if taken is None else taken(read, results)
    if packet in _NO_WORK:
        return OpCost(0, 0, bytes_read, written)
    if packet in _ATTENTION:
        cost = _attention(_ATTENTION[packet], arguments, keywords)
        return OpCost(cost.flops, 0, bytes_read, written, cost.recomputed_flops)
    formula = _FORMULAS.get(packet) or flop_registry.get(packet)
    if formula is not None:
        return OpCost(int(formula(*arguments, **keywords, out_val=result)), 0, bytes_read, written)
    elements = max((tensor.numel() for tensor in [*read, *results, *mutated]), default=0)
    if packet in _FOREACH_STEPS:
        elements = sum(tensor.numel() for tensor in mutated[: len(tuple(tensors_in(arguments[0])))])
    return OpCost(0, _WEIGHTS.get(packet, 1) * elements, bytes_read, written)


def data_type(arguments: Iterable[Any], result: Any) -> str:
    """The type that the op computes in: that of its first floating-point tensor, else of its first tensor."""
    tensors = [*tensors_in(list(arguments)), *tensors_in(result)]
    chosen = next((tensor for tensor in tensors if tensor.is_floating_point()), tensors[0] if tensors else None)
    return "" if chosen is None else str(chosen.dtype).removeprefix("torch.")


def _bytes(tensor: Tensor) -> int:
    """Of the numbers that `tensor` shows, each once however often it is repeated by a stride of zero."""
    numbers = math.prod(size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return numbers * tensor.element_size() if tensor.layout is torch.strided else tensor._nnz() * tensor.element_size()


@dataclass(frozen=True)
class _Roles:
    """What an operator does with its arguments, by its schema: which it changes, which of these it also reads."""

    is_free: bool
    written: frozenset[str]
    out: frozenset[str]
    names: tuple[str, ...]


@functools.cache
def _roles(operator: Any) -> _Roles:
    schema = operator._schema
    written = {a.name for a in schema.arguments if a.alias_info is not None and a.alias_info.is_write}
    out = {a.name for a in schema.arguments if a.kwarg_only and a.name in written}
    views = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
    return _Roles(
        is_free=(views and not written) or operator._overloadpacket in _FREE,
        written=frozenset(written - _NOT_WRITTEN.get(operator._overloadpacket, frozenset())),
        out=frozenset(out),
        names=tuple(a.name for a in schema.arguments),
    )


def _touched(roles: _Roles, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors that are read, and those that are changed in place; one that is both is in both."""
    read: dict[int, Tensor] = {}
    mutated: list[Tensor] = []
    for name, value in [*zip(roles.names, arguments, strict=False), *keywords.items()]:
        for tensor in tensors_in(value):
            if name in roles.written:
                mutated.append(tensor)
            if name not in roles.out:
                read[id(tensor)] = tensor
    return list(read.values()), mutated


def _packets(*names: str) -> frozenset[Any]:
    """Those of aten's operators that this torch has."""
    return frozenset(getattr(_aten, name) for name in names if hasattr(_aten, name))


_FREE = _packets(
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "alias", "lift_fresh",
    "set_", "_unsafe_view", "_reshape_alias", "is_same_size", "resize_", "view", "_local_scalar_dense",
)  # fmt: skip
_FILLS = _packets(
    "zero_", "zero", "fill_", "zeros", "ones", "full", "zeros_like", "ones_like", "full_like", "new_zeros", "new_ones",
    "new_full", "arange", "scalar_tensor", "_foreach_zero_", "eye",
)  # fmt: skip
_DRAWS = _packets(
    "normal_", "uniform_", "random_", "bernoulli_", "exponential_", "randn", "rand", "randint", "randperm"
)
_COPIES = _packets(
    "copy_", "_to_copy", "clone", "cat", "stack", "constant_pad_nd", "slice_backward", "select_backward", "roll",
    "flip", "repeat", "index_select", "gather", "embedding", "_foreach_copy_", "contiguous",
)  # fmt: skip
_NO_WORK = _FILLS | _DRAWS | _COPIES
_FOREACH_STEPS = _packets("_fused_adamw_", "_fused_adam_", "_fused_sgd_", "_fused_adagrad_")
_NOT_WRITTEN: dict[Any, frozenset[str]] = dict.fromkeys(_FOREACH_STEPS, frozenset({"grads"}))  # only to unscale them

_WEIGHTS = {
    packet: weight
    for weight, packets in (
        (4, _packets("_softmax", "_softmax_backward_data", "_log_softmax", "silu", "sigmoid", "logsumexp")),
        (5, _packets("_log_softmax_backward_data", "silu_backward", "_fused_sgd_", "lerp", "lerp_")),
        (
            8,
            _packets("gelu", "native_layer_norm", "native_batch_norm", "_native_batch_norm_legit", "native_group_norm"),
        ),
        (12, _packets("gelu_backward", "native_layer_norm_backward", "native_batch_norm_backward")),
        (15, _packets("_fused_adamw_", "_fused_adam_")),
    )
    for packet in packets
}
"""FLOPs an element of functions that are made of several, each elementwise function of an element counted as 1."""


def _selected(read: list[Tensor], results: list[Tensor]) -> int:
    """Of a table only the rows that are asked for are read; the indices are."""
    return sum(_bytes(t) for t in read if not t.is_floating_point()) + sum(map(_bytes, results))


def _nothing(read: list[Tensor], results: list[Tensor]) -> int:
    return 0


def _without_first(read: list[Tensor], results: list[Tensor]) -> int:
    return sum(map(_bytes, read[1:]))


_READS: dict[Any, Callable[[list[Tensor], list[Tensor]], int]] = {
    **dict.fromkeys(_packets("embedding", "index_select", "gather", "index", "_unsafe_index", "take"), _selected),
    **dict.fromkeys(_FILLS | _DRAWS, _nothing),
    **dict.fromkeys(_packets("copy_", "_foreach_copy_"), _without_first),
}


@dataclass(frozen=True)
class _Attention:
    """An attention operator of torch's: the names of its arguments, and whether it is the backward pass."""

    names: tuple[str, ...]
    is_backward: bool


def _attention(of: _Attention, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Cost:
    """Of torch's layout, [batch, heads, length, head_dim]."""
    given = dict(zip(of.names, arguments, strict=False)) | keywords
    query, key = given["query"], given["key"]
    batch, heads, length, head_dim = query.shape
    formula = attention_backward if of.is_backward else attention_forward
    causal = bool(given.get("is_causal", False))
    return formula(batch, length, key.shape[2], heads, head_dim, causal, query.element_size(), key.shape[1])


def _matrix_vector(*arguments: Any, out_val: Any = None, **keywords: Any) -> int:
    """mv(matrix, vector), addmv(sum, matrix, vector): the matrix is the first argument of two dimensions."""
    matrix = next(tensor for tensor in arguments if tensor.dim() == 2)
    return 2 * int(matrix.numel())


def _dot(left: Tensor, right: Tensor, out_val: Any = None) -> int:
    return 2 * left.numel()


def _vecdot(left: Tensor, right: Tensor, out_val: Any = None, **keywords: Any) -> int:
    return 2 * max(left.numel(), right.numel())


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, out_val: Any = None) -> int:
    return 2 * x.numel() * weight.shape[0]


def _bag(weight: Tensor, indices: Tensor, *others: Any, out_val: Any = None, **keywords: Any) -> int:
    return 2 * indices.numel() * weight.shape[1]


def _grouped(left: Tensor, right: Tensor, *others: Any, out_val: Any = None, **keywords: Any) -> int:
    """Every row of `left` meets one group's matrix; of two matrices in groups along the sum, every column."""
    return 2 * left.numel() * right.shape[-1]


def _recurrent(x: Tensor, *weights: Any, out_val: Any = None, **keywords: Any) -> int:
    """oneDNN's layer: x and the hidden state times their weights, every position."""
    return 2 * (x.numel() // x.shape[-1]) * (weights[0].numel() + weights[1].numel())


def _recurrent_backward(x: Tensor, *weights: Any, out_val: Any = None, **keywords: Any) -> int:
    """Each product twice: the gradient of what is multiplied, and of the weights."""
    return 2 * _recurrent(x, *weights)


_ATTENTION = {
    packet: _Attention(tuple(argument.name for argument in packet.default._schema.arguments), is_backward)
    for is_backward, ending in ((False, ""), (True, "_backward"))
    for kind in ("flash", "efficient", "cudnn", "fused")
    for suffix in ("", "_for_cpu", "_overrideable")
    for packet in _packets(f"_scaled_dot_product_{kind}_attention{suffix}{ending}")
}
_FORMULAS: dict[Any, Callable[..., int]] = {
    packet: formula
    for formula, packets in (
        (_matrix_vector, _packets("mv", "addmv")),
        (_dot, _packets("dot", "vdot")),
        (_vecdot, _packets("linalg_vecdot")),
        (_linear, _packets("linear")),
        (_bag, _packets("_embedding_bag", "_embedding_bag_forward_only")),
        (_grouped, _packets("_grouped_mm")),
        (_recurrent, _packets("mkldnn_rnn_layer")),
        (_recurrent_backward, _packets("mkldnn_rnn_layer_backward")),
    )
    for packet in packets
}
