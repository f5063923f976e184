"""What would gain most: changes to a step, each with the seconds that the ledger and the measured ceilings predict.

Every gain is of the same work (as many tokens), and of one change alone: two changes may want the same seconds.
"""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from verim.anatomy.ceilings import Ceilings
from verim.anatomy.ledger import Bound, Op, Record, Span
from verim.anatomy.words import count_words, listed, share_words, size_words, time_words

_WORTH = 0.001  # of the step
_KERNELS = 2  # so many single ops are proposed
_FACTORS = (8, 4, 2)  # of the batch
_GROWING = frozenset({"activations", "temporary", "inputs"})
_OF_WEIGHTS = frozenset({"optimiser", "clip"})  # parts whose time does not grow with the batch
_PARALLEL = frozenset({"data", "copy"})  # parts that another process could do meanwhile
_EXEMPLARY = 0.02  # of the step: a shorter op proves nothing of what can be reached


@dataclass(frozen=True)
class Advice:
    """A change and what it would gain.

    - `change`: what to do; `reason`: the figures behind the gain, in sentences.
    - `seconds`: of a step, or of as much work as a step does. `share`: of the step.
    - `is_limit`: the gain is the most that the change can give.
    """

    change: str
    reason: str
    seconds: float
    share: float
    is_limit: bool = False

    @property
    def speedup(self) -> float:
        """How many times as fast."""
        return 1 / (1 - self.share)


def advise(
    record: Record, ceilings: Ceilings | None = None, free_bytes: float | None = None, most: int = 3
) -> tuple[Advice, ...]:
    """The changes that would gain most, at most `most`, none of less than 0.1 % of the step.

    `ceilings`: with peaks of more data types than the record's own, to know what a lower precision would gain.
    `free_bytes`: of memory beside the step's own, to know which batches fit; without it memory is left to the reader.
    """
    known = ceilings or record.ceilings
    found = [
        *_overlap(record),
        *_fusion(record),
        *_batch(record, free_bytes),
        *_precision(record, known),
        *_checkpointing(record, free_bytes),
        *_optimiser(record),
        *_kernels(record),
    ]
    worth = [advice for advice in found if advice.share >= _WORTH]
    return tuple(sorted(worth, key=lambda advice: -advice.seconds)[:most])


def _made(record: Record, change: str, reason: str, seconds: float, is_limit: bool = False) -> Iterator[Advice]:
    """None where nothing is gained."""
    if 0 < seconds < record.step_seconds:
        yield Advice(change, reason, seconds, seconds / record.step_seconds, is_limit)


def _overlap(record: Record) -> Iterator[Advice]:
    """Waiting for data, and copies to the device, while the step before runs."""
    waited = sum(part.seconds for part in record.parts if part.name in _PARALLEL)
    yield from _made(
        record,
        "Make the next batch while the step runs",
        f"The step waits {time_words(waited)} for its batch; workers of the loader can make it meanwhile.",
        waited,
        is_limit=True,
    )


def _fusion(record: Record) -> Iterator[Advice]:
    """Elementwise ops in a row as one: what one writes and the next reads needs no memory, and no launch."""
    costs = {
        (op.name, op.part, op.module, round(op.bytes / op.calls)): op for op in record.ops if op.calls and op.bytes
    }
    gained: dict[str, float] = {}
    count = rows = moved = 0
    kinds = {fact.name: fact.kind for fact in record.facts}
    for part, module, row in _rows(record.spans):
        ops = [found for span in row if (found := costs.get((span.name, part, module, round(span.bytes)))) is not None]
        if len(ops) < 2 or len(ops) < len(row):
            continue
        between = sum(
            2 * min(first.bytes_written / first.calls, second.bytes_read / second.calls)
            for first, second in itertools.pairwise(ops)
        )
        total = sum(op.bytes / op.calls for op in ops)
        seconds = sum(op.seconds / op.calls for op in ops) * between / total
        seconds += sum(op.overhead_seconds / op.calls for op in ops[1:])
        kind = kinds.get(module) or "the model"
        gained[kind] = gained.get(kind, 0.0) + seconds
        count, rows, moved = count + len(ops), rows + 1, moved + int(between)
    places = sorted(gained, key=lambda kind: -gained[kind])[:3]
    yield from _made(
        record,
        f"Fuse the elementwise ops in a row, first of {listed(places)} (torch.compile does)",
        f"{count} such ops follow one another in {rows} place{'s' if rows > 1 else ''}. As one op each, "
        f"{size_words(moved)} that one writes and the next reads would stay in registers, and {count - rows} launches "
        "would go.",
        sum(gained.values()),
        is_limit=True,
    )


