"""float64 numbers into arrays of data, whatever those are computed in, beside the operations of `ops`.

Sums over pairs of channels are float64 always, and so is what is computed with them.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import config, types
from numba.extending import intrinsic

from fastbn_kernels.cpu.simd.ops import Codegen
from fastbn_kernels.cpu.simd.types import (
    DOUBLE,
    FLOAT,
    FLOATS,
    I16,
    I32,
    I64,
    STORED,
    computed,
    encode,
    lanes32,
    lanes64,
    pointer,
)

OPERATIONS = "put_value", "fitted"


@intrinsic  # type: ignore[untyped-decorator]
def put_value(typing: Any, array: Any, index: Any, number: Any) -> tuple[Any, Codegen]:
    """Write a float64 number to array.flat[index], as the array stores it."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type = signature.args[0]
        values, at, given = arguments
        element, size, _ = STORED[array_type.dtype]
        address = pointer(context, builder, array_type, values, at, I64(1))
        if element != DOUBLE:
            given = builder.fptrunc(given, FLOAT)
        if element == I16:
            one = builder.insert_element(ir.Constant(ir.VectorType(FLOAT, 1), ir.Undefined), given, I32(0))
            given = builder.extract_element(encode(builder, one, array_type.dtype), I32(0))
        builder.store(given, builder.bitcast(address, element.as_pointer()), align=size)
        return context.get_dummy_value()

    return types.none(array, types.intp, types.float64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def fitted(typing: Any, array: Any, vector: Any) -> tuple[Any, Codegen]:
    """Return float64 lanes as those that values of an array are computed in, to be stored."""
    lanes = computed(array)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.fptrunc(arguments[1], FLOATS) if lanes is lanes32 else arguments[1]

    return lanes(array, lanes64), codegen


if config.DISABLE_JIT:
    from simulated import simd_python

    globals().update({name: getattr(simd_python, name) for name in OPERATIONS})
