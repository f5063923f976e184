"""Expert parallelism: the experts of a mixture lie on ranks, and tokens travel to theirs and back."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh
from torch.nn.functional import embedding_bag

from verim.errors import InputError
from verim.nn import MixtureOfExperts
from verim.nn.routing import Rows
from verim.ops.distributed import Ranks
from verim.ops.precision import follow_autocast
from verim.train.parallel.groups import group_of, own_place

_NAME = "expert_parallel"
Tokens = Float[Tensor, "tokens width"]


def expert_parallel(
    model: nn.Module, group: ProcessGroup | DeviceMesh, batch: ProcessGroup | DeviceMesh | None = None
) -> None:
    """Spreads the experts of every mixture in `model` over the ranks of `group`, in place (GShard, arXiv 2006.16668).

    Every rank gives the whole model with the same weights, and keeps experts / ranks of them: of the weights
    `gate_and_in` and `out` the range of the first dimension that is its place in `group`. Each rank has its own rows of
    the batch, as many as the others. A token's row goes to the rank of its expert and its result back, an all-to-all of
    uneven parts each.

    `batch`: all ranks that have rows of the batch, by default `group`. In training routing is that of the batch of all
    of them: capacities, what is dropped, what experts choose, their thresholds and the shares in the balance loss are
    those of one rank with all rows, in the order of the ranks. For that the router's logits are gathered (experts
    numbers a token). With a `group` of one rank nothing is spread, and routing alone is over `batch`: exact data
    parallelism.

    **Gradients.** Each rank's loss is the mean over its rows. The gradient of the whole batch's mean loss is, for all
    weights but the experts', the mean of the ranks' gradients over `batch`. Experts, which get gradients from all ranks
    of `group`, have the mean over `group` when the backward pass ends: what is left is the mean over the ranks of
    `batch` that keep the same experts. `expert_weights` names them. Each rank hands out the auxiliary losses of its own
    rows: the mean over the ranks is that of the whole batch.

    **Cost.** A rank with R rows on other ranks' experts sends R · width numbers forward and again backward, and gets as
    many results back; and an integer an expert. All four directions together: 4 R · width.

    Raises `InputError` where the experts cannot be divided, or there are none.
    """
    group = group_of(group)
    over_batch = group if batch is None else group_of(batch)
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, MixtureOfExperts)]
    if not layers:
        raise InputError(f"expert: got {group.size()} ranks for a model without experts; expected 1, or use data")
    for name, layer in layers:
        experts = layer.config.experts
        if experts % group.size():
            known = ", ".join(str(ranks) for ranks in range(1, experts + 1) if experts % ranks == 0)
            got = f"got {group.size()} ranks for {experts} experts in {name}"
            raise InputError(f"expert: {got}; expected one of {known}")
    for _, layer in layers:
        route_over(layer, batch=over_batch)
        if group.size() > 1:
            for stack in (layer.gate_and_in, layer.out):
                stack.weight = nn.Parameter(stack.weight.detach().chunk(group.size())[own_place(group)].clone())
            layer.compute = _Spread(group, layer.compute)


def expert_weights(model: nn.Module) -> list[str]:
    """The names of the weights that `expert_parallel` spreads: the stacks of experts."""
    return [
        f"{name}.{stack}.weight"
        for name, layer in model.named_modules()
        if isinstance(layer, MixtureOfExperts)
        for stack in ("gate_and_in", "out")
    ]


def route_over(layer: MixtureOfExperts, batch: ProcessGroup | None = None, context: ProcessGroup | None = None) -> None:
    """Routes the tokens of all ranks together in training: `batch` have other rows, `context` other positions."""
    known = layer.batch if isinstance(layer.batch, _BatchOverRanks) else _BatchOverRanks(None, None)
    layer.batch = _BatchOverRanks(batch or known.batch, context or known.context)


@dataclass(frozen=True)
class _BatchOverRanks:
    """`verim.nn.mixture_of_experts.RoutedBatch` of ranks with other rows and other positions; None: all are here."""

    batch: ProcessGroup | None
    context: ProcessGroup | None

    def logits(self, logits: Float[Tensor, "batch length experts"]) -> Float[Tensor, "rows positions experts"]:
        for axis, group in ((1, self.context), (0, self.batch)):
            if group is not None and group.size() > 1:
                parts = [part for (part,) in Ranks(_NAME, group, False).gather(logits.detach())]
                parts[own_place(group)] = logits  # with its gradients
                logits = torch.cat(parts, axis)
        return logits

    def own(self, rows: Rows, gates: Tensor, batch: int, length: int) -> tuple[Rows, Tensor]:
        first_row, all_rows = _range(self.batch, batch)
        first, positions = _range(self.context, length)
        numbers = torch.full((all_rows, positions), -1, device=rows.tokens.device)
        here = torch.arange(batch * length, device=numbers.device).view(batch, length)
        numbers[first_row : first_row + batch, first : first + length] = here
        tokens = numbers.flatten()[rows.tokens]
        kept = tokens >= 0
        load = torch.bincount(torch.repeat_interleave(rows.load)[kept], minlength=len(rows.load))
        return Rows.sorted_by_expert(tokens[kept], load, batch * length), gates[kept]


@dataclass(frozen=True)
class _Spread:
    """`swiglu_experts` with the weights of this rank's experts: rows of the others go to where those are.

    `compute` is what multiplies with the experts that are here.
    """

    group: ProcessGroup
    compute: Callable[[Tensor, Tensor, Tensor, Rows, Tensor], Tensor]

    def __call__(self, x: Tokens, gate_and_in: Tensor, out: Tensor, rows: Rows, gates: Tensor) -> Tokens:
        ranks, size, experts = Ranks(_NAME, self.group, False), self.group.size(), len(gate_and_in)
        (x,) = follow_autocast(x, lower=True)
        load = ranks.all_to_all(rows.load, [experts] * size, [experts] * size).view(size, experts)
        sent, received = rows.load.view(size, experts).sum(1).tolist(), load.sum(1).tolist()
        arrived = _Sent.apply(x.index_select(0, rows.tokens), ranks, sent, received)
        inner, outer = (_Mean.apply(weight, size) for weight in (gate_and_in, out))
        computed = self.compute(arrived, inner, outer, *_by_expert(load))
        results = _Sent.apply(computed, ranks, received, sent)
        if not len(results):
            return x.new_zeros(x.shape) + results.sum()  # depends on it: the exchanges back are for all
        shares = gates.to(results.dtype).index_select(0, rows.by_token)
        return embedding_bag(rows.by_token, results, rows.starts, mode="sum", per_sample_weights=shares)


def _by_expert(load: Tensor) -> tuple[Rows, Tensor]:
    """Rows that came from each rank sorted by expert, `load` [ranks, experts] of each, as the experts compute them."""
    experts = torch.arange(load.shape[1], device=load.device).repeat(len(load))
    order = torch.repeat_interleave(experts, load.flatten()).argsort(stable=True)
    starts = torch.arange(len(order), device=load.device)
    return Rows(order, load.sum(0), order.argsort(), starts), torch.ones(len(order), device=load.device)


def _range(group: ProcessGroup | None, size: int) -> tuple[int, int]:
    """Where this rank's `size` begin among those of all ranks of `group`, and how many those are."""
    return (0, size) if group is None else (own_place(group) * size, group.size() * size)


class _Sent(torch.autograd.Function):
    """`sent[i]` rows to each rank i, `received[i]` from each; the gradients go the other way."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, ranks: Ranks, sent: list[int], received: list[int]) -> Tensor:
        ctx.call = ranks, received, sent
        return ranks.all_to_all(rows, sent, received)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        ranks, sent, received = ctx.call
        return ranks.all_to_all(gradients[0], sent, received), None, None, None


class _Mean(torch.autograd.Function):
    """The weight as it is; of its gradient, a sum over `ranks` ranks' losses, the mean."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ranks: int) -> Tensor:
        ctx.ranks = ranks
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return gradients[0] / ctx.ranks, None
