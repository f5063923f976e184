"""A training step on a device that need not be here: seconds by op, memory, tokens, utilisation, energy and cost."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from verim.anatomy.devices import Device
from verim.anatomy.fits import check_fits
from verim.anatomy.ledger import Bound, Op, summed_ops
from verim.anatomy.whatif.rates import Rates, TableRates, work_of
from verim.anatomy.whatif.work import step_of
from verim.anatomy.workload import OptimiserOf, Workload, adamw
from verim.models import LanguageModel, LanguageModelConfig

DAY = 86400.0
MEMORY_SHARE = 0.92
"""Of a device's memory what tensors can have; the rest is the driver's and the libraries'. An assumption."""


@dataclass(frozen=True)
class Span:
    """A likely figure, and between which two it should lie."""

    likely: float
    low: float
    high: float

    def __add__(self, other: "Span") -> "Span":
        return Span(self.likely + other.likely, self.low + other.low, self.high + other.high)


@dataclass(frozen=True)
class Forecast:
    """A step of one of `count` equal devices.

    - `ops`: by falling time; `seconds` are the predicted ones. `bounds`: seconds by what the ops wait for.
    - `computing`: seconds of all ops. `waiting`: of exchanges with other devices that no computation hides, and of a
      pipeline's idle stages.
    - `memory_bytes`: the highest point on the fullest device. `tokens`, `flops`: of a step of all devices; the FLOPs
      that the model needs, nothing done again.
    - `dtype`: of most FLOPs. `basis`: what the prediction and its band rest on, in words.
    """

    device: Device
    count: int
    ops: tuple[Op, ...]
    bounds: Mapping[Bound, float]
    computing: Span
    waiting: Span
    memory_bytes: float
    tokens: int
    flops: float
    dtype: str
    basis: str

    @property
    def step_seconds(self) -> Span:
        return self.computing + self.waiting

    @property
    def tokens_per_second(self) -> Span:
        """Of all devices; the slowest step gives the fewest."""
        step = self.step_seconds
        return Span(self.tokens / step.likely, self.tokens / step.high, self.tokens / step.low)

    @property
    def utilisation(self) -> float:
        """The model's FLOPs over what the dense peaks of all devices could do in the step."""
        return self.flops / (self.step_seconds.likely * self.count * self.device.peak(self.dtype))

    @property
    def day_tokens(self) -> float:
        return DAY * self.tokens_per_second.likely

    @property
    def day_kilowatt_hours(self) -> float | None:
        """Of the devices at their allowed power, which is the most that they take; None where it is not known."""
        return None if self.device.watts is None else self.device.watts * self.count * DAY / 3.6e6

    def day_cost(self, kilowatt_hour_price: float | None = None) -> float | None:
        """Of renting at the device's price an hour, else of the energy at a price; None where neither is given."""
        if self.device.price_per_hour is not None:
            return 24 * self.count * self.device.price_per_hour
        energy = self.day_kilowatt_hours
        return None if energy is None or kilowatt_hour_price is None else energy * kilowatt_hour_price

    def by_op(self) -> list[Op]:
        """Ops of a name together, by falling time."""
        groups: dict[str, list[Op]] = {}
        for op in self.ops:
            groups.setdefault(op.name, []).append(op)
        return sorted(map(summed_ops, groups.values()), key=lambda op: -op.total_seconds)

    def to_json(self) -> dict[str, Any]:
        return {
            "device": self.device.name,
            "count": self.count,
            "step_seconds": asdict(self.step_seconds),
            "computing_seconds": asdict(self.computing),
            "waiting_seconds": asdict(self.waiting),
            "bound_seconds": dict(self.bounds),
            "memory_bytes": self.memory_bytes,
            "tokens_per_step": self.tokens,
            "tokens_per_second": asdict(self.tokens_per_second),
            "flops": self.flops,
            "dtype": self.dtype,
            "utilisation": self.utilisation,
            "day_tokens": self.day_tokens,
            "day_kilowatt_hours": self.day_kilowatt_hours,
            "basis": self.basis,
            "ops": [_op_json(op) for op in self.by_op()],
        }


def forecast(
    config: LanguageModelConfig,
    workload: Workload,
    device: Device,
    rates: Rates | None = None,
    optimiser: OptimiserOf = adamw,
) -> Forecast:
    """Of one `device`, from shapes alone. `rates`: those of the table if none are given (`TableRates`).

    Raises `InputError`, with the three nearest settings that fit, where the step needs more memory than the device has.
    """
    ops, memory = step_of(config, workload, optimiser)
    limit = MEMORY_SHARE * device.memory_bytes
    if memory.peak_bytes > limit:
        check_fits(config, workload, limit, optimiser)
    timed, bounds, computing = priced(ops, rates or TableRates(device))
    with torch.device("meta"):
        model = LanguageModel(config)
    return Forecast(
        device=device,
        count=1,
        ops=timed,
        bounds=bounds,
        computing=computing,
        waiting=Span(0.0, 0.0, 0.0),
        memory_bytes=memory.peak_bytes,
        tokens=workload.batch * workload.length,
        flops=model.flops(workload.length) * workload.batch * workload.length,
        dtype=dtype_of(ops),
        basis=str(rates or TableRates(device)),
    )


def priced(ops: tuple[Op, ...], rates: Rates) -> tuple[tuple[Op, ...], dict[Bound, float], Span]:
    """The ops with their seconds by falling time, the seconds by what they wait for, and those of all of them."""
    bounds: dict[Bound, float] = {"compute": 0.0, "memory": 0.0, "launch": 0.0}
    total, timed = Span(0.0, 0.0, 0.0), []
    for op in ops:
        found = rates.estimate(op)
        bounds[found.bound] += found.seconds
        total = total + Span(found.seconds, found.low, found.high)
        timed.append(replace(op, seconds=found.seconds))
    return tuple(sorted(timed, key=lambda op: -op.seconds)), bounds, total


def dtype_of(ops: tuple[Op, ...]) -> str:
    """In which most FLOPs of products are."""
    flops: dict[str, float] = {}
    for op in ops:
        if work_of(op.name) in ("product", "tiled"):
            flops[op.dtype] = flops.get(op.dtype, 0.0) + op.flops
    return max(flops, key=lambda name: flops[name], default="float32")


def _op_json(op: Op) -> dict[str, Any]:
    return {
        "name": op.name,
        "calls": op.calls,
        "seconds": op.seconds,
        "flops": op.hardware_flops,
        "bytes": op.bytes,
    }
