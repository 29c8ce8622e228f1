"""Activations of vectors and their gradients, by z, what was normalised; `data` is an array of the data, for its dtype.

z is float32 or float64, as values of the data are computed. Of float32 data that are computed in float64, SILU, a
division and an exponential, is float32: 16 lanes and not twice 8. Only the exponential sees all of z; all else errs by
what the result's own rounding to float32 is a part of.

NaN goes through both ways. Where a derivative jumps, it is zero, as PyTorch has it.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from fastbn_kernels.build.decorators import Array
from fastbn_kernels.cpu.simd.ops import (
    add,
    arithmetic,
    clamp,
    div,
    exp_neg_abs,
    fma,
    like,
    mul,
    narrow,
    where_between,
    where_negative,
    where_positive,
)
from fastbn_kernels.cpu.simd.tails import RELU, RELU6, SILU
from fastbn_kernels.cpu.simd.traced import traced

Vector: TypeAlias = Any

# What z is taken as where exp(-|z|) is zero, in float64 and float32: infinity times zero would be NaN.
FAR = 1024.0


@traced
def sigmoids(data: Array, z: Vector, high: float | None) -> tuple[Vector, Vector, Vector]:
    """Return z, narrow and between -FAR and `high`, and sigmoid(z) and sigmoid(-z).

    Each is within 6 roundings: 1 less the other would lose what is small.
    """
    e, z = exp_neg_abs(data, z), clamp(narrow(data, z), -FAR, high)
    large = div(like(e, 1.0), add(e, like(e, 1.0)))
    small = mul(e, large)
    return z, where_negative(z, small, large), where_negative(z, large, small)


@traced
def activated(data: Array, z: Vector, activation: Any) -> Vector:
    """Return the activation of z; NaN of NaN."""
    if activation is RELU:
        return where_positive(z, z)
    if activation is RELU6:
        return clamp(z, 0.0, 6.0)
    assert activation is SILU, activation
    z, s, _ = sigmoids(data, z, None)
    return arithmetic(data, mul(z, s))


@traced
def through(data: Array, grad: Vector, z: Vector, activation: Any) -> Vector:
    """Return the gradient by z, from that by its activation."""
    if activation is RELU:
        return where_positive(z, grad)
    if activation is RELU6:
        return where_between(z, 0.0, 6.0, grad)
    assert activation is SILU, activation
    z, s, other = sigmoids(data, z, FAR)
    slope = mul(s, fma(z, other, like(z, 1.0)))
    return arithmetic(data, mul(narrow(data, grad), slope))
