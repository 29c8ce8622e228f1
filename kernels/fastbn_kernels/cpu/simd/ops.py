"""Vectors of 16 lanes, written out in LLVM IR, for the inner loops.

LLVM vectorises a simple loop by itself, but not one whose arrays may overlap (`out=x`), not with stores that bypass the
cache, and not the tail of a plane of 49 values; and it chooses the order of a sum by itself. Here all four are said:
`load` and `store` take an index into a contiguous array of any number of axes, convert between the dtype of the array
and that of the arithmetic, and know nothing of aliases; `stream` stores past the cache; `total` adds the lanes in a
fixed tree. The same lanes are added in the same order on every processor.

Where an operation takes a `count`, its type chooses: None stands for all lanes, an integer below LANES for the first
few, flags (`masks`) for any choice of lanes, both of a masked instruction. All are one source then, and as many
machine codes.

Arithmetic on float32, float16 (bits as int16) and bfloat16 (bits as uint16) is float32, long sums float64 (`widen`);
that on float64, and on float32 given as its bits (int32), is float64, but for what `narrow` makes of the latter. 16
lanes of float32 are one AVX-512 register, two of AVX2, four of SSE2 or NEON.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic

from fastbn_kernels.cpu.simd.types import (
    DOUBLE,
    DOUBLES,
    FLOAT,
    I16,
    I32,
    I64,
    LANES,
    MASK,
    STORED,
    as_stored,
    broadcast,
    chosen_lanes,
    computed,
    declare,
    decode,
    encode,
    flags16,
    lanes32,
    lanes64,
    line_bytes,
    pointer,
    vector_name,
)  # fmt: skip

OPERATIONS = (
    "load", "param", "value", "address", "single", "rounded", "store", "stream", "offset_from_line",
    "prefetch", "fence", "splat", "like", "keep", "centre", "add", "sub", "mul", "div", "fma", "clamp",
    "where_positive", "where_negative", "where_between", "narrow", "arithmetic", "widen", "total",
)  # fmt: skip

Codegen = Callable[[Any, Any, Any, Any], Any]


def _is_part(count: Any) -> bool:
    return not isinstance(count, types.NoneType)


def _given(count: Any) -> Any:
    """Return the type in which a count is taken."""
    return count if count is flags16 or not _is_part(count) else types.intp


def _reach(builder: Any, count_type: Any, count: Any) -> Any:
    """Return how many elements from its index on an operation may touch; asked for bounds checks alone.

    Without any flag the index may be anywhere, and so far behind the array's end.
    """
    if count_type is not flags16:
        return count if _is_part(count_type) else I64(LANES)
    above = builder.ctlz(count, ir.Constant(ir.IntType(1), 0))
    last = builder.sub(I64(LANES), builder.zext(above, I64))
    return builder.select(builder.icmp_unsigned("==", count, I16(0)), I64(-(1 << 60)), last)


def _load(
    context: Any, builder: Any, array_type: Any, array: Any, index: Any, count_type: Any, count: Any
) -> Any:  # fmt: skip
    """Return elements as they are stored; of a part, if there is a count, and zeros."""
    element, size, _ = STORED[array_type.dtype]
    address = pointer(context, builder, array_type, array, index, _reach(builder, count_type, count))
    if not _is_part(count_type):
        return builder.load(address, align=size)
    vector = address.type.pointee
    function = declare(
        builder, f"llvm.masked.load.{vector_name(element)}.p0", vector, [address.type, I32, MASK, vector]
    )
    lanes = chosen_lanes(builder, count_type, count)
    return builder.call(function, [address, I32(size), lanes, ir.Constant(vector, None)])


def _kept_apart(builder: Any, vector: Any) -> Any:
    """Return a part that was loaded, as what no instruction takes from memory by itself: LLVM 22 would undo the mask.

    It makes one instruction of a masked load, an fma and `keep` with the same mask, and later two again, of which the
    load has none: it reads 64 bytes behind the end of an array. The barrier, made for numbers, costs no instruction.
    """
    function = declare(
        builder, f"llvm.arithmetic.fence.{vector_name(vector.type.element)}", vector.type, [vector.type]
    )  # fmt: skip
    return builder.call(function, [vector])


@intrinsic  # type: ignore[untyped-decorator]
def load(typing: Any, array: Any, index: Any, count: Any) -> tuple[Any, Codegen]:
    """Return array.flat[index : index + LANES], or of a part, beside which nothing is touched, and zeros."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, at, lanes = arguments
        loaded = _load(context, builder, signature.args[0], values, at, count, lanes)
        decoded = decode(builder, loaded, signature.args[0].dtype)
        return _kept_apart(builder, decoded) if _is_part(count) else decoded

    return computed(array)(array, types.intp, _given(count)), codegen


