"""What a tail makes of vectors, place by place, as intrinsics: which instructions, the type of the tail says.

`after` is a tuple: a tail or None, and where a residual and its gradient are. Functions of CUDA's libdevice err by 1 to
5 units in the last place, of float32 and of float64, in which exact float32 data are computed too.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir

from fastbn_kernels.cuda.build.numba_cuda import get_or_insert_function, intrinsic, types
from fastbn_kernels.cuda.simd.words import DOUBLE, RAW, const, count_of, encode, unpack, vector_of
from fastbn_kernels.cuda.tails import Kind
from fastbn_kernels.normal_tail import DENSITY, FARTHEST, OF_DOUBLE, OF_FLOAT

FAR = 1024.0  # what z is taken as where exp(-|z|) is zero: infinity times zero would be NaN


def kind_of(after: Any) -> Kind:
    """Return the kind of the tail of an `after`."""
    return getattr(after[0], "kind", None) or Kind(None)


# ---------------------------------------------------------------- one number at a time, in LLVM's IR


def number(z: Any, value: float) -> Any:
    """Return a constant like z."""
    return ir.Constant(z.type, value)


def negative(builder: Any, z: Any) -> Any:
    """Return -z; NVVM does not take LLVM's instruction for it."""
    return builder.fsub(number(z, -0.0), z)


def call(builder: Any, name: str, z: Any) -> Any:
    """Return what a function of libdevice makes of z."""
    full = f"__nv_{name}" + ("" if z.type == DOUBLE else "f")
    kind = ir.FunctionType(z.type, [z.type])
    return builder.call(get_or_insert_function(builder.module, kind, full), [z])


def clamped(builder: Any, z: Any, low: float, high: float | None) -> Any:
    """Return z between two numbers; NaN of NaN."""
    z = builder.select(builder.fcmp_unordered(">", z, number(z, low)), z, number(z, low))
    return z if high is None else builder.select(builder.fcmp_unordered("<", z, number(z, high)), z, number(z, high))


def sigmoids(builder: Any, z: Any) -> tuple[Any, Any]:
    """Return sigmoid(z) and sigmoid(-z); 1 less the other would lose what is small."""
    e = call(builder, "exp", negative(builder, call(builder, "fabs", z)))
    one = number(z, 1.0)
    large = builder.fdiv(one, builder.fadd(one, e))
    small = builder.fmul(e, large)
    below = builder.fcmp_ordered("<", z, number(z, 0.0))
    return builder.select(below, small, large), builder.select(below, large, small)


def normal(builder: Any, z: Any) -> tuple[Any, Any, Any]:
    """Return a = |z|, exp(-a^2 / 2) and the share of that in what lies beyond a: as `cpu/simd/normal.py` uses them."""
    of = OF_DOUBLE if z.type == DOUBLE else OF_FLOAT
    a = call(builder, "fabs", z)
    most = number(z, FARTHEST)
    a = builder.select(builder.fcmp_unordered("<", a, most), a, most)
    half = builder.fmul(a, number(z, -0.5))
    square = builder.fmul(a, half)  # what it is rounded by counts where it is large
    e = call(builder, "exp", square)
    e = builder.fma(builder.fma(a, half, negative(builder, square)), e, e)
    sums = []
    for coefficients in (of.above, of.below):
        found = number(z, coefficients[-1])
        for coefficient in coefficients[-2::-1]:
            found = builder.fma(found, a, number(z, coefficient))
        sums.append(found)
    return a, e, builder.fdiv(*sums)


def activated_one(builder: Any, z: Any, kind: Kind) -> Any:
    """Return the activation of z."""
    zero = number(z, 0.0)
    match kind.name:
        case None:
            return z
        case "relu":
            return builder.select(builder.fcmp_unordered(">", z, zero), z, zero)
        case "relu6":
            return clamped(builder, z, 0.0, 6.0)
        case "leaky_relu":
            return builder.select(builder.fcmp_ordered(">", z, zero), z, builder.fmul(z, number(z, kind.slope)))
        case "tanh":
            return call(builder, "tanh", z)
        case "sigmoid":
            return sigmoids(builder, z)[0]
        case "silu":
            return builder.fmul(clamped(builder, z, -FAR, None), sigmoids(builder, z)[0])
    a, e, ratio = normal(builder, z)
    positive = builder.select(builder.fcmp_unordered(">", z, zero), z, zero)
    return builder.fma(builder.fmul(negative(builder, a), ratio), e, positive)


