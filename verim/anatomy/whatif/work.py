"""The ops of a training step that has not run: names, shapes, FLOPs and bytes, without seconds."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from verim.anatomy.ledger import Op
from verim.anatomy.memory import Memory
from verim.anatomy.observer import Call
from verim.anatomy.prediction import imagine
from verim.anatomy.workload import OptimiserOf, Workload, adamw
from verim.models import LanguageModelConfig


def step_of(
    config: LanguageModelConfig, workload: Workload, optimiser: OptimiserOf = adamw
) -> tuple[tuple[Op, ...], Memory]:
    """The ops of a step, in the order of their first calls, and its memory. Nothing is computed."""
    step = imagine(config, workload, optimiser)
    return ops_of(step.calls()), step.memory()


def ops_of(calls: Sequence[Call]) -> tuple[Op, ...]:
    """Equal calls of an op in one part and one module together; `seconds` are 0. Questions that tensors without memory
    are asked (`prim.device`) are no ops: real ones are not asked through the dispatcher."""
    asked = (_op(call) for call in calls if not call.name.startswith("prim."))
    return tuple(scaled(op, count) for op, count in Counter(asked).items())


def scaled(op: Op, calls: float, work: float = 1.0) -> Op:
    """So many times the calls, each of which has so many times the FLOPs and bytes."""
    times = calls * work
    return replace(
        op,
        calls=op.calls * calls,
        flops=op.flops * times,
        vector_flops=op.vector_flops * times,
        bytes_read=op.bytes_read * times,
        bytes_written=op.bytes_written * times,
        recomputed_flops=op.recomputed_flops * times,
    )


def _op(call: Call) -> Op:
    cost = call.cost
    return Op(
        name=call.name,
        part=call.part,
        module=call.module,
        dtype=call.dtype,
        calls=1,
        seconds=0.0,
        overhead_seconds=0.0,
        flops=0 if call.is_recomputed else cost.flops,
        vector_flops=cost.vector_flops,
        bytes_read=cost.bytes_read,
        bytes_written=cost.bytes_written,
        recomputed_flops=cost.recomputed_flops + (cost.flops if call.is_recomputed else 0),
        shape=call.shape,
    )
