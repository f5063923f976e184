"""Tensor parallelism: the ranks of a group share every layer's weights and work on the same rows.

Weights that are divided become plain parameters of this rank's slice; `Layout` says which slice of what. A module's
`in_features` stays that of the whole, which is what learning rates go by. The embedding and the head are whole on every
rank, and so are layers without a plan; all ranks compute them alike.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed import ProcessGroup

from verim.errors import InputError
from verim.models import LanguageModel
from verim.models.language_model import Block
from verim.nn import MixtureOfExperts
from verim.nn.experts import swiglu_experts
from verim.train.parallel import collectives
from verim.train.parallel.plans import PLANS, WHOLE, Cut, Plan


@dataclass(frozen=True)
class Layout:
    """A weight of `shape`, of which every rank along `dimension` of the mesh keeps what `cut` says."""

    shape: tuple[int, ...]
    cut: Cut
    dimension: str = "tensor"

    def own(self, whole: Tensor, rank: int, ranks: int) -> Tensor:
        """What `rank` keeps of `whole`."""
        dim = self.cut.dim
        ranges = self.cut.ranges(rank, ranks)
        return torch.cat([whole.narrow(dim, start, stop - start) for start, stop in ranges], dim)

    def join(self, slices: Sequence[Tensor]) -> Tensor:
        """The whole from what every rank keeps."""
        dim = self.cut.dim
        whole = slices[0].new_empty(self.shape)
        for rank, kept in enumerate(slices):
            ranges = self.cut.ranges(rank, len(slices))
            for (start, stop), part in zip(ranges, kept.split([b - a for a, b in ranges], dim), strict=True):
                whole.narrow(dim, start, stop - start).copy_(part)
        return whole

    def gather(self, kept: Tensor, group: ProcessGroup) -> Tensor:
        """The whole, on every rank of `group`, from what each keeps of it."""
        slices = [torch.empty_like(kept, memory_format=torch.contiguous_format) for _ in range(group.size())]
        distributed.all_gather(slices, kept.contiguous(), group=group)
        return self.join(slices)


def parallelize_tensor(model: LanguageModel, group: ProcessGroup, sequence_parallel: bool) -> dict[str, Layout]:
    """Divides the layers of `model` over the ranks of `group`, in place; the layouts of divided weights by name.

    With `sequence_parallel` the residual stream and its norms are divided by positions between the layers: an
    all-reduce becomes a reduce-scatter behind a layer and an all-gather before the next one.
    """
    layouts = {}
    names = {id(weight): name for name, weight in model.named_parameters()}
    for layer in model.layers():
        for weight, parameter, layout in _divide(layer, group, sequence_parallel):
            layouts[names[weight]] = layout
            names[id(parameter)] = names[weight]
    if sequence_parallel:
        _divide_norms(model, group)
    return layouts


def _divide(layer: nn.Module, group: ProcessGroup, by_positions: bool) -> list[tuple[int, nn.Parameter, Layout]]:
    """The identities of the weights that were divided, what took their place, and their layouts."""
    if type(layer) not in PLANS:
        raise InputError(f"tensor: {type(layer).__name__} cannot be divided over tensor ranks; expected tensor=1")
    plan = PLANS[type(layer)](layer)
    rank, ranks, changed = group.rank(), group.size(), []
    for name, cut in plan.cuts.items():
        owner, leaf = _owner(layer, name)
        weight = getattr(owner, leaf, None)  # biases may be absent
        if weight is None:
            continue
        layout = Layout(tuple(weight.shape), cut)
        kept = nn.Parameter(layout.own(weight.detach(), rank, ranks), requires_grad=weight.requires_grad)
        setattr(owner, leaf, kept)
        changed.append((id(weight), kept, layout))
    for name in plan.sizes:
        owner, leaf = _owner(layer, name)
        setattr(owner, leaf, getattr(owner, leaf) // ranks)
    for name in plan.layers:
        changed += _divide(layer.get_submodule(name), group, False)
    _exchange(layer, plan, group, by_positions)
    return changed


def _exchange(layer: Any, plan: Plan, group: ProcessGroup, by_positions: bool) -> None:
    """Hooks that exchange where `plan` says."""
    at_its_ends = plan.enters == WHOLE
    at_begin, at_end = collectives.enter, collectives.leave
    if by_positions and at_its_ends:
        at_begin, at_end = collectives.gather_to_enter, collectives.leave_to_slice
    for name in plan.enters:
        _before(layer.get_submodule(name), at_begin, group)
    for name in plan.leaves:
        _after(layer.get_submodule(name), at_end, group)
    for name in plan.totals:
        _after(layer.get_submodule(name), collectives.total, group)
    if by_positions and not at_its_ends:  # all ranks do the same with all positions
        _before(layer, collectives.gather_positions, group)
        _after(layer, collectives.slice_positions, group)
    if isinstance(layer, MixtureOfExperts):
        layer.compute = partial(_experts_over_ranks, group)
    if plan.norm_over_ranks:
        layer._norm = partial(_norm_over_ranks, layer, group)
    adjustments: list[Adjustment] = [
        (*_owner(layer, name), partial(collectives.enter, group=group)) for name in plan.partial
    ]
    adjustments += [(*_owner(layer, name), partial(_share, ranks=group.size())) for name in plan.once]
    for name, cut in plan.cuts.items():
        if cut.whole:
            shared = partial(_enter_rows, ranges=cut.shared(group.size()), group=group)
            adjustments.append((*_owner(layer, name), shared))
    _adjust(layer, adjustments)


def _divide_norms(model: LanguageModel, group: ProcessGroup) -> None:
    """The residual stream by positions from behind the embedding to before the head."""
    begin = model.embedding if model.embedding_norm is None else model.embedding_norm
    _after(begin, collectives.slice_positions, group)
    norms: list[nn.Module] = [model.norm]
    for block in model.blocks:
        assert isinstance(block, Block), "blocks holds blocks alone"
        norms += [norm for norm in (block.mixer_norm, block.feed_forward_norm) if norm is not None]
    for norm in norms:  # each rank has the gradient of its positions
        _adjust(norm, [(norm, name, partial(collectives.enter, group=group)) for name, _ in norm.named_parameters()])
    _after(model.norm, collectives.gather_positions, group)


Exchange = Callable[[Tensor, ProcessGroup], Tensor]
Adjustment = tuple[nn.Module, str, Callable[[Tensor], Tensor]]
"""A module, the name of a weight of it, and what takes the weight's place during a call."""


