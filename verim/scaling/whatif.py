"""A training step on many devices: what one of them computes, by op, and what it waits for."""

from collections.abc import Iterable
from dataclasses import replace

from verim.anatomy.devices import Device
from verim.anatomy.ledger import Op
from verim.anatomy.whatif.forecast import MEMORY_SHARE, Forecast, Span, dtype_of, forecast, priced
from verim.anatomy.whatif.rates import Rates, TableRates, work_of
from verim.anatomy.whatif.work import scaled, step_of
from verim.anatomy.workload import Workload
from verim.errors import InputError
from verim.models import LanguageModelConfig
from verim.scaling.planning.cost import Job, Layout, cost, transfers
from verim.scaling.planning.fleet import Fleet
from verim.scaling.planning.layouts import rank
from verim.scaling.planning.sizes import Size
from verim.train.parallel import ParallelConfig
from verim.train.parallel.pipeline import bubble

_BACKWARD = 2 / 3
"""Of a step's computation: behind it gradients are exchanged."""
_SHOWN = 3
_OF_WEIGHTS = ("optimiser", "clip")


def forecast_layout(
    config: LanguageModelConfig,
    workload: Workload,
    device: Device,
    parallel: ParallelConfig,
    rates: Rates | None = None,
) -> Forecast:
    """Of one of as many `device`s as `parallel` has ranks; `workload` has the batch of all of them.

    A rank runs the step of its rows and positions, in which

    - matrix products and kernels are divided by the tensor ranks, what lies between them only with `sequence_parallel`;
    - blocks are divided by the pipeline's stages, which are taken to be even, and each waits `bubble` of the time;
    - the optimiser and clipping are divided by the ranks that share the weights.

    What ranks send is `verim.scaling.planning.cost.transfers`. Likely, gathered weights hide behind all computation and
    gradients behind the backward pass; at best both cost nothing, at worst nothing is hidden. Memory is that of the
    plan (`cost`).

    Raises `InputError` where the layout cannot be (`ParallelConfig.check`) and, with three that fit, where it needs
    more memory than a device has.
    """
    if parallel.ranks == 1 and not parallel.offload:
        again = parallel.activation_checkpointing != "none"
        return forecast(config, replace(workload, checkpointing=workload.checkpointing or again), device, rates)
    parallel.check(config, parallel.ranks, workload.batch, workload.length)
    if parallel.offload:
        raise InputError("offload: got True; no prediction is made of steps whose weights lie with the CPU")
    if workload.checkpointing and parallel.activation_checkpointing == "none":
        parallel = replace(parallel, activation_checkpointing="full")
    job = Job(Size("", replace(config, context=workload.length), workload.length), workload.batch, workload.precision)
    layout, fleet = Layout(parallel, workload.accumulation), Fleet(device, parallel.ranks, workload.precision)
    needed = _memory(job, layout, fleet)
    used = rates or TableRates(device)
    timed, bounds, computing = priced(tuple(_of_rank(config, workload, parallel)), used)
    flops = job.size.flops_per_token * job.tokens
    return Forecast(
        device=device,
        count=parallel.ranks,
        ops=timed,
        bounds=bounds,
        computing=computing,
        waiting=_waiting(job, layout, fleet, computing),
        memory_bytes=needed,
        tokens=job.tokens,
        flops=flops,
        dtype=dtype_of(timed),
        basis=f"{used}; what ranks send by formula, over links of whose rates assumed shares are reached",
    )


def _memory(job: Job, layout: Layout, fleet: Fleet) -> float:
    """Bytes on the fullest rank; raises where there are more than a device has."""
    needed, limit = cost(job, layout, fleet).memory_bytes, MEMORY_SHARE * fleet.device.memory_bytes
    if needed <= limit:
        return needed
    ways = "; ".join(
        f"{_words(found.layout)} ({found.memory_bytes / 1e9:.3g} GB)" for found in rank(job, fleet).fitting[:_SHOWN]
    )
    raise InputError(
        f"memory: a rank needs {needed / 1e9:.3g} GB, more than the {limit / 1e9:.3g} GB that {fleet.device.name} has "
        f"for tensors; " + (f"these fit: {ways}" if ways else f"no layout over {fleet.count} of them does: take more")
    )


def _words(layout: Layout) -> str:
    words = [f"{name} {ranks}" for name, ranks in layout.divides.items()]
    if layout.parallel.shard > 1:
        words.append(f"zero {layout.parallel.zero}")
    if layout.parallel.micro_batches > 1:
        words.append(f"micro_batches {layout.parallel.micro_batches}")
    if layout.parallel.activation_checkpointing != "none":
        words.append(f"activation_checkpointing {layout.parallel.activation_checkpointing}")
    if layout.accumulation > 1:
        words.append(f"accumulation {layout.accumulation}")
    return " ".join(words)


def _of_rank(config: LanguageModelConfig, workload: Workload, parallel: ParallelConfig) -> Iterable[Op]:
    """The ops of one rank's step."""
    batch = workload.batch // parallel.rows
    parts = max(workload.accumulation, parallel.micro_batches)
    if batch % parts:
        raise InputError(f"accumulation: got {parts} for {batch} sequences a rank, expected one of its divisors")
    own = replace(
        workload,
        batch=batch,
        length=workload.length // parallel.context,
        accumulation=parts,
        checkpointing=parallel.activation_checkpointing == "full",
    )
    for op in step_of(config, own)[0]:
        calls, work = 1.0, 1.0
        if op.part in _OF_WEIGHTS:
            work /= parallel.tensor * parallel.pipeline * parallel.shard
        else:
            if work_of(op.name) != "rest" or parallel.sequence_parallel:
                work /= parallel.tensor
            if work_of(op.name) == "tiled":
                work *= parallel.context  # own queries meet the keys of all positions
            if op.module.startswith("blocks."):
                calls /= parallel.pipeline
        yield scaled(op, calls, work)


def _waiting(job: Job, layout: Layout, fleet: Fleet, computing: Span) -> Span:
    """Seconds of exchanges that nothing hides, and of the pipeline's bubble."""
    parallel = layout.parallel
    idle = bubble(parallel.pipeline, parallel.micro_batches, parallel.pipeline_schedule)
    likely, low, high = (part * idle / (1 - idle) for part in (computing.likely, computing.low, computing.high))
    hides = {"gathers": 1.0, "gradients": _BACKWARD / layout.accumulation}
    for transfer in transfers(job, layout):
        rate, _ = fleet.link(parallel, transfer.dimensions)
        taken = transfer.size / rate + transfer.messages * fleet.latency
        likely += max(0.0, taken - hides.get(transfer.what, 0.0) * computing.likely)
        low += 0.0 if transfer.what in hides else taken
        high += taken
    return Span(likely, low, high)
