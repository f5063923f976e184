"""The bank conflicts that `verim.ops.scan.banks` models, measured on a GPU by a kernel that does nothing else.

Every warp reads shared memory at a stride, and each read gives the address of the next, so that none can be left
out. With all the warps that a multiprocessor holds the banks are what limits them: the time counts their turns.
"""

import importlib
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from verim.errors import InputError


def _numba_cuda() -> tuple[Any, str]:
    """Numba's CUDA target, or None and why not: a Numba without it, or numba-cuda without NVIDIA's bindings."""
    try:
        return importlib.import_module("numba.cuda"), ""
    except ImportError as error:
        return None, str(error)


cuda, _MISSING = _numba_cuda()
_config: Any = importlib.import_module("numba.core.config")

_WARP = 32
_LARGEST_STRIDE = 32
_WORDS = 33 * 32  # what 32 threads span at the largest stride, padded
_BLOCKS_EACH = 2  # a multiprocessor: 64 warps keep its banks busy though a read takes some 30 cycles
_THREADS = 1024


@dataclass(frozen=True)
class MeasuredStride:
    """One stride's time.

    - `seconds`: of the kernel, the median of its runs.
    - `turns`: that time in times of stride 1 without padding; what `banks.strided` predicts as `worst`.
    """

    stride: int
    padded: bool
    seconds: float
    turns: float


def measure_strides(
    strides: Iterable[int] = range(1, _LARGEST_STRIDE + 1), rounds: int = 256, runs: int = 9
) -> tuple[MeasuredStride, ...]:
    """The time that warps need to read shared memory at each of `strides`, without padding and with it.

    Timed by CUDA events; each thread makes 16 · `rounds` reads, one after the other. Takes well under a second
    beside the compilation.
    Raises `InputError` for a stride outside 1 … 32, and where there is no GPU or no numba-cuda to program it.
    """
    if _config.ENABLE_CUDASIM:
        raise InputError("measure_strides: Numba simulates the GPU (NUMBA_ENABLE_CUDASIM is set), which takes no time")
    strides = tuple(strides)
    for stride in strides:
        _check_stride("measure_strides", stride)
    _check_device("measure_strides")
    unit = _seconds(1, False, rounds, runs)
    results = []
    for stride in strides:
        for padded in (False, True):
            seconds = _seconds(stride, padded, rounds, runs)
            results.append(MeasuredStride(stride, padded, seconds, seconds / unit))
    return tuple(results)


def addresses_read(stride: int, padded: bool, threads: int = _WARP, rounds: int = 1) -> np.ndarray:
    """Which word each thread of a block reads in the kernel that `measure_strides` times, the last of its reads.

    Runs under Numba's simulator too, where there is no GPU. Raises `InputError` as `measure_strides` does.
    """
    _check_stride("addresses_read", stride)
    _check_device("addresses_read")
    out = cuda.to_device(np.zeros(threads, np.uint32))
    _read_at_stride[1, threads](np.uint32(stride), np.uint32(padded), rounds, out)
    result: np.ndarray = out.copy_to_host()
    return result


def _kernel(stride: Any, padded: Any, rounds: Any, out: Any) -> None:
    words = cuda.shared.array(_WORDS, np.uint32)  # unsigned: Numba wraps negative indices, at some instructions each
    for word in range(cuda.threadIdx.x, _WORDS, cuda.blockDim.x):
        words[word] = word
    cuda.syncthreads()
    element = np.uint32(cuda.threadIdx.x % _WARP) * stride
    place = np.uint32(element + padded * (element // np.uint32(32) + element // np.uint32(1024)))
    for _ in range(rounds):  # sixteen reads, or the counting would take longer than the reading
        place = words[words[words[words[place]]]]
        place = words[words[words[words[place]]]]
        place = words[words[words[words[place]]]]
        place = words[words[words[words[place]]]]
    out[cuda.grid(1)] = place


_read_at_stride: Any = cuda.jit(_kernel) if cuda else None


def _seconds(stride: int, padded: bool, rounds: int, runs: int) -> float:
    blocks = _BLOCKS_EACH * cuda.get_current_device().MULTIPROCESSOR_COUNT
    out = cuda.to_device(np.zeros(blocks * _THREADS, np.uint32))
    times = []
    for _ in range(runs + 1):  # the first one warms up
        start, stop = cuda.event(), cuda.event()
        start.record()
        _read_at_stride[blocks, _THREADS](np.uint32(stride), np.uint32(padded), rounds, out)
        stop.record()
        stop.synchronize()
        times.append(start.elapsed_time(stop) / 1000)
    return statistics.median(times[1:])


def _check_stride(function: str, stride: int) -> None:
    if not 1 <= stride <= _LARGEST_STRIDE:
        raise InputError(f"{function}: stride {stride} cannot be measured, expected 1 to {_LARGEST_STRIDE}")


def _check_device(function: str) -> None:
    install = "install numba-cuda for your version of CUDA: pip install 'numba-cuda[cu12]' or 'numba-cuda[cu13]'"
    if cuda is None:
        raise InputError(f"{function}: Numba cannot program GPUs here ({_MISSING}): {install}")
    if not cuda.is_available():
        raise InputError(
            f"{function}: Numba finds no NVIDIA GPU with driver and compiler. Where there is one, {install}. "
            "verim.ops.scan.banks.strided models what it would do"
        )
