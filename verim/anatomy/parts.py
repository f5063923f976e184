"""The parts of a step as they pass: a stack of open phases, and what goes on where none is open."""

from dataclasses import dataclass
from typing import Any

from verim.anatomy.clock import Clock
from verim.runtime.phases import PHASES, Phase


@dataclass(frozen=True)
class Stretch:
    """A time without change of part, between two marks of a clock."""

    part: Phase
    begin: Any
    end: Any


class Parts:
    """Which part goes on, and the stretches of the step so far. An inner phase's time is not the outer's.

    `ambient` goes on where no phase is open: the rest, or the loss between a forward and its backward pass.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._open: list[Phase] = []
        self.ambient: Phase = "rest"
        self.stretches: list[Stretch] = []
        self.begin = self.last = clock.mark()

    @property
    def current(self) -> Phase:
        return self._open[-1] if self._open else self.ambient

    def enter(self, name: Phase) -> None:
        self._turn()
        self._open.append(name)

    def leave(self) -> None:
        self._turn()
        if self._open:
            self._open.pop()

    def set_ambient(self, name: Phase) -> None:
        if name != self.ambient:
            self._turn()
            self.ambient = name

    def _turn(self) -> None:
        now = self._clock.mark()
        self.stretches.append(Stretch(self.current, self.last, now))
        self.last = now

    def finish(self) -> None:
        """The step is over now."""
        self._turn()

    def seconds(self) -> dict[Phase, float]:
        """Of every part that passed, after the clock has settled."""
        sums: dict[Phase, float] = {}
        for stretch in self.stretches:
            sums[stretch.part] = sums.get(stretch.part, 0.0) + self._clock.seconds(stretch.begin, stretch.end)
        return {name: sums[name] for name in PHASES if name in sums}
