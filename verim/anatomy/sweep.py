"""Sweeps: a training step measured along one axis, with the knees found and named.

A sweep answers from which batch, length or width on the machine is busy, where memory ends, what a precision and what
more threads are worth, and how the backward pass compares with the forward pass.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

import torch

from verim.anatomy.ceilings import Ceilings, ceilings_of
from verim.anatomy.fits import check_fits
from verim.anatomy.knee import Knee, largest_that_fits, place_of, saturation_knee, threads_knee
from verim.anatomy.ledger import Record
from verim.anatomy.machine import usable_cores
from verim.anatomy.prediction import predict_memory
from verim.anatomy.recorder import record
from verim.anatomy.workload import Precision, Workload, adamw
from verim.errors import InputError
from verim.models import LanguageModel, LanguageModelConfig

Axis = Literal["batch", "length", "width", "dtype", "threads"]
AXES: tuple[Axis, ...] = get_args(Axis)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
FEWEST_STEPS = 5
FAR = 64
"""The end of memory is looked for up to this many times the largest value."""


@dataclass(frozen=True)
class Sample:
    """A step at one value of the axis. Seconds and FLOPs of the forward pass are with those of the loss.

    `utilisation`: model FLOPs over the measured peak of the type that most of them are in.
    `predicted_bytes` from shapes before the step ran, `measured_bytes` by the allocator's own records.
    """

    value: int | str
    tokens: int
    step_seconds: float
    forward_seconds: float
    backward_seconds: float
    forward_flops: float
    backward_flops: float
    utilisation: float
    predicted_bytes: int
    measured_bytes: int | None

    @property
    def flops(self) -> float:
        return self.forward_flops + self.backward_flops

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.step_seconds

    @property
    def backward_ratio(self) -> float:
        """Seconds of the backward pass over those of the forward pass."""
        return self.backward_seconds / self.forward_seconds if self.forward_seconds else math.inf

    @property
    def backward_flops_ratio(self) -> float:
        return self.backward_flops / self.forward_flops if self.forward_flops else math.inf


@dataclass(frozen=True)
class Sweep:
    """Samples in the order of the axis.

    - `knee`: of FLOPs a step against seconds, or of threads; None for types, and for too few values.
      `knee_value`: where it lies on the axis.
    - `refused`: values that were not run, and the bytes that each would need.
    - `largest`: the largest value that fits into `available_bytes`, by prediction; None where it does not depend on
      the axis, or memory is not known. `is_largest_known`: there is an end, and it was found.
    """

    axis: Axis
    samples: tuple[Sample, ...]
    workload: Workload
    available_bytes: float
    refused: tuple[tuple[int | str, int], ...] = ()
    knee: Knee | None = None
    knee_value: float | None = None
    largest: int | None = None
    is_largest_known: bool = False

    def to_json(self) -> dict[str, Any]:
        derived = ("flops", "tokens_per_second", "backward_ratio", "backward_flops_ratio")
        samples = [asdict(sample) | {name: getattr(sample, name) for name in derived} for sample in self.samples]
        values = asdict(self) | {"samples": samples}
        return {name: _finite(value) for name, value in values.items()}


def default_values(axis: Axis) -> tuple[int | str, ...]:
    """What a sweep runs where no values are given."""
    powers = tuple(2**power for power in range(max(1, usable_cores()).bit_length()))
    return {
        "batch": (1, 2, 4, 8, 16, 32),
        "length": (64, 128, 256, 512, 1024),
        "width": (64, 128, 192, 256),
        "dtype": PRECISIONS,
        "threads": powers,
    }[axis]


def check_values(axis: str, values: Sequence[int | str]) -> tuple[int | str, ...]:
    """`values` as what the axis has: numbers, ascending, from 1; or names of types. Raises `InputError`."""
    if axis not in AXES:
        raise InputError(f"over: got {axis!r}, expected one of {', '.join(AXES)}")
    if not values:
        raise InputError(f"values: got none for {axis}, expected one or more")
    if axis == "dtype":
        for value in values:
            if value not in PRECISIONS:
                raise InputError(f"values: got {value!r} for dtype, expected some of {', '.join(PRECISIONS)}")
        if len(set(values)) < len(values):
            raise InputError(f"values: got {_written(values)}, expected each dtype once")
        return tuple(values)
    try:
        numbers = tuple(int(value) for value in values)
    except ValueError:
        raise InputError(f"values: got {_written(values)} for {axis}, expected whole numbers") from None
    if numbers[0] < 1 or any(later <= earlier for earlier, later in itertools.pairwise(numbers)):
        raise InputError(f"values: got {_written(values)} for {axis}, expected ascending numbers from 1 on")
    return numbers


def sweep(
    config_of: Callable[[int], LanguageModelConfig],
    width: int,
    axis: Axis,
    values: Sequence[int | str] | None = None,
    workload: Workload | None = None,
    steps: int = 9,
    available_bytes: float = math.inf,
    ceilings: Ceilings | None = None,
    tell: Callable[[Sample], None] = lambda sample: None,
) -> Sweep:
    """Measures the training step of `config_of(width)` at every one of `values`, all else as `workload` says.

    - `steps`: at each value, 5 or more; see `verim.anatomy.record` for how they are measured.
    - `available_bytes`: what a step may need. Values whose predicted memory is more are not run, but told.
    - `ceilings`: of the machine; measured where none are given. `tell` is told of every sample when it is there.

    Raises `InputError` for an axis, values or a number of steps that cannot be, and where the first value does not fit.
    """
    chosen = check_values(axis, default_values(axis) if values is None else values)
    if steps < FEWEST_STEPS:
        raise InputError(f"steps: got {steps}, expected {FEWEST_STEPS} or more, for one of every kind")
    base = workload or Workload()
    samples: list[Sample] = []
    needed: list[tuple[int | str, int]] = []
    for value in chosen:
        config = config_of(int(value) if axis == "width" else width)
        there = _workload(base, axis, value)
        if needed:
            predicted = predict_memory(config, there).peak_bytes
        else:
            predicted = check_fits(config, there, available_bytes).peak_bytes
        needed.append((value, predicted))
        if predicted > available_bytes:
            continue
        threads = int(value) if axis == "threads" else torch.get_num_threads()
        sample = _measured(config, there, value, predicted, steps, threads, ceilings)
        samples.append(sample)
        tell(sample)
    refused = tuple((value, size) for value, size in needed if size > available_bytes)
    found = Sweep(axis, tuple(samples), base, available_bytes, refused)
    found = _with_knee(found)

    def bytes_at(value: int) -> float:
        config = config_of(value if axis == "width" else width)
        return predict_memory(config, _workload(base, axis, value)).peak_bytes

    return _with_end(found, needed, bytes_at)


def _workload(base: Workload, axis: Axis, value: int | str) -> Workload:
    if axis == "batch":
        return replace(base, batch=int(value))
    if axis == "length":
        return replace(base, length=int(value))
    if axis == "dtype":
        return replace(base, precision=next(known for known in PRECISIONS if known == value))
    return base


def _measured(
    config: LanguageModelConfig,
    workload: Workload,
    value: int | str,
    predicted: int,
    steps: int,
    threads: int,
    ceilings: Ceilings | None,
) -> Sample:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        known = ceilings or ceilings_of("cpu", PRECISIONS, threads)
        model = LanguageModel(config)
        workload.prepare(model)
        optimiser = adamw(model)
        with record(model, ceilings=known) as recording:
            for _ in range(steps):
                workload.step(model, optimiser, workload.draw(model))
    finally:
        torch.set_num_threads(before)
    return sample_of(recording.result, value, workload.batch * workload.length, predicted)


def sample_of(ledger: Record, value: int | str, tokens: int, predicted: int) -> Sample:
    """What a sweep keeps of a ledger."""
    seconds = {part.name: part.seconds for part in ledger.parts}
    flops: dict[str, float] = {}
    for op in ledger.ops:
        flops[op.part] = flops.get(op.part, 0.0) + op.flops
    return Sample(
        value=value,
        tokens=tokens,
        step_seconds=ledger.step_seconds,
        forward_seconds=seconds.get("forward", 0.0) + seconds.get("loss", 0.0),
        backward_seconds=seconds.get("backward", 0.0),
        forward_flops=flops.get("forward", 0.0) + flops.get("loss", 0.0),
        backward_flops=flops.get("backward", 0.0),
        utilisation=ledger.utilisation,
        predicted_bytes=predicted,
        measured_bytes=ledger.memory.allocator_peak_bytes,
    )


def _with_knee(found: Sweep) -> Sweep:
    seconds = [sample.step_seconds for sample in found.samples]
    values = [int(sample.value) for sample in found.samples if found.axis != "dtype"]
    if found.axis == "threads" and len(values) > 1:
        knee = threads_knee(values, seconds)
        return replace(found, knee=knee, knee_value=knee.at)
    if len(values) < 3 or found.axis == "threads":
        return found
    flops = [sample.flops for sample in found.samples]
    knee = saturation_knee(flops, seconds)
    return replace(found, knee=knee, knee_value=place_of(values, flops, knee.at))


def _with_end(found: Sweep, needed: list[tuple[int | str, int]], bytes_at: Callable[[int], float]) -> Sweep:
    """Where memory ends, for an axis on which it does."""
    known = [(int(value), size) for value, size in needed if found.axis in ("batch", "length", "width")]
    if len(known) < 2 or not math.isfinite(found.available_bytes):
        return found
    unit = math.gcd(*(value for value, _ in known))
    farthest = FAR * known[-1][0]
    largest = largest_that_fits(bytes_at, known, found.available_bytes, unit, farthest)
    return replace(found, largest=largest, is_largest_known=largest < farthest)


def _written(values: Sequence[int | str]) -> str:
    return ", ".join(map(str, values))


def _finite(value: Any) -> Any:
    """JSON has no infinity: it is null there."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