@intrinsic  # type: ignore[untyped-decorator]
def param(typing: Any, array: Any, row: Any, index: Any, count: Any) -> tuple[Any, Codegen]:
    """Return array[row, index : index + LANES] of an array that `empty_params` made, or of a part."""
    part = _is_part(count)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        values, k, at, lanes = arguments
        array_type = signature.args[0]
        width = builder.extract_value(context.make_array(array_type)(context, builder, values).shape, 1)
        flat = builder.add(builder.mul(k, width), at)
        loaded = _load(context, builder, array_type, values, flat, count, lanes)
        return _kept_apart(builder, loaded) if part else loaded

    return as_stored(array)(array, types.intp, types.intp, types.intp if part else count), codegen


@intrinsic  # type: ignore[untyped-decorator]
def value(typing: Any, array: Any, index: Any) -> tuple[Any, Codegen]:
    """Return array.flat[index] as a float64."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type = signature.args[0]
        dtype = array_type.dtype
        address = pointer(context, builder, array_type, arguments[0], arguments[1], I64(1))
        element = builder.load(builder.bitcast(address, STORED[dtype][0].as_pointer()), align=STORED[dtype][1])
        if STORED[dtype][0] == I16:
            one = ir.VectorType(I16, 1)
            vector = builder.insert_element(ir.Constant(one, ir.Undefined), element, I32(0))
            element = builder.extract_element(decode(builder, vector, dtype), I32(0))
        return element if element.type == DOUBLE else builder.fpext(element, DOUBLE)

    return types.float64(array, types.intp), codegen


@intrinsic  # type: ignore[untyped-decorator]
def address(typing: Any, array: Any) -> tuple[Any, Codegen]:
    """Return where an array begins; `array.ctypes.data` is the same, and 16 functions more to compile."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.ptrtoint(data, context.get_value_type(types.intp))

    return types.intp(array), codegen


