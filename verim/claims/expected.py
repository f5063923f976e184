"""What a claim expects, typed, so that one piece of code judges every measured value.

A value is a number, or several by name: then each has to hold.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from verim.errors import InputError
from verim.report.words import scientific

Value = float | Mapping[str, float]
_WHOLE = 1e7  # whole numbers below are told with all their digits


class Expected(Protocol):
    """An expected figure: `holds(value)` compares, `str()` says it in words. NaN holds nowhere.

    `bounds`: between which numbers a single one holds.
    """

    @property
    def bounds(self) -> tuple[float, float]: ...

    def holds(self, value: Value) -> bool: ...


@dataclass(frozen=True)
class Exactly:
    """One number, within ± `tolerance` + `relative` · |number|."""

    number: float
    tolerance: float = 0.0
    relative: float = 0.0

    @property
    def bounds(self) -> tuple[float, float]:
        """The number less and more what is allowed."""
        allowed = self.tolerance + self.relative * abs(self.number)
        return self.number - allowed, self.number + allowed

    def holds(self, value: Value) -> bool:
        """Whether every number of `value` is this one."""
        return _within(value, self.bounds)

    def __str__(self) -> str:
        return shown(self.number) + _allowance(self.tolerance, self.relative)


@dataclass(frozen=True)
class AtLeast:
    """A number from `bound` up."""

    bound: float

    @property
    def bounds(self) -> tuple[float, float]:
        """From the bound on."""
        return self.bound, math.inf

    def holds(self, value: Value) -> bool:
        """Whether every number of `value` reaches the bound."""
        return _within(value, self.bounds)

    def __str__(self) -> str:
        return f"≥ {shown(self.bound)}"


@dataclass(frozen=True)
class AtMost:
    """A number up to `bound`."""

    bound: float

    @property
    def bounds(self) -> tuple[float, float]:
        """Up to the bound."""
        return -math.inf, self.bound

    def holds(self, value: Value) -> bool:
        """Whether no number of `value` is beyond the bound."""
        return _within(value, self.bounds)

    def __str__(self) -> str:
        return f"≤ {shown(self.bound)}"


@dataclass(frozen=True)
class Between:
    """A number from `low` to `high`."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise InputError(f"Between: got {self.low:g} and {self.high:g}, expected the lower end first")

    @property
    def bounds(self) -> tuple[float, float]:
        """Both ends."""
        return self.low, self.high

    def holds(self, value: Value) -> bool:
        """Whether every number of `value` lies within."""
        return _within(value, self.bounds)

    def __str__(self) -> str:
        return f"{shown(self.low)} to {shown(self.high)}"


@dataclass(frozen=True)
class Goldens:
    """Several numbers by name, each within ± `tolerance` + `relative` · |number|."""

    golden: Mapping[str, float] = field(hash=False)
    tolerance: float = 0.0
    relative: float = 0.0

    @property
    def bounds(self) -> tuple[float, float]:
        """Of a single number, which is never what is expected: none."""
        return math.inf, -math.inf

    def holds(self, value: Value) -> bool:
        """Whether `value` has exactly these names, and each number is near its golden one."""
        return (
            isinstance(value, Mapping)
            and set(value) == set(self.golden)
            and all(Exactly(self.golden[name], self.tolerance, self.relative).holds(value[name]) for name in value)
        )

    def __str__(self) -> str:
        return in_words(self.golden) + _allowance(self.tolerance, self.relative)


def _within(value: Value, bounds: tuple[float, float]) -> bool:
    numbers = value.values() if isinstance(value, Mapping) else (value,)
    return all(bounds[0] <= number <= bounds[1] for number in numbers)


def shown(number: float) -> str:
    """A number as a reader wants it: whole ones with all their digits, others with five, or as powers of ten."""
    if math.isinf(number):
        return "∞" if number > 0 else "−∞"
    if number == round(number) and abs(number) < _WHOLE:
        return f"{number:.0f}"
    return f"{number:.5g}" if 1e-3 <= abs(number) < 1e5 else scientific(number, 3)


def in_words(value: Value) -> str:
    """A number, or several with their names."""
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {in_words(number)}" for name, number in value.items())
    return "not a number" if math.isnan(value) else shown(value)


def _allowance(tolerance: float, relative: float) -> str:
    parts = [shown(tolerance)] if tolerance else []
    parts += [f"{shown(100 * relative)} %"] if relative else []
    return f" ± {' ± '.join(parts)}" if parts else ""
