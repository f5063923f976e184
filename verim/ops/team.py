"""A compiled kernel on torch's own OpenMP threads.

On Linux torch's threads belong to GNU OpenMP, whose library lies in torch's folder. Asked in the way compiled code
asks (`GOMP_parallel`), it runs our kernels on the very threads that run torch's: they wake in two microseconds instead
of the tens that Python's take, no thread competes with another, and torch's number of threads is ours. A small
function in machine code, made for each kernel, draws pieces of the work and calls the kernel; Python has no part in it.

Elsewhere (macOS, Windows, builds of torch with another OpenMP), and in a forked child, whose OpenMP threads are gone,
there is no team: `verim.ops.workers` runs its own threads then.
"""

import ctypes
import os
import struct
from functools import cache
from pathlib import Path
from typing import Any

import numba
import numpy as np
import torch
from llvmlite import ir
from numba.core.compiler_lock import global_compiler_lock
from numba.core.dispatcher import Dispatcher

_ADDRESS, _BYTE = ir.IntType(64), ir.IntType(8)
_COUNTER, _TASKS, _PIECES, _SCRATCH, _STRIDE, _THREADS, _FAILED, _ARGUMENTS = range(8)  # places in a call's data
_FORMATS: dict[type, tuple[str, ...]] = {  # as `struct` writes an argument, filled up to eight bytes
    int: ("q",),
    float: ("d",),
    np.int8: ("b7x",),
    np.uint8: ("B7x",),
    np.bool_: ("?7x",),
    np.int16: ("h6x",),
    np.int32: ("i4x",),
    np.int64: ("q",),
    np.float32: ("f4x",),
    np.float64: ("d",),
    np.complex64: ("f4x", "f4x"),
    np.complex128: ("d", "d"),
}
_functions: dict[tuple[Any, ...], tuple[int, struct.Struct, bool]] = {}
_is_forked = False


def run_in_team(
    kernel: Any,
    tasks: int,
    threads: int,
    pieces: int,
    scratch: int,
    scratch_stride: int,
    arguments: tuple[Any, ...],
) -> bool:
    """Runs `kernel(first, last, scratch, *arguments)` over `pieces` ranges of `tasks` on at most `threads` threads.

    Thread i has the scratch at `scratch` + i `scratch_stride` bytes. False, and nothing done, where there is no team.
    """
    parallel = None if _is_forked else _parallel()
    if parallel is None or not isinstance(kernel, Dispatcher):
        return False
    key = (kernel, *map(type, arguments))
    found = _functions.get(key)
    if found is None:
        found = _functions[key] = _compiled_for(kernel, arguments)
    function, layout, has_complex = found
    values = (part for value in arguments for part in _parts(value)) if has_complex else arguments
    data = ctypes.create_string_buffer(
        layout.pack(0, tasks, pieces, scratch, scratch_stride, 0, 0, *values), layout.size
    )
    parallel(function, data, threads, 0)
    assert not struct.unpack_from("q", data, 8 * _FAILED)[0], "kernels raise nothing"
    return True


@cache
def _parallel() -> Any:
    """GOMP_parallel(function, data, threads, flags) of the library that torch runs on; None where it is another."""
    libraries = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*.so*"))
    if len(libraries) != 1 or "OpenMP" not in torch.__config__.parallel_info():
        return None
    parallel = ctypes.CDLL(str(libraries[0])).GOMP_parallel
    parallel.argtypes = ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
    parallel.restype = None
    return parallel


def _parts(value: Any) -> tuple[Any, ...]:
    return (value.real, value.imag) if isinstance(value, np.complexfloating) else (value,)


@global_compiler_lock
def _compiled_for(kernel: Any, arguments: tuple[Any, ...]) -> tuple[int, struct.Struct, bool]:
    """The address of the function that a thread runs, how its data are laid out, and whether one is complex."""
    signature = tuple(numba.typeof(value) for value in (0, 0, 0, *arguments))
    kernel.compile(signature)
    result = kernel.overloads[signature]
    context = result.target_context
    name = result.fndesc.llvm_func_name
    target = context.call_conv.get_function_type(result.fndesc.restype, result.fndesc.argtypes)
    formats = [part for value in arguments for part in _FORMATS[type(value)]]
    assert len(target.args) == len(formats) + 5, "result, exception, first, last, scratch come before the arguments"
    library = context.codegen().create_library(f"team.{name}")
    library.add_ir_module(_module(target, result.library.get_pointer_to_function(name)))
    library.finalize()
    layout = struct.Struct("=7q" + "".join(formats))
    return library.get_pointer_to_function("verim_team"), layout, len(formats) > len(arguments)


def _module(target: Any, address: int) -> Any:
    """void verim_team(data): draws ranges of tasks until none is left, and calls the function at `address` on each."""
    module = ir.Module("verim_team")
    entry = ir.Function(module, ir.FunctionType(ir.VoidType(), [_ADDRESS.as_pointer()]), "verim_team")
    (data,) = entry.args
    start, loop, work, failed, end = (
        entry.append_basic_block(name) for name in ("start", "loop", "work", "bad", "end")
    )
    builder = ir.IRBuilder(start)

    def place(index: int) -> Any:
        return builder.gep(data, [ir.Constant(_ADDRESS, index)])

    def drawn(index: int) -> Any:
        return builder.atomic_rmw("add", place(index), ir.Constant(_ADDRESS, 1), "monotonic")

    result = builder.alloca(target.args[0].pointee)
    exception = builder.alloca(target.args[1].pointee)
    tasks, pieces = builder.load(place(_TASKS)), builder.load(place(_PIECES))
    own = builder.mul(drawn(_THREADS), builder.load(place(_STRIDE)))
    scratch = builder.add(builder.load(place(_SCRATCH)), own)
    values = []
    for index, kind in enumerate(target.args[5:]):
        stored = _BYTE if kind == ir.IntType(1) else kind
        value = builder.load(builder.bitcast(place(_ARGUMENTS + index), stored.as_pointer()))
        values.append(value if stored == kind else builder.trunc(value, kind))
    function = builder.inttoptr(ir.Constant(_ADDRESS, address), target.as_pointer())
    builder.branch(loop)
    builder.position_at_end(loop)
    piece = drawn(_COUNTER)
    builder.cbranch(builder.icmp_signed("<", piece, pieces), work, end)
    builder.position_at_end(work)
    first = builder.sdiv(builder.mul(tasks, piece), pieces)
    last = builder.sdiv(builder.mul(tasks, builder.add(piece, ir.Constant(_ADDRESS, 1))), pieces)
    status = builder.call(function, [result, exception, first, last, scratch, *values])
    builder.cbranch(builder.icmp_signed("==", status, ir.Constant(status.type, 0)), loop, failed)
    builder.position_at_end(failed)
    builder.store(ir.Constant(_ADDRESS, 1), place(_FAILED))
    builder.branch(end)
    builder.position_at_end(end)
    builder.ret_void()
    return module


def _forget() -> None:
    global _is_forked
    _is_forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
