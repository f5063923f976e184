"""Spikes of the loss and of the gradient's norm: seen, and what to do about them."""

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from verim.errors import InputError

Decision = Literal["go on", "skip", "roll back"]
_NORMAL = 1.4826  # the deviation of a normal distribution over its median absolute deviation


@dataclass(frozen=True)
class SpikeConfig:
    """A step whose loss or gradient norm stands out from the last `window` steps is skipped, as in OLMo 2 (2025, arXiv
    2501.00656, section 3.2: 6 standard deviations, 128 steps); where that does not help, the run goes back to its last
    checkpoint and passes over the data in between, as PaLM was trained (Chowdhery et al. 2022, arXiv 2204.02311,
    section 5.1).

    - `threshold`: how many robust deviations above the median are a spike. The deviation is 1.4826 · the median
      absolute deviation (Iglewicz & Hoaglin 1993, section 3.3), which earlier spikes do not blow up; of the norm, whose
      spread is a factor, the logarithm is looked at. Only what is larger than usual is a spike.
    - `window`: steps that are looked back at. Before half of them are seen only a loss or norm that is not finite is
      a spike.
    - `patience`: after so many spikes in a row the decision is to roll back.
    - `least`: the smallest deviation that is taken for real, of the loss relative to its median and of the norm's
      logarithm: on a flat curve noise is no spike.
    """

    threshold: float = 6.0
    window: int = 128
    patience: int = 8
    least: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.threshold < math.inf:
            raise InputError(f"threshold: got {self.threshold}, expected a positive finite number of deviations")
        if self.window < 8:
            raise InputError(f"window: got {self.window}, expected at least 8 steps: fewer have no deviation")
        if self.patience < 1:
            raise InputError(f"patience: got {self.patience}, expected at least 1")
        if not 0 <= self.least < math.inf:
            raise InputError(f"least: got {self.least}, expected a finite number of at least 0")


class SpikeDetector:
    """Looks at a run step by step; `decide` is to be called before the update, with the loss and the norm of it."""

    def __init__(self, config: SpikeConfig) -> None:
        self.config = config
        self.in_a_row = 0
        self._losses: deque[float] = deque(maxlen=config.window)
        self._norms: deque[float] = deque(maxlen=config.window)  # their logarithms

    def decide(self, loss: float, norm: float) -> Decision:
        """What to do with this step. Spikes become part of what later steps are compared with, as the median bears:
        a level that stays is the new level after half a window."""
        logarithm = math.log(norm) if 0 < norm < math.inf else (-math.inf if norm == 0 else math.nan)
        is_finite = math.isfinite(loss) and math.isfinite(norm)
        is_spike = not is_finite or self.deviation(loss, norm) > self.config.threshold
        if math.isfinite(loss):
            self._losses.append(loss)
        if math.isfinite(logarithm):
            self._norms.append(logarithm)
        self.in_a_row = self.in_a_row + 1 if is_spike else 0
        if self.in_a_row >= self.config.patience:
            self.in_a_row = 0
            return "roll back"
        return "skip" if is_spike else "go on"

    def deviation(self, loss: float, norm: float) -> float:
        """How many deviations the loss or the norm, whichever is more, lies above the median of the steps before.

        Nothing below 0 is told apart, and minus infinity is of a window that is not half full.
        """
        of_loss = self._above(loss, self._losses, is_logarithm=False)
        return max(of_loss, self._above(math.log(norm), self._norms, is_logarithm=True) if norm > 0 else -math.inf)

    def _above(self, value: float, before: Sequence[float], is_logarithm: bool) -> float:
        if 2 * len(before) < self.config.window:
            return -math.inf
        median = statistics.median(before)
        if value <= median:
            return 0.0
        least = self.config.least * (1.0 if is_logarithm else abs(median))
        spread = max(_NORMAL * statistics.median([abs(other - median) for other in before]), least)
        return (value - median) / spread if spread else math.inf

    def state(self) -> dict[str, Any]:
        """All that is needed to go on, as JSON values."""
        return {"losses": list(self._losses), "log_norms": list(self._norms), "in_a_row": self.in_a_row}

    def restore(self, state: dict[str, Any]) -> None:
        """Puts `state()` back, of a detector with the same window or another."""
        self._losses = deque(state["losses"], maxlen=self.config.window)
        self._norms = deque(state["log_norms"], maxlen=self.config.window)
        self.in_a_row = int(state["in_a_row"])
