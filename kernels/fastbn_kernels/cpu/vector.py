"""Vectors of 16 float64 lanes, written out in LLVM IR, for the inner loops.

LLVM vectorises a simple loop by itself, but not one whose arrays may overlap (`out=x`), not with stores that bypass the
cache, and not the tail of a plane of 49 values; and it chooses the order of a sum by itself. Here all four are said:
`load` and `store` take an index into a contiguous array of any number of axes, convert between the dtype of the array
and float64, and know nothing of aliases; `load_part` and `store_part` take the first few lanes; `stream` stores past
the cache; `total` adds the lanes in a fixed tree. The same lanes are added in the same order on every processor.

16 lanes are two AVX-512 registers, four of AVX2, eight of SSE2 or NEON: enough independent sums to hide the latency of
an addition.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

from fastbn_kernels.cpu import vector_python

LANES = vector_python.LANES

OPERATIONS = (
    "load", "load_part", "store", "store_part", "stream", "offset_from_line", "prefetch", "fence",
    "splat", "keep", "add", "sub", "mul", "fma", "total",
)  # fmt: skip

I32 = ir.IntType(32)
I64 = ir.IntType(64)
FLOAT = ir.FloatType()
DOUBLE = ir.DoubleType()
VECTOR = ir.VectorType(DOUBLE, LANES)
MASK = ir.VectorType(ir.IntType(1), LANES)


class Lanes(types.Type):  # type: ignore[misc]
    """The Numba type of a vector."""

    def __init__(self) -> None:
        super().__init__(name="fastbn_lanes")


lanes = Lanes()


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):  # type: ignore[misc]
    """Held in registers."""

    def __init__(self, manager: Any, frontend_type: Any) -> None:
        super().__init__(manager, frontend_type, VECTOR)


Codegen = Callable[[Any, Any, Any, Any], Any]


def _stored(array_type: Any) -> tuple[Any, int]:
    """Return the LLVM type of an array's elements and their size in bytes."""
    return (FLOAT, 4) if array_type.dtype == types.float32 else (DOUBLE, 8)


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
    return builder.bitcast(pointer, ir.VectorType(_stored(array_type)[0], LANES).as_pointer())


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


def _widen(builder: Any, value: Any) -> Any:
    return value if value.type == VECTOR else builder.fpext(value, VECTOR)


def _narrow(builder: Any, value: Any, element: Any) -> Any:
    return value if element == DOUBLE else builder.fptrunc(value, ir.VectorType(element, LANES))


def _name(element: Any) -> str:
    return f"v{LANES}f{32 if element == FLOAT else 64}"


@intrinsic  # type: ignore[untyped-decorator]
def load(typing: Any, array: Any, index: Any) -> tuple[Any, Codegen]:
    """Return array.flat[index : index + LANES]."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], arguments[0], arguments[1], I64(LANES))
        return _widen(builder, builder.load(pointer, align=_stored(signature.args[0])[1]))

    return lanes(array, types.intp), codegen


@intrinsic  # type: ignore[untyped-decorator]
def load_part(typing: Any, array: Any, index: Any, count: Any) -> tuple[Any, Codegen]:
    """Return array.flat[index : index + count] and zeros; count < LANES. What lies behind is not touched."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element, size = _stored(signature.args[0])
        pointer = _pointer(context, builder, signature.args[0], arguments[0], arguments[1], arguments[2])
        vector = pointer.type.pointee
        function = _declare(builder, f"llvm.masked.load.{_name(element)}.p0", vector, [pointer.type, I32, MASK, vector])
        mask = _first(builder, arguments[2])
        return _widen(builder, builder.call(function, [pointer, I32(size), mask, ir.Constant(vector, None)]))

    return lanes(array, types.intp, types.intp), codegen


