"""Beside `verim.ops.vectors`: vectors of 16 numbers of any type, and scans across their lanes.

A kernel is written once for all data types: it takes scalars as markers, whose types say what lies in memory and
what is computed with, and Numba compiles it for each set of types when that is first called. A vector of 16 float64
is as good as one of 16 float32: LLVM splits it into the registers that the machine has. The marker of a complex type
stands for its parts: 16 lanes are 8 pairs.
"""

from typing import Any

from llvmlite import ir
from numba import njit
from numba.core import types
from numba.extending import models, register_model

from verim.ops.vectors import LANES, intrinsic

_INT, _ADDRESS = ir.IntType(32), ir.IntType(64)


class NumbersType(types.Type):
    """Numba's type of a vector of 16 numbers of one element type."""

    def __init__(self, element: Any) -> None:
        super().__init__(name=f"{element}x16")
        self.element = element


@register_model(NumbersType)
class _NumbersModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Any) -> None:
        super().__init__(manager, kind, _vector_of(kind.element))


def _part(marker: Any) -> Any:
    """The real type that a marker stands for."""
    marker = types.unliteral(marker)
    return marker.underlying_float if isinstance(marker, types.Complex) else marker


def _scalar(element: Any) -> Any:
    if element is types.boolean:
        return ir.IntType(8)
    if isinstance(element, types.Float):
        return ir.DoubleType() if element.bitwidth == 64 else ir.FloatType()
    return ir.IntType(element.bitwidth)


def _vector_of(element: Any) -> Any:
    return ir.VectorType(_scalar(element), LANES)


def _is_float(element: Any) -> bool:
    return isinstance(element, types.Float)


def _convert(builder: Any, value: Any, source: Any, target: Any) -> Any:
    """A vector of `source` numbers as `target` numbers, of the same kind (floats or integers)."""
    kind = _vector_of(target)
    if value.type == kind:
        return value
    widens = kind.element.width > value.type.element.width if not _is_float(target) else target.bitwidth == 64
    if _is_float(target):
        return builder.fpext(value, kind) if widens else builder.fptrunc(value, kind)
    if not widens:
        return builder.trunc(value, kind)
    is_signed = source is not types.boolean and source.signed
    return builder.sext(value, kind) if is_signed else builder.zext(value, kind)


def _call(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, arguments)


def _suffix(element: Any) -> str:
    return f"v{LANES}{'f' if _is_float(element) else 'i'}{8 if element is types.boolean else element.bitwidth}"


def _bytes(element: Any) -> int:
    return 1 if element is types.boolean else int(element.bitwidth) // 8


def _first_lanes(builder: Any, count: Any) -> Any:
    kind = ir.VectorType(_INT, LANES)
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, builder.trunc(count, _INT), ir.Constant(_INT, 0))
    counts = builder.shuffle_vector(first, undefined, ir.Constant(kind, [0] * LANES))
    return builder.icmp_signed("<", ir.Constant(kind, list(range(LANES))), counts)


def _constant(element: Any, values: list[int]) -> Any:
    return ir.Constant(_vector_of(element), [float(v) if _is_float(element) else v for v in values])


@intrinsic
def load_numbers(typing: Any, address: Any, count: Any, memory: Any, register: Any) -> Any:
    """The first `count` of 16 numbers of type `memory` at `address`, as `register` numbers; zeros after them."""
    source, target = _part(memory), _part(register)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = _vector_of(source)
        pointer, count = builder.inttoptr(args[0], kind.as_pointer()), args[1]
        whole = builder.icmp_signed(">=", count, ir.Constant(_ADDRESS, LANES))
        with builder.if_else(whole, likely=True) as (then, otherwise):
            with then:
                loaded = builder.load(pointer)
                loaded.align = _bytes(source)
                at_once, all_from = _convert(builder, loaded, source, target), builder.block
            with otherwise:
                mask, alignment = _first_lanes(builder, count), ir.Constant(_INT, _bytes(source))
                name, zeros = f"llvm.masked.load.{_suffix(source)}.p0", _constant(source, [0] * LANES)
                some = _call(builder, name, kind, pointer, alignment, mask, zeros)
                in_part, some_from = _convert(builder, some, source, target), builder.block
        value = builder.phi(_vector_of(target))
        value.add_incoming(at_once, all_from)
        value.add_incoming(in_part, some_from)
        return value

    return NumbersType(target)(types.int64, types.int64, memory, register), generate