def _rows(spans: Iterable[Span]) -> Iterator[tuple[str, str, list[Span]]]:
    """Part, module and ops of every stretch of ops of one module that only move or change numbers; views are free."""
    parts = [span for span in spans if span.track == "part"]
    row: list[Span] = []
    place = ("", "")
    for span in sorted((span for span in spans if span.track == "op"), key=lambda span: span.begin):
        if not span.bytes:
            continue
        middle = span.begin + span.seconds / 2
        part = next((part.name for part in parts if part.begin <= middle <= part.begin + part.seconds), "")
        is_plain = not span.flops and not span.name.startswith("verim.") and part not in _OF_WEIGHTS
        if row and (not is_plain or (part, span.module) != place):
            yield *place, row
            row = []
        if is_plain:
            place = (part, span.module)
            row.append(span)
    if row:
        yield *place, row


def _batch(record: Record, free_bytes: float | None) -> Iterator[Advice]:
    """A larger batch pays what a step costs at any size once for more tokens."""
    weights = sum(part.seconds for part in record.parts if part.name in _OF_WEIGHTS)
    launches = sum(
        min(op.total_seconds, op.overhead_seconds + op.calls * record.ceilings.launch_seconds)
        for op in record.ops
        if op.part not in _OF_WEIGHTS
    )
    growing = sum(size for name, size in record.memory.at_peak.items() if name in _GROWING)
    fitting = [factor for factor in _FACTORS if free_bytes is None or (factor - 1) * growing <= free_bytes]
    if not fitting:
        return
    factor = fitting[0]
    peak = record.memory.peak_bytes + (factor - 1) * growing
    memory = f"its memory would be about {size_words(peak)}" if growing else "its memory is not known"
    yield from _made(
        record,
        f"Make the batch {factor} times as large, where the training allows it",
        f"The optimiser and clipping take {time_words(weights)} and launches {time_words(launches)} whatever the "
        f"batch; each sequence would pay 1/{factor} of that. {memory[0].upper()}{memory[1:]}.",
        (weights + launches) * (1 - 1 / factor),
    )


def _precision(record: Record, ceilings: Ceilings) -> Iterator[Advice]:
    """Products of float32 in the type whose measured peak is higher; their weights are cast once a step."""
    low = "bfloat16"
    if low not in ceilings.matmul:
        return
    ratio = ceilings.matmul[low] / ceilings.matmul["float32"]
    products = [op for op in record.ops if op.flops and op.dtype == "float32" and not op.name.startswith("verim.")]
    products = [op for op in products if op.bound_by(record.ceilings) == "compute"]
    weights = sum(fact.parameters for fact in record.facts)
    cast = 6 * weights / ceilings.bytes_per_second(6 * weights) if weights else 0.0
    taken = sum(op.seconds for op in products)
    yield from _made(
        record,
        f"Multiply in {low}, under torch.autocast",
        f"Products bound by arithmetic take {time_words(taken)}, and this machine multiplies {low} {ratio:.1f} times "
        f"as fast as float32; casting the weights costs {time_words(cast)}.",
        taken * (1 - 1 / ratio) - cast if ratio > 1 else 0.0,
    )


