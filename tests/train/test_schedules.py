"""What holds for every schedule of the registry; each against torch's scheduler where torch has one."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim import lr_scheduler

from verim.errors import InputError
from verim.train.schedules import (
    SCHEDULES,
    Constant,
    Cosine,
    Exponential,
    Linear,
    Schedule,
    WarmupStableDecay,
)

each_schedule = pytest.mark.parametrize("name", SCHEDULES)


@st.composite
def schedules(draw: st.DrawFn, kind: type[Schedule]) -> Any:
    steps = draw(st.integers(1, 300))
    warmup = draw(st.integers(0, steps))
    fields = {field.name for field in dataclasses.fields(kind)}
    more: dict[str, Any] = {}
    if "floor" in fields:
        more["floor"] = draw(st.floats(0.01, 1.0))
    if "decay" in fields:
        more["decay"] = draw(st.integers(0, steps - warmup))
    return kind(steps, warmup=warmup, **more)


@each_schedule
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_factors_rise_to_one_then_never_rise_again(name: str, data: st.DataObject) -> None:
    schedule = data.draw(schedules(SCHEDULES[name]))
    factors = [schedule(step) for step in range(schedule.steps)]
    assert all(0 < factor <= 1 for factor in factors)
    warmup = schedule.warmup
    assert factors[:warmup] == pytest.approx([(step + 1) / warmup for step in range(warmup)])
    assert all(later <= earlier for earlier, later in zip(factors[warmup:], factors[warmup + 1 :], strict=False))


@each_schedule
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_there_is_no_jump_and_the_end_is_where_it_is_said(name: str, data: st.DataObject) -> None:
    schedule = data.draw(schedules(SCHEDULES[name]))
    ends = {"constant": 1.0, "warmup_stable_decay": 0.0}
    end = ends.get(name, getattr(schedule, "floor", None))
    assert schedule(schedule.steps) == schedule(schedule.steps + 5) == pytest.approx(end)
    falling = getattr(schedule, "decay", schedule.steps - schedule.warmup - 1) + 1
    steepest = math.log(1 / end) if name == "exponential" else math.pi / 2
    for step in range(schedule.warmup, schedule.steps):
        assert (
            schedule(step) - schedule(step + 1) <= steepest * (1 - end) / max(falling, 1) + 1e-9
            or falling < 1
            or (name == "exponential" and schedule(step) - schedule(step + 1) <= steepest / falling + 1e-9)
        )


def torch_factors(build: Callable[[Any], Any], steps: int) -> list[float]:
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build(optimiser)
    factors = []
    for _ in range(steps):
        factors.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return factors


STEPS = 40
TORCH: dict[str, tuple[Schedule, Callable[[Any], Any]]] = {
    "constant": (Constant(STEPS), lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
    "linear": (Linear(STEPS, floor=0.2), lambda o: lr_scheduler.LinearLR(o, 1.0, 0.2, total_iters=STEPS)),
    "cosine": (Cosine(STEPS, floor=0.1), lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS, eta_min=0.1)),
    "exponential": (Exponential(STEPS, floor=0.01), lambda o: lr_scheduler.ExponentialLR(o, 0.01 ** (1 / STEPS))),
    "warmup_stable_decay": (
        WarmupStableDecay(STEPS, warmup=8, decay=9),
        lambda o: lr_scheduler.SequentialLR(
            o,
            [
                lr_scheduler.LinearLR(o, 1 / 8, 1.0, total_iters=7),
                lr_scheduler.LinearLR(o, 1.0, 0.0, total_iters=10),
            ],
            milestones=[30],
        ),
    ),
}


@each_schedule
@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
def test_it_is_that_of_torch(name: str) -> None:
    schedule, build = TORCH[name]
    assert [schedule(step) for step in range(STEPS)] == pytest.approx(torch_factors(build, STEPS), abs=1e-6)


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step")
def test_warmup_before_any_shape_is_that_of_torch() -> None:
    schedule = Cosine(STEPS, floor=0.0, warmup=10)

    def build(optimiser: Any) -> Any:
        rise = lr_scheduler.LinearLR(optimiser, 0.1, 1.0, total_iters=9)
        fall = lr_scheduler.CosineAnnealingLR(optimiser, 30)
        return lr_scheduler.SequentialLR(optimiser, [rise, fall], milestones=[10])

    assert [schedule(step) for step in range(STEPS)] == pytest.approx(torch_factors(build, STEPS), abs=1e-6)


@each_schedule
def test_impossible_fields_are_named(name: str) -> None:
    decay = {"decay": 0} if name == "warmup_stable_decay" else {}
    for steps, warmup in ((0, 0), (10, 11), (10, -1)):
        with pytest.raises(InputError, match=f"warmup.*: got {steps}, {warmup}"):
            SCHEDULES[name](steps, warmup=warmup, **decay)


@pytest.mark.parametrize(("kind", "floor"), [(Linear, -0.1), (Cosine, 1.1), (Exponential, 0.0), (Linear, math.nan)])
def test_impossible_floors_are_named(kind: type[Schedule], floor: float) -> None:
    with pytest.raises(InputError, match=f"floor: got {floor}"):
        kind(10, floor=floor)  # type: ignore[call-arg]
