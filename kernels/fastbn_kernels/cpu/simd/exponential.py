"""exp(-|a|) of vectors, in LLVM IR: without a branch, a table or a call, as `llvm.exp` would be one of libm a lane.

Never above 1, it cannot overflow; sigmoid, tanh and what is made of them take nothing else of an exponential. With
t = -|a|, n the integer nearest to t / ln 2 and r = t - n ln 2, which is at most ln 2 / 2 either way,

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
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any

from llvmlite import ir

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
    ln2=(0.693359375, -2.12194440e-4),  # 9 bits and the rest, of Cephes
    q=(0.49999994, 0.16666521, 0.04166839, 0.008368717, 0.0013814598),
)


def exp_neg_abs(builder: Any, a: Any, result: Any) -> Any:
    """Return exp(-|a|) of a vector of float32 or float64 as one of `result`, which may be the narrower; NaN of NaN."""
    of = OF_DOUBLE if result == DOUBLES else OF_FLOAT
    shifted, r = reduced(builder, a, of)
    if a.type != result:
        shifted, r = low_halves(builder, shifted), builder.fptrunc(r, FLOATS)
    p = number(result, of.q[-1])
    for coefficient in (*of.q[-2::-1], 1.0, 1.0):
        p = fma(builder, p, r, number(result, coefficient))
    field = builder.shl(shifted, ir.Constant(shifted.type, [of.fraction] * LANES))
    return builder.fmul(builder.fmul(p, builder.bitcast(field, result)), number(result, 2.0**-of.lift))


def reduced(builder: Any, a: Any, of: Constants) -> tuple[Any, Any]:
    """Return the bits of a number that end in n, biased and lifted, and r, both as wide as a."""
    vector = a.type
    wide = OF_DOUBLE if vector == DOUBLES else OF_FLOAT
    ln2 = of.ln2 if of is wide else (log(2),)
    shifter = number(vector, of.shifter(wide.fraction))
    t = builder.fneg(call(builder, "fabs", a))
    t = builder.select(builder.fcmp_unordered(">", t, number(vector, of.lowest)), t, number(vector, of.lowest))
    shifted = fma(builder, t, number(vector, LOG2_E), shifter)
    n = builder.fsub(shifted, shifter)
    for part in ln2:
        t = fma(builder, n, number(vector, -part), t)
    return builder.bitcast(shifted, ir.VectorType(wide.integer, LANES)), t


def low_halves(builder: Any, integers: Any) -> Any:
    """Return the low 32 bits of 64, which come first: one shuffle of two registers, where `trunc` takes five."""
    halves = builder.bitcast(integers, ir.VectorType(I32, 2 * LANES))
    even = ir.Constant(ir.VectorType(I32, LANES), list(range(0, 2 * LANES, 2)))
    return builder.shuffle_vector(halves, ir.Constant(halves.type, ir.Undefined), even)


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
