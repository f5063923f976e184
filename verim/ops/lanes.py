"""Beside `verim.ops.vectors`: integers at an address, and what goes across the lanes of a vector."""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from verim.ops.vectors import BYTES, LANES, intrinsic, vector

_FLOAT, _INT, _ADDRESS = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VECTOR, _INTS = ir.VectorType(_FLOAT, LANES), ir.VectorType(_INT, LANES)


@intrinsic
def load_integer(typing: Any, address: Any) -> Any:
    """The 64-bit integer at `address`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load(builder.inttoptr(args[0], _ADDRESS.as_pointer()))

    return types.int64(types.int64), generate


@intrinsic
def maximum(typing: Any, left: Any, right: Any) -> Any:
    """The larger of two, lane by lane; `right` where either is NaN."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", *args), *args)

    return vector(vector, vector), generate


@intrinsic
def minus_absolute(typing: Any, value: Any) -> Any:
    """-|value|, lane by lane."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(_VECTOR, [_VECTOR])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.fabs.v16f32")
        return builder.fneg(builder.call(function, args))

    return vector(vector), generate


@intrinsic
def where_positive(typing: Any, condition: Any, left: Any, right: Any) -> Any:
    """`left` where `condition` > 0, else (also where it is NaN) `right`."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        zero = ir.Constant(_VECTOR, [0.0] * LANES)
        return builder.select(builder.fcmp_ordered(">", args[0], zero), args[1], args[2])

    return vector(vector, vector, vector), generate


@intrinsic
def minimum(typing: Any, left: Any, right: Any) -> Any:
    """The smaller of two, lane by lane; `right` where either is NaN."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", *args), *args)

    return vector(vector, vector), generate


@intrinsic
def sum_of_lanes(typing: Any, value: Any) -> Any:
    """The sum of the 16 lanes, added pairwise; NaN where one is."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(_FLOAT, [_FLOAT, _VECTOR])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.vector.reduce.fadd.v16f32")
        return builder.call(function, [ir.Constant(_FLOAT, -0.0), args[0]], fastmath=("reassoc",))

    return types.float32(vector), generate


@intrinsic
def largest_lane(typing: Any, value: Any) -> Any:
    """The largest of the 16 lanes; which one is unspecified where a lane is NaN."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(_FLOAT, [_VECTOR])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.vector.reduce.fmax.v16f32")
        return builder.call(function, [args[0]])

    return types.float32(vector), generate


@intrinsic
def transpose(typing: Any, target: Any, target_stride: Any, source: Any, source_stride: Any) -> Any:
    """target[i, j] = source[j, i] for 16 x 16 floats whose rows lie the given bytes apart.

    Four rounds that interleave row i with row i + 8 (a perfect shuffle of the index's bits): 64 shuffles.
    """
    halves = [[h * 8 + k // 2 + LANES * (k % 2) for k in range(LANES)] for h in range(2)]
    masks = [ir.Constant(_INTS, half) for half in halves]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target, target_stride, source, source_stride = args

        def pointer(base: Any, stride: Any, row: int) -> Any:
            place = builder.add(base, builder.mul(stride, ir.Constant(_ADDRESS, row)))
            return builder.inttoptr(place, _VECTOR.as_pointer())

        rows = []
        for row in range(LANES):
            rows.append(builder.load(pointer(source, source_stride, row)))
            rows[-1].align = BYTES
        for _ in range(4):
            rows = [builder.shuffle_vector(rows[k // 2], rows[k // 2 + 8], masks[k % 2]) for k in range(LANES)]
        for row in range(LANES):
            builder.store(rows[row], pointer(target, target_stride, row)).align = BYTES
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), generate


@intrinsic
def between(typing: Any, value: Any, first: Any, last: Any, other: Any) -> Any:
    """Lanes `first` to `last` - 1 of `value`, `other` in those before and after."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value, first, last, other = args
        lanes = ir.Constant(_INTS, list(range(LANES)))

        def everywhere(bound: Any) -> Any:
            vector = builder.insert_element(ir.Constant(_INTS, ir.Undefined), bound, _INT(0))
            return builder.shuffle_vector(vector, vector, ir.Constant(_INTS, None))

        def small(bound: Any) -> Any:
            """As 32 bits: what lies outside of the lanes may lie anywhere."""
            low, high = _ADDRESS(-1), _ADDRESS(LANES + 1)
            bound = builder.select(builder.icmp_signed("<", bound, low), low, bound)
            return builder.trunc(builder.select(builder.icmp_signed(">", bound, high), high, bound), _INT)

        inside = builder.and_(
            builder.icmp_signed(">=", lanes, everywhere(small(first))),
            builder.icmp_signed("<", lanes, everywhere(small(last))),
        )
        return builder.select(inside, value, other)

    return vector(vector, types.int64, types.int64, vector), generate


# log2(1 + t) / t on [0, 1), a minimax fit: log2 is exact at 1
_LOGARITHM = (
    *(0.00757913571, -0.0426871851, 0.113051973, -0.197285205, 0.275719672),
    *(-0.358428478, 0.480695486, -0.721340358, 1.44269502),
)


@intrinsic
def log2(typing: Any, x: Any) -> Any:
    """The binary logarithm of positive normal numbers to 2e-7, exact for powers of two; NaN for NaN, infinity for
    infinity."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x = args[0]
        bits = builder.bitcast(x, _INTS)
        mantissa = ir.Constant(_INTS, [0x007FFFFF] * LANES)
        one = ir.Constant(_INTS, [0x3F800000] * LANES)
        exponent = builder.lshr(bits, ir.Constant(_INTS, [23] * LANES))
        exponent = builder.sub(exponent, ir.Constant(_INTS, [127] * LANES))
        fraction = builder.bitcast(builder.or_(builder.and_(bits, mantissa), one), _VECTOR)
        t = builder.fsub(fraction, ir.Constant(_VECTOR, [1.0] * LANES))
        kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
        multiply_add = cgutils.get_or_insert_function(builder.module, kind, "llvm.fmuladd.v16f32")
        value = ir.Constant(_VECTOR, [_LOGARITHM[0]] * LANES)
        for term in _LOGARITHM[1:]:
            value = builder.call(multiply_add, (value, t, ir.Constant(_VECTOR, [term] * LANES)))
        result = builder.call(multiply_add, (value, t, builder.sitofp(exponent, _VECTOR)))
        finite = builder.fcmp_ordered("<", x, ir.Constant(_VECTOR, [float("inf")] * LANES))
        return builder.select(finite, result, x)

    return vector(vector), generate
