"""Figures of a course on training systems: memory, what is shared over ranks, what ranks exchange."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from verim.anatomy import Memory, Record, Workload, adamw, budgets, record
from verim.anatomy.devices import device
from verim.claims.claim import Measurement, claim
from verim.claims.expected import AtLeast, Exactly, Goldens
from verim.models import BlockConfig, LanguageModel, LanguageModelConfig
from verim.nn import SwiGLUConfig
from verim.nn.mixers import AttentionConfig
from verim.train.parallel import formulas, pipeline, traffic
from verim.train.parallel.config import ParallelConfig

_BATCH, _LENGTH = 4, 256  # of the steps whose memory is measured
_ZERO = "Rajbhandari et al. 2020, arXiv 1910.02054, figure 1"


@claim(
    id="course-memory-1b",
    area="course",
    text="Training a billion parameters takes 28 GB: 2 of weights, 2 of gradients, 8 of Adam, 16 of activations",
    source="course, budget of memory",
    expected=Goldens({"weights": 2, "gradients": 2, "optimiser": 8, "activations": 16, "all": 28}, tolerance=0.05),
    cost=0.1,
    kind="computed",
    remark="the source says no length: its 16 GB are 7629 tokens a sequence at 8 sequences, 16 layers of 2048 channels "
    "and 4 tensors kept a layer; without float32 weights, which mixed precision keeps too (4 GB more)",
)
def memory_of_a_billion() -> Measurement:
    states = budgets.state_budget(1e9)
    kept = budgets.activations_budget(batch=8, length=7629, width=2048, layers=16, kept=4)
    parts = {"weights": states.weights, "gradients": states.gradients, "optimiser": states.optimiser} | {
        "activations": kept,
        "all": states.total + kept,
    }
    return Measurement(
        {name: size / 1e9 for name, size in parts.items()}, "GB by formula, bfloat16, Adam's moments in float32"
    )


@claim(
    id="course-memory-llama-2",
    area="course",
    text="Training Llama 2 7B at 4096 tokens and batch 4 takes 101.18 GB",
    source="course, budget of memory",
    expected=Exactly(101.18, tolerance=0.005),
    cost=0.1,
    kind="computed",
    remark="rounded: 7.0 B parameters (it has 6.74 B) at 12 bytes, and 4 tensors of activations kept a layer, where a "
    "layer keeps more unless it is checkpointed",
)
def memory_of_llama_2() -> Measurement:
    kept = budgets.activations_budget(batch=4, length=4096, width=4096, layers=32, kept=4)
    return Measurement(
        (budgets.state_budget(7e9).total + kept) / 1e9,
        "GB by formula: states of 7e9 weights and 32 layers' activations",
    )


@claim(
    id="course-zero",
    area="course",
    text="On 64 ranks ZeRO brings 120 GB of states down to 31.4, 16.6 and 1.9 GB by its three stages",
    source=_ZERO,
    expected=Goldens({"none": 120, "stage 1": 31.4, "stage 2": 16.6, "stage 3": 1.9}, tolerance=0.05),
    cost=0.1,
    kind="computed",
)
def zero(parameters: float = 7.5e9, ranks: int = 64) -> Measurement:
    names = ("none", "stage 1", "stage 2", "stage 3")
    sizes = {name: budgets.sharded_state_bytes(stage, ranks) for stage, name in enumerate(names)}
    return Measurement(
        {name: parameters * size / 1e9 for name, size in sizes.items()},
        f"GB a rank of {parameters:g} parameters over {ranks} ranks: 16, 4 + 12/N, 2 + 14/N, 16/N bytes a parameter",
    )


@claim(
    id="course-zero-model",
    area="course",
    text="Sharding all states over n ranks leaves 1/n of them on each",
    source=f"{_ZERO} and section 5",
    expected=Exactly(1.0, tolerance=0.01),
    cost=1,
    kind="computed",
    remark="of a whole model, row by row as it is divided; weights that are gathered while a step runs apart",
)
def zero_of_a_model(ranks: Sequence[int] = (2, 8, 64)) -> list[Measurement]:
    with torch.device("meta"):
        model = LanguageModel(_transformer(512, 8))
    whole = formulas.memory(model, ParallelConfig())
    found = []
    for count in ranks:
        own = formulas.memory(model, ParallelConfig(shard=count, zero=3))
        share = (own.total - own.gathered) / whole.total * count
        found.append(Measurement(share, f"n times a rank's share, stage 3, n = {count}, transformer of width 512"))
    return found


def _transformer(width: int, depth: int) -> LanguageModelConfig:
    block = BlockConfig(AttentionConfig(heads=width // 16), SwiGLUConfig(8 * round(width / 3)))
    return LanguageModelConfig((block,), width, depth)


@claim(
    id="course-checkpointing-memory",
    area="course",
    text="Checkpointing takes a quarter of the memory of activations, or less",
    source="course, activation checkpointing; Chen et al. 2016, arXiv 1604.06174",
    expected=AtLeast(4.0),
    cost=10,
    kind="measured",
    remark="of a stack deep enough, and beside logits and loss, which are not checkpointed: one block's "
    "activations lie there whole while it is computed again",
)
def checkpointing_memory(depths: Sequence[int] = (4, 12), width: int = 128) -> list[Measurement]:
    found = []
    for depth in depths:
        plain, checkpointed = (_of_batch(_ledger(depth, width, again).memory) for again in (False, True))
        found.append(
            Measurement(
                plain / checkpointed,
                f"bytes at a step's peak beside weights, gradients and Adam's state, without over with every block "
                f"checkpointed, {depth} blocks of width {width}, {_BATCH} × {_LENGTH} tokens, float32",
            )
        )
    return found


@claim(
    id="course-checkpointing-compute",
    area="course",
    text="Checkpointing costs 1.3 times the compute",
    source="course, activation checkpointing; Chen et al. 2016, arXiv 1604.06174",
    expected=Exactly(1.3, tolerance=0.05),
    cost=3,
    kind="measured",
    remark="a second forward pass of three parts is 4/3, of all but the head and what torch need not repeat",
)
def checkpointing_compute(depth: int = 4, width: int = 128) -> Measurement:
    ledger = _ledger(depth, width, checkpointing=True)
    return Measurement(
        (ledger.flops + ledger.recomputed_flops) / ledger.flops,
        f"FLOPs with over without those that were done again, counted, {depth} blocks of width {width}",
    )


def _ledger(depth: int, width: int, checkpointing: bool) -> Record:
    """Of training steps of a transformer, every block checkpointed or none."""
    model = LanguageModel(_transformer(width, depth))
    workload = Workload(_BATCH, _LENGTH, checkpointing=checkpointing)
    workload.prepare(model)
    optimiser = adamw(model)
    with record(model) as recording:
        for _ in range(2):
            workload.step(model, optimiser, workload.draw(model))
    return recording.result


def _of_batch(memory: Memory) -> float:
    """What grows with the batch."""
    states = ("parameters", "gradients", "optimiser")
    return memory.peak_bytes - sum(memory.at_peak.get(name, 0) for name in states)


@claim(
    id="course-pipeline",
    area="course",
    text="A pipeline of 4 stages without micro-batches keeps each rank busy a quarter of the time",
    source="course, pipeline parallelism; Huang et al. 2019, arXiv 1811.06965, section 2.3",
    expected=Exactly(0.25),
    cost=0.1,
    kind="computed",
)
def pipeline_busy(stages: int = 4) -> Measurement:
    return Measurement(1 - pipeline.bubble(stages, micro_batches=1, schedule="gpipe"), f"{stages} equal stages")


@claim(
    id="course-pipeline-micro-batches",
    area="course",
    text="Four times as many micro-batches as stages make the bubble of a pipeline small",
    source="Huang et al. 2019, arXiv 1811.06965, section 2.3: negligible where M ≥ 4 K",
    expected=AtLeast(0.8),
    cost=0.1,
    kind="computed",
    remark="a sixth of the time at most: what is negligible is for the reader to say",
)
def pipeline_micro_batches(stages: Sequence[int] = (2, 4, 8)) -> list[Measurement]:
    return [
        Measurement(1 - pipeline.bubble(count, 4 * count, "gpipe"), f"busy share, {count} equal stages")
        for count in stages
    ]


@claim(
    id="course-column-row",
    area="course",
    text="A feed-forward layer cut by columns, then by rows, takes one all-reduce a pass",
    source="Shoeybi et al. 2019, arXiv 1909.08053, section 3",
    expected=Exactly(1.0),
    cost=0.5,
    kind="computed",
    remark="one in the forward and one in the backward pass",
)
def column_then_row(ranks: int = 4, width: int = 64, batch: int = 2, length: int = 8) -> Measurement:
    whole = _transformer(width, 2)
    without = replace(whole, pattern=(replace(whole.pattern[0], feed_forward=None),))
    config = ParallelConfig(tensor=ranks)
    sent = []
    for model in (whole, without):
        with torch.device("meta"):
            built = LanguageModel(model)
        sent.append(formulas.traffic(built, config, batch, length)["all_reduce"])
    stream = 4 * batch * length * width
    exchanges = (sent[0] - sent[1]) / traffic.volume("all_reduce", stream, ranks) / whole.depth
    return Measurement(
        exchanges / 2,
        f"all-reduces of the [tokens, width] stream that a SwiGLU layer adds to a step, over its two passes, {ranks} "
        "ranks, float32",
    )


@claim(
    id="course-ring",
    area="course",
    text="In a ring all-reduce a rank sends 2 (n − 1) / n times the tensor",
    source="Patarasuk and Yuan 2009, section 3; Thakur et al. 2005, section 4.5",
    expected=Goldens({"n = 2": 1.0, "n = 4": 1.5, "n = 8": 1.75, "n = 1024": 2 - 2 / 1024}),
    cost=0.1,
    kind="computed",
)
def ring() -> Measurement:
    return Measurement(
        {f"n = {ranks}": traffic.volume("all_reduce", 1.0, ranks) for ranks in (2, 4, 8, 1024)},
        "bytes that a rank sends, for each byte of the tensor",
    )


@claim(
    id="course-bandwidth-ladder",
    area="course",
    text="Bandwidth falls from the device's memory over its link and the bus to the network",
    source="course, distributed training; data sheets of the devices",
    expected=AtLeast(1.0),
    cost=0.1,
    kind="computed",
    remark="in one direction; the network is an assumption, a device's share of its machine's: 400 Gb/s in clusters",
)
def bandwidth_ladder(names: Sequence[str] = ("v100", "a100", "h100", "b200", "mi300x", "rtx3090")) -> list[Measurement]:
    found = []
    for name in names:
        row = device(name)
        assert row.link is not None and row.pcie is not None, f"{name} has a link and a bus"
        steps = {
            "memory over link": row.memory_bandwidth / row.link,
            "link over bus": row.link / row.pcie,
            "bus over network": row.pcie / row.network,
        }
        found.append(Measurement(steps, f"{row.name}, by its data sheet"))
    return found
