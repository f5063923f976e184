"""What is missing on this machine, and for what, in plain sentences."""

import importlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from verim.runtime.cache import cache_directory

_LOW_MEMORY = 2e9
_LOW_DISK = 1e9


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `status`: `fine`; `absent`, which costs something that the text names; `problem`,
    which should be mended, and the text says how."""

    subject: str
    status: Literal["fine", "absent", "problem"]
    text: str


def examine(card: dict[str, Any], directory: Path) -> list[Finding]:
    """What the machine of `card` (from `machine_card`) has and lacks for studies written to `directory`."""
    return [
        *_threads(card),
        _blas(card),
        _vectors(card),
        _numba(card),
        _gpu(card),
        _triton(card),
        _allocator(card),
        _memory(card),
        _disk(directory),
        _cache(),
    ]


def threading_layers() -> list[str]:
    """The threading layers that Numba finds here, in the order in which it prefers them."""
    found = []
    for layer, module in (("tbb", "tbbpool"), ("omp", "omppool"), ("workqueue", "workqueue")):
        try:
            importlib.import_module(f"numba.np.ufunc.{module}")
        except ImportError:
            continue
        found.append(layer)
    return found


def _threads(card: dict[str, Any]) -> Iterator[Finding]:
    threads, cores, quota = card["threads"], card["cores"], card["cpu_quota"]
    named = os.environ.get("OMP_NUM_THREADS")
    if threads < cores:
        reason = f"OMP_NUM_THREADS is {named}: unset it" if named else "call torch.set_num_threads"
        yield Finding("threads", "problem", f"torch uses {threads} of {cores} cores: {reason} to use all")
    elif threads > cores:
        yield Finding(
            "threads",
            "problem",
            f"torch uses {threads} threads, more than the {cores} usable cores: set OMP_NUM_THREADS={cores}",
        )
    else:
        yield Finding("threads", "fine", f"torch uses every usable core, {cores} in number")
    if quota is not None and quota < threads:
        yield Finding(
            "quota",
            "problem",
            f"the container allows {quota:g} cores' worth of time: set OMP_NUM_THREADS={max(1, int(quota))}",
        )


def _blas(card: dict[str, Any]) -> Finding:
    if card["blas"] is None:
        return Finding(
            "BLAS",
            "problem",
            "torch has none, matrix products are slow: install a build with MKL or OpenBLAS",
        )
    return Finding("BLAS", "fine", card["blas"])


def _vectors(card: dict[str, Any]) -> Finding:
    capability = card["cpu_capability"]
    if capability in ("DEFAULT", "NO AVX"):
        return Finding("vectors", "absent", "torch uses no vector instructions here: elementwise ops are slow")
    return Finding("vectors", "fine", capability)


def _numba(card: dict[str, Any]) -> Finding:
    if card["numba"] is None:
        return Finding("Numba", "problem", "missing, the CPU kernels need it: pip install numba")
    layers = threading_layers()
    text = f"{card['numba']}, threading layer {layers[0] if layers else 'none'}"
    if len(layers) > 1:
        text += f" (also here: {', '.join(layers[1:])})"
    return Finding("Numba", "fine", f"{text}; the kernels bring threads of their own")


def _gpu(card: dict[str, Any]) -> Finding:
    if card["cuda"]:
        names = ", ".join(f"{gpu['name']} ({gpu['memory_bytes'] / 1e9:.0f} GB)" for gpu in card["cuda"])
        return Finding("GPU", "fine", names)
    if torch.version.cuda is None and Path("/proc/driver/nvidia/version").exists():
        return Finding(
            "GPU",
            "problem",
            "an NVIDIA driver is here, but this torch is for CPUs: install a CUDA build of torch",
        )
    return Finding("GPU", "absent", "no CUDA device: everything runs on the CPU")


def _triton(card: dict[str, Any]) -> Finding:
    if card["triton"] is not None:
        return Finding("Triton", "fine", card["triton"])
    status: Literal["problem", "absent"] = "problem" if card["cuda"] else "absent"
    return Finding("Triton", status, "missing, the GPU kernels need it: it comes with CUDA builds of torch")


def _allocator(card: dict[str, Any]) -> Finding:
    libc = card["libc"] or "unknown C library"
    if libc.startswith("glibc"):
        return Finding("allocator", "fine", f"{libc}: freed blocks are kept, large ops cause no page faults")
    return Finding("allocator", "absent", f"{libc}, not glibc: freed blocks go back, large ops cause page faults")


def _memory(card: dict[str, Any]) -> Finding:
    total, free = card["memory_bytes"], card["memory_available_bytes"]
    text = f"{_gigabytes(free)} free of {_gigabytes(total)}"
    if free is not None and free < _LOW_MEMORY:
        return Finding("memory", "problem", f"{text}: a study needs about {_gigabytes(_LOW_MEMORY)}")
    return Finding("memory", "fine", text)


def _disk(directory: Path) -> Finding:
    existing = next(folder for folder in (directory, *directory.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    text = f"{_gigabytes(free)} free in {existing}"
    if free < _LOW_DISK:
        return Finding("disk", "problem", f"{text}: free some, a study may need {_gigabytes(_LOW_DISK)}")
    if not os.access(existing, os.W_OK):
        return Finding("disk", "problem", f"{existing} may not be written: name another directory with --out")
    return Finding("disk", "fine", text)


def _cache() -> Finding:
    try:
        directory = cache_directory()
    except OSError as error:
        text = f"no directory for it ({error.strerror}: {error.filename}), calibration repeats in every study"
        return Finding("cache", "problem", f"{text}: set VERIM_CACHE to a directory that can be written")
    if not os.access(directory, os.W_OK):
        return Finding("cache", "problem", f"{directory} may not be written: set VERIM_CACHE to one that may")
    return Finding("cache", "fine", str(directory))


def _gigabytes(value: float | None) -> str:
    return "?" if value is None else f"{value / 1e9:.1f} GB"
