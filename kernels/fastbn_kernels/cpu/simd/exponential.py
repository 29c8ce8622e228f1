"""Exponentials of vectors, in LLVM IR: without a branch, a table or a call, as `llvm.exp` would be one of libm a lane.

exp(-|a|) is never above 1 and cannot overflow; sigmoids and what is made of them take nothing else of an exponential,
and what else there is here is made of the same pieces: exp(-a^2 / 2) and tanh. With t = -|a|, n the integer nearest to
t / ln 2 and r = t - n ln 2, which is at most ln 2 / 2 either way,

    exp(t) = 2^n exp(r)        exp(r) = 1 + r + r^2 q(r)

q is the polynomial of least degree whose relative error (of exp(r), minimax, its coefficients rounded) does not count:
2^-56.4 for float64, 2^-28.0 for float32. ln 2 is a number of few bits, whose product with n is exact as is its
difference from t, and a rest. n comes of an addition of 1.5 * 2^52 (of float32, 2^23), which leaves no place for a
fraction; with the bias of exponents added to that number, the last bits of the sum are the exponent field of 2^n.

t is taken as LOWEST at least, where exp(t) rounds to zero. 2^n is below all normal numbers there, so the field holds
n + LIFT, and a product by 2^-LIFT, which rounds if the result is subnormal, comes last.

Of float32 data that are computed in float64 (`precision="exact"`), the exponential is wanted in float32, but of all of
t: what float32 would round off t is up to |t| / 2 units of the result. r is made in float64 then, of one ln 2, and
rounded once. All that comes after is half as many instructions, the division that follows, with AVX-512, 10 cycles and
not 32.

The error, in units of the last place of a result below 1 (2^-53 next to 1): r is rounded to 1/4 of it, 1 + r q to 1/6,
r times that, where a processor has no fused multiply-add, to 1/4, the sum to 1/2, and q adds 1/10; from 1 on, up to
2^1/2, all but the last count half. That is less than 1.5, of float32 too, and 1/2 more where the result is subnormal.

exp(-a^2 / 2) is not to be had of a^2 / 2, whose rounding is a relative error of up to a^2 / 4 units: what is rounded
off, which a fused multiply-add finds, is added to r. Without one, b is a without the lower half of its digits, whose
square is exact, and a^2 = b^2 + (a - b) (a + b). tanh is (1 - e) / (1 + e) with e = exp(-2 |a|), and 1 - e does not
cancel if it is (1 - 2^n) - 2^n m with m = exp(r) - 1 = r + r^2 q(r): of a small a, n is 0 and r is -2 |a| itself.
Found to err by less than 2 units.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any

from llvmlite import ir

from fastbn_kernels.cpu.simd.half_precision import has_fma
from fastbn_kernels.cpu.simd.types import DOUBLES, FLOATS, I32, I64, LANES, declare, vector_name

LOG2_E = 1.4426950408889634


@dataclass(frozen=True)
class Constants:
    """What differs between float32 and float64."""

    integer: ir.IntType  # as many bits
    fraction: int  # bits of a fraction, above which the exponent stands
    bias: int
    lift: int
    lowest: float
    farthest: float  # from where on exp(-a^2 / 2) rounds to zero
    settled: float  # from where on tanh(a) rounds to one
    lower: int  # bits of the lower half of a fraction
    ln2: tuple[float, float]
    q: tuple[float, ...]

    def shifter(self, fraction: int) -> float:
        """Return what is added to a number, of so many bits of a fraction, to round it to an integer."""
        return 1.5 * 2.0**fraction + self.bias + self.lift


OF_DOUBLE = Constants(
    integer=I64,
    fraction=52,
    bias=1023,
    lift=64,  # the least n is -1076
    lowest=-746.0,
    farthest=38.625,
    settled=20.0,
    lower=27,
    ln2=(6.93147180369123816490e-01, 1.90821492927058770002e-10),  # 33 bits and the rest, of fdlibm
    q=(
        0.5000000000000011, 0.16666666666666413, 0.041666666666530155, 0.008333333333494463, 0.001388888894363007,
        0.00019841269506576398, 2.4801493098947543e-05, 2.7557586375990773e-06, 2.763024836611497e-07,
        2.5000060913375838e-08,
    ),
)  # fmt: skip
OF_FLOAT = Constants(
    integer=I32,
    fraction=23,
    bias=127,
    lift=32,  # the least n is -150
    lowest=-104.0,
    farthest=14.4375,
    settled=10.0,
    lower=12,
    ln2=(0.693359375, -2.12194440e-4),  # 9 bits and the rest, of Cephes
    q=(0.49999994, 0.16666521, 0.04166839, 0.008368717, 0.0013814598),
)


def constants(vector: Any) -> Constants:
    """Return the constants of a vector's kind of float."""
    return OF_DOUBLE if vector == DOUBLES else OF_FLOAT


def exp_neg_abs(builder: Any, a: Any, result: Any) -> Any:
    """Return exp(-|a|) of a vector of float32 or float64 as one of `result`, which may be the narrower; NaN of NaN."""
    of = constants(result)
    t, lowest = builder.fneg(call(builder, "fabs", a)), number(a.type, of.lowest)
    t = builder.select(builder.fcmp_unordered(">", t, lowest), t, lowest)
    shifted, r = reduced(builder, t, None, of)
    if a.type != result:
        shifted, r = low_halves(builder, shifted), builder.fptrunc(r, FLOATS)
    return scaled(builder, shifted, exp(builder, r), of)


