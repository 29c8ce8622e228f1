"""What `vector` is made of: the Numba type of a vector, the dtypes that it converts, pieces of LLVM IR.

Numbers a channel come in arrays whose dtype is that of the arithmetic already. Data come in any of five dtypes, three
of them bits as integers: of 16-bit floats, and of float32 whose arithmetic is float64 (`precision="exact"`).
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import models, register_model

from fastbn_kernels.cpu.simd import half_precision as halves

LANES = 16

I16 = ir.IntType(16)
I32 = ir.IntType(32)
I64 = ir.IntType(64)
FLOAT = ir.FloatType()
DOUBLE = ir.DoubleType()
DOUBLES = ir.VectorType(DOUBLE, LANES)
FLOATS = ir.VectorType(FLOAT, LANES)
MASK = ir.VectorType(ir.IntType(1), LANES)


class Lanes(types.Type):  # type: ignore[misc]
    """The Numba type of a vector."""

    def __init__(self, bits: int) -> None:
        super().__init__(name=f"fastbn_lanes{bits}")
        self.vector = DOUBLES if bits == 64 else FLOATS


lanes64 = Lanes(64)
lanes32 = Lanes(32)


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    """Held in registers."""

    def __init__(self, manager: Any, frontend_type: Any) -> None:
        super().__init__(manager, frontend_type, frontend_type.vector)


class FlagsType(types.Type):  # type: ignore[misc]
    """The Numba type of a choice of lanes: 16 bits, the lowest for the first lane."""

    def __init__(self) -> None:
        super().__init__(name="fastbn_flags")


flags16 = FlagsType()


@register_model(FlagsType)
class FlagsModel(models.PrimitiveModel):  # type: ignore[misc]
    """Held in a register, as an integer: what a processor without mask registers makes lanes of."""

    def __init__(self, manager: Any, frontend_type: Any) -> None:
        super().__init__(manager, frontend_type, I16)


# The dtypes of arrays: LLVM's element, its bytes, and the lanes that it is computed in.
STORED = {
    types.float32: (FLOAT, 4, lanes32),
    types.int32: (FLOAT, 4, lanes64),
    types.float64: (DOUBLE, 8, lanes64),
    types.int16: (I16, 2, lanes32),
    types.uint16: (I16, 2, lanes32),
}


def computed(array_type: Any) -> Lanes:
    """Return the lanes that values of an array are computed in."""
    lanes: Lanes = STORED[array_type.dtype][2]
    return lanes


def as_stored(array_type: Any) -> Lanes:
    """Return the lanes of an array of numbers a channel, whose dtype is that of the arithmetic already."""
    return lanes32 if array_type.dtype == types.float32 else lanes64


def line_bytes(array_type: Any) -> int:
    """Return what an address must be a multiple of for `stream`: a vector's bytes, or those of a cache line."""
    return min(64, LANES * int(STORED[array_type.dtype][1]))


def pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, count: Any = None) -> Any:
    """Return the address of LANES elements from a flat index on, as that of a vector.

    With NUMBA_BOUNDSCHECK=1, an index of which `count` elements are not all in the array raises IndexError.
    """
    structure = context.make_array(array_type)(context, builder, array)
    if config.BOUNDSCHECK and count is not None:
        end = builder.add(index, count)
        below = builder.icmp_signed("<", index, index.type(0))
        above = builder.icmp_signed(">", end, structure.nitems)
        with builder.if_then(builder.or_(below, above), likely=False):
            context.call_conv.return_user_exc(builder, IndexError, ("a vector reaches out of its array",))
    address = builder.gep(structure.data, [index])
    return builder.bitcast(address, ir.VectorType(STORED[array_type.dtype][0], LANES).as_pointer())


def broadcast(builder: Any, value: Any) -> Any:
    """Return a vector of one value."""
    vector = ir.VectorType(value.type, LANES)
    undefined = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(undefined, value, I32(0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(I32, LANES), [0] * LANES))


def first_lanes(builder: Any, count: Any) -> Any:
    """Return the mask of the first `count` lanes."""
    numbers = ir.Constant(ir.VectorType(I32, LANES), list(range(LANES)))
    return builder.icmp_signed("<", numbers, broadcast(builder, builder.trunc(count, I32)))


def chosen_lanes(builder: Any, count_type: Any, count: Any) -> Any:
    """Return the mask of the lanes that a count stands for: the first so many, or those of flags."""
    return builder.bitcast(count, MASK) if count_type is flags16 else first_lanes(builder, count)


def declare(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    """Return an intrinsic function of LLVM."""
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def decode(builder: Any, vector: Any, dtype: Any) -> Any:
    """Convert stored elements to what they are computed in."""
    if dtype == types.int16:
        return halves.half_to_float(builder, vector)
    if dtype == types.uint16:
        return halves.bfloat_to_float(builder, vector)
    return builder.fpext(vector, DOUBLES) if dtype == types.int32 else vector


def encode(builder: Any, vector: Any, dtype: Any) -> Any:
    """Round what was computed to elements as they are stored."""
    if dtype == types.int16:
        return halves.float_to_half(builder, vector)
    if dtype == types.uint16:
        return halves.float_to_bfloat(builder, vector)
    return builder.fptrunc(vector, FLOATS) if dtype == types.int32 else vector


def vector_name(element: Any) -> str:
    """Return what LLVM calls a vector of an element in the names of its intrinsic functions."""
    kinds = {FLOAT: "f32", DOUBLE: "f64", I16: "i16"}
    return f"v{LANES}{kinds[element]}"
