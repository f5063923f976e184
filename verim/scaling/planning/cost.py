"""What a parallel layout costs: bytes on its fullest rank, and the seconds of a step, each with its cause.

Weights, gradients, states and what ranks send are the formulas of `verim.train.parallel.formulas`; what blocks keep is
counted (`verim.scaling.planning.kept`); seconds are FLOPs and bytes over the rates of the devices and of their links.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from typing import Literal, get_args

from verim.models import LanguageModel
from verim.nn import MixtureOfExperts
from verim.nn.mixers import GRU, LSTM, RNN, Attention
from verim.scaling.planning.fleet import Fleet
from verim.scaling.planning.kept import STREAM_BYTES, element_bytes, kept_by_block
from verim.scaling.planning.sizes import Size
from verim.train.parallel import ParallelConfig
from verim.train.parallel.formulas import Memory, memory, traffic
from verim.train.parallel.pipeline import SCHEDULES, bubble
from verim.train.parallel.stages import balanced
from verim.train.precision import Kind

Cause = Literal["products", "elements", "recomputation", "update", "bubble", "link", "network", "host"]
CAUSES: tuple[Cause, ...] = get_args(Cause)
"""Of a step's seconds. `products`: the model's FLOPs; `elements`: reading and writing what lies between them;
`recomputation`; `update`: the optimiser's reads and writes; `bubble`: waiting in a pipeline; `link`, `network`:
exchanges within and between machines that no computation hides; `host`: what an offloaded step waits for the CPU."""
_KEPT_PASSES = 4
"""Of what is kept: written and read forward, read and its gradient written backward."""
_WEIGHT_PASSES = 3
"""Products that read a weight for every micro-batch: one forward, two backward."""
_UPDATE_PASSES = 7 / 4
"""Adam reads weight, gradient and two moments, and writes all but the gradient."""
_HOST_UPDATE_BYTES = 7 * 4
_BACKWARD = 2 / 3
"""Of a step's computation: what is left to hide the exchange of gradients behind."""


@dataclass(frozen=True)
class Layout:
    """How a step is divided over ranks, and into how many parts a rank takes its rows, one after the other."""

    parallel: ParallelConfig
    accumulation: int = 1

    @property
    def divides(self) -> dict[str, int]:
        """The dimensions of more than one rank."""
        names = ("data", "shard", "tensor", "pipeline", "context", "expert")
        return {name: getattr(self.parallel, name) for name in names if getattr(self.parallel, name) > 1}


@dataclass(frozen=True)
class Job:
    """A training step to be laid out: a size, its global batch in sequences, and in what it computes."""

    size: Size
    batch: int
    precision: Kind = "bfloat16"

    @property
    def tokens(self) -> int:
        return self.batch * self.size.length


@dataclass(frozen=True)
class Cost:
    """Of a layout: `memory` in bytes by what lies there, `seconds` of a step by their cause."""

    layout: Layout
    memory: Mapping[str, float]
    seconds: Mapping[Cause, float]

    @cached_property
    def memory_bytes(self) -> float:
        return sum(self.memory.values())

    @cached_property
    def step_seconds(self) -> float:
        return sum(self.seconds.values())


def cost(job: Job, layout: Layout, fleet: Fleet) -> Cost:
    """Memory and seconds of a layout that `ParallelConfig.check` accepts."""
    step = Step(job, layout, fleet)
    return Cost(layout, step.memory, step.seconds)


