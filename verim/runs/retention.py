"""Which checkpoints of a run stay."""

from collections.abc import Mapping
from dataclasses import dataclass

from verim.errors import InputError


@dataclass(frozen=True)
class Retention:
    """The `last` checkpoints stay, the best one by the held-out figure `best`, and all at multiples of `every` steps.

    The lowest figure is the best, the highest where `lowest` is False; of equal ones the newest stays. A checkpoint
    at which the figure was not taken is never the best. With `last` = 1 there is none to fall back on where the
    newest is damaged.

    >>> rule = Retention(last=2, best="bits_per_byte", every=100)
    >>> figures = {100: {}, 110: {"bits_per_byte": 2.1}, 120: {"bits_per_byte": 2.3}, 130: {}, 140: {}}
    >>> sorted(rule.kept(figures))
    [100, 110, 130, 140]
    """

    last: int = 2
    best: str | None = None
    lowest: bool = True
    every: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("last", self.last), ("every", self.every)):
            if value is not None and value < 1:
                raise InputError(f"{name}: got {value}, expected at least 1 checkpoint kept or 1 step")

    def kept(self, figures: Mapping[int, Mapping[str, float | None]]) -> set[int]:
        """The steps that stay, of those in `figures`, which says what was measured at each."""
        steps = sorted(figures)
        kept = set(steps[-self.last :])
        if self.every is not None:
            kept |= {step for step in steps if step % self.every == 0}
        sign = 1 if self.lowest else -1
        rated = [
            (sign * value, -step)
            for step in steps
            if self.best is not None and (value := figures[step].get(self.best)) is not None
        ]
        return kept | {-step for _, step in sorted(rated)[:1]}