@intrinsic
def store_numbers(typing: Any, address: Any, count: Any, value: Any, memory: Any) -> Any:
    """Writes the first `count` of 16 lanes at `address`, as numbers of type `memory`."""
    target = _part(memory)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers = _convert(builder, args[2], value.element, target)
        pointer, count = builder.inttoptr(args[0], _vector_of(target).as_pointer()), args[1]
        whole = builder.icmp_signed(">=", count, ir.Constant(_ADDRESS, LANES))
        with builder.if_else(whole, likely=True) as (then, otherwise):
            with then:
                builder.store(numbers, pointer).align = _bytes(target)
            with otherwise:
                mask, alignment = _first_lanes(builder, count), ir.Constant(_INT, _bytes(target))
                name = f"llvm.masked.store.{_suffix(target)}.p0"
                _call(builder, name, ir.VoidType(), numbers, pointer, alignment, mask)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, value, memory), generate


@intrinsic
def stream_numbers(typing: Any, address: Any, value: Any, memory: Any) -> Any:
    """Writes 16 lanes past the caches, at an `address` that is aligned to their size (at most 64 bytes)."""
    target = _part(memory)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers = _convert(builder, args[1], value.element, target)
        instruction = builder.store(numbers, builder.inttoptr(args[0], _vector_of(target).as_pointer()))
        instruction.align = min(64, LANES * _bytes(target))
        instruction.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_INT, 1)]))
        return context.get_dummy_value()

    return types.void(types.int64, value, memory), generate


@intrinsic
def plus(typing: Any, left: Any, right: Any) -> Any:
    """The sum, lane by lane; of integers modulo 2**64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fadd(*args) if _is_float(left.element) else builder.add(*args)

    return left(left, right), generate


def _parts_of(builder: Any, first: Any, second: Any, lanes: list[int]) -> Any:
    return builder.shuffle_vector(first, second, ir.Constant(ir.VectorType(_INT, LANES), lanes))


def _multiply(builder: Any, element: Any, is_complex: bool, a: Any, b: Any, c: Any) -> Any:
    """a b + c, or a b where c is None; of complex numbers as pairs of lanes."""
    add = f"llvm.fmuladd.{_suffix(element)}"
    if not is_complex:
        return builder.fmul(a, b) if c is None else _call(builder, add, a.type, a, b, c)
    real = _parts_of(builder, a, a, [lane & ~1 for lane in range(LANES)])
    imaginary = _parts_of(builder, a, a, [lane | 1 for lane in range(LANES)])
    turned = _parts_of(builder, b, b, [lane ^ 1 for lane in range(LANES)])
    imaginary = builder.fmul(imaginary, _constant(element, [2 * (lane % 2) - 1 for lane in range(LANES)]))
    through_real = builder.fmul(real, b) if c is None else _call(builder, add, a.type, real, b, c)
    return _call(builder, add, a.type, imaginary, turned, through_real)


@intrinsic
def times(typing: Any, a: Any, b: Any, marker: Any) -> Any:
    """a * b, lane by lane, of floats or of the complex numbers that `marker` says."""
    is_complex = isinstance(marker, types.Complex)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _multiply(builder, a.element, is_complex, args[0], args[1], None)

    return a(a, b, marker), generate


@intrinsic
def times_plus(typing: Any, a: Any, b: Any, c: Any, marker: Any) -> Any:
    """a * b + c, as `times`; the sum of a product is rounded once where the machine can."""
    is_complex = isinstance(marker, types.Complex)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _multiply(builder, a.element, is_complex, *args[:3])

    return a(a, b, c, marker), generate


@intrinsic
def conjugate(typing: Any, value: Any, marker: Any) -> Any:
    """The conjugates of the complex numbers that `marker` says; floats as they are."""
    is_complex = isinstance(marker, types.Complex)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if not is_complex:
            return args[0]
        return builder.fmul(args[0], _constant(value.element, [1 - 2 * (lane % 2) for lane in range(LANES)]))

    return value(value, marker), generate


@intrinsic
def one(typing: Any, marker: Any) -> Any:
    """1 in all lanes; of complex numbers 1 + 0i."""
    element, is_complex = _part(marker), isinstance(marker, types.Complex)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _constant(element, [1 - lane % 2 if is_complex else 1 for lane in range(LANES)])

    return NumbersType(element)(marker), generate


@intrinsic
def zero(typing: Any, marker: Any) -> Any:
    """0 in all lanes."""
    element = _part(marker)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _constant(element, [0] * LANES)

    return NumbersType(element)(marker), generate


@intrinsic
def is_finite(typing: Any, value: Any) -> Any:
    """Whether no lane is infinite or NaN."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        nothing = builder.fsub(args[0], args[0])
        lanes = builder.fcmp_ordered("==", nothing, _constant(value.element, [0] * LANES))
        return builder.icmp_unsigned(
            "==", builder.bitcast(lanes, ir.IntType(LANES)), ir.Constant(ir.IntType(LANES), -1)
        )

    return types.boolean(value), generate


