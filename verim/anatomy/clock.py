"""Moments of a step: on the CPU what the clock says, on CUDA events in the stream, read when the step is over."""

import time
from typing import Any, Protocol

import torch


class Clock(Protocol):
    """`mark` is cheap and may be called anywhere; `seconds` between two marks is known after `settle`."""

    def mark(self) -> Any: ...

    def settle(self) -> None: ...

    def seconds(self, begin: Any, end: Any) -> float: ...


class HostClock:
    """Of work that is done when its call returns."""

    def mark(self) -> float:
        return time.perf_counter()

    def settle(self) -> None:
        pass

    def seconds(self, begin: float, end: float) -> float:
        return end - begin


class CudaClock:
    """Of work that the device does later, in the order of the current stream: nothing waits while a step is marked."""

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def settle(self) -> None:
        torch.cuda.synchronize()

    def seconds(self, begin: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return float(begin.elapsed_time(end)) / 1e3


def clock_for(device: torch.device) -> Clock:
    """The clock of work on `device`."""
    return CudaClock() if device.type == "cuda" else HostClock()
