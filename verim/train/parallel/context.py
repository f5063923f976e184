"""Context parallelism: the positions of every sequence lie on ranks, a piece on each."""

from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh

from verim import ops
from verim.errors import InputError
from verim.nn import Layer, MixtureOfExperts
from verim.nn.along import LooksAlong
from verim.nn.mixers import Attention
from verim.nn.recursion import RoutedStack
from verim.ops.distributed import Order, padded_rows_before, spans
from verim.train.parallel.expert import route_over
from verim.train.parallel.groups import group_of, own_place
from verim.train.parallel.state_passing import pass_state_on
from verim.train.parallel.time_invariant import distributed_time_invariant_scan


def context_parallel(model: nn.Module, group: ProcessGroup | DeviceMesh, order: Order = "contiguous") -> None:
    """Changes `model` in place: `model(piece(tokens, group, order))` on each rank gives its piece of the logits.

    The weights are the same on every rank of `group` and stay whole. Each rank's loss is the mean over the targets of
    its piece; the gradient of the mean over the whole sequence is then the mean of the ranks' gradients: to whoever
    averages gradients, the ranks of a sequence are as those of a batch. Where losses are sums, gradients are to be
    summed.

    What looks along the sequence goes over the ranks:

    - attention by ring, with a window by the rows before (`verim.ops.distributed_attention`);
    - Mamba, Mamba-2, S4D, RWKV-4, RWKV-7, minGRU and minLSTM by the scan over ranks, which needs one all-gather of
      states, and their convolutions and token shifts by the rows before;
    - RNN, GRU, LSTM, and any other layer whose state is a `TensorState`, by handing the state on: correct, but
      SEQUENTIAL: rank r waits for rank r - 1, and nothing is gained but memory;
    - the capacity, the choices and the balance loss of experts are those of the whole sequences.

    `order`: which positions a rank holds, see `verim.ops.distributed.spans`. With "zigzag" causal attention is the same
    work for all ranks; it is for models that look along the sequence by attention without a window alone.

    A state can neither be given to such a model nor comes back: it trains, and evaluates whole sequences. All ranks
    make the same calls, and all run the backward pass.

    Raises `InputError` for a layer without a rule, naming it and what can be in its place.
    """
    group = group_of(group)
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, Layer)]
    _refuse_routed_recursion(model)
    for name, layer in layers:
        _require_order(name, layer, order)
    for name, layer in layers:
        if isinstance(layer, MixtureOfExperts):
            route_over(layer, context=group)
        elif layer.state_bytes(1, 1):
            layer.register_forward_pre_hook(_refuse_state, with_kwargs=True)
            if not any(isinstance(module, LooksAlong) for module in layer.modules()):
                pass_state_on(name, layer, group)
            layer.register_forward_hook(_without_state)
    along = OverRanks(group, order)
    for module in model.modules():
        if isinstance(module, LooksAlong):
            module.along = along


