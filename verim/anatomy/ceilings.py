"""The machine's ceilings for the roofline: products by data type, bandwidth by how much is touched, a launch."""

import functools
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

_LADDER = tuple(2**power for power in range(14, 28, 2))  # bytes of both buffers of a copy, 16 kB to 64 MB
_SECONDS = 0.02  # of each measurement
_PRODUCTS = (256, 512, 1024, 2048)
_PRODUCT_SECONDS = 0.06  # the largest product takes no longer than this


@dataclass(frozen=True)
class Ceilings:
    """The best rates measured, on `threads` threads.

    - `matmul`: FLOP/s of square products, by data type ("float32").
    - `ladder`: pairs of bytes touched and bytes a second, rising in size: what lies in a cache moves faster.
    - `launch_seconds`: of an op on one element.
    """

    device: str
    threads: int
    matmul: Mapping[str, float]
    ladder: tuple[tuple[int, float], ...]
    launch_seconds: float

    def flops_per_second(self, dtype: str) -> float:
        """The peak in `dtype`; the highest known one for a type that was not measured: a ceiling is never too low."""
        return self.matmul.get(dtype, max(self.matmul.values()))

    def bytes_per_second(self, size: float) -> float:
        """The most that any measurement of at least about `size` bytes touched has shown."""
        return max((rate for bytes_, rate in self.ladder if bytes_ >= size / 2), default=self.ladder[-1][1])

    def to_json(self) -> dict[str, Any]:
        return {
            "device": self.device,
            "threads": self.threads,
            "matmul": dict(self.matmul),
            "ladder": [list(step) for step in self.ladder],
            "launch_seconds": self.launch_seconds,
        }

    def best_of(self, other: "Ceilings") -> "Ceilings":
        """The higher of each two rates: on a busy machine a measurement can only be too low."""
        return replace(
            self,
            matmul={
                name: max(self.matmul.get(name, 0.0), other.matmul.get(name, 0.0))
                for name in {**self.matmul, **other.matmul}
            },
            ladder=tuple(
                (size, max(rate, rate_there))
                for (size, rate), (_, rate_there) in zip(self.ladder, other.ladder, strict=True)
            ),
            launch_seconds=min(self.launch_seconds, other.launch_seconds),
        )


@functools.cache
def ceilings_of(device: str, dtypes: tuple[str, ...], threads: int) -> Ceilings:
    """Those of `device` ("cpu", "cuda:0") with the present number of threads, measured once a process (about 1 s)."""
    return measure_ceilings(device, dtypes)


def measure_ceilings(device: str, dtypes: Iterable[str]) -> Ceilings:
    """Measures now. Types that the device does not multiply are left out; float32 is always there."""
    place = torch.device(device)
    with torch.no_grad():
        matmul = {
            name: peak
            for name in dict.fromkeys(["float32", *dtypes])
            if (peak := _matmul_peak(name, place)) is not None
        }
        ladder = tuple((size, _bandwidth(size, place)) for size in _LADDER)
        one = torch.ones(1, device=place)
        launch = _best_seconds(lambda: [torch.add(one, one) for _ in range(100)], place) / 100
    return Ceilings(device, torch.get_num_threads(), matmul, ladder, launch)


def _matmul_peak(name: str, device: torch.device) -> float | None:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        return None
    peak = 0.0
    for size in _PRODUCTS if device.type == "cpu" else (4096, 8192):
        try:
            left, right, out = (torch.ones(size, size, dtype=dtype, device=device) for _ in range(3))
            seconds = _best_seconds(functools.partial(torch.mm, left, right, out=out), device)
        except RuntimeError:  # no such product here
            return None
        peak = max(peak, 2 * size**3 / seconds)
        if seconds * 8 > _PRODUCT_SECONDS:
            break
    return peak


def _bandwidth(size: int, device: torch.device) -> float:
    """The fastest of copying, reading and writing: an op may do any of them."""
    source, target = (torch.ones(size // 8, device=device) for _ in range(2))
    repeats = max(1, 2**18 // size)

    def rate(work: Callable[[], object], moved: int) -> float:
        return moved * repeats / _best_seconds(lambda: [work() for _ in range(repeats)], device)

    return max(
        rate(lambda: target.copy_(source), size),
        rate(lambda: torch.dot(source, target), size),
        rate(lambda: target.zero_(), size // 2),
        rate(lambda: torch.add(source, target, out=target), 3 * size // 2),
    )


def _best_seconds(work: Callable[[], object], device: torch.device) -> float:
    """The fastest of several runs after one that warms up: a ceiling is what the machine can do at its best."""

    def run() -> float:
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - began

    run()
    best, spent, count = float("inf"), 0.0, 0
    while count < 3 or spent < _SECONDS:
        took = run()
        best, spent, count = min(best, took), spent + took, count + 1
    return max(best, 1e-9)
