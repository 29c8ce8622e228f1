"""Functions of vectors that activations are made of, as operations beside those of `ops`.

Where one takes an array of the data, its argument is a vector of the arithmetic on that array, and its result one as
`narrow` returns it, but of all the digits of the argument: of float32 data computed in float64, a float32.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import config
from numba.extending import intrinsic

from fastbn_kernels.cpu.simd import exponential, normal
from fastbn_kernels.cpu.simd.ops import Codegen, narrow_lanes
from fastbn_kernels.cpu.simd.types import computed

OPERATIONS = "exp_neg_abs", "gelu", "gelu_slope", "tanh", "where_above"


def _of_all_digits(made: Any) -> Any:
    def typed(array: Any, a: Any) -> tuple[Any, Codegen]:
        lanes = narrow_lanes(array)

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return made(builder, arguments[1], lanes.vector)

        return lanes(array, computed(array)), codegen

    return typed


@intrinsic  # type: ignore[untyped-decorator]
def exp_neg_abs(typing: Any, array: Any, a: Any) -> tuple[Any, Codegen]:
    """Return exp(-|a|), within 1.5 units in the last place: `exponential`."""
    found: tuple[Any, Codegen] = _of_all_digits(exponential.exp_neg_abs)(array, a)
    return found


@intrinsic  # type: ignore[untyped-decorator]
def gelu(typing: Any, array: Any, a: Any) -> tuple[Any, Codegen]:
    """Return a (1 + erf(a / sqrt(2))) / 2, within 6 units in the last place, however negative a is: `normal`."""
    found: tuple[Any, Codegen] = _of_all_digits(normal.gelu)(array, a)
    return found


@intrinsic  # type: ignore[untyped-decorator]
def gelu_slope(typing: Any, array: Any, a: Any) -> tuple[Any, Codegen]:
    """Return its derivative, within 4 units in the last place of the larger of the two terms."""
    found: tuple[Any, Codegen] = _of_all_digits(normal.gelu_slope)(array, a)
    return found


@intrinsic  # type: ignore[untyped-decorator]
def tanh(typing: Any, a: Any) -> tuple[Any, Codegen]:
    """Return tanh(a), within 2 units in the last place: `exponential`."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return exponential.tanh(builder, arguments[0])

    return a(a), codegen


@intrinsic  # type: ignore[untyped-decorator]
def where_above(typing: Any, a: Any, b: Any, c: Any) -> tuple[Any, Codegen]:
    """Return b in lanes where a is positive, else c."""

    def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        given, first, second = arguments
        return builder.select(builder.fcmp_ordered(">", given, ir.Constant(a.vector, None)), first, second)

    return a(a, a, a), codegen


if config.DISABLE_JIT:
    from simulated import simd_python

    globals().update({name: getattr(simd_python, name) for name in OPERATIONS})
