"""The arithmetic of `ops` on what has been loaded, as intrinsics in LLVM's IR."""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from fastbn_kernels.cuda.build.numba_cuda import intrinsic, types
from fastbn_kernels.cuda.simd.words import (
    DOUBLE,
    FLOAT,
    RAW,
    compute_type,
    const,
    count_of,
    decode,
    has_units,
    unpack,
    vector_of,
)


@intrinsic
def width(typingctx: Any, x: Any) -> Any:
    """Return how many values of x are taken at a time."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return const(count_of(x))

    return types.int32(x), generate


@intrinsic
def single(typingctx: Any, x: Any) -> Any:
    """Return whether values of x are computed in float32: a constant, for which the other branch is not compiled."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return const(compute_type(x) == types.float32, ir.IntType(1))

    return types.boolean(x), generate


@intrinsic
def in_units(typingctx: Any, x: Any) -> Any:
    """Return likewise whether values of x are taken in a unit."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return const(has_units(x), ir.IntType(1))

    return types.boolean(x), generate


@intrinsic
def decoded(typingctx: Any, x: Any, raw: Any) -> Any:
    """Convert what was loaded from x."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = decode(builder, x.dtype, count_of(x), unpack(builder, args[1], 4))
        return context.make_tuple(builder, signature.return_type, values)

    return vector_of(x)(x, RAW), generate


@intrinsic
def rounded(typingctx: Any, x: Any, value: Any) -> Any:
    """Round a float64 to the type that values of x are computed with."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return args[1] if compute_type(x) == types.float64 else builder.fptrunc(args[1], FLOAT)

    return compute_type(x)(x, types.float64), generate


@intrinsic
def splat(typingctx: Any, x: Any, value: Any) -> Any:
    """Return a vector of one number, a float64 that is rounded as `rounded` does."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        one = args[1] if compute_type(x) == types.float64 else builder.fptrunc(args[1], FLOAT)
        return context.make_tuple(builder, signature.return_type, [one] * count_of(x))

    return vector_of(x)(x, types.float64), generate


@intrinsic
def put(typingctx: Any, vector: Any, index: Any, value: Any) -> Any:
    """Return the vector with a float64 in one place."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        one = args[2] if vector.dtype == types.float64 else builder.fptrunc(args[2], FLOAT)
        old = unpack(builder, args[0], vector.count)
        new = [builder.select(builder.icmp_signed("==", args[1], const(i)), one, old[i]) for i in range(vector.count)]
        return context.make_tuple(builder, signature.return_type, new)

    return vector(vector, types.int32, types.float64), generate


@intrinsic
def get(typingctx: Any, vector: Any, index: Any) -> Any:
    """Return one place of a vector, as float64."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = unpack(builder, args[0], vector.count)
        one = values[0]
        for i in range(1, vector.count):
            one = builder.select(builder.icmp_signed("==", args[1], const(i)), values[i], one)
        return one if vector.dtype == types.float64 else builder.fpext(one, DOUBLE)

    return types.float64(vector, types.int32), generate


def elementwise(operation: Any, operands: int) -> Any:
    """Make the intrinsic that applies an instruction to vectors place by place."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count = signature.return_type.count
        columns = zip(*(unpack(builder, arg, count) for arg in args), strict=True)
        return context.make_tuple(builder, signature.return_type, [operation(builder, *c) for c in columns])

    if operands == 2:

        def binary(typingctx: Any, a: Any, b: Any) -> Any:
            return a(a, a), generate

        return intrinsic(binary)

    def ternary(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
        return a(a, a, a), generate

    return intrinsic(ternary)


add = elementwise(lambda builder, a, b: builder.fadd(a, b), 2)
sub = elementwise(lambda builder, a, b: builder.fsub(a, b), 2)
mul = elementwise(lambda builder, a, b: builder.fmul(a, b), 2)
fma = elementwise(lambda builder, a, b, c: builder.fma(a, b, c), 3)


@intrinsic
def centre(typingctx: Any, x: Any, values: Any, minus: Any, unit: Any) -> Any:
    """Return values * unit + minus, rounded once; values + minus where there is no unit but 1."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        numbers, added, scaled = (unpack(builder, arg, count_of(x)) for arg in args[1:])
        if has_units(x):
            made = [builder.fma(*each) for each in zip(numbers, scaled, added, strict=True)]
        else:
            made = [builder.fadd(*each) for each in zip(numbers, added, strict=True)]
        return context.make_tuple(builder, signature.return_type, made)

    own = vector_of(x)
    return own(x, own, own, own), generate


@intrinsic
def widen(typingctx: Any, a: Any) -> Any:
    """Return a vector as float64."""
    wide = types.UniTuple(types.float64, a.count)

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = unpack(builder, args[0], a.count)
        if a.dtype == types.float32:
            values = [builder.fpext(value, DOUBLE) for value in values]
        return context.make_tuple(builder, wide, values)

    return wide(a), generate


@intrinsic
def total(typingctx: Any, a: Any) -> Any:
    """Return the sum of a vector as float64, added in the type that it has."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = unpack(builder, args[0], a.count)
        while len(values) > 1:
            values = [builder.fadd(*values[i : i + 2]) for i in range(0, len(values), 2)]
        return values[0] if a.dtype == types.float64 else builder.fpext(values[0], DOUBLE)

    return types.float64(a), generate


@intrinsic
def dot(typingctx: Any, a: Any, b: Any) -> Any:
    """Return the sum of the products of two vectors as float64, computed in the type that they have."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        left, right = (unpack(builder, arg, a.count) for arg in args)
        half = max(1, a.count // 2)
        sums = [builder.fmul(left[i], right[i]) for i in range(half)]
        for i in range(half, a.count):
            sums[i - half] = builder.fma(left[i], right[i], sums[i - half])
        while len(sums) > 1:
            sums = [builder.fadd(*sums[i : i + 2]) for i in range(0, len(sums), 2)]
        return sums[0] if a.dtype == types.float64 else builder.fpext(sums[0], DOUBLE)

    return types.float64(a, a), generate


@intrinsic
def inside(typingctx: Any, a: Any, lo: Any, hi: Any, other: Any) -> Any:
    """Return the vector with `other` in the places before lo and from hi on."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector, low, high, instead = args
        chosen = []
        for i, value in enumerate(unpack(builder, vector, a.count)):
            within = builder.and_(builder.icmp_signed("<=", low, const(i)), builder.icmp_signed("<", const(i), high))
            chosen.append(builder.select(within, value, instead))
        return context.make_tuple(builder, a, chosen)

    return a(a, types.int32, types.int32, a.dtype), generate