def _before(module: nn.Module, exchange: Exchange, group: ProcessGroup) -> None:
    """`exchange` on the first argument."""

    def hook(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        return (exchange(arguments[0], group), *arguments[1:])

    module.register_forward_pre_hook(hook)


def _after(module: nn.Module, exchange: Exchange, group: ProcessGroup) -> None:
    """`exchange` on the result, of a layer on the first of (y, state)."""

    def hook(module: nn.Module, arguments: tuple[Any, ...], result: Any) -> Any:
        return (exchange(result[0], group), *result[1:]) if isinstance(result, tuple) else exchange(result, group)

    module.register_forward_hook(hook)


def _adjust(module: nn.Module, adjustments: list[Adjustment]) -> None:
    """During calls of `module` its weights are what `adjustments` make of them: so a weight's gradient is exchanged in
    the graph, before anyone (DDP, FSDP) that waits for the weight's own gradient gets it."""
    present = [entry for entry in adjustments if entry[0]._parameters.get(entry[1]) is not None]
    if not present:
        return
    kept: list[Any] = []

    def before(module: nn.Module, arguments: Any) -> None:
        for owner, name, adjust in present:
            weight = owner._parameters[name]
            assert weight is not None, "weights do not vanish"
            kept.append(weight)
            owner._parameters[name] = adjust(weight)  # type: ignore[assignment]  # for a call, no parameter

    def after(module: nn.Module, arguments: Any, result: Any) -> None:
        for (owner, name, _), weight in zip(present, kept, strict=False):  # fewer where a call broke off
            owner._parameters[name] = weight
        kept.clear()

    module.register_forward_pre_hook(before)
    module.register_forward_hook(after, always_call=True)


def _owner(layer: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The module that has the attribute, and the last word of its name."""
    path, _, leaf = name.rpartition(".")
    return layer.get_submodule(path), leaf


def _experts_over_ranks(
    group: ProcessGroup, x: Tensor, gate_and_in: Tensor, out: Tensor, rows: Any, gates: Tensor
) -> Tensor:
    """Every rank has some of the channels inside each expert: so the gates' gradients, too, are parts."""
    enter = partial(collectives.enter, group=group)
    return collectives.leave(swiglu_experts(enter(x), gate_and_in, out, rows, enter(gates)), group)


def _norm_over_ranks(layer: Any, group: ProcessGroup, y: Tensor) -> Tensor:
    """Mamba-2's norm over the channels of all ranks: the sum of squares is exchanged, a number a position."""
    wide = y.to(torch.promote_types(y.dtype, torch.float32))
    squares = collectives.total(wide.square().sum(-1, keepdim=True), group)
    mean = squares / (layer.inner * group.size())
    return (wide * torch.rsqrt(mean + layer.eps)).to(y.dtype) * layer.gain


def _share(bias: Tensor, ranks: int) -> Tensor:
    result: Tensor = _Share.apply(bias, ranks)
    return result


class _Share(torch.autograd.Function):
    """A rank's share of what is added once to a sum over ranks; all ranks have its whole gradient."""

    @staticmethod
    def forward(ctx: Any, bias: Tensor, ranks: int) -> Tensor:
        return bias / ranks

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _enter_rows(weight: Tensor, ranges: list[tuple[int, int]], group: ProcessGroup) -> Tensor:
    result: Tensor = _EnterRows.apply(weight, ranges, group)
    return result


class _EnterRows(torch.autograd.Function):
    """`collectives.enter` for some rows of a weight."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, ranges: list[tuple[int, int]], group: ProcessGroup) -> Tensor:
        ctx.ranges, ctx.group = ranges, group
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        gradient = gradients[0].clone()
        rows = [slice(start, stop) for start, stop in ctx.ranges]
        total = collectives.sum_over(torch.cat([gradient[part] for part in rows]), ctx.group)
        for part, summed in zip(rows, total.split([part.stop - part.start for part in rows]), strict=True):
            gradient[part] = summed
        return gradient, None, None
