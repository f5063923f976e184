"""Whether a step fits into memory, said before it runs, and which settings near it do."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from verim.anatomy.memory import Memory
from verim.anatomy.prediction import predict_memory
from verim.anatomy.workload import OptimiserOf, Workload, adamw
from verim.errors import InputError
from verim.models import LanguageModelConfig

NEAREST = 3
"""So many settings are proposed."""


@dataclass(frozen=True)
class Proposal:
    """A setting that fits, what it changes in words, and its peak."""

    change: str
    workload: Workload
    peak_bytes: int


def check_fits(
    config: LanguageModelConfig, workload: Workload, limit_bytes: float, optimiser: OptimiserOf = adamw
) -> Memory:
    """The predicted memory. Raises `InputError`, with the nearest settings that fit, where it exceeds `limit_bytes`."""
    memory = predict_memory(config, workload, optimiser)
    if memory.peak_bytes <= limit_bytes:
        return memory
    parts = ", ".join(
        f"{name} {_gigabytes(size)}" for name, size in memory.at_peak.items() if size > 1e-3 * memory.peak_bytes
    )
    found = nearest(config, workload, limit_bytes, optimiser)
    ways = "; ".join(f"{proposal.change} ({_gigabytes(proposal.peak_bytes)})" for proposal in found)
    advice = (
        f"these fit: {ways}"
        if found
        else "no batch, length or checkpointing of this model does: choose a smaller width"
    )
    raise InputError(
        f"memory: a step needs {_gigabytes(memory.peak_bytes)} ({parts}), more than the {_gigabytes(limit_bytes)} that "
        f"are free; {advice}"
    )


def nearest(
    config: LanguageModelConfig, workload: Workload, limit_bytes: float, optimiser: OptimiserOf = adamw
) -> list[Proposal]:
    """At most three settings that fit: first those with the same result, then smaller batches, then shorter sequences.

    Accumulation and batch are the nearest ones by a straight line through two predictions, since activations grow with
    the sequences at once, each checked by a prediction of its own.
    """
    found: list[Proposal] = []
    for change, candidate in _candidates(config, workload, limit_bytes, optimiser):
        peak = predict_memory(config, candidate, optimiser).peak_bytes
        if peak <= limit_bytes:
            found.append(Proposal(change, candidate, peak))
        if len(found) == NEAREST:
            break
    return found


def _candidates(
    config: LanguageModelConfig, workload: Workload, limit_bytes: float, optimiser: OptimiserOf
) -> Iterator[tuple[str, Workload]]:
    at_once = _sequences_that_fit(config, workload, limit_bytes, optimiser)
    for parts in range(workload.accumulation + 1, workload.batch + 1):
        if workload.batch % parts == 0 and workload.batch // parts <= at_once:
            yield f"accumulation {parts}", replace(workload, accumulation=parts)
            break
    if not workload.checkpointing:
        yield "checkpointing", replace(workload, checkpointing=True)
        if workload.batch > workload.accumulation:
            alone = replace(workload, accumulation=workload.batch, checkpointing=True)
            yield f"checkpointing with accumulation {workload.batch}", alone
    if 0 < at_once < workload.batch:
        yield f"batch {at_once}", replace(workload, batch=at_once, accumulation=1)
    length = workload.length // 2
    while length:
        yield f"length {length}", replace(workload, length=length)
        length //= 2


def _sequences_that_fit(
    config: LanguageModelConfig, workload: Workload, limit_bytes: float, optimiser: OptimiserOf
) -> int:
    """How many at once, as two predictions say; with accumulation where there is more than one part."""
    one, two = (
        predict_memory(config, replace(workload, batch=count, accumulation=1), optimiser).peak_bytes for count in (1, 2)
    )
    return max(0, int((limit_bytes - one) // max(two - one, 1)) + 1)


def _gigabytes(value: float) -> str:
    return f"{value / 1e9:.3g} GB"
