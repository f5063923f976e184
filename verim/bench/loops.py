"""Loops that do nothing but load a core: bytes streamed through it, or exponentials and multiply-adds in registers.

Each takes its turn beside the ops and says what the machine can do, so it must be as fast as any kernel can be. They
are made of the same vectors as the kernels (`verim.ops.vectors`) and run on the same threads.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from llvmlite import ir
from numba.core import types

from verim.ops.compiled import compiled
from verim.ops.vectors import ROW, add, exp2, intrinsic, load, multiply_add, store, vector
from verim.ops.workers import run_tasks

_CHUNK = 2**15  # bytes of a stream that a task moves
_CACHED = 2**13  # bytes of the operands of arithmetic, so that they lie in the first cache
_ALWAYS = 1e12  # nanoseconds of work: every loop is worth all threads


@intrinsic
def _store_past_caches(typing: Any, address: Any, value: Any) -> Any:
    """Writes 16 floats at `address`, a multiple of 64, without reading the line first."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        written = builder.store(args[1], builder.inttoptr(args[0], args[1].type.as_pointer()))
        written.align = ROW
        written.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(ir.IntType(32), 1)]))
        return context.get_dummy_value()

    return types.void(types.int64, vector), generate


@functools.cache
def _stream_kernel(reads: int, writes: int, past_caches: bool) -> Any:
    put = _store_past_caches if past_caches else store

    def stream(first: int, last: int, scratch: int, size: int, chunk: int, source: int, target: int) -> None:
        for task in range(first, last):
            for at in range(task * chunk, min((task + 1) * chunk, size), ROW):
                value = load(source + at)
                for stream in range(1, reads):
                    value = add(value, load(source + stream * size + at))
                for stream in range(writes):
                    put(target + stream * size + at, value)

    return compiled(stream)


def streams(total_bytes: int, reads: int, writes: int, past_caches: bool) -> tuple[Callable[[], None], int]:
    """A run that reads `reads` arrays and writes `writes` at once, and how many bytes it moves: about `total_bytes`.

    `past_caches` writes around the caches, which is faster where the arrays are larger than they are.
    """
    size = max(total_bytes // (reads + writes) // ROW, 1) * ROW
    source, target = (_aligned(count * size) for count in (reads, writes))
    source.zero_()
    arguments = size, _CHUNK, source.data_ptr(), target.data_ptr()
    kernel = _stream_kernel(reads, writes, past_caches)

    def run(hold: Any = (source, target)) -> None:
        run_tasks(kernel, -(-size // _CHUNK), _ALWAYS, 0, arguments)

    return run, size * (reads + writes)


@functools.cache
def _arithmetic_kernel(exponentials: int, multiply_adds: int) -> Any:
    def arithmetic(first: int, last: int, scratch: int, operands: int, size: int, results: int) -> None:
        factor = load(operands)
        for task in range(first, last):
            total = load(operands)
            for at in range(operands, operands + size, ROW):
                value = load(at)
                for _ in range(exponentials):
                    value = exp2(value)
                for _ in range(multiply_adds - 1):
                    value = multiply_add(value, factor, factor)
                total = multiply_add(value, factor, total)
            store(results + task * ROW, total)

    return compiled(arithmetic)


def arithmetic(elements: int, exponentials: int, multiply_adds: int) -> tuple[Callable[[], None], int]:
    """A run that computes so many exponentials and multiply-adds for each element, and for how many: about `elements`.

    The operands stay in the first cache; elements do not wait for each other.
    """
    operands = _aligned(_CACHED)
    operands.fill_(-0.5)
    tasks = max(elements * 4 // _CACHED, 1)
    results = _aligned(tasks * ROW)
    kernel = _arithmetic_kernel(exponentials, max(multiply_adds, 1))
    arguments = operands.data_ptr(), _CACHED, results.data_ptr()

    def run(hold: Any = (operands, results)) -> None:
        run_tasks(kernel, tasks, _ALWAYS, 0, arguments)

    return run, tasks * _CACHED // 4


def _aligned(size: int) -> torch.Tensor:
    """`size` bytes of float32, from an address that is a multiple of 64 on."""
    room = torch.empty(size // 4 + 16, dtype=torch.float32)
    return room[-room.data_ptr() % ROW // 4 :][: size // 4]
