"""AdamW whose moments are bytes, on the CPU: decoded, updated and encoded again block by block in one pass."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import cgutils, types

from verim.ops.adamw.codes import BLOCK, bounds, code, first_guess
from verim.ops.adamw.cpu import square_root
from verim.ops.adamw.tables import CHUNK, NUMBERS, column, numbers_of, row_of, table_of, weights_of
from verim.ops.adamw.tensors import AdamWRule, EightBitTensors
from verim.ops.compiled import compiled
from verim.ops.lanes import between
from verim.ops.vectors import (
    BYTES,
    LANES,
    broadcast,
    divide,
    full,
    intrinsic,
    load,
    load_lanes,
    load_scalar,
    multiply,
    multiply_add,
    store,
    store_lanes,
    store_scalar,
    vector,
)
from verim.ops.workers import run_tasks

_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_CODES, _WIDE = ir.VectorType(ir.IntType(8), LANES), ir.VectorType(ir.IntType(64), LANES)
_NANOSECONDS = 4.0  # of a weight, measured
_BLOCKS = CHUNK // BLOCK  # of a task
_SCRATCH = 2 * BLOCK + LANES  # floats: both moments of a block, and a vector
_ZERO, _ONE = np.float32(0), np.float32(1)


def adamw_8bit(tensors: Sequence[EightBitTensors], rules: Sequence[AdamWRule], gradient_scale: float) -> None:
    """Float32 weights and gradients without gaps, unchecked."""
    table, chunks = table_of(
        [(h.weight, h.gradient, h.average, h.average_scales, h.root, h.root_scales) for h in tensors]
    )
    numbers = numbers_of(rules)
    codes = [code(signed).ctypes.data for signed in (True, False)]
    guesses = [first_guess(signed).ctypes.data for signed in (True, False)]
    edges = [bounds(signed).ctypes.data for signed in (True, False)]
    scale: Any = np.float32(gradient_scale)
    places = (table.ctypes.data, numbers.ctypes.data, len(tensors), *codes, *guesses, *edges)
    run_tasks(_update, chunks, _NANOSECONDS * weights_of(table), _SCRATCH, (*places, scale))


def _gathered(builder: Any, element: Any, table: Any, indices: Any) -> Any:
    """Entries of 4 bytes of the table at an address, by 16 indices of 64 bits."""
    addresses = builder.add(builder.mul(indices, ir.Constant(_WIDE, [BYTES] * LANES)), _in_all_lanes(builder, table))
    pointers = builder.inttoptr(addresses, ir.VectorType(element.as_pointer(), LANES))
    kind, name = ir.VectorType(element, LANES), f"v{LANES}{'f' if element == _FLOAT else 'i'}32"
    everywhere = ir.Constant(ir.VectorType(ir.IntType(1), LANES), [1] * LANES)
    nothing = ir.Constant(kind, [0] * LANES)
    arguments = pointers, ir.Constant(_INT, BYTES), everywhere, nothing
    return _call(builder, f"llvm.masked.gather.{name}.v{LANES}p0", kind, *arguments)


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _in_all_lanes(builder: Any, scalar: Any) -> Any:
    undefined = ir.Constant(ir.VectorType(scalar.type, LANES), ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_INT, 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_INT, LANES), [0] * LANES))


def _first_lanes(builder: Any, count: Any) -> Any:
    lanes = ir.Constant(_WIDE, list(range(LANES)))
    return builder.icmp_signed("<", lanes, _in_all_lanes(builder, count))


@intrinsic
def _decode(typing: Any, address: Any, count: Any, table: Any) -> Any:
    """What the first `count` of 16 bytes at `address` stand for by the code at `table`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = builder.inttoptr(args[0], _CODES.as_pointer())
        arguments = pointer, ir.Constant(_INT, 1), _first_lanes(builder, args[1]), ir.Constant(_CODES, [0] * LANES)
        codes = _call(builder, f"llvm.masked.load.v{LANES}i8.p0", _CODES, *arguments)
        return _gathered(builder, _FLOAT, args[2], builder.zext(codes, _WIDE))

    return vector(types.int64, types.int64, types.int64), generate


@intrinsic
def _encode(typing: Any, value: Any, address: Any, count: Any, guesses: Any, edges: Any) -> Any:
    """Writes the codes of the first `count` lanes at `address`: the guess by the upper bits, or the next."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, address, count, guesses, edges = args
        bits = builder.zext(builder.bitcast(value, ir.VectorType(_INT, LANES)), _WIDE)
        guess = _gathered(builder, _INT, guesses, builder.lshr(bits, ir.Constant(_WIDE, [16] * LANES)))
        bound = _gathered(builder, _FLOAT, edges, builder.zext(guess, _WIDE))
        above = builder.zext(builder.fcmp_ordered(">", value, bound), guess.type)
        codes = builder.trunc(builder.add(guess, above), _CODES)
        pointer = builder.inttoptr(address, _CODES.as_pointer())
        arguments = codes, pointer, ir.Constant(_INT, 1), _first_lanes(builder, count)
        _call(builder, f"llvm.masked.store.v{LANES}i8.p0", ir.VoidType(), *arguments)
        return context.get_dummy_value()

    return types.void(vector, types.int64, types.int64, types.int64, types.int64), generate


@intrinsic
def _magnitude_bits(typing: Any, value: Any) -> Any:
    """The bits of |x|, lane by lane: integers in the order of the magnitudes, NaN above all, kept as a vector."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.VectorType(_INT, LANES)
        bits = builder.and_(builder.bitcast(args[0], kind), ir.Constant(kind, [0x7FFFFFFF] * LANES))
        return builder.bitcast(bits, args[0].type)

    return vector(vector), generate


