"""From what was seen of single steps to the ledger of a step."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import nn

from verim.anatomy.attribution import named_modules
from verim.anatomy.ceilings import Ceilings, ceilings_of, measure_ceilings
from verim.anatomy.clock import Clock
from verim.anatomy.ledger import Counts, ModuleFact, Op, Overhead, Part, Record, Span
from verim.anatomy.memory import EMPTY, Memory
from verim.anatomy.observer import Call
from verim.anatomy.parts import Parts
from verim.anatomy.storages import Storages
from verim.runtime.phases import PHASES, Phase

Value = TypeVar("Value")
Key = tuple[str, str, str, str, tuple[int, ...], float, float, int, int, float]
_WORTH_A_LABEL = 0.005  # of the step
_SCALED = 0.95  # of the ops' seconds: less is said in a note


@dataclass
class OpsStep:
    """A step of which every op was seen: how often ops of equal cost were called, and their seconds together."""

    calls: dict[Key, int]
    seconds: dict[Key, float]
    parts: dict[Phase, float]

    @property
    def total(self) -> float:
        return sum(self.parts.values())


@dataclass
class Observed:
    """What is known of all steps so far."""

    steps: int = 0
    unrecorded: list[float] = field(default_factory=list)
    parts: list[dict[Phase, float]] = field(default_factory=list)
    ops: list[OpsStep] = field(default_factory=list)
    modules: dict[str, int] = field(default_factory=dict)
    memory: Memory = EMPTY
    spans: tuple[Span, ...] = ()
    allocator_peak: int | None = None
    process_peak: int | None = None

    def add_ops(
        self, clock: Clock, parts: Parts, calls: Sequence[Call], modules: dict[str, int], storages: Storages
    ) -> None:
        """A step of which every op was seen; the memory and the spans are the last one's."""
        step = OpsStep({}, {}, parts.seconds())
        spans = [
            Span(s.part, "part", clock.seconds(parts.begin, s.begin), clock.seconds(s.begin, s.end))
            for s in parts.stretches
        ]
        for call in calls:
            cost, again = call.cost, call.is_recomputed
            flops, recomputed = (
                (0, cost.flops + cost.recomputed_flops) if again else (cost.flops, cost.recomputed_flops)
            )
            vector = cost.vector_flops
            key = (
                call.name, call.part, call.module, call.dtype, call.shape,
                flops, vector, cost.bytes_read, cost.bytes_written, recomputed,
            )  # fmt: skip
            seconds = clock.seconds(call.begin, call.end)
            step.calls[key] = step.calls.get(key, 0) + 1
            step.seconds[key] = step.seconds.get(key, 0.0) + seconds
            moved = cost.bytes_read + cost.bytes_written
            begin = clock.seconds(parts.begin, call.begin)
            spans.append(Span(call.name, "op", begin, seconds, call.module, flops + recomputed, moved))
        self.ops.append(step)
        self.modules = dict(modules)
        self.spans = tuple(spans)
        begun = [span for span in spans if span.track == "part" and span.seconds > _WORTH_A_LABEL * step.total]
        self.memory = storages.memory("observed", tuple((span.name, span.begin) for span in begun))


def assemble(observed: Observed, models: tuple[nn.Module, ...], device: str, ceilings: Ceilings | None) -> Record:
    """The ledger: middle means of the parts and of the unrecorded steps, medians of the ops."""
    notes: list[str] = []
    unrecorded = _warm(observed.unrecorded)
    timed, ops_steps = _warm(observed.parts), _warm(observed.ops)
    part_steps = timed or [step.parts for step in ops_steps]
    parts = _middle(part_steps)
    totals = [sum(step.values()) for step in part_steps]
    step_seconds = _mean(unrecorded) if unrecorded else sum(parts.values())
    if not unrecorded:
        notes.append("no step went unrecorded: the step's seconds are those of recorded ones (run 5 steps or more)")
    if not timed:
        notes.append("the parts were timed while every op was seen, which is slower (run 2 steps or more)")
    ops, scaled = _ops(ops_steps, parts)
    if scaled < _SCALED:
        notes.append(f"ops took longer while they were seen: their seconds are scaled by {scaled:.2f} to fit the parts")
    facts = tuple(
        ModuleFact(
            name,
            type(module).__name__,
            sum(weight.numel() for weight in module.parameters(recurse=False)),
            observed.modules.get(name, 0),
        )
        for name, module in _with_root(models)
    )
    silent = [fact.name for fact in facts if not fact.calls and fact.parameters]
    if silent and ops_steps:
        notes.append(f"never called: {', '.join(silent[:5])}{' ...' if len(silent) > 5 else ''}")
    record = Record(
        device=device,
        step_seconds=step_seconds,
        parts=tuple(Part(name, parts[name]) for name in PHASES if name in parts),
        ops=ops,
        facts=facts,
        memory=replace(
            observed.memory,
            allocator_peak_bytes=observed.allocator_peak,
            process_peak_bytes=observed.process_peak,
        ),
        ceilings=ceilings or _ceilings(device, ops),
        overhead=Overhead(
            _mean(totals) / step_seconds - 1 if unrecorded and timed else None,
            _mean([step.total for step in ops_steps]) / step_seconds - 1 if unrecorded and ops_steps else None,
        ),
        counts=Counts(len(unrecorded), len(timed), len(ops_steps)),
        notes=tuple(notes),
        spans=observed.spans,
    )
    if ceilings is None and record.errors():  # measured while the machine was busy, perhaps
        again = measure_ceilings(device, record.ceilings.matmul)
        record = replace(record, ceilings=record.ceilings.best_of(again))
    return record


