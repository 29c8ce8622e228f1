"""The numbers of many channels, 16 at a time: what `params` and `formulas` make of one, by the same operations.

For kernels that take channels side by side: rows of channels, and small tensors. Both give the same bits, so whoever
changes one changes the other (`tests/kernels/test_columns.py`).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from fastbn_kernels.build.decorators import Array, scalar
from fastbn_kernels.cpu.params import FORWARD_ROWS, renormalize
from fastbn_kernels.cpu.simd.channels import finite, held, put, sqrt, unit_by
from fastbn_kernels.cpu.simd.ops import add, clamp, div, like, load, mul, param, sub, widen
from fastbn_kernels.cpu.simd.traced import traced
from fastbn_kernels.cpu.simd.types import LANES
from fastbn_kernels.saved import BIAS, INVSTD, M2, MEAN, MEAN_LO, VAR, WEIGHT

Vector: TypeAlias = Any


@traced
def negative(a: Vector) -> Vector:
    """Return -a."""
    return mul(a, like(a, -1.0))


@traced
def one_over(a: Vector) -> Vector:
    """Return 1 / a."""
    return div(like(a, 1.0), a)


# ---------------------------------------------------------------- moments


@traced
def grouped(
    x: Array, at: int, n: int, share: Vector, around: tuple[Vector, Vector], total: Vector, squares: Vector
) -> tuple[Vector, Vector]:
    """Return mean - origin and m2 of columns from their sums around k, given as -k * unit and unit: `group`.

    Their origins are the values of x from `at` on.
    """
    minus, unit = around
    k, total, squares = div(negative(minus), unit), div(total, unit), div(squares, mul(unit, unit))
    offset = mul(total, share)
    m2 = sub(squares, mul(total, offset))
    return add(sub(k, finite(widen(load(x, at, n)))), offset), clamp(m2, 0.0, None)


@scalar
def group_columns(x: Array, at: int, share: float, around: Array, c0: int, c1: int, sums: Array) -> None:
    """Replace the sums (2, ...) of columns c0 to c1, taken around (2, ...), by mean - origin and m2."""
    for c in range(c0, c1, LANES):
        n = min(LANES, c1 - c)
        total = param(sums, 0, c, n)
        k = widen(param(around, 0, c, n)), widen(param(around, 1, c, n))
        offset, m2 = grouped(x, at + c - c0, n, like(total, share), k, total, param(sums, 1, c, n))
        put(sums, 0, c, n, offset)
        put(sums, 1, c, n, m2)


@traced
def mean_pairs(x: Array, origin: Vector, offset: Vector) -> tuple[Vector, Vector]:
    """Return origin + offset as (mean, low): `as_pair`."""
    mean = add(origin, offset)
    back = sub(mean, origin)
    low = finite(add(sub(origin, sub(mean, back)), sub(offset, back)))
    mean, exact = held(x, mean), mean
    return mean, add(low, finite(sub(exact, mean)))


@traced
def put_moments(
    x: Array, saved: Array, c: int, n: int, origin: Vector, offset: Vector, m2: Vector, count: float
) -> None:  # fmt: skip
    """Fill MEAN, MEAN_LO, M2 and VAR of the channels from c on."""
    mean, low = mean_pairs(x, origin, offset)
    put(saved, MEAN, c, n, mean)
    put(saved, MEAN_LO, c, n, low)
    put(saved, M2, c, n, m2)
    put(saved, VAR, c, n, div(m2, like(m2, count)))


@scalar
def save_moments(x: Array, count: float, offsets: Array, at: int, c0: int, c1: int, saved: Array) -> None:
    """Fill MEAN, MEAN_LO, M2 and VAR of channels c0 to c1 of x (N, C) from mean - origin and m2, columns `at` on."""
    for c in range(c0, c1, LANES):
        n = min(LANES, c1 - c)
        column = at + c - c0
        offset, m2 = param(offsets, 0, column, n), param(offsets, 1, column, n)
        put_moments(x, saved, c, n, finite(widen(load(x, c, n))), offset, m2, count)
    renormalize(saved, c0, c1)


@scalar
def save_channel_moments(x: Array, count: float, numbers: Array, saved: Array) -> None:
    """Fill MEAN, MEAN_LO, M2 and VAR of all channels of x from numbers (3, C): origin, mean - origin and m2."""
    C = saved.shape[1]
    for c in range(0, C, LANES):
        n = min(LANES, C - c)
        origin, offset, m2 = param(numbers, 0, c, n), param(numbers, 1, c, n), param(numbers, 2, c, n)
        put_moments(x, saved, c, n, origin, offset, m2, count)
    renormalize(saved, 0, C)


# ---------------------------------------------------------------- what values are computed with


@traced
def saved_pairs(x: Array, saved: Array, c: int, n: int) -> tuple[Vector, Vector]:
    """Return saved means as (mean, low): `mean_pair`."""
    exact = param(saved, MEAN, c, n)
    mean = held(x, exact)
    return mean, add(param(saved, MEAN_LO, c, n), finite(sub(exact, mean)))


@traced
def forward_numbers(x: Array, saved: Array, c: int, n: int, invstd: Vector) -> tuple[Vector, Vector, Vector, Vector]:
    """Return what y is computed with: `normalized_with`."""
    mean, low = saved_pairs(x, saved, c, n)
    scale = mul(param(saved, WEIGHT, c, n), invstd)
    unit = unit_by(x, mean, invstd)
    return mul(negative(mean), unit), unit, div(scale, unit), sub(param(saved, BIAS, c, n), mul(low, scale))


@traced
def put_rows(params: Array, column: int, n: int, numbers: tuple[Vector, ...]) -> None:
    """Write numbers to the columns from `column` on, a row each."""
    for row, number in enumerate(numbers):
        put(params, row, column, n, number)


@scalar
def fill_forward(x: Array, saved: Array, eps: float, c0: int, c1: int, params: Array, at: int) -> None:
    """Fill INVSTD of channels c0 to c1 and, from column `at` on, params (4, ...): `channel_params`."""
    for c in range(c0, c1, LANES):
        n = min(LANES, c1 - c)
        var = param(saved, VAR, c, n)
        invstd = one_over(sqrt(add(var, like(var, eps))))
        put(saved, INVSTD, c, n, invstd)
        put_rows(params, at + c - c0, n, forward_numbers(x, saved, c, n, invstd))


@scalar
def all_params(x: Array, saved: Array, eps: float) -> Array:
    """Return `channel_params` of every channel, (4, C); fill INVSTD."""
    params = np.empty((FORWARD_ROWS, saved.shape[1]))
    fill_forward(x, saved, eps, 0, saved.shape[1], params, 0)
    return params


@scalar
def all_batch_params(x: Array, saved: Array, count: float, eps: float) -> Array:
    """Fill VAR of every channel from its M2, of `count` values; then as `all_params`."""
    for c in range(saved.shape[1]):
        saved[VAR, c] = saved[M2, c] / count
    renormalize(saved, 0, saved.shape[1])
    return all_params(x, saved, eps)


@scalar
def fill_sums(x: Array, saved: Array, c0: int, c1: int, params: Array, at: int) -> None:
    """Fill params (4, ...) of channels c0 to c1 from column `at` on: `normalized_with`."""
    for c in range(c0, c1, LANES):
        n = min(LANES, c1 - c)
        put_rows(params, at + c - c0, n, forward_numbers(x, saved, c, n, param(saved, INVSTD, c, n)))


@scalar
def save_sums(x: Array, saved: Array, c0: int, c1: int, found: Array, at: int, sums: Array) -> None:
    """Fill sums (2, C) of channels c0 to c1 from those of dy and dy * d, found in columns `at` on: `xhat_sum`."""
    for c in range(c0, c1, LANES):
        n = min(LANES, c1 - c)
        total, product = param(found, 0, at + c - c0, n), param(found, 1, at + c - c0, n)
        mean, low = saved_pairs(x, saved, c, n)
        invstd = param(saved, INVSTD, c, n)
        product = div(product, unit_by(x, mean, invstd))
        put(sums, 0, c, n, total)
        put(sums, 1, c, n, mul(sub(product, mul(low, total)), invstd))


@scalar
def fill_gradient(x: Array, count: float, saved: Array, sums: Array, c0: int, c1: int, params: Array, at: int) -> None:
    """Fill params (7, ...) of channels c0 to c1 from column `at` on: `gradient_params`."""
    for c in range(c0, c1, LANES):
        n = min(LANES, c1 - c)
        invstd = param(saved, INVSTD, c, n)
        minus, unit, scale, shift = forward_numbers(x, saved, c, n, invstd)
        _, low = saved_pairs(x, saved, c, n)
        own = mul(param(saved, WEIGHT, c, n), invstd)
        mean_dy = div(param(sums, 0, c, n), like(own, count))
        slope = mul(mul(negative(own), invstd), div(param(sums, 1, c, n), like(own, count)))
        offset = sub(mul(negative(own), mean_dy), mul(slope, low))
        put_rows(params, at + c - c0, n, (minus, unit, scale, shift, div(slope, unit), offset, own))
