"""What a rank keeps and what it sends in a training step, by formula: for plans, and for tests to measure against.

Both read a model that is not divided yet; one made on the meta device will do:

>>> with torch.device("meta"):
...     model = LanguageModel(config)                           # doctest: +SKIP
>>> memory(model, ParallelConfig(shard=8)).total                # doctest: +SKIP
"""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from verim.models import LanguageModel
from verim.nn import MixtureOfExperts
from verim.train.parallel.config import ParallelConfig
from verim.train.parallel.plans import PLANS, WHOLE, Cut, Plan
from verim.train.parallel.shard import owners
from verim.train.parallel.traffic import Kind, volume

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Memory:
    """Bytes on one rank: of weights, their gradients and the optimiser's state, as they lie between backward pass and
    update; and, besides, of the weights that are gathered at once while a step runs."""

    weights: int
    gradients: int
    state: int
    gathered: int = 0

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.state + self.gathered


def memory(
    model: LanguageModel,
    config: ParallelConfig,
    place: int = 0,
    weight_bytes: int = 4,
    gradient_bytes: int = 4,
    state_bytes: int = 8,
) -> Memory:
    """Of the rank that is number `place` along shard, for so many bytes a weight (Adam in float32: 4, 4 and 8).

    With N weights a rank after tensor parallelism and n shard ranks these are, but for rounding to rows,

        zero 1    4 N + 4 N + 8 N / n, whole weights to the rank that has least
        zero 2    (4 N + 4 N + 8 N) / n, and 4 N gathered from a step's forward pass to the end of its backward pass
        zero 3    (4 N + 4 N + 8 N) / n, and those of the largest block and of what is in no block gathered

    (Rajbhandari et al. 2020, arXiv 1910.02054, section 5, where weights of stage 2 stay whole between steps too.)
    Place 0 keeps the most where rows cannot be divided evenly. Of offloaded states the bytes lie with the CPU.
    """
    units = [[math.prod(shape) for shape in shapes] for shapes in _units(model, config)]
    whole = sum(map(sum, units))
    if config.zero == 1:
        weights = _shapes(model, config)
        own = owners([torch.empty(shape, device="meta") for shape in weights], config.shard)
        kept = sum(math.prod(shape) for shape, rank in zip(weights, own, strict=True) if rank == place)
        return Memory(whole * weight_bytes, whole * gradient_bytes, kept * state_bytes)
    if config.shard == 1 and not config.offload:
        return Memory(whole * weight_bytes, whole * gradient_bytes, whole * state_bytes)
    kept = sum(_rows(shape[0], config.shard, place) * math.prod(shape[1:]) for shape in _shapes(model, config))
    *blocks, rest = (sum(unit) for unit in units)
    gathered = whole if config.zero == 2 else rest + max(blocks)
    return Memory(kept * weight_bytes, kept * gradient_bytes, kept * state_bytes, gathered * weight_bytes)


def held(module: nn.Module, optimiser: torch.optim.Optimizer) -> Memory:
    """What `memory` is about, measured: the bytes of the tensors that live on this rank. Gathered weights are not seen
    between steps; a state's tensors of another size than their weight (counts of steps) are left out."""
    weights = list(module.parameters())
    states = [
        value
        for weight, state in optimiser.state.items()
        for value in state.values()
        if isinstance(value, Tensor) and value.shape == weight.shape
    ]
    return Memory(_bytes(weights), _bytes(w.grad for w in weights if w.grad is not None), _bytes(states))


def traffic(
    model: LanguageModel, config: ParallelConfig, batch: int, length: int, element: int = 4
) -> dict[Kind, float]:
    """Bytes that a rank sends in a training step for weights, gradients and activations, by kind of collective.

    `batch` is the global number of sequences, `element` the bytes of a number. Data, shard and tensor dimensions are
    counted, one exchange of gradients a step, without recomputation; what is exchanged beside (a step's loss and norm)
    is a few numbers.
    """
    sent: defaultdict[Kind, float] = defaultdict(float)

    def add(kind: Kind, numbers: float, ranks: int) -> None:
        if ranks > 1:
            sent[kind] += volume(kind, numbers * element, ranks)

    shapes = _shapes(model, config)
    copies = config.data * config.expert * config.context
    if config.zero > 1 and config.shard > 1:
        *blocks, rest = (
            sum(config.shard * _rows(shape[0], config.shard, 0) * math.prod(shape[1:]) for shape in unit)
            for unit in _units(model, config)
        )
        add("all_gather", sum(blocks) * (2 if config.zero == 3 else 1) + rest, config.shard)
        add("reduce_scatter", sum(blocks) + rest, config.shard)
        add("all_reduce", (sum(blocks) + rest) / config.shard, copies)
    else:
        whole = sum(map(math.prod, shapes))
        add("all_reduce", whole, copies * config.shard)
        add("broadcast", whole if config.zero == 1 else 0, config.shard)
    if config.context == 1:  # experts are chosen for the batch of all ranks
        for layer in model.layers():
            if isinstance(layer, MixtureOfExperts):
                add("all_gather", batch * length * layer.config.experts, config.rows)
    if config.tensor > 1:
        tokens = batch // config.rows * length
        for layer in model.layers():
            for kind, numbers in _exchanges(layer, config, tokens, model.config.width):
                add(kind, numbers, config.tensor)
        if config.sequence_parallel:  # behind the embedding, before the head, and the gradients of the norms
            add("all_gather", 2 * tokens * model.config.width, config.tensor)
            norms = [weight for name, weight in model.named_parameters() if _is_divided_norm(name)]
            add("all_reduce", sum(weight.numel() for weight in norms), config.tensor)
    return dict(sent)


