"""Tasks of a compiled kernel over the cores: on torch's own threads where they can be had, else on threads of ours.

Against Numba's parallel loops: one compiled version serves any number of threads, so the bits cannot depend on it;
several threads may call at the same time; a forked child just starts afresh; and no OpenMP library has to be
installed. Compiled kernels release Python's lock, so ordinary threads run them side by side; to wake one takes some
tens of microseconds, and torch's own (`verim.ops.team`) two.
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch

from verim.ops.team import run_in_team

_WORTH_A_THREAD = 2e4  # nanoseconds of work, about ten times what waking a thread of torch's takes
_WORTH_OUR_THREAD = 3e5  # the same of ours
_RANGES_PER_THREAD = 4  # so that a thread that is late finds less left to do
_pools: dict[int, ThreadPoolExecutor] = {}


def run_tasks(
    kernel: Callable[..., object],
    tasks: int,
    nanoseconds: float,
    scratch_floats: int,
    arguments: tuple[int | float, ...],
) -> None:
    """Runs `kernel(first, last, scratch, *arguments)` over disjoint ranges that cover 0 ... `tasks` - 1.

    At most `torch.get_num_threads()` threads take part, fewer where the whole work, estimated at
    `nanoseconds`, is small. Each call of the kernel has `scratch_floats` floats of uninitialised memory at
    address `scratch`, aligned to 64 bytes, to itself. Tasks must write to different places, or the result
    would depend on the schedule.
    """
    assert scratch_floats % 16 == 0, "scratch is aligned to 64 bytes for every thread"
    if nanoseconds < _WORTH_A_THREAD or tasks <= 1:  # of one token, say: what stands around it costs as much
        own = torch.empty(scratch_floats, dtype=torch.float32, device="cpu") if scratch_floats else None
        kernel(0, tasks, 0 if own is None else own.data_ptr(), *arguments)
        return
    threads = min(torch.get_num_threads(), tasks, 1 + int(nanoseconds / _WORTH_A_THREAD))
    scratch = torch.empty(threads, scratch_floats, dtype=torch.float32, device="cpu")
    pieces = min(tasks, threads * _RANGES_PER_THREAD)
    if threads > 1:
        if run_in_team(kernel, tasks, threads, pieces, scratch.data_ptr(), 4 * scratch_floats, arguments):
            return
        threads = min(threads, 1 + int(nanoseconds / _WORTH_OUR_THREAD))
    if threads <= 1:
        kernel(0, tasks, scratch.data_ptr(), *arguments)
        return
    ranges = iter([(tasks * i // pieces, tasks * (i + 1) // pieces) for i in range(pieces)])
    pool = _pool(threads - 1)
    others = [pool.submit(_work, kernel, ranges, scratch[i].data_ptr(), arguments) for i in range(1, threads)]
    _work(kernel, ranges, scratch[0].data_ptr(), arguments)
    for other in others:
        if not other.cancel():  # one that another call keeps waiting finds nothing left to do
            other.result()


def _work(
    kernel: Callable[..., object],
    ranges: Iterator[tuple[int, int]],
    scratch: int,
    arguments: tuple[int | float, ...],
) -> None:
    for first, last in ranges:  # a list's iterator is advanced under Python's lock: each range is taken once
        kernel(first, last, scratch, *arguments)


def _pool(size: int) -> ThreadPoolExecutor:
    if size not in _pools:
        _pools.setdefault(size, ThreadPoolExecutor(size, "verim-ops"))
    return _pools[size]


def _forget() -> None:
    _pools.clear()


if hasattr(os, "register_at_fork"):  # threads do not survive a fork: a child makes its own
    os.register_at_fork(after_in_child=_forget)
