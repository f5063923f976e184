"""Claims on scaling laws, recursion, devices, courses: they hold as told, and an implementation that errs is seen."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch

from verim import ops
from verim.anatomy import budgets, transfers
from verim.anatomy.devices import device
from verim.claims import measured, select
from verim.claims.areas import course, course_systems, gpu, mor, mor_training, scaling_ladder
from verim.claims.claim import Measurement
from verim.nn.recursion_routing import ExpertChoice
from verim.ops.cost import Cost
from verim.scaling import bridge, frontiers, isoflop
from verim.scaling.laws import Exponents, Law
from verim.train import optimisers
from verim.train.parallel import formulas, pipeline, traffic

HOLD = "holds"
PARTLY = "holds under conditions"
NOT = "does not hold here"
VERDICTS = {
    "scaling-parameters": PARTLY,
    "scaling-tokens": PARTLY,
    "scaling-doubling": PARTLY,
    "scaling-twenty-tokens": PARTLY,
    "scaling-chinchilla-gopher": PARTLY,
    "scaling-chinchilla-compute": NOT,
    "scaling-isoflop-minimum": HOLD,
    "scaling-kaplan-exponent": PARTLY,
    "scaling-misprint": NOT,
    "scaling-rounded-exponents": PARTLY,
    "scaling-tokens-a-parameter": HOLD,
    "scaling-inference": HOLD,
    "mor-parameters": HOLD,
    "mor-cache-by-recursion": HOLD,
    "mor-cache-shared": HOLD,
    "mor-flops": NOT,
    "gpu-bfloat16-sheet": HOLD,
    "gpu-ridge": HOLD,
    "gpu-intensity": HOLD,
    "gpu-transfer-hidden": HOLD,
    "gpu-convolution": HOLD,
    "course-gradient-descent": HOLD,
    "course-recurrent-gradient": HOLD,
    "course-spectral-radius": HOLD,
    "course-attention-rows": HOLD,
    "course-memory-1b": HOLD,
    "course-memory-llama-2": HOLD,
    "course-zero": HOLD,
    "course-zero-model": HOLD,
    "course-pipeline": HOLD,
    "course-pipeline-micro-batches": HOLD,
    "course-column-row": HOLD,
    "course-ring": HOLD,
    "course-bandwidth-ladder": HOLD,
}
"""Of claims whose figures do not depend on the machine."""


def verdict(id: str) -> str:
    result = measured(select([id])[0])
    assert result.error is None, result.error
    return str(result.verdict)


@pytest.mark.parametrize("id", VERDICTS)
def test_verdicts_are_what_is_known(id: str) -> None:
    assert verdict(id) == VERDICTS[id]


_REAL_RECURRENCE = ops.linear_recurrence
_REAL_CONVOLUTION = ops.causal_conv1d
_REAL_SGD = optimisers.SGDConfig
_REAL_STATES = budgets.sharded_state_bytes


def _wrapped(function: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
    return lambda *arguments, **keywords: change(function(*arguments, **keywords))


MUTATIONS: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    # the rate is halved, as where somebody takes the mean of the squares
    "course-gradient-descent": lambda patch: patch.setattr(
        optimisers, "SGDConfig", _halved_descent
    ),
    # the state decays once more than it should
    "course-recurrent-gradient": lambda patch: patch.setattr(
        ops, "linear_recurrence", lambda a, b, h: _REAL_RECURRENCE(a, b, a * h)
    ),
    # softmax without its sum
    "course-attention-rows": lambda patch: patch.setattr(
        ops, "attention", lambda q, k, v, implementation: (q @ k.transpose(-1, -2)).exp() @ v
    ),
    # moments in bfloat16
    "course-memory-llama-2": lambda patch: patch.setattr(
        budgets, "state_budget", lambda parameters: budgets.StateBudget(*(2 * parameters,) * 3)
    ),
    # stage 1 as stage 2
    "course-zero": lambda patch: patch.setattr(budgets, "sharded_state_bytes", _as_stage_2),
    # rows are not divided
    "course-zero-model": lambda patch: patch.setattr(formulas, "_rows", lambda rows, ranks, place: rows),
    # idle time over the ideal and not over the whole time
    "course-pipeline": lambda patch: patch.setattr(pipeline, "bubble", lambda ranks, **more: float(ranks - 1)),
    # an all-reduce as one gather
    "course-ring": lambda patch: patch.setattr(
        traffic, "volume", lambda kind, size, ranks: (ranks - 1) / ranks * size
    ),
    # both matrices by columns: a gather between them
    "course-column-row": lambda patch: patch.setattr(
        formulas, "_exchanges", _wrapped(formulas._exchanges, lambda found: 2 * list(found))
    ),
    # the roles of α and β exchanged in the optimum
    "scaling-rounded-exponents": lambda patch: patch.setattr(Law, "exponents", property(_exchanged)),
    # the vertex of the parabola on the wrong side
    "scaling-isoflop-minimum": lambda patch: patch.setattr(
        isoflop, "minimum", _wrapped(isoflop.minimum, lambda found: replace(found, N=1.2 * found.N))
    ),
    # no embedding between the counts
    "scaling-kaplan-exponent": lambda patch: patch.setattr(
        bridge.Bridge, "convert", lambda self, N, given, wanted: N
    ),
    # the table as printed
    "scaling-misprint": lambda patch: patch.setattr(
        frontiers, "APPROACH_3", tuple(row._replace(D=row.D / 10) for row in frontiers.APPROACH_3)
    ),
    # every recursion keeps all tokens
    "mor-cache-by-recursion": lambda patch: patch.setattr(
        ExpertChoice, "_room", lambda self, recursion, after: after
    ),
    # a byte a number
    "gpu-intensity": lambda patch: patch.setattr(
        gpu, "forward_cost", lambda rows, inputs, outputs, element_bytes: Cost(
            2 * rows * inputs * outputs, inputs * outputs + rows * (inputs + outputs)
        )
    ),
    # the kernel runs the other way
    "gpu-convolution": lambda patch: patch.setattr(
        ops, "causal_conv1d", lambda x, weight: _REAL_CONVOLUTION(x, weight.flip(1))
    ),
}  # fmt: skip
"""What an implementation could get wrong, by the claim that has to see it."""


def _halved_descent(rate: float, **more: Any) -> optimisers.SGDConfig:
    return _REAL_SGD(rate / 2, **more)


def _as_stage_2(stage: int, ranks: int) -> float:
    return _REAL_STATES(2 if stage == 1 else stage, ranks)


def _exchanged(law: Law) -> Exponents:
    total = law.alpha + law.beta
    return Exponents(law.alpha / total, law.beta / total)


@pytest.mark.parametrize("id", MUTATIONS)
def test_an_implementation_that_errs_flips_the_verdict(id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    MUTATIONS[id](monkeypatch)
    result = measured(select([id])[0])
    assert result.error is None, result.error
    assert result.verdict != VERDICTS[id]


def finite(found: Measurement | list[Measurement], count: int = 1) -> list[float]:
    """All numbers of `count` measurements, each a finite number within its interval."""
    several = [found] if isinstance(found, Measurement) else found
    assert len(several) == count
    numbers: list[float] = []
    for measurement in several:
        numbers += measurement.value.values() if isinstance(measurement.value, Mapping) else [measurement.value]
        if measurement.interval is not None:
            low, high = measurement.interval
            assert low <= numbers[-1] + 1e-9 and numbers[-1] <= high + 1e-9
    assert all(math.isfinite(number) for number in numbers)
    return numbers


def test_flops_of_both_passes_are_counted() -> None:
    attention, mamba = finite(gpu.backward_flops(width=16, length=16), 2)
    assert attention == pytest.approx(2, abs=0.15) and mamba > 1


def test_passes_and_batches_are_measured() -> None:
    assert min(finite(gpu.backward_time(width=16, length=16, batches=(2,)), 2)) > 0
    assert finite(gpu.small_batches(batches=(1, 2, 4)))[0] >= 0
    assert min(finite(gpu.larger_batches(batches=(1, 2, 4)), 2)) > 0


def test_ops_are_measured() -> None:
    assert min(finite(gpu.moving_data(rows=64, width=32)) + finite(gpu.launch(elements=4))) > 0


def test_claims_of_devices_wait_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert {verdict(id) for id in ("gpu-launch-cuda", "gpu-transfer")} == {"needs a GPU"}


def test_a_slow_bus_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "transfers", lambda *given: transfers.Transfers(1.0, 1.0, 1.0, "computed"))
    assert verdict("gpu-transfer-hidden") == NOT and device("h100").pcie


def test_noise_falls_with_the_batch() -> None:
    torch.manual_seed(0)
    assert finite(course.batch_variance(sizes=(1, 16), draws=200))[0] == pytest.approx(-1, abs=0.25)


def test_checkpointing_takes_less_memory_and_more_compute() -> None:
    assert finite(course_systems.checkpointing_memory(depths=(4,), width=32))[0] > 1
    assert 1.1 < finite(course_systems.checkpointing_compute(depth=2, width=32))[0] < 1.4


def test_few_tokens_are_dead_and_a_router_that_sends_none_on_kills_all(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    assert finite(mor.dead_tokens(recursions=(2,), steps=1))[0] < 0.05
    monkeypatch.setattr(ExpertChoice, "_capacity", lambda self, recursion, length: 1)
    assert finite(mor.dead_tokens(recursions=(2,), steps=1))[0] > 0.3


def test_long_claims_of_recursion_run_in_small() -> None:
    assert finite(mor_training.training_time(widths=(16,), batch=1, length=16, rounds=1))[0] > 0
    assert 0 < finite(mor_training.training_memory(widths=(16,), batch=1, length=16))[0] < 2


@pytest.mark.slow
def test_quality_and_throughput_run_in_small() -> None:
    finite(mor_training.quality(widths=(16,), tokens=1e3, length=32, batch=2))
    assert min(finite(mor_training.throughput(width=16, batch=2, length=8), 2)) > 0


@pytest.mark.slow
def test_a_ladder_runs_in_small() -> None:
    found = finite(scaling_ladder.isoflop_here(budgets=(1e8,), widths=(8, 16, 24)))
    assert len(found) == 2
