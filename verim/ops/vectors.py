"""Explicit vectors of 16 float32 lanes in Numba, on raw addresses.

Numba's loops are vectorised by LLVM where it sees that it may; a recurrence over time with an exponential in
it is not among them. These intrinsics emit the vector instructions themselves, on any machine: LLVM splits a
vector into as many registers as the machine needs. Addresses are plain integers (`tensor.data_ptr()`), so
that a call unboxes nothing and a kernel has one signature, compiled once and cached.

Nothing here carries fast-math flags: NaN and infinity keep their meaning, sums keep their order. A
multiply-add rounds once where the machine has it. In units: an address is in bytes, a lane has `BYTES`, a
vector `ROW` bytes.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic as _numba_intrinsic
from numba.extending import models, register_model

intrinsic: Any = _numba_intrinsic  # its annotations describe the call inside a kernel wrongly

LANES = 16
BYTES = 4
ROW = LANES * BYTES
LOG2_E = 1.4426950408889634
LN_2 = 0.6931471805599453

_FLOAT, _INT = ir.FloatType(), ir.IntType(32)
_VECTOR, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)

# 2**x on [0, 1), relative error 1.5e-7 evaluated in float32, exact at 0: a minimax fit with constant term 1.
_POWER_UPWARD = (0.00186713, 0.00901703, 0.05579991, 0.24016445, 0.69315131, 1.0)
# 2**x on [-1/2, 1/2], relative error 2e-7, exact at 0.
_POWER_AROUND = (0.001326472717, 0.009671512642, 0.05550733743, 0.2402224209, 0.6931469776, 1.0)


class VectorType(types.Type):
    """Numba's type of a vector of 16 float32 lanes."""

    def __init__(self) -> None:
        super().__init__(name="float32x16")


vector = VectorType()


@register_model(VectorType)
class _VectorModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _VECTOR)


def _constant(value: float) -> ir.Constant:
    return ir.Constant(_VECTOR, [value] * LANES)


def _integers(values: list[int]) -> ir.Constant:
    return ir.Constant(_INTS, values)


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    function = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), arguments)


def _splat(builder: Any, scalar: Any, kind: Any) -> Any:
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_INT, 0))
    return builder.shuffle_vector(first, undefined, _integers([0] * LANES))


@intrinsic
def load(typing: Any, address: Any) -> Any:
    """The 16 floats at `address`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = builder.load(builder.inttoptr(args[0], _VECTOR.as_pointer()))
        value.align = BYTES
        return value

    return vector(types.int64), generate


@intrinsic
def store(typing: Any, address: Any, value: Any) -> Any:
    """Writes 16 floats at `address`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], _VECTOR.as_pointer())).align = BYTES
        return context.get_dummy_value()

    return types.void(types.int64, vector), generate


def _first_lanes(builder: Any, count: Any) -> Any:
    """A mask of the lanes below `count`."""
    counts = _splat(builder, builder.trunc(count, _INT), _INTS)
    return builder.icmp_signed("<", _integers(list(range(LANES))), counts)


@intrinsic
def load_lanes(typing: Any, address: Any, count: Any) -> Any:
    """The first `count` floats at `address`, zeros after them; reads nothing beyond."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, mask = builder.inttoptr(args[0], _VECTOR.as_pointer()), _first_lanes(builder, args[1])
        alignment = ir.Constant(_INT, BYTES)
        name = "llvm.masked.load.v16f32.p0"
        return _call(builder, name, _VECTOR, pointer, alignment, mask, _constant(0.0))

    return vector(types.int64, types.int64), generate


@intrinsic
def load_lanes_or(typing: Any, address: Any, count: Any, other: Any) -> Any:
    """The first `count` floats at `address`, the lanes of `other` after them; reads nothing beyond."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, mask = builder.inttoptr(args[0], _VECTOR.as_pointer()), _first_lanes(builder, args[1])
        name = "llvm.masked.load.v16f32.p0"
        return _call(builder, name, _VECTOR, pointer, ir.Constant(_INT, BYTES), mask, args[2])

    return vector(types.int64, types.int64, vector), generate


@intrinsic
def store_lanes(typing: Any, address: Any, count: Any, value: Any) -> Any:
    """Writes the first `count` lanes at `address`, and nothing beyond."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, mask = builder.inttoptr(args[0], _VECTOR.as_pointer()), _first_lanes(builder, args[1])
        alignment = ir.Constant(_INT, BYTES)
        _call(builder, "llvm.masked.store.v16f32.p0", ir.VoidType(), args[2], pointer, alignment, mask)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, vector), generate


@intrinsic
def load_scalar(typing: Any, address: Any) -> Any:
    """The float at `address`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], _FLOAT.as_pointer()))

    return types.float32(types.int64), generate


@intrinsic
def store_scalar(typing: Any, address: Any, value: Any) -> Any:
    """Writes one float at `address`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store(args[1], builder.inttoptr(args[0], _FLOAT.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), generate


@intrinsic
def broadcast(typing: Any, address: Any) -> Any:
    """The float at `address` in all lanes."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _splat(builder, builder.load(builder.inttoptr(args[0], _FLOAT.as_pointer())), _VECTOR)

    return vector(types.int64), generate


