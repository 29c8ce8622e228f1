"""Activations of vectors and their gradients, by z, what was normalised.

NaN goes through both ways. Where a derivative jumps, it is zero, as PyTorch has it.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from fastbn_kernels.cpu.simd.ops import (
    add,
    clamp,
    div,
    exp_neg_abs,
    fma,
    like,
    mul,
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
def sigmoids(z: Vector) -> tuple[Vector, Vector]:
    """Return sigmoid(z) and sigmoid(-z), each within 6 roundings: 1 less the other would lose what is small."""
    e = exp_neg_abs(z)
    large = div(like(z, 1.0), add(e, like(z, 1.0)))
    small = mul(e, large)
    return where_negative(z, small, large), where_negative(z, large, small)


@traced
def activated(z: Vector, activation: Any) -> Vector:
    """Return the activation of z; NaN of NaN."""
    if activation is RELU:
        return where_positive(z, z)
    if activation is RELU6:
        return clamp(z, 0.0, 6.0)
    assert activation is SILU, activation
    return mul(clamp(z, -FAR, float("inf")), sigmoids(z)[0])


@traced
def through(grad: Vector, z: Vector, activation: Any) -> Vector:
    """Return the gradient by z, from that by its activation."""
    if activation is RELU:
        return where_positive(z, grad)
    if activation is RELU6:
        return where_between(z, 0.0, 6.0, grad)
    assert activation is SILU, activation
    s, other = sigmoids(z)
    return mul(grad, mul(s, fma(clamp(z, -FAR, FAR), other, like(z, 1.0))))