def _ceilings(device: str, ops: tuple[Op, ...]) -> Ceilings:
    types = tuple(sorted({op.dtype for op in ops if op.flops}))
    return ceilings_of(device, types, torch.get_num_threads())


def _with_root(models: tuple[nn.Module, ...]) -> list[tuple[str, nn.Module]]:
    """The modules, below one root where there are several models."""
    named = list(named_modules(models))
    return named if len(models) == 1 else [("", nn.Module()), *named]


def _ops(steps: Sequence[OpsStep], parts: dict[Phase, float]) -> tuple[tuple[Op, ...], float]:
    """Ops by falling time, each with its share of what passes between ops in its part; and the smallest scale."""
    seconds: dict[Key, float] = {}
    calls: dict[Key, float] = {}
    for key in dict.fromkeys(key for step in steps for key in step.seconds):
        times = [step.seconds[key] for step in steps if key in step.seconds]
        counts = [step.calls[key] for step in steps if key in step.calls]
        share = len(times) / len(steps)  # of the steps that had it: shapes may change from step to step
        seconds[key] = statistics.median(times) * share
        calls[key] = statistics.fmean(counts) * share
    scales = {
        part: min(1.0, parts.get(part, 0.0) / inside) if (inside := _of_part(seconds, part)) else 1.0 for part in PHASES
    }
    between = {
        part: max(parts.get(part, 0.0) - scales[part] * _of_part(seconds, part), 0.0) / (_of_part(calls, part) or 1)
        for part in PHASES
    }
    ops = [_op(key, calls[key], seconds[key], scales, between) for key in seconds]
    return tuple(sorted(ops, key=lambda op: -op.total_seconds)), min(scales.values())


def _of_part(values: dict[Key, float], part: str) -> float:
    return sum(value for key, value in values.items() if key[1] == part)


def _op(key: Key, calls: float, seconds: float, scales: dict[Phase, float], between: dict[Phase, float]) -> Op:
    name, part, module, dtype, shape, flops, vector, read, written, recomputed = key
    phase: Phase = next(known for known in PHASES if known == part)
    return Op(
        name=name,
        part=part,
        module=module,
        dtype=dtype,
        calls=calls,
        seconds=seconds * scales[phase],
        overhead_seconds=between[phase] * calls,
        flops=flops * calls,
        vector_flops=vector * calls,
        bytes_read=read * calls,
        bytes_written=written * calls,
        recomputed_flops=recomputed * calls,
        shape=shape,
    )


def _warm(steps: list[Value]) -> list[Value]:
    """All but the first, which warms up, where there are others."""
    return steps[1:] or steps


def _middle(steps: Sequence[dict[Phase, float]]) -> dict[Phase, float]:
    """The mean of each part over the middle half of the steps by their length."""
    ordered = sorted(steps, key=lambda step: sum(step.values()))
    kept = _half(ordered)
    return {
        name: sum(step.get(name, 0.0) for step in kept) / len(kept) for name in PHASES if any(name in s for s in kept)
    }


def _mean(values: Sequence[float]) -> float:
    """Of the middle half."""
    return statistics.fmean(_half(sorted(values)))


def _half(ordered: Sequence[Value]) -> Sequence[Value]:
    """The middle half of an ordered sequence, one at least."""
    quarter = len(ordered) // 4
    return ordered[quarter : len(ordered) - quarter]