def slope_one(builder: Any, z: Any, name: str | None) -> Any:
    """Return the derivative of a smooth activation at z."""
    if name == "tanh":
        s, other = sigmoids(builder, builder.fadd(z, z))
        return builder.fmul(builder.fmul(s, number(z, 4.0)), other)
    if name == "gelu":
        a, e, ratio = normal(builder, z)
        h = builder.fmul(builder.fma(a, number(z, -DENSITY), ratio), e)
        above = builder.fcmp_ordered(">", z, number(z, 0.0))
        return builder.select(above, builder.fsub(number(z, 1.0), h), h)
    s, other = sigmoids(builder, z)
    if name == "sigmoid":
        return builder.fmul(s, other)
    return builder.fmul(s, builder.fma(clamped(builder, z, -FAR, FAR), other, number(z, 1.0)))


def through_one(builder: Any, grad: Any, z: Any, kind: Kind) -> Any:
    """Return the gradient by z, from that by its activation."""
    zero = number(z, 0.0)
    if kind.name is None:
        return grad
    if kind.name == "relu":
        return builder.select(builder.fcmp_unordered(">", z, zero), grad, zero)
    if kind.name == "relu6":
        above, below = builder.fcmp_unordered(">", z, zero), builder.fcmp_unordered("<", z, number(z, 6.0))
        return builder.select(builder.and_(above, below), grad, zero)
    if kind.name == "leaky_relu":
        return builder.select(builder.fcmp_ordered(">", z, zero), grad, builder.fmul(grad, number(z, kind.slope)))
    return builder.fmul(grad, slope_one(builder, z, kind.name))


# ---------------------------------------------------------------- vectors


@intrinsic
def adds(typingctx: Any, after: Any) -> Any:
    """Return whether a residual is added: a constant."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return const(int(kind_of(after).adds), ir.IntType(1))

    return types.boolean(after), generate


@intrinsic
def writes(typingctx: Any, after: Any) -> Any:
    """Return likewise whether its gradient is written."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return const(int(kind_of(after).writes), ir.IntType(1))

    return types.boolean(after), generate


@intrinsic
def behind(typingctx: Any, after: Any) -> Any:
    """Return what is left of an `after` once the residual's gradient is written, of which dx is then made: no tail."""
    done = kind_of(after).writes
    left = types.Tuple((types.none, *list(after)[1:])) if done else after

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if not done:
            return args[0]
        pointers = [builder.extract_value(args[0], i) for i in (1, 2)]
        return context.make_tuple(builder, left, [context.get_dummy_value(), *pointers])

    return left(after), generate


@intrinsic
def nothing(typingctx: Any, x: Any) -> Any:
    """Return what stands for 16 bytes that are not loaded: zeros."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.make_tuple(builder, RAW, [const(0)] * 4)

    return RAW(x), generate


@intrinsic
def encoded(typingctx: Any, x: Any, values: Any) -> Any:
    """Return a vector as it would be loaded once it was stored."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        words = encode(builder, x.dtype, unpack(builder, args[1], count_of(x)))
        return context.make_tuple(builder, RAW, (words + [const(0)] * 4)[:4])

    return RAW(x, vector_of(x)), generate


@intrinsic
def activated(typingctx: Any, z: Any, after: Any) -> Any:
    """Return the activation of z."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = [activated_one(builder, value, kind_of(after)) for value in unpack(builder, args[0], z.count)]
        return context.make_tuple(builder, z, values)

    return z(z, after), generate


@intrinsic
def unbent(typingctx: Any, value: Any, after: Any) -> Any:
    """Return x or, where that holds y, what y was made of."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind, found = kind_of(after), []
        for one in unpack(builder, args[0], value.count):
            is_above = builder.fcmp_ordered(">", one, number(one, 0.0))
            bent = builder.fdiv(one, number(one, kind.slope)) if kind.inverse else one
            found.append(builder.select(is_above, one, bent) if kind.inverse else one)
        return context.make_tuple(builder, value, found)

    return value(value, after), generate


@intrinsic
def through(typingctx: Any, grad: Any, z: Any, value: Any, after: Any) -> Any:
    """Return the gradient by z, from that by its activation; `value` is what `unbent` returned, of the sign of z."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = kind_of(after)
        columns = zip(*(unpack(builder, arg, grad.count) for arg in args[:3]), strict=True)
        found = [through_one(builder, g, v if kind.inverse else u, kind) for g, u, v in columns]
        return context.make_tuple(builder, grad, found)

    return grad(grad, z, value, after), generate