class Step:
    """The step of one rank: of the fullest stage, where there are several."""

    def __init__(self, job: Job, layout: Layout, fleet: Fleet) -> None:
        self.job, self.layout, self.fleet = job, layout, fleet
        self.size, self.parallel = job.size, layout.parallel
        self.tokens = job.tokens / self.parallel.rows / self.parallel.context
        """Of a rank in a step."""
        self.parts = max(layout.accumulation, self.parallel.micro_batches)
        self.recompute = self.parallel.activation_checkpointing
        self.kept = kept_by_block(self.size, job.precision, "none")
        self.stays = kept_by_block(self.size, job.precision, self.recompute)

    @cached_property
    def memory(self) -> dict[str, float]:
        """Bytes by what lies there."""
        weights = self._weights()
        activations, one_block = self._activations()
        logits = self.tokens / self.parts * self.size.config.vocab * 2 * element_bytes(self.job.precision)
        on_device = dict.fromkeys(("weights", "gradients", "optimiser"), 0.0)
        if not self.parallel.offload:
            on_device |= {"weights": weights.weights, "gradients": weights.gradients, "optimiser": weights.state}
        if (
            self.layout.accumulation > 1
            and self.parallel.zero > 1
            and (self.parallel.shard > 1 or self.parallel.offload)
        ):
            on_device["gradients"] = 4 * self._whole_weights()  # they are added up before they are exchanged
        return on_device | {
            "gathered": weights.gathered,
            "activations": activations,
            "working": max(one_block, logits),
        }

    @cached_property
    def seconds(self) -> dict[Cause, float]:
        """Of the step, by their cause."""
        fleet, parallel = self.fleet, self.parallel
        weights, slowest = self._weights(), _slowest_stage(self.size, parallel.pipeline)
        flops = self.size.flops_per_token * self.tokens * slowest * self._undivided()
        reading = _WEIGHT_PASSES * self._whole_weights() * element_bytes(self.job.precision) * self.parts
        products = max(flops / fleet.flops, reading / fleet.bandwidth)
        blocks = self.size.depth * self._block_share()
        elements = self.tokens * blocks * self._divided(self.kept.per_token, self.kept.stream) * _KEPT_PASSES
        again = 0.0
        if self.recompute == "full":
            again = products / 3
        if self.recompute != "none":
            again += elements / 2 / fleet.bandwidth
        busy = products + elements / fleet.bandwidth + again
        waiting = bubble(parallel.pipeline, parallel.micro_batches, parallel.pipeline_schedule)
        offloaded = parallel.offload
        kept = weights.weights + weights.gradients + weights.state
        seconds: dict[Cause, float] = {
            "products": products,
            "elements": elements / fleet.bandwidth,
            "recomputation": again,
            "update": 0.0 if offloaded else _UPDATE_PASSES * kept / fleet.bandwidth,
            "bubble": busy * waiting / (1 - waiting),
            "link": 0.0,
            "network": 0.0,
            "host": self._host_seconds(weights) if offloaded else 0.0,
        }
        for link, exposed in self._exposed(busy):
            seconds["link" if link == "link" else "network"] += exposed
        return seconds

    def _weights(self) -> Memory:
        """Of a rank, as `formulas.memory` has it, of the fullest stage and of this rank's experts."""
        parallel = self.parallel
        whole = _memory(self.size, parallel.tensor, parallel.shard, parallel.zero, parallel.offload)
        share = self._weight_share()
        return Memory(*(round(part * share) for part in (whole.weights, whole.gradients, whole.state, whole.gathered)))

    def _weight_share(self) -> float:
        """Of the model's weights, those that the fullest stage has, and of experts this rank's."""
        share = 1.0
        if self.parallel.pipeline > 1:
            ends = self.size.config.vocab * self.size.width / self.size.total
            share = (1 - 2 * ends) * self._block_share() + ends
        if self.parallel.expert > 1:
            share *= 1 - _expert_share(self.size) * (1 - 1 / self.parallel.expert)
        return share

    def _block_share(self) -> float:
        """Of the blocks, those of the stage that has most."""
        return max(map(len, _stages(self.size, self.parallel.pipeline))) / self.size.config.blocks

    def _whole_weights(self) -> float:
        """Numbers in the weights that this rank computes with, gathered."""
        return _memory(self.size, self.parallel.tensor, 1, 3, False).weights / 4 * self._weight_share()

    def _divided(self, per_token: float, stream: float) -> float:
        """Bytes a token of what is kept, after tensor parallelism."""
        ranks = self.parallel.tensor
        whole = stream / 2 * (1 + 1 / ranks) if self.parallel.sequence_parallel else stream
        return whole + (per_token - stream) / ranks

    def _activations(self) -> tuple[float, float]:
        """Bytes kept for the backward pass at the fullest moment, and those of the block that is computed again."""
        parallel, tokens = self.parallel, self.tokens / self.parts
        blocks = self.size.depth * self._block_share()
        in_flight = 1.0
        if parallel.pipeline > 1:
            ranks, per_rank = parallel.pipeline, SCHEDULES[parallel.pipeline_schedule].stages_per_rank
            in_flight = min(parallel.micro_batches, ranks * (1 + (ranks - 1) / (ranks * per_rank) * (per_rank > 1)))
            in_flight = parallel.micro_batches if parallel.pipeline_schedule == "gpipe" else in_flight
        every = parallel.checkpoint_every
        bytes_of_block = tokens * self._divided(self.kept.per_token, self.kept.stream)
        stays = tokens * self._divided(self.stays.per_token, self.stays.stream)
        recomputed = 0.0 if self.recompute == "none" else 1 / every
        kept = blocks * in_flight * (recomputed * stays + (1 - recomputed) * bytes_of_block)
        halves = blocks * (1 - recomputed) * self.kept.fixed / parallel.tensor
        again = 0.0 if self.recompute == "none" else bytes_of_block + self.kept.fixed / parallel.tensor
        return kept + halves, again

    def _undivided(self) -> float:
        """By how much more a rank computes than its share: recurrences that go step by step are not divided."""
        alone = _sequential_share(self.size)
        return (1 - alone) / self.parallel.tensor + alone * self.parallel.context

    def _host_seconds(self, weights: Memory) -> float:
        """Weights come from the CPU and gradients go there, and it updates what it keeps."""
        passes = (2 if self.parallel.zero == 3 else 1) * self.layout.accumulation
        moved = (weights.weights * passes + weights.gradients) / self.fleet.host_link
        return moved + weights.weights / 4 * _HOST_UPDATE_BYTES / self.fleet.host_bandwidth

    def _exposed(self, busy: float) -> list[tuple[str, float]]:
        """Seconds of exchanges by their link, those left out that computation hides."""
        parallel, fleet = self.parallel, self.fleet
        exposed = []
        for transfer in transfers(self.job, self.layout):
            rate, link = fleet.link(parallel, transfer.dimensions)
            taken = transfer.size / rate + transfer.messages * fleet.latency
            window = {"gathers": busy, "gradients": busy * _BACKWARD / self.layout.accumulation}
            exposed.append((link, max(0.0, taken - window.get(transfer.what, 0.0))))
        return exposed