@intrinsic
def full(typing: Any, scalar: Any) -> Any:
    """`scalar` in all lanes."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _splat(builder, args[0], _VECTOR)

    return vector(types.float32), generate


def _prefetch(written: bool, meaning: str) -> Any:
    def prefetch(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = builder.inttoptr(args[0], ir.IntType(8).as_pointer())
            use, keep, data = ir.Constant(_INT, int(written)), ir.Constant(_INT, 3), ir.Constant(_INT, 1)
            _call(builder, "llvm.prefetch.p0", ir.VoidType(), pointer, use, keep, data)
            return context.get_dummy_value()

        return types.void(types.int64), generate

    prefetch.__doc__ = meaning
    return intrinsic(prefetch)


prefetch = _prefetch(False, "Asks for the cache line at `address`, which need not be valid memory.")
prefetch_to_write = _prefetch(True, "The same for a line that will be written.")


def _arithmetic(instruction: str) -> Callable[..., Any]:
    @intrinsic
    def operation(typing: Any, left: Any, right: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return getattr(builder, instruction)(*args)

        return vector(vector, vector), generate

    return operation


add, subtract, multiply, divide = (_arithmetic(name) for name in ("fadd", "fsub", "fmul", "fdiv"))


@intrinsic
def multiply_add(typing: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once where the machine can."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, "llvm.fmuladd.v16f32", _VECTOR, *args)

    return vector(vector, vector, vector), generate


def _polynomial(builder: Any, x: Any, terms: tuple[float, ...]) -> Any:
    value = _constant(terms[0])
    for term in terms[1:]:
        value = _call(builder, "llvm.fmuladd.v16f32", _VECTOR, value, x, _constant(term))
    return value


def _exp2_avx512(builder: Any, x: Any) -> Any:
    """VREDUCE gives x - floor(x), VSCALEF multiplies by 2**floor(x); both know all the special cases."""
    mask, current_rounding = ir.Constant(ir.IntType(16), -1), ir.Constant(_INT, 4)
    towards_floor = ir.Constant(_INT, 0x09)  # round down, no exception
    rest = _call(builder, "llvm.x86.avx512.mask.reduce.ps.512", _VECTOR, x, towards_floor, x, mask, current_rounding)
    value = _polynomial(builder, rest, _POWER_UPWARD)
    return _call(builder, "llvm.x86.avx512.mask.scalef.ps.512", _VECTOR, value, x, value, mask, current_rounding)


def _exp2_portable(builder: Any, x: Any) -> Any:
    """The nearest integer goes into the exponent's bits; -127 makes them zero (0.0), 128 makes them infinity.

    The comparisons are so written that a NaN passes through, at no extra instruction on x86.
    """
    low, high, magic = _constant(-127.0), _constant(128.0), _constant(1.5 * 2.0**23)
    x = builder.select(builder.fcmp_ordered(">", low, x), low, x)
    x = builder.select(builder.fcmp_ordered("<", high, x), high, x)
    shifted = builder.fadd(x, magic)  # the integer part now stands in the lowest bits
    rest = builder.fsub(x, builder.fsub(shifted, magic))
    bits = builder.add(builder.bitcast(shifted, _INTS), _integers([127] * LANES))
    power = builder.bitcast(builder.shl(bits, _integers([23] * LANES)), _VECTOR)
    return builder.fmul(_polynomial(builder, rest, _POWER_AROUND), power)


@intrinsic
def exp2(typing: Any, x: Any) -> Any:
    """2**x to 3e-7 relative from -126 to 127.5; 0 below -150 and infinity from 128 at the latest; NaN for NaN."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        features = context.codegen().magic_tuple()[-1].split(",")
        if "+avx512f" in features and "+avx512dq" in features:
            return _exp2_avx512(builder, args[0])
        return _exp2_portable(builder, args[0])

    return vector(vector), generate


@intrinsic
def sum_rows(typing: Any, address: Any, stride: Any, other: Any) -> Any:
    """In lanes 0 to 7 the sums of 8 vectors that lie `stride` bytes apart, in 8 to 15 those `other` bytes further.

    Four rounds halve the vectors: two that lie 8 (then 4, 2, 1) apart share one, each folded on itself. That is
    15 shuffles for 16 sums, where each sum on its own takes 4.
    """

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        address, stride, other = args
        rows = []
        for row in range(LANES):
            place = builder.add(address, builder.mul(stride, ir.Constant(ir.IntType(64), row % 8)))
            if row >= 8:
                place = builder.add(place, other)
            value = builder.load(builder.inttoptr(place, _VECTOR.as_pointer()))
            value.align = BYTES
            rows.append(value)
        for distance in (8, 4, 2, 1):
            second = [LANES if lane & distance else 0 for lane in range(LANES)]  # the lane's half of the pair
            own = _integers([lane + second[lane] for lane in range(LANES)])
            folded = _integers([(lane ^ distance) + second[lane] for lane in range(LANES)])
            rows = [
                builder.fadd(builder.shuffle_vector(*pair, own), builder.shuffle_vector(*pair, folded))
                for pair in zip(rows[:distance], rows[distance:], strict=True)
            ]
        return rows[0]

    return vector(types.int64, types.int64, types.int64), generate


@intrinsic
def upper_half(typing: Any, value: Any) -> Any:
    """Lanes 8 to 15 moved to 0 to 7."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        lanes = _integers([*range(8, LANES), *range(8, LANES)])
        return builder.shuffle_vector(args[0], args[0], lanes)

    return vector(vector), generate