def exp_neg_half_square(builder: Any, a: Any, result: Any) -> Any:
    """Return exp(-a^2 / 2) likewise; of one as narrow as `result`, |a| is at most what the constants call farthest."""
    half = builder.fmul(a, number(a.type, -0.5))
    if a.type != result:
        return exp_neg_abs(builder, builder.fmul(a, half), result)
    of = constants(result)
    shifted, r = reduced(builder, *product(builder, a, half, of), of)
    return scaled(builder, shifted, exp(builder, r), of)


def product(builder: Any, a: Any, half: Any, of: Constants) -> tuple[Any, Any]:
    """Return -a^2 / 2, given -a / 2, and what is rounded off it."""
    if has_fma():
        t = builder.fmul(a, half)
        return t, call(builder, "fma", a, half, builder.fneg(t))
    integers = ir.VectorType(of.integer, LANES)
    upper = ir.Constant(integers, [-1 << of.lower] * LANES)
    b = builder.bitcast(builder.and_(builder.bitcast(a, integers), upper), a.type)
    exact = builder.fmul(builder.fmul(b, b), number(a.type, -0.5))
    low = builder.fmul(builder.fmul(builder.fsub(a, b), builder.fadd(a, b)), number(a.type, -0.5))
    t = builder.fadd(exact, low)
    return t, builder.fsub(low, builder.fsub(t, exact))


def tanh(builder: Any, a: Any) -> Any:
    """Return tanh(a) of a vector of float32 or float64; NaN of NaN."""
    vector = a.type
    of, one = constants(vector), number(vector, 1.0)
    t = builder.fmul(at_most(builder, call(builder, "fabs", a), of.settled), number(vector, -2.0))
    shifted, r = reduced(builder, t, None, of)
    power = scaled(builder, shifted, one, of)
    change = builder.fmul(power, fma(builder, q(builder, r), builder.fmul(r, r), r))
    less = builder.fsub(builder.fsub(one, power), change)
    return call(builder, "copysign", builder.fdiv(less, builder.fadd(builder.fadd(one, power), change)), a)


def at_most(builder: Any, a: Any, most: float) -> Any:
    """Return a, or a number where a is larger; NaN of NaN."""
    bound = number(a.type, most)
    return builder.select(builder.fcmp_unordered("<", a, bound), a, bound)


def reduced(builder: Any, t: Any, rest: Any, of: Constants) -> tuple[Any, Any]:
    """Return the bits of a number that end in n, biased and lifted, and r, both as wide as t; of t + rest, or t."""
    vector = t.type
    wide = constants(vector)
    ln2 = of.ln2 if of is wide else (log(2),)
    shifter = number(vector, of.shifter(wide.fraction))
    shifted = fma(builder, t, number(vector, LOG2_E), shifter)
    n = builder.fsub(shifted, shifter)
    for part in ln2:
        t = fma(builder, n, number(vector, -part), t)
    if rest is not None:
        t = builder.fadd(t, rest)
    return builder.bitcast(shifted, ir.VectorType(wide.integer, LANES)), t


def q(builder: Any, r: Any) -> Any:
    """Return the polynomial q(r)."""
    return polynomial(builder, constants(r.type).q, r)


def exp(builder: Any, r: Any) -> Any:
    """Return exp(r), from 2^-1/2 to 2^1/2."""
    one = number(r.type, 1.0)
    return fma(builder, fma(builder, q(builder, r), r, one), r, one)


def scaled(builder: Any, shifted: Any, value: Any, of: Constants) -> Any:
    """Return a value times 2^n."""
    field = builder.bitcast(builder.shl(shifted, ir.Constant(shifted.type, [of.fraction] * LANES)), value.type)
    return builder.fmul(builder.fmul(value, field), number(value.type, 2.0**-of.lift))


def low_halves(builder: Any, integers: Any) -> Any:
    """Return the low 32 bits of 64, which come first: one shuffle of two registers, where `trunc` takes five."""
    halves = builder.bitcast(integers, ir.VectorType(I32, 2 * LANES))
    even = ir.Constant(ir.VectorType(I32, LANES), list(range(0, 2 * LANES, 2)))
    return builder.shuffle_vector(halves, ir.Constant(halves.type, ir.Undefined), even)


def polynomial(builder: Any, coefficients: tuple[float, ...], x: Any) -> Any:
    """Return c0 + x (c1 + x (c2 + ...))."""
    found = number(x.type, coefficients[-1])
    for coefficient in coefficients[-2::-1]:
        found = fma(builder, found, x, number(x.type, coefficient))
    return found


def number(vector: Any, value: float) -> Any:
    """Return a vector of a constant."""
    return ir.Constant(vector, [ir.Constant(vector.element, value)] * LANES)


def call(builder: Any, function: str, *given: Any) -> Any:
    """Return what an intrinsic function of LLVM makes of vectors."""
    vector = given[0].type
    name = f"llvm.{function}.{vector_name(vector.element)}"
    return builder.call(declare(builder, name, vector, [vector] * len(given)), given)


def fma(builder: Any, x: Any, y: Any, z: Any) -> Any:
    """Return x * y + z."""
    return call(builder, "fmuladd", x, y, z)