@dataclass(frozen=True)
class Transfer:
    """Bytes that a rank sends in a step over the ranks of some `dimensions`; `what` says what can hide them."""

    what: Literal["gathers", "gradients", "activations"]
    dimensions: tuple[str, ...]
    size: float
    messages: float = 0.0


def transfers(job: Job, layout: Layout) -> list[Transfer]:
    """What a rank sends in a step. Those of data, shard and tensor are `formulas.traffic`'s; pipelines send what passes
    between stages, ring attention keys and values, recurrences their state, and experts the tokens that they take."""
    parallel, size = layout.parallel, job.size
    found = [*_of_weights(job, layout)]
    element = element_bytes(job.precision)
    rows = job.batch // parallel.rows
    tokens = rows * size.length / parallel.context
    if parallel.tensor > 1:
        sums = _traffic(size, ParallelConfig(tensor=parallel.tensor, sequence_parallel=parallel.sequence_parallel))
        again = 1.5 if parallel.activation_checkpointing == "full" else 1.0
        messages = 2 * 2 * size.depth * max(1, layout.accumulation) * again
        sent = sum(sums.values()) * element * tokens / size.length * again
        found.append(Transfer("activations", ("tensor",), sent, messages))
    if parallel.pipeline > 1:
        sent = 2 * tokens * size.width * STREAM_BYTES * SCHEDULES[parallel.pipeline_schedule].stages_per_rank
        found.append(Transfer("activations", ("pipeline",), sent, 2 * parallel.micro_batches))
    if parallel.context > 1:
        of_token, of_row = _passed_on(size)
        sent, passes = 3 * tokens * of_token * element + 2 * rows * of_row, parallel.context - 1
        messages = 3 * passes * size.depth * max(1, layout.accumulation)
        found.append(Transfer("activations", ("context",), sent * passes, messages))
    if parallel.expert > 1:
        away = (parallel.expert - 1) / parallel.expert
        sent = 4 * tokens * _choices(size) * size.width * element * away
        found.append(Transfer("activations", ("expert",), sent, 4 * size.depth * max(1, layout.accumulation)))
    return found


def _of_weights(job: Job, layout: Layout) -> list[Transfer]:
    """Weights that are gathered and gradients that are summed, in float32."""
    parallel, size = layout.parallel, job.size
    share = 1.0
    if parallel.pipeline > 1:
        share = max(map(len, _stages(size, parallel.pipeline))) / size.config.blocks
    copies = parallel.data * parallel.expert * parallel.context
    plain = ParallelConfig(data=copies, shard=parallel.shard, tensor=parallel.tensor, zero=parallel.zero)
    sums = _traffic(size, plain, without_tensor=True)
    own = 1 - _expert_share(size) if parallel.expert > 1 else 1.0
    units = size.config.blocks * share
    found = []
    gathered = sums.get("all_gather", 0.0) + sums.get("broadcast", 0.0)
    if gathered:
        often = layout.accumulation if parallel.zero > 1 else 1
        among = ("shard",) if parallel.shard > 1 else ("data", "expert")
        found.append(Transfer("gathers", among, 4 * gathered * share * often, 2 * units * often))
    if "reduce_scatter" in sums:
        found.append(Transfer("gradients", ("shard",), 4 * sums["reduce_scatter"] * share, units))
    if "all_reduce" in sums:
        names = ("data", "expert", "context") + (("shard",) if parallel.zero == 1 else ())
        dimensions = tuple(name for name in names if getattr(parallel, name) > 1)
        found.append(Transfer("gradients", dimensions, 4 * sums["all_reduce"] * share * own, 2 * units))
    return found