@intrinsic  # type: ignore[untyped-decorator]
def single(typing: Any, array: Any) -> tuple[Any, Codegen]:
    """Return whether values of an array are computed in float32: a constant of every compiled function."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return ir.Constant(ir.IntType(1), computed(array) is lanes32)

    return types.boolean(array), codegen


@intrinsic  # type: ignore[untyped-decorator]
def rounded(typing: Any, array: Any, number: Any) -> tuple[Any, Codegen]:
    """Return a number as the arithmetic on an array holds it."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if computed(signature.args[0]) is lanes64:
            return arguments[1]
        return builder.fpext(builder.fptrunc(arguments[1], FLOAT), DOUBLE)

    return types.float64(array, types.float64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def store(typing: Any, array: Any, index: Any, count: Any, vector: Any) -> tuple[Any, Codegen]:
    """Write array.flat[index : index + LANES], or a part, beside which nothing is touched."""
    part = _is_part(count)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type = signature.args[0]
        values, at, lanes, given = arguments
        element, size, _ = STORED[array_type.dtype]
        address = pointer(context, builder, array_type, values, at, _reach(builder, count, lanes))
        encoded = encode(builder, given, array_type.dtype)
        if part:
            types_ = [address.type.pointee, address.type, I32, MASK]
            function = declare(builder, f"llvm.masked.store.{vector_name(element)}.p0", ir.VoidType(), types_)
            builder.call(function, [encoded, address, I32(size), chosen_lanes(builder, count, lanes)])
        else:
            builder.store(encoded, address, align=size)
        return context.get_dummy_value()

    return types.none(array, types.intp, _given(count), computed(array)), codegen


@intrinsic  # type: ignore[untyped-decorator]
def stream(typing: Any, array: Any, index: Any, vector: Any) -> tuple[Any, Codegen]:
    """Write array.flat[index : index + LANES] past the cache, which `offset_from_line` must call aligned.

    Call `fence` before others read it.
    """

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type = signature.args[0]
        address = pointer(context, builder, array_type, arguments[0], arguments[1], I64(LANES))
        instruction = builder.store(
            encode(builder, arguments[2], array_type.dtype), address, align=line_bytes(array_type)
        )
        instruction.set_metadata("nontemporal", builder.module.add_metadata([I32(1)]))
        return context.get_dummy_value()

    return types.none(array, types.intp, computed(array)), codegen


@intrinsic  # type: ignore[untyped-decorator]
def offset_from_line(typing: Any, array: Any, index: Any) -> tuple[Any, Codegen]:
    """Return how many elements array.flat[index] lies behind a multiple of a vector's bytes, at most 64."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array_type = signature.args[0]
        address = pointer(context, builder, array_type, arguments[0], arguments[1])
        behind = builder.and_(builder.ptrtoint(address, I64), I64(line_bytes(array_type) - 1))
        return builder.udiv(behind, I64(STORED[array_type.dtype][1]))

    return types.intp(array, types.intp), codegen


@intrinsic  # type: ignore[untyped-decorator]
def prefetch(typing: Any, array: Any, index: Any) -> tuple[Any, Codegen]:
    """Ask for the cache line of array.flat[index], which may lie outside the array; without an array, do nothing."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if not isinstance(signature.args[0], types.NoneType):
            address = pointer(context, builder, signature.args[0], arguments[0], arguments[1])
            function = declare(builder, "llvm.prefetch.p0", ir.VoidType(), [address.type, I32, I32, I32])
            builder.call(function, [address, I32(0), I32(3), I32(1)])  # for reading, into every level, data
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
    """Return a vector of one number, to compute with values of an array; of a tuple of numbers, a tuple of vectors."""
    lanes = computed(array)
    several = isinstance(number, types.UniTuple)
    result = types.UniTuple(lanes, number.count) if several else lanes

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        singles = cgutils.unpack_tuple(builder, arguments[1]) if several else [arguments[1]]
        if lanes is not lanes64:
            singles = [builder.fptrunc(single, FLOAT) for single in singles]
        vectors = [broadcast(builder, single) for single in singles]
        return context.make_tuple(builder, result, vectors) if several else vectors[0]

    return result(array, types.UniTuple(types.float64, number.count) if several else types.float64), codegen


def _like(builder: Any, vector: Any, number: Any) -> Any:
    return broadcast(builder, number if vector is lanes64 else builder.fptrunc(number, FLOAT))


@intrinsic  # type: ignore[untyped-decorator]
def like(typing: Any, vector: Any, number: Any) -> tuple[Any, Codegen]:
    """Return a vector of one number, to compute with another vector."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _like(builder, vector, arguments[1])

    return vector(vector, types.float64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def keep(typing: Any, vector: Any, count: Any) -> tuple[Any, Codegen]:
    """Return the vector with lanes that `count`, if that is not None, does not stand for replaced by zero."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if not _is_part(count):
            return arguments[0]
        lanes = chosen_lanes(builder, count, arguments[1])
        return builder.select(lanes, arguments[0], ir.Constant(vector.vector, None))

    return vector(vector, _given(count)), codegen


@intrinsic  # type: ignore[untyped-decorator]
def centre(typing: Any, array: Any, vector: Any, minus: Any, unit: Any) -> tuple[Any, Codegen]:
    """Return (vector - mean) * unit of values of an array, given minus = -mean * unit; in float64, unit is 1.

    A multiply-add rounds that once. Without one it is rounded once too: times a power of two, values stay exact.
    """
    lanes = computed(array)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _, value, negative, power = arguments
        return builder.fadd(value, negative) if lanes is lanes64 else _fma(builder, lanes, [value, power, negative])

    return lanes(array, lanes, lanes, lanes), codegen


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
div = _binary("fdiv")


def _fma(builder: Any, lanes: Any, arguments: Any) -> Any:
    function = declare(builder, f"llvm.fmuladd.{vector_name(lanes.vector.element)}", lanes.vector, [lanes.vector] * 3)
    return builder.call(function, arguments)


@intrinsic  # type: ignore[untyped-decorator]
def fma(typing: Any, a: Any, b: Any, c: Any) -> tuple[Any, Codegen]:
    """Return a * b + c, rounded once where the processor can; elsewhere `llvm.fma` would be 16 calls of libm."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _fma(builder, a, arguments)

    return a(a, a, a), codegen


@intrinsic  # type: ignore[untyped-decorator]
def clamp(typing: Any, a: Any, low: Any, high: Any) -> tuple[Any, Codegen]:
    """Return a where it is between two numbers or NaN, else the nearer of them; None for `high` is no number."""
    open_ = isinstance(high, types.NoneType)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        found, least = arguments[0], _like(builder, a, arguments[1])
        found = builder.select(builder.fcmp_unordered(">", found, least), found, least)
        if open_:
            return found
        most = _like(builder, a, arguments[2])
        return builder.select(builder.fcmp_unordered("<", found, most), found, most)

    return a(a, types.float64, high if open_ else types.float64), codegen


def narrow_lanes(array: Any) -> Any:
    """Return the lanes that `narrow` returns."""
    return lanes64 if array.dtype == types.float64 else lanes32


@intrinsic  # type: ignore[untyped-decorator]
def narrow(typing: Any, array: Any, vector: Any) -> tuple[Any, Codegen]:
    """Return a vector of the arithmetic on an array as float32, unless the array is float64."""
    lanes = narrow_lanes(array)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return arguments[1] if vector is lanes else builder.fptrunc(arguments[1], lanes.vector)

    return lanes(array, computed(array)), codegen


@intrinsic  # type: ignore[untyped-decorator]
def arithmetic(typing: Any, array: Any, vector: Any) -> tuple[Any, Codegen]:
    """Return what `narrow` returned, or was computed of that, as a vector of the arithmetic on an array."""
    lanes = computed(array)

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return arguments[1] if vector is lanes else builder.fpext(arguments[1], lanes.vector)

    return lanes(array, narrow_lanes(array)), codegen


@intrinsic  # type: ignore[untyped-decorator]
def where_positive(typing: Any, a: Any, b: Any) -> tuple[Any, Codegen]:
    """Return b in lanes where a is positive or NaN, else zero."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        zero = ir.Constant(a.vector, None)
        return builder.select(builder.fcmp_unordered(">", arguments[0], zero), arguments[1], zero)

    return a(a, a), codegen


@intrinsic  # type: ignore[untyped-decorator]
def where_negative(typing: Any, a: Any, b: Any, c: Any) -> tuple[Any, Codegen]:
    """Return b in lanes where a has a negative sign, else c."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        given, first, second = arguments
        bits = ir.VectorType(I64 if a is lanes64 else I32, LANES)
        negative = builder.icmp_signed("<", builder.bitcast(given, bits), ir.Constant(bits, None))
        return builder.select(negative, first, second)

    return a(a, a, a), codegen


@intrinsic  # type: ignore[untyped-decorator]
def where_between(typing: Any, a: Any, low: Any, high: Any, b: Any) -> tuple[Any, Codegen]:
    """Return b in lanes where low < a < high or a is NaN, else zero."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        given, least, most, found = arguments
        above = builder.fcmp_unordered(">", given, _like(builder, a, least))
        below = builder.fcmp_unordered("<", given, _like(builder, a, most))
        return builder.select(builder.and_(above, below), found, ir.Constant(a.vector, None))

    return a(a, types.float64, types.float64, a), codegen


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


if config.DISABLE_JIT:  # for a debugger: plain Python from the checkout's tests, which no wheel carries
    from simulated import simd_python

    globals().update({name: getattr(simd_python, name) for name in OPERATIONS})
