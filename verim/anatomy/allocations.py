"""What the allocators themselves recorded of a step: bytes beyond what lay there when it began."""

import resource
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch._C import _profiler

_FREED = "verim freed "


class AllocatorPeak:
    """`bytes`: the most that was allocated at one time since the context was entered, less what was freed since.

    The CPU's records do not say the size of what was allocated before they began: `freed` does, for what is known.
    """

    bytes: int | None = None
    is_recorded = False

    def freed(self, size: int) -> None:
        """So many bytes that lay there from the begin are free now."""
        if self.is_recorded:
            with _profiler._RecordFunctionFast(f"{_FREED}{size}"):
                pass


@contextmanager
def allocator_peak(device: torch.device) -> Iterator[AllocatorPeak]:
    """Watches torch's allocator of `device`.

    On the CPU its records of every allocation (those of `torch.profiler`, which must not run at the same time: then,
    and where this torch has none, there is no figure); on CUDA its highest mark.
    """
    peak = AllocatorPeak()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        held = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        torch.cuda.synchronize(device)
        peak.bytes = torch.cuda.max_memory_allocated(device) - held
        return
    autograd: Any = torch._C._autograd
    if autograd._profiler_enabled() or not hasattr(autograd, "_enable_profiler_legacy"):
        yield peak
        return
    state = _profiler.ProfilerState.CPU
    config = _profiler.ProfilerConfig(state, False, True, False, False, False, _profiler._ExperimentalConfig())
    autograd._enable_profiler_legacy(config)
    peak.is_recorded = True
    try:
        yield peak
    finally:
        peak.is_recorded = False
        threads = autograd._disable_profiler_legacy()
    peak.bytes = highest(_change(event) for events in threads for event in events)


def _change(event: Any) -> int:
    """Bytes that lie there more than before."""
    if event.kind() == "memory_alloc":
        return int(event.cpu_memory_usage())
    name = event.name()
    return -int(name.removeprefix(_FREED)) if event.kind() == "push" and name.startswith(_FREED) else 0


def highest(changes: Iterable[int]) -> int:
    """The highest sum of the first so many changes."""
    level = most = 0
    for change in changes:
        level += change
        most = max(most, level)
    return most


def cuda_level(trace: Iterable[Mapping[str, Any]]) -> list[tuple[float, int]]:
    """Seconds from the first entry and bytes allocated beyond the start, from a trace of CUDA's allocator.

    `trace`: one device's entry of `device_traces` in `torch.cuda.memory._snapshot()`, after
    `torch.cuda.memory._record_memory_history()`.
    """
    level, start, points = 0, None, []
    for entry in trace:
        sign = {"alloc": 1, "free_completed": -1}.get(entry["action"])
        if sign is None:
            continue
        start = entry["time_us"] if start is None else start
        level += sign * entry["size"]
        points.append(((entry["time_us"] - start) / 1e6, level))
    return points


def process_peak_bytes() -> int:
    """The most memory that this process ever had resident."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
