"""What the machine can do: copy bandwidth, matmul peak, cost of launching an op; measured once and kept."""

import hashlib
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import torch

from verim.anatomy.machine import machine_card, usable_cores
from verim.errors import CorruptError
from verim.runtime.cache import cache_directory
from verim.runtime.files import read_json, write_json

_COPY_BYTES = 64 * 2**20
"""Beyond every L2; two such buffers are read and written."""

_MATMUL_SIZES = (2048, 1024, 512, 256)
_MATMUL_SECONDS = 0.1
"""The largest size whose product takes no longer than this: without hardware for it, bfloat16 can be 100
times slower than float32."""


@dataclass(frozen=True)
class Calibration:
    """The machine's ceilings on the CPU, medians of several measurements, each with one thread and with all.

    Bandwidth counts bytes read and bytes written, per second, between buffers that lie outside the caches.
    The matmul peak is in FLOP/s (a multiply-add is 2 FLOPs) of a square product. The launch is the time of
    adding two tensors of one element. `seconds` is what measuring took.
    """

    threads: int
    copy_one_thread: float
    copy_all_threads: float
    matmul_float32_one_thread: float
    matmul_float32_all_threads: float
    matmul_bfloat16_one_thread: float
    matmul_bfloat16_all_threads: float
    launch_seconds: float
    seconds: float


def calibrate(refresh: bool = False) -> Calibration:
    """This machine's calibration: from the cache where it was measured before, else measured now (about 3 s).

    The cache holds one file for each processor, number of cores and threads, and torch version; a damaged one
    is measured again. `refresh` measures in any case. Where the cache cannot be written the measurement is
    returned all the same and will be taken again next time. The number of torch threads is left as it was.
    """
    card = machine_card()
    identity = {
        "processor": card["processor"],
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
    }
    path = _cache_file(identity)
    held = None if refresh or path is None else _read(path, identity)
    if held is not None:
        return held
    measured = _measure()
    if path is not None:
        try:
            write_json(path, {"identity": identity, "calibration": asdict(measured)})
        except OSError:
            return measured  # a full or read-only disk costs a measurement next time, no more
    return measured


def _cache_file(identity: dict[str, Any]) -> Path | None:
    """None where there is no cache directory and none can be made (a read-only home)."""
    try:
        directory = cache_directory()
    except OSError:
        return None
    key = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return directory / f"calibration-{key}.json"


def _read(path: Path, identity: dict[str, Any]) -> Calibration | None:
    """What `path` holds; None where there is no such file or no whole calibration of this machine in it."""
    try:
        held = read_json(path)
        if held["identity"] != identity:
            return None
        kept = Calibration(**held["calibration"])
        if not all(0 < value < float("inf") for value in astuple(kept)):
            return None
    except (OSError, CorruptError, KeyError, TypeError):
        return None
    return kept


def _measure() -> Calibration:
    begin = time.perf_counter()
    threads = torch.get_num_threads()
    with torch.no_grad():
        one = _ceilings(1)
        every = _ceilings(threads) if threads > 1 else one
        launch = _launch_seconds()
    return Calibration(
        threads=threads,
        copy_one_thread=one[0],
        copy_all_threads=every[0],
        matmul_float32_one_thread=one[1],
        matmul_float32_all_threads=every[1],
        matmul_bfloat16_one_thread=one[2],
        matmul_bfloat16_all_threads=every[2],
        launch_seconds=launch,
        seconds=time.perf_counter() - begin,
    )


def _ceilings(threads: int) -> tuple[float, float, float]:
    """Copy bandwidth, matmul peak in float32 and in bfloat16, with so many threads."""
    with _threads(threads):
        return _copy_bandwidth(), _matmul_peak(torch.float32), _matmul_peak(torch.bfloat16)


def _copy_bandwidth() -> float:
    source = torch.ones(_COPY_BYTES // 4)
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / _median_seconds(lambda: target.copy_(source))


def _matmul_peak(dtype: torch.dtype) -> float:
    smallest = _MATMUL_SIZES[-1]
    estimate = _matmul_seconds(smallest, dtype, budget_seconds=0.02)
    size = next((size for size in _MATMUL_SIZES if estimate * (size / smallest) ** 3 <= _MATMUL_SECONDS), smallest)
    return 2 * size**3 / _matmul_seconds(size, dtype)


def _matmul_seconds(size: int, dtype: torch.dtype, budget_seconds: float = 0.3) -> float:
    left, right = torch.ones(size, size, dtype=dtype), torch.ones(size, size, dtype=dtype)
    product = torch.empty_like(left)
    return _median_seconds(lambda: torch.mm(left, right, out=product), budget_seconds)


def _launch_seconds() -> float:
    left, right = torch.ones(1), torch.ones(1)
    count = 500

    def launches() -> None:
        for _ in range(count):
            torch.add(left, right)

    with _threads(1):
        return _median_seconds(launches, 0.1) / count


def _median_seconds(work: Callable[[], object], budget_seconds: float = 0.3) -> float:
    """The median time of `work`, after two runs that warm it up, over at least five runs and the budget."""
    for _ in range(2):
        work()
    times: list[float] = []
    while len(times) < 5 or sum(times) < budget_seconds:
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