def _shuffle(lanes: list[int], meaning: str) -> Any:
    """An intrinsic that takes lanes of two vectors, 0 to 15 of the first and 16 to 31 of the second."""

    @intrinsic
    def shuffle(typing: Any, first: Any, second: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            return _parts_of(builder, args[0], args[1], lanes)

        return first(first, second), generate

    shuffle.__doc__ = meaning
    return shuffle


def _moved(by: int, among: int = LANES) -> Any:
    lanes = [lane if lane % among < by else LANES + lane - by for lane in range(LANES)]
    each = "" if among == LANES else f", in each group of {among} lanes"
    return _shuffle(lanes, f"`second` moved up by {by} lanes, `first` in the lanes below{each}.")


def _last(group: int) -> Any:
    lanes = [LANES - group + lane % group for lane in range(LANES)]
    return _shuffle(lanes, f"The last {group} lanes of `first`, over and over.")


moved_1, moved_2, moved_4, moved_8 = (_moved(by) for by in (1, 2, 4, 8))
moved_1_in_halves, moved_2_in_halves, moved_4_in_halves = (_moved(by, LANES // 2) for by in (1, 2, 4))
last_1, last_2, last_4, last_8 = (_last(group) for group in (1, 2, 4, 8))
lane_7 = _shuffle([LANES // 2 - 1] * LANES, "Lane 7 of `first` in all lanes.")
halves = _shuffle(
    [*range(LANES // 2), *range(LANES + LANES // 2, 2 * LANES)], "Lanes 0 to 7 of `first`, 8 to 15 of `second`."
)


@intrinsic
def reversed_numbers(typing: Any, value: Any, marker: Any) -> Any:
    """The numbers from the last to the first; the complex ones that `marker` says stay pairs."""
    lanes = [LANES - 1 - lane for lane in range(LANES)]
    if isinstance(marker, types.Complex):
        lanes = [lane ^ 1 for lane in lanes]

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _parts_of(builder, args[0], args[0], lanes)

    return value(value, marker), generate


@njit(nogil=True)
def last_entry(value: Any, width: int) -> Any:
    """The last entry, `width` lanes, in all entries."""
    if width == 1:
        return last_1(value, value)
    if width == 2:
        return last_2(value, value)
    if width == 4:
        return last_4(value, value)
    return last_8(value, value)


@njit(nogil=True)
def shifted(value: Any, carry: Any, width: int) -> Any:
    """Every entry in the place of the next one, the carry in the first place."""
    if width == 1:
        return moved_1(carry, value)
    if width == 2:
        return moved_2(carry, value)
    if width == 4:
        return moved_4(carry, value)
    return moved_8(carry, value)
