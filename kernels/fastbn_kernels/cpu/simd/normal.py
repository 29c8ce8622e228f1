"""GELU and its derivative, of the standard normal distribution: z Phi(z), Phi(z) + z phi(z), in LLVM IR.

With a = |z|, what lies beyond a is Phi(-a) = exp(-a^2 / 2) R(a), which does not cancel however far a is, and

    z Phi(z) = max(z, 0) - a Phi(-a)        Phi(z) + z phi(z) = h, or 1 - h of a positive z
                                            h = exp(-a^2 / 2) (R(a) - a / sqrt(2 pi))

R(a), half of erfcx(a / sqrt(2)), is a quotient of two polynomials: `normal_tail`.
"""

from __future__ import annotations

from typing import Any

from fastbn_kernels.cpu.simd.exponential import at_most, call, constants, exp_neg_half_square, fma, number, polynomial
from fastbn_kernels.cpu.simd.types import DOUBLES
from fastbn_kernels.normal_tail import DENSITY, OF_DOUBLE, OF_FLOAT


def parts(builder: Any, z: Any, result: Any) -> tuple[Any, Any, Any, Any]:
    """Return z as one of `result`, which may be the narrower, a, exp(-a^2 / 2) and R(a)."""
    of = OF_DOUBLE if result == DOUBLES else OF_FLOAT
    near = z if z.type == result else builder.fptrunc(z, result)
    a = at_most(builder, call(builder, "fabs", near), constants(result).farthest)
    e = exp_neg_half_square(builder, a if z.type == result else z, result)
    return near, a, e, builder.fdiv(polynomial(builder, of.above, a), polynomial(builder, of.below, a))


def gelu(builder: Any, z: Any, result: Any) -> Any:
    """Return z Phi(z) of a vector of float32 or float64 as one of `result`; NaN of NaN."""
    near, a, e, ratio = parts(builder, z, result)
    zero = number(result, 0.0)
    positive = builder.select(builder.fcmp_unordered(">", near, zero), near, zero)
    return fma(builder, builder.fmul(builder.fneg(a), ratio), e, positive)


def gelu_slope(builder: Any, z: Any, result: Any) -> Any:
    """Return Phi(z) + z phi(z) likewise."""
    near, a, e, ratio = parts(builder, z, result)
    h = builder.fmul(fma(builder, a, number(result, -DENSITY), ratio), e)
    above = builder.fcmp_ordered(">", near, number(result, 0.0))
    return builder.select(above, builder.fsub(number(result, 1.0), h), h)
