"""Schedules of the learning rate: a factor in [0, 1] for every step."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from verim.errors import InputError


@dataclass(frozen=True)
class Schedule(ABC):
    """A run of `steps` updates. Called with a step, from 0, it gives the factor of the update that this step makes.

    The factor rises over the first `warmup` steps, (step + 1) / warmup, so that no update is wasted on a factor of
    zero (Goyal et al. 2017, arXiv 1706.02677, section 2.2), and is 1 at the last of them. The shape begins with the
    step after, t = 0 there, and reaches its end value with t = 1 at step `steps`: the step after the last update.
    """

    steps: int
    warmup: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 <= self.warmup <= self.steps:
            raise InputError(
                f"steps, warmup: got {self.steps}, {self.warmup}; expected steps of at least 1 and a warmup of 0 to "
                "steps"
            )

    def __call__(self, step: int) -> float:
        """The factor of step `step`; the end value beyond the last."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        length = max(self.steps - self.warmup, 1)
        return self._shape(min(step + length - self.steps, length), length)

    @abstractmethod
    def _shape(self, done: int, length: int) -> float:
        """The factor `done` steps after warm-up; t = done / length."""


@dataclass(frozen=True)
class Constant(Schedule):
    """1 after warm-up."""

    def _shape(self, done: int, length: int) -> float:
        return 1.0


@dataclass(frozen=True)
class Linear(Schedule):
    """1 - (1 - floor) t: from 1 to `floor` (Defazio et al. 2023, arXiv 2310.07831, corollary 4, for floor 0)."""

    floor: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("floor", self.floor)

    def _shape(self, done: int, length: int) -> float:
        return 1 - (1 - self.floor) * done / length


@dataclass(frozen=True)
class Cosine(Schedule):
    """floor + (1 - floor) (1 + cos(π t)) / 2: half a wave from 1 to `floor`.

    Loshchilov & Hutter 2017 (arXiv 1608.03983), equation 5, without restarts.
    """

    floor: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_share("floor", self.floor)

    def _shape(self, done: int, length: int) -> float:
        return self.floor + (1 - self.floor) * (1 + math.cos(math.pi * done / length)) / 2


@dataclass(frozen=True)
class Exponential(Schedule):
    """floor^t: the same ratio from step to step, from 1 to `floor`, which is not zero."""

    floor: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.floor <= 1:
            raise InputError(f"floor: got {self.floor}, expected a number in (0, 1]: what shrinks by ratios is never 0")

    def _shape(self, done: int, length: int) -> float:
        return float(self.floor ** (done / length))


@dataclass(frozen=True)
class WarmupStableDecay(Schedule):
    """Linear rise over `warmup` steps, constant, then linear fall to zero over the last `decay` steps.

    The trapezoid of Zhai et al. 2022 (arXiv 2106.04560, section 3.5) and Hägele et al. 2024 (arXiv 2405.18392). The
    fall is by equal parts from the 1 before it: decay / (decay + 1), ..., 1 / (decay + 1), and zero at step `steps`.
    """

    warmup: int = field(kw_only=False)  # a field(), or it would take the default of the one above
    decay: int

    def __post_init__(self) -> None:
        if self.steps < 1 or self.warmup < 0 or self.decay < 0 or self.warmup + self.decay > self.steps:
            raise InputError(
                f"steps, warmup, decay: got {self.steps}, {self.warmup}, {self.decay}; expected steps ≥ 1 and "
                "warmup + decay ≤ steps, none negative"
            )

    def _shape(self, done: int, length: int) -> float:
        return min(1.0, (length - done) / (self.decay + 1))


SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "linear": Linear,
    "cosine": Cosine,
    "exponential": Exponential,
    "warmup_stable_decay": WarmupStableDecay,
}
"""The kinds of schedules, by their name in a configuration."""


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InputError(f"{name}: got {value}, expected a number in [0, 1]")
