"""What the machine is: everything that can be read without measuring."""

import importlib.metadata
import math
import os
import platform
import re
from pathlib import Path, PurePosixPath
from typing import Any

import torch


def machine_card() -> dict[str, Any]:
    """The machine as JSON values. Bytes are bytes; what cannot be found out is None.

    - `processor`, `architecture`, `os`, `libc`
    - `cores`: how many threads can run at once, see `usable_cores`; `cpu_quota`: cores' worth of time that
      its container allows
    - `memory_bytes`: of the machine or of the container, whichever is less; `memory_available_bytes`: now
    - `cpu_capability`: the vector instructions that torch uses; `blas`: what torch multiplies matrices with
    - `threads`: torch's own; `python`, `torch`, `numba`, `triton`: versions
    - `cuda`: a list of `name`, `memory_bytes`, `capability`
    """
    return {
        "processor": _processor(),
        "architecture": platform.machine(),
        "os": platform.platform(aliased=True, terse=True),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "cores": usable_cores(),
        "cpu_quota": _cpu_quota(),
        "memory_bytes": _memory(),
        "memory_available_bytes": _memory_available(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "blas": _blas(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numba": version_of("numba"),
        "triton": version_of("triton"),
        "cuda": _cuda_devices(),
    }


def usable_cores() -> int:
    """How many threads of this process can run at once.

    That is its affinity (where the system has one) or its container's quota of CPU time, rounded up, whichever is
    less: threads beyond the quota only make the kernel stop all of them until the next period.
    """
    has_affinity = hasattr(os, "sched_getaffinity")  # Linux; other systems have no affinity to ask for
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    quota = _cpu_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def version_of(package: str) -> str | None:
    """The installed version of `package`, None where it is not installed. Does not import it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    for line in _text("/proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("model name", "Hardware", "cpu model") and value.strip():
            return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def _cpu_quota() -> float | None:
    """Cores' worth of CPU time allowed by the process's control group and those around it; None without a limit.

    Version 2 keeps "quota period" or "max period" in `cpu.max`; version 1 two files, its quota -1 for no limit.
    """
    root, quotas = "/sys/fs/cgroup", []
    for line in _text("/proc/self/cgroup").splitlines():
        _, controllers, group = line.split(":", 2)
        # A container may show the host's path of its group, which is not there: its own limit stands at the root.
        for place in (PurePosixPath(group), *PurePosixPath(group).parents):
            if not controllers:
                found = re.fullmatch(r"(\d+) (\d+)\s*", _text(f"{root}/{place}/cpu.max"))
            elif "cpu" in controllers.split(","):
                folder = f"{root}/cpu/{place}/cpu.cfs"
                found = re.fullmatch(r"(\d+)\s+(\d+)\s*", _text(f"{folder}_quota_us") + _text(f"{folder}_period_us"))
            else:
                break
            if found:
                quotas.append(int(found[1]) / int(found[2]))
    return min(quotas, default=None)


def _memory() -> int | None:
    limit = _text("/sys/fs/cgroup/memory.max").strip()
    names = os.sysconf_names if hasattr(os, "sysconf_names") else {}  # Windows has no sysconf
    known = [int(limit)] if limit.isdigit() else []
    if "SC_PHYS_PAGES" in names:
        known.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(known, default=None)


def _memory_available() -> int | None:
    match = re.search(r"^MemAvailable:\s+(\d+) kB", _text("/proc/meminfo"), re.MULTILINE)
    return int(match[1]) * 1024 if match else None


def _blas() -> str | None:
    match = re.search(r"BLAS_INFO=(\w+)", torch.__config__.show())
    return match[1] if match else None


def _cuda_devices() -> list[dict[str, Any]]:
    devices = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "name": properties.name,
                "memory_bytes": properties.total_memory,
                "capability": f"{properties.major}.{properties.minor}",
            }
        )
    return devices


def _text(path: str) -> str:
    """The content of a system file; empty where the system has no such file."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""