@intrinsic  # type: ignore[untyped-decorator]
def store(typing: Any, array: Any, index: Any, value: Any) -> tuple[Any, Codegen]:
    """Write array.flat[index : index + LANES]."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element, size = _stored(signature.args[0])
        pointer = _pointer(context, builder, signature.args[0], arguments[0], arguments[1], I64(LANES))
        builder.store(_narrow(builder, arguments[2], element), pointer, align=size)
        return context.get_dummy_value()

    return types.none(array, types.intp, lanes), codegen


@intrinsic  # type: ignore[untyped-decorator]
def store_part(typing: Any, array: Any, index: Any, count: Any, value: Any) -> tuple[Any, Codegen]:
    """Write array.flat[index : index + count]; count < LANES. What lies behind is not touched."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        element, size = _stored(signature.args[0])
        pointer = _pointer(context, builder, signature.args[0], arguments[0], arguments[1], arguments[2])
        vector = pointer.type.pointee
        function = _declare(
            builder, f"llvm.masked.store.{_name(element)}.p0", ir.VoidType(), [vector, pointer.type, I32, MASK]
        )
        value = _narrow(builder, arguments[3], element)
        builder.call(function, [value, pointer, I32(size), _first(builder, arguments[2])])
        return context.get_dummy_value()

    return types.none(array, types.intp, types.intp, lanes), codegen


@intrinsic  # type: ignore[untyped-decorator]
def stream(typing: Any, array: Any, index: Any, value: Any) -> tuple[Any, Codegen]:
    """Write array.flat[index : index + LANES], aligned to 64 bytes, past the cache; `fence` before others read it."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(context, builder, signature.args[0], arguments[0], arguments[1], I64(LANES))
        value = _narrow(builder, arguments[2], _stored(signature.args[0])[0])
        instruction = builder.store(value, pointer, align=64)
        instruction.set_metadata("nontemporal", builder.module.add_metadata([I32(1)]))
        return context.get_dummy_value()

    return types.none(array, types.intp, lanes), codegen


@intrinsic  # type: ignore[untyped-decorator]
def offset_from_line(typing: Any, array: Any, index: Any) -> tuple[Any, Codegen]:
    """Return how many elements array.flat[index] lies behind a multiple of 64 bytes."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        size = _stored(signature.args[0])[1]
        pointer = _pointer(context, builder, signature.args[0], arguments[0], arguments[1])
        return builder.udiv(builder.and_(builder.ptrtoint(pointer, I64), I64(63)), I64(size))

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
def splat(typing: Any, value: Any) -> tuple[Any, Codegen]:
    """Return a vector of one value."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return _splat(builder, arguments[0])

    return lanes(types.float64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def keep(typing: Any, value: Any, count: Any) -> tuple[Any, Codegen]:
    """Return the vector with lanes from `count` on replaced by zero."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.select(_first(builder, arguments[1]), arguments[0], ir.Constant(VECTOR, [0.0] * LANES))

    return lanes(lanes, types.intp), codegen


def _binary(instruction: str) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def operation(typing: Any, a: Any, b: Any) -> tuple[Any, Codegen]:
        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return getattr(builder, instruction)(*arguments)

        return lanes(lanes, lanes), codegen

    return operation


add = _binary("fadd")
sub = _binary("fsub")
mul = _binary("fmul")


@intrinsic  # type: ignore[untyped-decorator]
def fma(typing: Any, a: Any, b: Any, c: Any) -> tuple[Any, Codegen]:
    """Return a * b + c, rounded once where the processor can; elsewhere `llvm.fma` would be 16 calls of libm."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        function = _declare(builder, f"llvm.fmuladd.{_name(DOUBLE)}", VECTOR, [VECTOR] * 3)
        return builder.call(function, arguments)

    return lanes(lanes, lanes, lanes), codegen


@intrinsic  # type: ignore[untyped-decorator]
def total(typing: Any, value: Any) -> tuple[Any, Codegen]:
    """Return the sum of the lanes: halves added to halves, four times."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        value, width = arguments[0], LANES
        while width > 1:
            width //= 2
            halves = [
                builder.shuffle_vector(
                    value,
                    ir.Constant(value.type, ir.Undefined),
                    ir.Constant(ir.VectorType(I32, width), list(range(start, start + width))),
                )
                for start in (0, width)
            ]
            value = builder.fadd(*halves)
        return builder.extract_element(value, I32(0))

    return types.float64(lanes), codegen


if config.DISABLE_JIT:  # for a debugger
    globals().update({name: getattr(vector_python, name) for name in OPERATIONS})
