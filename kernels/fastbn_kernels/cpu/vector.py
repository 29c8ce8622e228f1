"""Vectors of 16 lanes, written out in LLVM IR, for the inner loops.

LLVM vectorises a simple loop by itself, but not one whose arrays may overlap (`out=x`), not with stores that bypass the
cache, and not the tail of a plane of 49 values; and it chooses the order of a sum by itself. Here all four are said:
`load` and `store` take an index into a contiguous array of any number of axes, convert between the dtype of the array
and that of the arithmetic, and know nothing of aliases; `load_part` and `store_part` take the first few lanes; `stream`
stores past the cache; `total` adds the lanes in a fixed tree. The same lanes are added in the same order on every
processor.

Arithmetic on float32 and float64 arrays is float64. On float16 (bits as int16) and bfloat16 (bits as uint16) it is
float32, which holds each of their values and rounds 13 bits or more below their last; long sums are float64 there too
(`widen`). 16 lanes of float64 are two AVX-512 registers, four of AVX2, eight of SSE2 or NEON.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from fastbn_kernels.cpu import halves, vector_python

LANES = vector_python.LANES

OPERATIONS = (
    "load", "load_part", "numbers", "numbers_part", "value", "rounded", "store", "store_part", "stream",
    "offset_from_line", "prefetch", "fence", "splat", "keep", "add", "sub", "mul", "fma", "widen", "total",
)  # fmt: skip

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


Codegen = Callable[[Any, Any, Any, Any], Any]

# The dtypes of arrays: LLVM's element, its bytes, and the lanes that it is computed in.
STORED = {
    types.float32: (FLOAT, 4, lanes64),
    types.float64: (DOUBLE, 8, lanes64),
    types.int16: (I16, 2, lanes32),
    types.uint16: (I16, 2, lanes32),
}


def _computed(array_type: Any) -> Lanes:
    """Return the lanes that values of an array are computed in."""
    lanes: Lanes = STORED[array_type.dtype][2]
    return lanes


def _as_stored(array_type: Any) -> Lanes:
    """Return the lanes of an array of numbers a channel, whose dtype is that of the arithmetic already."""
    return lanes32 if array_type.dtype == types.float32 else lanes64


def _line(array_type: Any) -> int:
    """Return what an address must be a multiple of for `stream`: a vector's bytes, or those of a cache line."""
    return min(64, LANES * int(STORED[array_type.dtype][1]))


def _pointer(context: Any, builder: Any, array_type: Any, array: Any, index: Any, count: Any = None) -> Any:
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
    pointer = builder.gep(structure.data, [index])
    return builder.bitcast(pointer, ir.VectorType(STORED[array_type.dtype][0], LANES).as_pointer())


def _splat(builder: Any, value: Any) -> Any:
    vector = ir.VectorType(value.type, LANES)
    undefined = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(undefined, value, I32(0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(I32, LANES), [0] * LANES))


def _first(builder: Any, count: Any) -> Any:
    """Return the mask of the first `count` lanes."""
    numbers = ir.Constant(ir.VectorType(I32, LANES), list(range(LANES)))
    return builder.icmp_signed("<", numbers, _splat(builder, builder.trunc(count, I32)))


