"""The roofline: how fast layers and ops compute, and how fast the machine lets anything of their intensity compute.

Williams, Waterman and Patterson, "Roofline" (CACM 52, 2009), equation 1: FLOP/s ≤ min(peak, bandwidth × intensity),
the intensity in FLOPs a byte. The bandwidth depends on how much is touched (a cache is faster than memory), and a
layer has ops of several types and sizes, so its ceiling is its FLOPs over the least seconds that its ops could take.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from verim.anatomy.ceilings import Ceilings
from verim.anatomy.ledger import Bound, Op, Record


@dataclass(frozen=True)
class Point:
    """A layer, or an op in one part of the step, on the roofline.

    - `flops`: of the hardware, forward and backward pass. `intensity`: FLOPs a byte; 0 for what only moves bytes.
    - `rate`: FLOP/s while its ops run, without what passes between them. `ceiling`: the most that the machine allows.
    - `seconds`: of a step, with what passes between ops. `bound`: what most of them are bound by.
    """

    name: str
    kind: str
    flops: float
    bytes: float
    seconds: float
    rate: float
    ceiling: float
    bound: Bound

    @property
    def intensity(self) -> float:
        return self.flops / self.bytes if self.bytes else 0.0

    @property
    def fraction(self) -> float:
        """Of the ceiling that it reaches."""
        return self.rate / self.ceiling if self.ceiling else 0.0


def layer_points(record: Record) -> list[Point]:
    """Every module that computes or moves something itself, by falling time. Code outside the modules is not there."""
    kinds = {fact.name: fact.kind for fact in record.facts}
    return _points(record, {name: (name, kinds.get(name, "")) for name in kinds if name})


def alike_points(record: Record) -> list[Point]:
    """The same, layers summed whose names differ by numbers only: `blocks.*.mixer` for that of every block."""
    kinds = {fact.name: fact.kind for fact in record.facts}
    return _points(record, {name: (pattern_of(name), kinds[name]) for name in kinds if name})


def op_points(record: Record) -> list[Point]:
    """Every op in every part of the step, by falling time."""
    groups: dict[tuple[str, str], list[Op]] = {}
    for op in record.ops:
        if op.bytes:
            groups.setdefault((op.name, op.part), []).append(op)
    return _sorted(point_of(name, part, ops, record.ceilings) for (name, part), ops in groups.items())


def pattern_of(name: str) -> str:
    """
    >>> pattern_of("blocks.3.mixer.into")
    'blocks.*.mixer.into'
    """
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def point_of(name: str, kind: str, ops: list[Op], ceilings: Ceilings) -> Point:
    """Of ops together."""
    flops, seconds = sum(op.hardware_flops for op in ops), sum(op.seconds for op in ops)
    least = sum(max(limits["compute"], limits["memory"]) for limits in (op.limits(ceilings) for op in ops))
    bounds: dict[Bound, float] = {}
    for op in ops:
        bound = op.bound_by(ceilings)
        bounds[bound] = bounds.get(bound, 0.0) + op.total_seconds
    return Point(
        name=name,
        kind=kind,
        flops=flops,
        bytes=sum(op.bytes for op in ops),
        seconds=sum(op.total_seconds for op in ops),
        rate=flops / seconds if seconds else 0.0,
        ceiling=flops / least if least else 0.0,
        bound=max(bounds, key=lambda bound: bounds[bound]),
    )


def _points(record: Record, names: dict[str, tuple[str, str]]) -> list[Point]:
    groups: dict[tuple[str, str], list[Op]] = {}
    for op in record.ops:
        if op.bytes and op.module in names:
            groups.setdefault(names[op.module], []).append(op)
    return _sorted(point_of(name, kind, ops, record.ceilings) for (name, kind), ops in groups.items())


def _sorted(points: Iterable[Point]) -> list[Point]:
    return sorted(points, key=lambda point: -point.seconds)
