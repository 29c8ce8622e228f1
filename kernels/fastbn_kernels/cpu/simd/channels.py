"""Operations on float64 numbers of 16 neighbouring channels at a time, beside those of `ops`.

The numbers that a channel's values are computed with take a square root, some divisions and a dozen of products. One
channel after the other, as LLVM leaves a loop over eleven rows that may overlap, that is 10 ns each: of 64 x 4096
values, a third of the time.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic

from fastbn_kernels.cpu.simd.ops import Codegen
from fastbn_kernels.cpu.simd.types import (
    DOUBLES,
    FLOATS,
    I32,
    I64,
    LANES,
    MASK,
    as_stored,
    computed,
    declare,
    first_lanes,
    lanes32,
    lanes64,
)
from fastbn_kernels.formulas import LARGEST, MOST

OPERATIONS = "put", "sqrt", "finite", "held", "unit_by"


def _all(value: float) -> Any:
    return ir.Constant(DOUBLES, [value] * LANES)


@intrinsic  # type: ignore[untyped-decorator]
def put(typing: Any, array: Any, row: Any, index: Any, count: Any, vector: Any) -> tuple[Any, Codegen]:
    """Write `count` numbers to array[row, index : index + count], rounded to its dtype, float32 or float64."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type = signature.args[0]
        values, k, at, lanes, given = arguments
        structure = context.make_array(array_type)(context, builder, values)
        width = builder.extract_value(structure.shape, 1)
        flat = builder.add(builder.mul(k, width), at)
        if config.BOUNDSCHECK:
            outside = builder.icmp_signed(">", builder.add(at, lanes), width)
            with builder.if_then(outside, likely=False):
                context.call_conv.return_user_exc(builder, IndexError, ("a vector reaches out of its row",))
        narrow = as_stored(array_type) is lanes32
        kind, size, name = (FLOATS, 4, "v16f32") if narrow else (DOUBLES, 8, "v16f64")
        address = builder.bitcast(builder.gep(structure.data, [flat]), kind.as_pointer())
        encoded = builder.fptrunc(given, FLOATS) if narrow else given
        function = declare(
            builder, f"llvm.masked.store.{name}.p0", ir.VoidType(), [kind, address.type, I32, MASK]
        )  # fmt: skip
        builder.call(function, [encoded, address, I32(size), first_lanes(builder, lanes)])
        return context.get_dummy_value()

    return types.none(array, types.intp, types.intp, types.intp, lanes64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def sqrt(typing: Any, a: Any) -> tuple[Any, Codegen]:
    """Return the square root, correctly rounded."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.call(declare(builder, "llvm.sqrt.v16f64", DOUBLES, [DOUBLES]), arguments)

    return lanes64(lanes64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def finite(typing: Any, a: Any) -> tuple[Any, Codegen]:
    """Return a where it is finite, else zero."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        bits = ir.VectorType(I64, LANES)
        exponent = ir.Constant(bits, [0x7FF << 52] * LANES)
        found = builder.and_(builder.bitcast(arguments[0], bits), exponent)
        return builder.select(builder.icmp_unsigned("!=", found, exponent), arguments[0], _all(0.0))

    return lanes64(lanes64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def held(typing: Any, array: Any, a: Any) -> tuple[Any, Codegen]:
    """Return numbers as the arithmetic on an array holds them."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if computed(signature.args[0]) is lanes64:
            return arguments[1]
        return builder.fpext(builder.fptrunc(arguments[1], FLOATS), DOUBLES)

    return lanes64(array, lanes64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def unit_by(typing: Any, array: Any, mean: Any, invstd: Any) -> tuple[Any, Codegen]:
    """Return `formulas.unit_of` of values of an array, or 1 where they are computed in float64."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, mean, invstd = arguments
        unit = _all(1.0)
        if computed(signature.args[0]) is lanes64:
            return unit
        within = builder.select(builder.fcmp_ordered("<=", invstd, _all(LARGEST)), invstd, _all(LARGEST))
        within = builder.select(builder.fcmp_ordered(">=", invstd, _all(1.0 / LARGEST)), within, _all(1.0 / LARGEST))
        bits = ir.VectorType(I64, LANES)
        exponent = builder.and_(builder.bitcast(within, bits), ir.Constant(bits, [0x7FF << 52] * LANES))
        unit = builder.bitcast(exponent, DOUBLES)
        size = builder.call(declare(builder, "llvm.fabs.v16f64", DOUBLES, [DOUBLES]), [mean])
        far = builder.fcmp_ordered(">", builder.fmul(size, unit), _all(MOST))
        return builder.select(far, _all(1.0), unit)

    return lanes64(array, lanes64, lanes64), codegen


if config.DISABLE_JIT:
    from simulated import simd_python

    globals().update({name: getattr(simd_python, name) for name in OPERATIONS})
