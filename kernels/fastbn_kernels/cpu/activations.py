"""Activations of vectors and their gradients, by z, what was normalised; `data` is an array of the data, for its dtype.

z is float32 or float64, as values of the data are computed. Of float32 data that are computed in float64, all that is
made of an exponential is float32: 16 lanes and not twice 8. Only the exponential sees all of z; all else errs by what
the result's own rounding to float32 is a part of.

NaN goes through both ways. Where a derivative jumps, it is that of the lower side, as PyTorch has it.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from fastbn_kernels.build.decorators import Array
from fastbn_kernels.cpu.simd.functions import exp_neg_abs, gelu, gelu_slope, tanh, where_above
from fastbn_kernels.cpu.simd.ops import (
    add,
    arithmetic,
    clamp,
    div,
    fma,
    like,
    mul,
    narrow,
    where_between,
    where_negative,
    where_positive,
)
from fastbn_kernels.cpu.simd.tails import GELU, RELU, RELU6, SIGMOID, SILU, TANH, LeakyReLU
from fastbn_kernels.cpu.simd.traced import traced

Vector: TypeAlias = Any

# What z is taken as where exp(-|z|) is zero, in float64 and float32: infinity times zero would be NaN.
FAR = 1024.0


@traced
def sigmoids(data: Array, z: Vector) -> tuple[Vector, Vector]:
    """Return sigmoid(z) and sigmoid(-z).

    Each is within 6 roundings: 1 less the other would lose what is small.
    """
    e = exp_neg_abs(data, z)
    large = div(like(e, 1.0), add(e, like(e, 1.0)))
    small, z = mul(e, large), narrow(data, z)
    return where_negative(z, small, large), where_negative(z, large, small)


@traced
def activated(data: Array, z: Vector, activation: Any) -> Vector:
    """Return the activation of z; NaN of NaN."""
    if activation is RELU:
        return where_positive(z, z)
    if activation is RELU6:
        return clamp(z, 0.0, 6.0)
    if isinstance(activation, LeakyReLU):
        return where_above(z, z, mul(z, like(z, activation.slope)))
    if activation is TANH:
        return arithmetic(data, tanh(narrow(data, z)))
    if activation is SIGMOID:
        return arithmetic(data, sigmoids(data, z)[0])
    if activation is GELU:
        return arithmetic(data, gelu(data, z))
    assert activation is SILU, activation
    return arithmetic(data, mul(clamp(narrow(data, z), -FAR, None), sigmoids(data, z)[0]))


@traced
def through(data: Array, grad: Vector, z: Vector, activation: Any) -> Vector:
    """Return the gradient by z, from that by its activation."""
    if activation is RELU:
        return where_positive(z, grad)
    if activation is RELU6:
        return where_between(z, 0.0, 6.0, grad)
    if isinstance(activation, LeakyReLU):
        return where_above(z, grad, mul(grad, like(grad, activation.slope)))
    return arithmetic(data, mul(narrow(data, grad), slope(data, z, activation)))


@traced
def slope(data: Array, z: Vector, activation: Any) -> Vector:
    """Return the derivative of a smooth activation at z, as `narrow` returns it."""
    if activation is TANH:  # 4 sigmoid(2 z) sigmoid(-2 z)
        s, other = sigmoids(data, add(z, z))
        return mul(mul(s, like(s, 4.0)), other)
    if activation is SIGMOID:
        s, other = sigmoids(data, z)
        return mul(s, other)
    if activation is GELU:
        return gelu_slope(data, z)
    assert activation is SILU, activation
    near, (s, other) = clamp(narrow(data, z), -FAR, FAR), sigmoids(data, z)
    return mul(s, fma(near, other, like(near, 1.0)))


@traced
def unbent(data: Array, y: Vector, activation: Any) -> Vector:
    """Return z of y, what an activation of a positive slope made of it."""
    return where_above(y, y, div(y, like(y, activation.slope)))
