"""Dense products of small matrices, the sums held in registers: the innermost loop of kernels that multiply matrices.

A product is out[r, :] = sum over n of y[r, n] x[n, :], for a few rows r and a few vectors of 16 columns: each number
of y meets the vectors of x, and all sums stay in registers until the end. What limits it is how many numbers must be
loaded for a multiply-add: 6 rows by 4 vectors (10 loads for 24 multiply-adds) run at 0.9 of the processor's peak
where 8 by 2 (10 for 16) reach 0.63.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types

from verim.ops.vectors import BYTES, LANES, ROW, intrinsic

_FLOAT, _INT, _ADDRESS = ir.FloatType(), ir.IntType(32), ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, LANES)


def product_of(rows: int, vectors: int, adds: bool) -> Callable[..., Any]:
    """A function (out, out_row, x, x_step, y, y_row, y_step, count) for kernels.

        out[r, :] (+)= sum over n < count of y[r, n] x[n, :]        r < rows, 16 · vectors columns, count at least 1

    Row r of `out` lies at out + r · out_row bytes, row n of x at x + n · x_step, the number y[r, n] at
    y + r · y_row + n · y_step. With `adds` the product is added to what `out` holds. Terms are added in order.
    """

    @intrinsic
    def product(
        typing: Any, out: Any, out_row: Any, x: Any, x_step: Any, y: Any, y_row: Any, y_step: Any, count: Any
    ) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            out, out_row, x, x_step, y, y_row, y_step, count = args
            kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
            multiply_add = cgutils.get_or_insert_function(builder.module, kind, "llvm.fmuladd.v16f32")

            def places(base: Any, step: Any) -> list[Any]:
                return [builder.add(base, builder.mul(step, _ADDRESS(row))) for row in range(rows)]

            def at(base: Any, offset: int) -> Any:
                return builder.inttoptr(builder.add(base, _ADDRESS(offset)), _VECTOR.as_pointer())

            def vectors_at(base: Any) -> list[Any]:
                loaded = [builder.load(at(base, ROW * vector)) for vector in range(vectors)]
                for value in loaded:
                    value.align = BYTES
                return loaded

            def everywhere(place: Any) -> Any:
                undefined = ir.Constant(_VECTOR, ir.Undefined)
                scalar = builder.load(builder.inttoptr(place, _FLOAT.as_pointer()))
                scalar.align = BYTES
                first = builder.insert_element(undefined, scalar, _INT(0))
                return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(_INT, LANES), None))

            targets = places(out, out_row)
            zeros = [ir.Constant(_VECTOR, None)] * vectors
            start = [vectors_at(target) if adds else zeros for target in targets]
            before, body = builder.block, builder.append_basic_block("product")
            after = builder.append_basic_block("product.end")
            builder.branch(body)

            builder.position_at_end(body)
            entering = [(count, x, y), (_ADDRESS, _ADDRESS, _ADDRESS)]
            left, x_now, y_now = (builder.phi(kind) for kind in entering[1])
            for phi, value in zip((left, x_now, y_now), entering[0], strict=True):
                phi.add_incoming(value, before)
            sums = [[builder.phi(_VECTOR) for _ in range(vectors)] for _ in range(rows)]
            values = vectors_at(x_now)
            ends = []
            for row, (phis, place) in enumerate(zip(sums, places(y_now, y_row), strict=True)):
                number = everywhere(place)
                ends.append([builder.call(multiply_add, (number, *pair)) for pair in zip(values, phis, strict=True)])
                for phi, first, last in zip(phis, start[row], ends[row], strict=True):
                    phi.add_incoming(first, before)
                    phi.add_incoming(last, body)
            fewer = builder.sub(left, _ADDRESS(1))
            left.add_incoming(fewer, body)
            x_now.add_incoming(builder.add(x_now, x_step), body)
            y_now.add_incoming(builder.add(y_now, y_step), body)
            builder.cbranch(builder.icmp_signed(">", fewer, _ADDRESS(0)), body, after)

            builder.position_at_end(after)
            for target, row_sums in zip(targets, ends, strict=True):
                for vector, value in enumerate(row_sums):
                    builder.store(value, at(target, ROW * vector)).align = BYTES
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), generate

    chosen: Callable[..., Any] = product
    return chosen