def _declare(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    return cgutils.get_or_insert_function(builder.module, ir.FunctionType(result, arguments), name)


def _decode(builder: Any, vector: Any, dtype: Any) -> Any:
    """Convert stored elements to what they are computed in."""
    if dtype == types.int16:
        return halves.half_to_float(builder, vector)
    if dtype == types.uint16:
        return halves.bfloat_to_float(builder, vector)
    return builder.fpext(vector, DOUBLES) if dtype == types.float32 else vector


def _encode(builder: Any, vector: Any, dtype: Any) -> Any:
    """Round what was computed to elements as they are stored."""
    if dtype == types.int16:
        return halves.float_to_half(builder, vector)
    if dtype == types.uint16:
        return halves.float_to_bfloat(builder, vector)
    return builder.fptrunc(vector, FLOATS) if dtype == types.float32 else vector


def _name(element: Any) -> str:
    kinds = {FLOAT: "f32", DOUBLE: "f64", I16: "i16"}
    return f"v{LANES}{kinds[element]}"


def _load(decode: bool, part: bool) -> Any:
    """Return the code that loads a vector, whole or in part, converted or as it is stored."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type = signature.args[0]
        element, size, _ = STORED[array_type.dtype]
        count = arguments[2] if part else I64(LANES)
        pointer = _pointer(context, builder, array_type, arguments[0], arguments[1], count)
        if part:
            vector = pointer.type.pointee
            types_ = [pointer.type, I32, MASK, vector]
            function = _declare(builder, f"llvm.masked.load.{_name(element)}.p0", vector, types_)
            mask = _first(builder, count)
            loaded = builder.call(function, [pointer, I32(size), mask, ir.Constant(vector, None)])
        else:
            loaded = builder.load(pointer, align=size)
        return _decode(builder, loaded, array_type.dtype) if decode else loaded

    return codegen


@intrinsic  # type: ignore[untyped-decorator]
def load(typing: Any, array: Any, index: Any) -> tuple[Any, Codegen]:
    """Return array.flat[index : index + LANES]."""
    return _computed(array)(array, types.intp), _load(decode=True, part=False)


@intrinsic  # type: ignore[untyped-decorator]
def load_part(typing: Any, array: Any, index: Any, count: Any) -> tuple[Any, Codegen]:
    """Return array.flat[index : index + count] and zeros; count < LANES. What lies behind is not touched."""
    return _computed(array)(array, types.intp, types.intp), _load(decode=True, part=True)


@intrinsic  # type: ignore[untyped-decorator]
def numbers(typing: Any, array: Any, index: Any) -> tuple[Any, Codegen]:
    """Return array.flat[index : index + LANES] of an array that `like_values` made."""
    return _as_stored(array)(array, types.intp), _load(decode=False, part=False)


@intrinsic  # type: ignore[untyped-decorator]
def numbers_part(typing: Any, array: Any, index: Any, count: Any) -> tuple[Any, Codegen]:
    """Return array.flat[index : index + count] and zeros of an array that `like_values` made."""
    return _as_stored(array)(array, types.intp, types.intp), _load(decode=False, part=True)


@intrinsic  # type: ignore[untyped-decorator]
def value(typing: Any, array: Any, index: Any) -> tuple[Any, Codegen]:
    """Return array.flat[index] as a float64."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type = signature.args[0]
        dtype = array_type.dtype
        pointer = _pointer(context, builder, array_type, arguments[0], arguments[1], I64(1))
        element = builder.load(builder.bitcast(pointer, STORED[dtype][0].as_pointer()), align=STORED[dtype][1])
        if STORED[dtype][0] == I16:
            one = ir.VectorType(I16, 1)
            vector = builder.insert_element(ir.Constant(one, ir.Undefined), element, I32(0))
            element = builder.extract_element(_decode(builder, vector, dtype), I32(0))
        return element if element.type == DOUBLE else builder.fpext(element, DOUBLE)

    return types.float64(array, types.intp), codegen


@intrinsic  # type: ignore[untyped-decorator]
def rounded(typing: Any, array: Any, number: Any) -> tuple[Any, Codegen]:
    """Return a number as the arithmetic on an array holds it."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if _computed(signature.args[0]) is lanes64:
            return arguments[1]
        return builder.fpext(builder.fptrunc(arguments[1], FLOAT), DOUBLE)

    return types.float64(array, types.float64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def store(typing: Any, array: Any, index: Any, vector: Any) -> tuple[Any, Codegen]:
    """Write array.flat[index : index + LANES]."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type = signature.args[0]
        pointer = _pointer(context, builder, array_type, arguments[0], arguments[1], I64(LANES))
        encoded = _encode(builder, arguments[2], array_type.dtype)
        builder.store(encoded, pointer, align=STORED[array_type.dtype][1])
        return context.get_dummy_value()

    return types.none(array, types.intp, _computed(array)), codegen


@intrinsic  # type: ignore[untyped-decorator]
def store_part(typing: Any, array: Any, index: Any, count: Any, vector: Any) -> tuple[Any, Codegen]:
    """Write array.flat[index : index + count]; count < LANES. What lies behind is not touched."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type = signature.args[0]
        element, size, _ = STORED[array_type.dtype]
        pointer = _pointer(context, builder, array_type, arguments[0], arguments[1], arguments[2])
        types_ = [pointer.type.pointee, pointer.type, I32, MASK]
        function = _declare(builder, f"llvm.masked.store.{_name(element)}.p0", ir.VoidType(), types_)
        encoded = _encode(builder, arguments[3], array_type.dtype)
        builder.call(function, [encoded, pointer, I32(size), _first(builder, arguments[2])])
        return context.get_dummy_value()

    return types.none(array, types.intp, types.intp, _computed(array)), codegen


@intrinsic  # type: ignore[untyped-decorator]
def stream(typing: Any, array: Any, index: Any, vector: Any) -> tuple[Any, Codegen]:
    """Write array.flat[index : index + LANES] past the cache, which `offset_from_line` must call aligned.

    Call `fence` before others read it.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type = signature.args[0]
        pointer = _pointer(context, builder, array_type, arguments[0], arguments[1], I64(LANES))
        instruction = builder.store(_encode(builder, arguments[2], array_type.dtype), pointer, align=_line(array_type))
        instruction.set_metadata("nontemporal", builder.module.add_metadata([I32(1)]))
        return context.get_dummy_value()

    return types.none(array, types.intp, _computed(array)), codegen


@intrinsic  # type: ignore[untyped-decorator]
def offset_from_line(typing: Any, array: Any, index: Any) -> tuple[Any, Codegen]:
    """Return how many elements array.flat[index] lies behind a multiple of a vector's bytes, at most 64."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type = signature.args[0]
        pointer = _pointer(context, builder, array_type, arguments[0], arguments[1])
        behind = builder.and_(builder.ptrtoint(pointer, I64), I64(_line(array_type) - 1))
        return builder.udiv(behind, I64(STORED[array_type.dtype][1]))

    return types.intp(array, types.intp), codegen


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typing: Any, array: Any, index: Any) -> tuple[Any, Codegen]:
    """Ask for the cache line of array.flat[index], which may lie outside the array."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], arguments[0], arguments[1])
        function = _declare(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer.type, I32, I32, I32])
        builder.call(function, [pointer, I32(0), I32(3), I32(1)])  # for reading, into every level, data
        return context.get_dummy_value()

    return types.none(array, types.intp), codegen


