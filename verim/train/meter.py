"""What a step's line says beside the loss: rate, utilisation, memory, end."""

import os
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path

import torch

_WINDOW_SECONDS = 20.0
"""Rates are means over so much time: long enough to be calm, short enough to show a change."""


@dataclass
class Meter:
    """Figures of training's pace.

    `flops_per_token` counts model FLOPs (forward and backward, a multiply-add is 2; recomputation is not counted);
    utilisation is their rate over `peak_flops`, the *measured* FLOP/s of a large product in the run's data type on its
    threads or device. Either may be None: then there is no utilisation.
    """

    steps: int
    tokens_per_step: int
    flops_per_token: float | None = None
    peak_flops: float | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _seen: deque[tuple[float, int]] = field(default_factory=deque, repr=False)
    _reads: int = field(default=0, repr=False)

    def begin(self, step: int) -> None:
        """Training goes on after `step` steps."""
        self._seen, self._reads = deque([(time.perf_counter(), step)]), 0

    def read(self, step: int) -> dict[str, float]:
        """Figures after `step` steps: tokens_per_second, utilisation, memory_bytes, seconds_left."""
        now = time.perf_counter()
        self._seen.append((now, step))
        self._reads += 1
        if self._reads == 2:
            self._seen.popleft()  # the first step paid for what is compiled once
        while len(self._seen) > 2 and now - self._seen[1][0] >= _WINDOW_SECONDS:
            self._seen.popleft()
        began, first = self._seen[0]
        pace = (step - first) / max(now - began, 1e-9)
        figures = {
            "tokens_per_second": pace * self.tokens_per_step,
            "memory_bytes": float(memory_bytes(self.device)),
            "seconds_left": (self.steps - step) / pace,
        }
        if self.flops_per_token and self.peak_flops:
            figures["utilisation"] = figures["tokens_per_second"] * self.flops_per_token / self.peak_flops
        return figures


def memory_bytes(device: torch.device) -> int:
    """Bytes in use: on a GPU the largest that tensors ever took, on the CPU the process's resident memory now."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, AttributeError, ValueError):  # not Linux
        return 0
