"""What it costs to bring a batch to a device: from pageable memory, from pinned memory, behind a computation."""

import time
from dataclasses import dataclass
from typing import Literal

import torch

from verim.anatomy.calibration import calibrate
from verim.anatomy.devices import Device
from verim.errors import InputError

PCIE_EFFICIENCY = 0.85
"""Of the lanes' rate what packets leave for data: 25 GB/s of PCIe 4's 32 are what copies reach. An assumption."""
CALL_SECONDS = 1e-5
"""Of a copy of nothing: the driver's work. An assumption."""


@dataclass(frozen=True)
class Transfers:
    """Seconds of one `tensor.to(device)`.

    - `pageable`: of ordinary memory; the driver copies it into a pinned buffer first, then over the bus.
    - `pinned`: of memory that the bus may read itself.
    - `exposed`: of a pinned copy with `non_blocking=True` that goes on while the device computes: what is left of it.
    - `source`: whether they were measured or computed, and from what.
    """

    pageable: float
    pinned: float
    exposed: float
    source: Literal["measured", "computed"]


def transfers(device: Device, size: int, computing: float = 0.0, host_copy: float | None = None) -> Transfers:
    """Of `size` bytes to `device` by formula, while it computes for `computing` seconds.

        pinned     call + size / (0.85 pcie)
        pageable   pinned + size / (host_copy / 2)
        exposed    max(0, pinned − computing)

    `host_copy`: bytes a second that one thread of the host reads and writes; of this machine, measured, if none is
    given. Raises `InputError` for a device that is not behind a bus.
    """
    if device.pcie is None:
        raise InputError(f"device: got {device.name}, which has no bus to copy over; expected a GPU")
    if size < 0 or computing < 0:
        raise InputError(f"size, computing: got {size} bytes, {computing} s; expected 0 or more")
    rate = calibrate().copy_one_thread if host_copy is None else host_copy
    pinned = CALL_SECONDS + size / (PCIE_EFFICIENCY * device.pcie)
    return Transfers(pinned + 2 * size / rate, pinned, max(0.0, pinned - computing), "computed")


def measure_transfers(size: int, computing: float = 0.0) -> Transfers:
    """The same to this machine's first CUDA device, measured: the fastest of several copies of `size` bytes.

    `exposed` is what `computing` seconds of the measured pinned copy do not hide. Raises `InputError` without CUDA.
    """
    if not torch.cuda.is_available():
        raise InputError("device: this machine has no CUDA device; `transfers` computes what one would take")
    pageable = torch.empty(size, dtype=torch.uint8)
    seconds = [_copy_seconds(source) for source in (pageable, pageable.pin_memory())]
    return Transfers(seconds[0], seconds[1], max(0.0, seconds[1] - computing), "measured")


def _copy_seconds(source: torch.Tensor, repeats: int = 5) -> float:
    target = torch.empty_like(source, device="cuda:0")
    best = float("inf")
    for _ in range(repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return best