def piece(
    tensor: Shaped[Tensor, "batch length *rest"], group: ProcessGroup | DeviceMesh, order: Order = "contiguous"
) -> Shaped[Tensor, "batch piece *rest"]:
    """The positions of this rank of `group`: of tokens and of targets, before they are given to the model and the loss.

    Raises `InputError` where the length cannot be divided.
    """
    group = group_of(group)
    parts = group.size() * (2 if order == "zigzag" else 1)
    length = tensor.shape[1]
    if length % parts or not length:
        raise InputError(
            f"context: got {group.size()} ranks, order {order!r}, for sequences of {length}; expected a length that is "
            f"a multiple of {parts}"
        )
    own = spans(own_place(group), group.size(), length // group.size(), order)
    return torch.cat([tensor[:, span.start : span.stop] for span in own], 1)


class WholeSequences(nn.Module):
    """A model that `context_parallel` has changed, called with whole sequences: for evaluations.

    Each rank of `group` computes its piece of the logits, and all get the whole. Sequences are padded at their end to
    what the ranks can divide, which no position before sees.
    """

    def __init__(self, model: nn.Module, group: ProcessGroup) -> None:
        super().__init__()
        self.model, self.group = model, group

    def forward(self, tokens: Int[Tensor, "batch length"]) -> tuple[Float[Tensor, "batch length vocab"], None]:
        length, ranks = tokens.shape[1], self.group.size()
        padded = nn.functional.pad(tokens, (0, -length % ranks))
        logits, _ = self.model(piece(padded, self.group))
        pieces = [torch.empty_like(logits) for _ in range(ranks)]
        distributed.all_gather(pieces, logits.contiguous(), group=self.group)
        return torch.cat(pieces, 1)[:, :length], None


class OverRanks:
    """`Along` of a sequence whose pieces lie on the ranks of a group. No states come back."""

    def __init__(self, group: ProcessGroup, order: Order) -> None:
        self.group, self.order = group, order

    def positions(self, length: int) -> list[range]:
        return spans(own_place(self.group), self.group.size(), length, self.order)

    def row_before(self, x: Tensor) -> Tensor:
        return padded_rows_before(x, 1, self.group)[:, 0]

    def attention(self, q: Tensor, k: Tensor, v: Tensor, window: int | None) -> Tensor:
        return ops.distributed_attention(q, k, v, window=window, order=self.order, group=self.group)

    def rotary_attention(self, qkv: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        turned, values = qkv[:, :, :2].flatten(2, 3), qkv[:, :, 2]
        queries, keys = ops.rotary(turned, cosines, sines).chunk(2, 2)
        return self.attention(queries, keys, values, None)

    def causal_conv1d(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, initial: Tensor | None, activation: str | None = None
    ) -> tuple[Tensor, Any]:
        return ops.distributed_causal_conv1d(x, weight, bias, activation, self.group), None

    def linear_recurrence(self, a: Tensor, b: Tensor, initial: Tensor | None) -> tuple[Tensor, Any]:
        return ops.distributed_linear_recurrence(a, b, group=self.group), None

    def selective_scan(
        self, u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, initial: Tensor | None
    ) -> tuple[Tensor, Any]:
        return ops.distributed_selective_scan(u, delta, A, B, C, D, group=self.group), None

    def state_space_dual(
        self, x: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, initial: Tensor | None
    ) -> tuple[Tensor, Any]:
        return ops.distributed_state_space_dual(x, delta, A, B, C, D, group=self.group), None

    def time_invariant_scan(
        self, u: Tensor, log_transition: Tensor, weight: Tensor, skip: Tensor, initial: Tensor | None
    ) -> tuple[Tensor, Any]:
        return distributed_time_invariant_scan(u, log_transition, weight, skip, group=self.group), None

    def wkv(self, k: Tensor, v: Tensor, w: Tensor, u: Tensor, state: Tensor | None) -> tuple[Tensor, Any]:
        return ops.distributed_wkv(k, v, w, u, group=self.group), None

    def wkv7(
        self, r: Tensor, w: Tensor, k: Tensor, v: Tensor, a: Tensor, b: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Any]:
        return ops.distributed_wkv7(r, w, k, v, a, b, group=self.group), None


def _refuse_routed_recursion(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, RoutedStack):
            raise InputError(
                f"context: {name} routes tokens past blocks by what it sees of the whole sequence, which has no rule "
                "over ranks; expected recursion.routing None, or context 1"
            )


def _require_order(name: str, layer: Layer, order: Order) -> None:
    """Raises `InputError` where `layer` cannot work on positions that lie as `order` says."""
    if order == "contiguous":
        return
    if layer.state_bytes(1, 1) and (not isinstance(layer, Attention) or layer.window):
        kind = "Attention with a window" if isinstance(layer, Attention) else type(layer).__name__
        raise InputError(
            f"order: got {order!r} with {name}, {kind}; expected 'contiguous', or attention without a window alone: "
            "recurrences and windows need neighbouring positions on one rank"
        )
    if isinstance(layer, MixtureOfExperts) and layer.config.capacity_factor:
        raise InputError(
            f"order: got {order!r} with {name}, whose capacity_factor takes tokens in the order of positions; expected "
            "'contiguous', or capacity_factor 0"
        )


def _refuse_state(layer: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    if (len(arguments) > 1 and arguments[1] is not None) or keywords.get("state") is not None:
        raise InputError(
            f"state: {type(layer).__name__} got one, but its sequence lies on several ranks; expected None: give whole "
            "sequences, or decode with a model on one rank"
        )


def _without_state(layer: nn.Module, arguments: tuple[Any, ...], result: tuple[Tensor, Any]) -> tuple[Tensor, None]:
    return result[0], None