@intrinsic  # type: ignore[untyped-decorator]
def fence(typing: Any) -> tuple[Any, Codegen]:
    """Order streamed stores before whatever is stored after them."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("seq_cst")
        return context.get_dummy_value()

    return types.none(), codegen


@intrinsic  # type: ignore[untyped-decorator]
def splat(typing: Any, array: Any, number: Any) -> tuple[Any, Codegen]:
    """Return a vector of one number, to compute with values of an array."""
    result = _computed(array)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        single = arguments[1] if result is lanes64 else builder.fptrunc(arguments[1], FLOAT)
        return _splat(builder, single)

    return result(array, types.float64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def keep(typing: Any, vector: Any, count: Any) -> tuple[Any, Codegen]:
    """Return the vector with lanes from `count` on replaced by zero."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(_first(builder, arguments[1]), arguments[0], ir.Constant(vector.vector, None))

    return vector(vector, types.intp), codegen


def _binary(instruction: str) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def operation(typing: Any, a: Any, b: Any) -> tuple[Any, Codegen]:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, instruction)(*arguments)

        return a(a, a), codegen

    return operation


add = _binary("fadd")
sub = _binary("fsub")
mul = _binary("fmul")


@intrinsic  # type: ignore[untyped-decorator]
def fma(typing: Any, a: Any, b: Any, c: Any) -> tuple[Any, Codegen]:
    """Return a * b + c, rounded once where the processor can; elsewhere `llvm.fma` would be 16 calls of libm."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = _declare(builder, f"llvm.fmuladd.{_name(a.vector.element)}", a.vector, [a.vector] * 3)
        return builder.call(function, arguments)

    return a(a, a, a), codegen


@intrinsic  # type: ignore[untyped-decorator]
def widen(typing: Any, vector: Any) -> tuple[Any, Codegen]:
    """Return a vector as float64."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return arguments[0] if vector is lanes64 else builder.fpext(arguments[0], DOUBLES)

    return lanes64(vector), codegen


@intrinsic  # type: ignore[untyped-decorator]
def total(typing: Any, vector: Any) -> tuple[Any, Codegen]:
    """Return the sum of float64 lanes: halves added to halves, four times."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, width = arguments[0], LANES
        while width > 1:
            width //= 2
            parts = [
                builder.shuffle_vector(
                    value,
                    ir.Constant(value.type, ir.Undefined),
                    ir.Constant(ir.VectorType(I32, width), list(range(start, start + width))),
                )
                for start in (0, width)
            ]
            value = builder.fadd(*parts)
        return builder.extract_element(value, I32(0))

    return types.float64(lanes64), codegen


if config.DISABLE_JIT:  # for a debugger
    globals().update({name: getattr(vector_python, name) for name in OPERATIONS})