def _exchanges(layer: nn.Module, config: ParallelConfig, tokens: int, width: int) -> Iterable[tuple[Kind, float]]:
    """The collectives of one layer, forward and backward, and how many numbers each is about."""
    plan: Plan = PLANS[type(layer)](layer)
    stream = tokens * width
    at_its_ends = plan.enters == WHOLE
    if config.sequence_parallel and at_its_ends:
        yield "all_gather", 2 * stream
        yield "reduce_scatter", 2 * stream
    else:
        yield "all_reduce", stream * (len(plan.enters) + len(plan.leaves))
    if config.sequence_parallel and not at_its_ends:
        yield "all_gather", 2 * stream
    for name in plan.totals:
        total = layer.get_submodule(name)
        assert isinstance(total, nn.Linear), "what is summed is a matrix's product"
        yield "all_reduce", 2 * tokens * total.out_features
    if plan.norm_over_ranks:
        yield "all_reduce", 2 * tokens
    if isinstance(layer, MixtureOfExperts):  # tokens and results, and gates: fewer where a capacity drops some
        yield "all_reduce", 2 * stream + tokens * layer.config.active
    weights = dict(layer.named_parameters())
    for name in plan.partial:
        if name in weights:
            yield "all_reduce", weights[name].numel()
    for name, cut in plan.cuts.items():
        if cut.whole and name in weights:
            rows = sum(stop - start for start, stop in cut.shared(config.tensor))
            yield "all_reduce", rows * math.prod(weights[name].shape[1:])
    whole_stream = ParallelConfig(tensor=config.tensor)
    for name in plan.layers:
        yield from _exchanges(layer.get_submodule(name), whole_stream, tokens, width)


def _is_divided_norm(name: str) -> bool:
    return name.startswith("norm.") or "mixer_norm." in name or "feed_forward_norm." in name


def _units(model: LanguageModel, config: ParallelConfig) -> list[list[Shape]]:
    """The shapes of what is gathered together: each block's, and at the end what is in no block."""
    cuts = _cuts(model, config)
    named = dict(model.named_parameters())
    units: list[list[Shape]] = [[] for _ in range(len(model.blocks) + 1)]
    for name, weight in named.items():
        unit = int(name.split(".")[1]) if name.startswith("blocks.") else -1
        units[unit].append(_cut_shape(tuple(weight.shape), cuts.get(name), config.tensor))
    return units


def _shapes(model: LanguageModel, config: ParallelConfig) -> list[Shape]:
    """Of all weights, as tensor ranks keep them, in the order of the model's parameters."""
    cuts = _cuts(model, config)
    return [_cut_shape(tuple(weight.shape), cuts.get(name), config.tensor) for name, weight in model.named_parameters()]


def _cuts(model: LanguageModel, config: ParallelConfig) -> dict[str, Cut]:
    """How weights are divided over tensor ranks, by name."""
    if config.tensor == 1:
        return {}
    return {
        f"{path}.{name}": cut
        for path, layer in model.named_modules()
        if type(layer) in PLANS
        for name, cut in PLANS[type(layer)](layer).cuts.items()
    }


def _cut_shape(shape: Shape, cut: Cut | None, ranks: int) -> Shape:
    if cut is None:
        return shape
    own = sum(stop - start for start, stop in cut.ranges(0, ranks))
    return (*shape[: cut.dim], own, *shape[cut.dim + 1 :])


def _rows(rows: int, ranks: int, place: int) -> int:
    """Of `rows` in pieces of rows / ranks, rounded up, the number of the piece `place`."""
    piece = math.ceil(rows / ranks)
    return max(0, min(piece, rows - place * piece))


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of what of `tensors` lies on this rank."""
    local = (tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors)
    return sum(tensor.numel() * tensor.element_size() for tensor in local)
