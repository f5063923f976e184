"""Schedules of the learning rate: a factor in [0, 1] for every step."""

from dataclasses import dataclass

from verim.errors import InputError


@dataclass(frozen=True)
class WarmupStableDecay:
    """Linear rise over `warmup` steps, constant, then linear fall to zero over the last `decay` steps.

    The trapezoid of Zhai et al. 2022 (arXiv 2106.04560, section 3.5) and Hägele et al. 2024 (arXiv 2405.18392).
    """

    steps: int
    warmup: int
    decay: int

    def __post_init__(self) -> None:
        if self.steps < 1 or self.warmup < 0 or self.decay < 0 or self.warmup + self.decay > self.steps:
            raise InputError(
                f"steps, warmup, decay: got {self.steps}, {self.warmup}, {self.decay}; expected steps ≥ 1 and "
                "warmup + decay ≤ steps, none negative"
            )

    def __call__(self, step: int) -> float:
        """The factor of the update that step `step` (from 0) makes."""
        rise = (step + 1) / self.warmup if step < self.warmup else 1.0
        left = self.steps - step
        fall = left / (self.decay + 1) if left <= self.decay else 1.0
        return min(rise, fall)