@intrinsic
def _larger_bits(typing: Any, left: Any, right: Any) -> Any:
    """Of two vectors of `_magnitude_bits` the larger, lane by lane."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.VectorType(_INT, LANES)
        left, right = (builder.bitcast(value, kind) for value in args)
        return builder.select(builder.icmp_unsigned(">", left, right), *args)

    return vector(vector, vector), generate


@njit(nogil=True)
def _largest(lanes: Any, scratch: int) -> Any:
    """The largest lane of a vector of magnitudes; NaN where one is. `scratch` has room for it."""
    store(scratch, lanes)
    largest = load_scalar(scratch)
    for lane in range(1, LANES):
        value = load_scalar(scratch + lane * BYTES)
        largest = value if value > largest or value != value else largest
    return largest


@njit(nogil=True)
def _write(values: int, count: int, codes: int, scale: Any, guesses: int, edges: int) -> None:
    """Writes the codes of `values` / `scale`."""
    inverse = full(_ONE / scale if scale > _ZERO else _ZERO)
    for i in range(0, count, LANES):
        _encode(multiply(load(values + i * BYTES), inverse), codes + i, count - i, guesses, edges)


@compiled
def _update(
    first: int,
    last: int,
    scratch: int,
    table: int,
    numbers: int,
    rows: int,
    signed_code: int,
    code: int,
    signed_guesses: int,
    guesses: int,
    signed_edges: int,
    edges: int,
    gradient_scale: Any,
) -> None:
    averages, roots, spare = scratch, scratch + BLOCK * BYTES, scratch + 2 * BLOCK * BYTES
    factor = full(gradient_scale)
    for task in range(first, last):
        row = row_of(table, rows, task)
        n = numbers + row * NUMBERS * BYTES
        keep1, new1 = full(load_scalar(n)), full(load_scalar(n + BYTES))
        keep2, new2 = full(load_scalar(n + 2 * BYTES)), full(load_scalar(n + 3 * BYTES))
        decay, rate = full(load_scalar(n + 4 * BYTES)), full(load_scalar(n + 5 * BYTES))
        correction, eps = full(load_scalar(n + 6 * BYTES)), full(load_scalar(n + 7 * BYTES))
        chunk, size = task - column(table, row, 0), column(table, row, 1)
        for block in range(chunk * _BLOCKS, min((chunk + 1) * _BLOCKS, -(-size // BLOCK))):
            begin = block * BLOCK
            count = min(size - begin, BLOCK)
            weight, gradient = column(table, row, 2) + begin * BYTES, column(table, row, 3) + begin * BYTES
            average_codes, root_codes = column(table, row, 4) + begin, column(table, row, 6) + begin
            average_scale, root_scale = column(table, row, 5) + block * BYTES, column(table, row, 7) + block * BYTES
            of_average, of_root = broadcast(average_scale), broadcast(root_scale)
            largest_average, largest_root = full(_ZERO), full(_ZERO)
            for i in range(0, count, LANES):
                left, place = count - i, i * BYTES
                g = multiply(load_lanes(gradient + place, left), factor)
                m = multiply(_decode(average_codes + i, left, signed_code), of_average)
                m = multiply_add(keep1, m, multiply(new1, g))
                r = multiply(_decode(root_codes + i, left, code), of_root)
                r = square_root(multiply_add(keep2, multiply(r, r), multiply(multiply(new2, g), g)))
                w = load_lanes(weight + place, left)
                w = multiply_add(decay, w, w)
                change = divide(m, multiply_add(r, correction, eps))
                store_lanes(weight + place, left, multiply_add(rate, change, w))
                m = between(m, 0, left, full(_ZERO))  # the code's first entry is not zero
                store(averages + place, m)
                store(roots + place, r)
                largest_average = _larger_bits(largest_average, _magnitude_bits(m))
                largest_root = _larger_bits(largest_root, _magnitude_bits(r))
            scale = _largest(largest_average, spare)
            store_scalar(average_scale, scale)
            _write(averages, count, average_codes, scale, signed_guesses, signed_edges)
            scale = _largest(largest_root, spare)
            store_scalar(root_scale, scale)
            _write(roots, count, root_codes, scale, guesses, edges)
