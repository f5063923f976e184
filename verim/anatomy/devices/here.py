"""This machine as a device: what it is, and what it was measured to do."""

import functools
import re
from pathlib import Path

import torch

from verim.anatomy.calibration import calibrate
from verim.anatomy.ceilings import ceilings_of
from verim.anatomy.devices.device import Device
from verim.anatomy.devices.table import TABLE
from verim.anatomy.machine import machine_card, usable_cores
from verim.errors import InputError

_NETWORK = 1e9 / 8  # of a machine of which nothing is known


def this_machine() -> Device:
    """The first CUDA device where there is one, else the CPU with the threads that torch uses; peaks as measured.

    What cannot be measured from here is None, or, for a CUDA device of the table, the table's. The network is an
    assumption as everywhere: 1 Gb/s. Measuring takes seconds once; see `calibrate`.
    """
    return _cuda() if torch.cuda.is_available() else _cpu()


def _cpu() -> Device:
    card, measured = machine_card(), calibrate()
    memory = card["memory_bytes"]
    if memory is None:
        raise InputError("device: this system does not say how much memory it has; name a device of the table")
    return Device(
        name="this-machine",
        kind="cpu",
        multiprocessors=usable_cores(),
        multiprocessor=None,
        l2_bytes=_cache_bytes(),
        memory_bytes=memory,
        memory_bandwidth=measured.copy_all_threads,
        peaks={"float32": measured.matmul_float32_all_threads, "bfloat16": measured.matmul_bfloat16_all_threads},
        link=None,
        pcie=None,
        network=_NETWORK,
        watts=None,
        launch_seconds=measured.launch_seconds,
        source=f"measured: {card['processor']}, {measured.threads} threads, torch {card['torch']}",
    )


def _cuda() -> Device:
    properties = torch.cuda.get_device_properties(0)
    measured = ceilings_of("cuda:0", ("float32", "bfloat16", "float16"), torch.get_num_threads())
    known = _in_table(properties.name, properties.multi_processor_count)
    return Device(
        name="this-machine",
        kind="hip" if torch.version.hip else "cuda",
        multiprocessors=properties.multi_processor_count,
        multiprocessor=known.multiprocessor if known else None,
        l2_bytes=properties.L2_cache_size,
        memory_bytes=properties.total_memory,
        memory_bandwidth=measured.ladder[-1][1],
        peaks=measured.matmul,
        link=known.link if known else None,
        pcie=known.pcie if known else None,
        network=_NETWORK,
        watts=known.watts if known else None,
        launch_seconds=measured.launch_seconds,
        source=f"measured: {properties.name}, torch {torch.__version__}",
    )


def _in_table(name: str, multiprocessors: int) -> Device | None:
    """The row of the device that calls itself `name` ("NVIDIA H100 80GB HBM3"), by its number of multiprocessors."""
    words = re.sub(r"[^a-z0-9]", "", name.lower())
    rows = [row for key, row in TABLE.items() if key.partition("-")[0] in words]
    return next((row for row in rows if row.multiprocessors == multiprocessors), None)


@functools.cache
def _cache_bytes() -> int | None:
    """Of the largest cache of the first core; None where the system does not say."""
    sizes = [path.read_text().strip() for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    found = [int(size[:-1]) * 2**10 for size in sizes if re.fullmatch(r"\d+K", size)]
    return max(found, default=None)