def _checkpointing(record: Record, free_bytes: float | None) -> Iterator[Advice]:
    """The forward pass is not run again where what it made is kept."""
    forward = {part.name: part.seconds for part in record.parts}.get("forward", 0.0)
    flops = sum(op.flops for op in record.ops if op.part == "forward")
    again = sum(op.recomputed_flops for op in record.ops if op.part == "backward" and not op.flops)
    free = "" if free_bytes is None else f" ({size_words(free_bytes)} is free)"
    yield from _made(
        record,
        "Keep the activations: no checkpointing",
        f"{share_words(again / flops if flops else 0.0)} of the forward pass's FLOPs are computed a second time in "
        f"the backward pass. The memory must hold what is then kept{free}.",
        forward * min(1.0, again / flops) if flops else 0.0,
    )


def _optimiser(record: Record) -> Iterator[Advice]:
    """All of the update in one pass: each weight, gradient and moment read once, and written once but the gradient."""
    ops = [op for op in record.ops if op.part == "optimiser"]
    if not ops or any("_fused_" in op.name for op in ops):
        return
    at_peak = record.memory.at_peak
    weights = at_peak.get("parameters", 0)
    traffic = 3 * weights + 2 * at_peak.get("optimiser", 0)
    if not weights:
        return
    taken = sum(op.total_seconds for op in ops)
    least = traffic / record.ceilings.bytes_per_second(traffic)
    yield from _made(
        record,
        "Use the optimiser's fused version (fused=True)",
        f"The update takes {time_words(taken)} in {count_words(sum(op.calls for op in ops))} ops; in one pass it moves "
        f"{size_words(traffic)}, which memory allows in {time_words(least)}.",
        taken - least,
    )


def _kernels(record: Record) -> Iterator[Advice]:
    """The ops that would gain most at the fraction of their ceiling that the step's best op of the same bound reaches.

    What memory bounds is compared with all of that; what arithmetic bounds only where it is made of products, as the
    peak is: the functions of a scan cannot reach it.
    """
    groups: dict[tuple[str, Bound], list[Op]] = {}
    for op in record.ops:
        bound = op.bound_by(record.ceilings)
        if (bound == "memory" and op.bytes) or (bound == "compute" and _is_product(op)):
            groups.setdefault((op.name, bound), []).append(op)
    figures = {key: (sum(op.seconds for op in ops), _least(ops, record.ceilings)) for key, ops in groups.items()}
    reached: dict[Bound, tuple[float, str]] = {}
    for (name, bound), (seconds, least) in figures.items():
        if seconds >= _EXEMPLARY * record.step_seconds:
            reached[bound] = max(reached.get(bound, (0.0, "")), (min(1.0, least / seconds), name))
    gains = {
        (name, bound): seconds - least / reached[bound][0]
        for (name, bound), (seconds, least) in figures.items()
        if reached.get(bound, (0.0, ""))[0]
    }
    for name, bound in sorted(gains, key=lambda key: -gains[key])[:_KERNELS]:
        seconds, least = figures[name, bound]
        best, exemplar = reached[bound]
        work = "arithmetic" if bound == "compute" else "memory"
        yield from _made(
            record,
            f"A faster kernel, or sizes that suit it better, for {_plain(name)}",
            f"It takes {time_words(seconds)} at {share_words(least / seconds)} of what {work} allows here, while "
            f"{_plain(exemplar)} reaches {share_words(best)} in the same step.",
            gains[name, bound],
            is_limit=True,
        )


def _is_product(op: Op) -> bool:
    return bool(op.flops) and (not op.name.startswith("verim.") or "attention" in op.name)


def _plain(name: str) -> str:
    return name.removeprefix("aten.").removeprefix("verim.")


def _least(ops: Iterable[Op], ceilings: Ceilings) -> float:
    limits = (op.limits(ceilings) for op in ops)
    return sum(max(limit["compute"], limit["memory"]) for limit in limits)