@lru_cache(maxsize=256)
def _passed_on(size: Size) -> tuple[float, float]:
    """What layers pass on at each step around a ring of context ranks: numbers of keys and values a token, and bytes of
    state a sequence."""

    def numbers(model: LanguageModel) -> dict[str, float]:
        attention = [layer for layer in model.layers() if isinstance(layer, Attention)]
        others = [layer for layer in model.layers() if not isinstance(layer, Attention)]
        return {
            "token": sum(2 * layer.kv_heads * layer.head_dim for layer in attention),
            "row": sum(layer.state_bytes(1, 1) for layer in others),
        }

    found = size.all_along(numbers)
    return found["token"], found["row"]


@lru_cache(maxsize=256)
def _choices(size: Size) -> float:
    """To how many experts a token goes, in all layers."""
    experts = MixtureOfExperts
    return size.along(lambda model: sum(part.config.active for part in model.layers() if isinstance(part, experts)))


@lru_cache(maxsize=4096)
def _memory(size: Size, tensor: int, shard: int, zero: Literal[1, 2, 3], offload: bool) -> Memory:
    if zero == 1 and shard > 1:  # whole weights go to the ranks, so that rank 0 has about its share of the states
        whole = _memory(size, tensor, 1, 1, False)
        return replace(whole, state=round(whole.state / shard))
    config = ParallelConfig(tensor=tensor, shard=shard, zero=zero, offload=offload)
    found = size.all_along(lambda model: asdict(memory(model, config)))
    return Memory(**{name: round(value) for name, value in found.items()})


@lru_cache(maxsize=4096)
def _traffic(size: Size, config: ParallelConfig, without_tensor: bool = False) -> dict[str, float]:
    """Numbers, not bytes, by kind, of a batch of one sequence a rank; `without_tensor`: but for what it sends alone."""

    def sent_by(model: LanguageModel) -> dict[str, float]:
        return {str(kind): numbers for kind, numbers in traffic(model, config, config.rows, size.length, 1).items()}

    found = size.all_along(sent_by)
    if without_tensor and config.tensor > 1:
        for kind, sent in _traffic(size, ParallelConfig(tensor=config.tensor)).items():
            found[kind] = found.get(kind, 0.0) - sent
    return {kind: sent for kind, sent in found.items() if sent > 0.5}


@lru_cache(maxsize=1024)
def _stages(size: Size, stages: int) -> tuple[range, ...]:
    """As `verim.train.parallel.stages.cut` has them."""
    return tuple(balanced(_stage_costs(size), stages))


def _stage_costs(size: Size) -> list[float]:
    head = 3 * 2 * size.config.vocab * size.width
    block = (size.flops_per_token - head) / size.config.blocks
    return [block] * (size.config.blocks - 1) + [block + head]


def _slowest_stage(size: Size, stages: int) -> float:
    """The share of the model's FLOPs that the slowest stage has."""
    costs = _stage_costs(size)
    return max(sum(costs[part.start : part.stop]) for part in _stages(size, stages)) / sum(costs)


@lru_cache(maxsize=1024)
def _expert_share(size: Size) -> float:
    """Of the model's weights, those of experts that a rank of several would not have."""

    def weights(layer: MixtureOfExperts) -> int:
        names = ("gate_and_in", "out")
        return sum(w.numel() for name, w in layer.named_parameters() if name.startswith(names))

    experts = size.along(
        lambda model: sum(weights(layer) for layer in model.layers() if isinstance(layer, MixtureOfExperts))
    )
    return experts / size.total


@lru_cache(maxsize=1024)
def _sequential_share(size: Size) -> float:
    """Of the model's FLOPs, those of recurrences whose steps follow each other."""
    flops = size.along(
        lambda model: sum(
            sum(layer.flops(size.length)) for layer in model.layers() if isinstance(layer, RNN | LSTM | GRU)
        )
    )
    return flops / size.flops_per_token
