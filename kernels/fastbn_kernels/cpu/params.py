"""The numbers of a channel that vectors are computed with, made of what is saved of it.

They are float64 here, a tuple a channel or an array of rows of C, and in the order that `element` has:

    -mean * unit, unit, scale / unit, shift            to normalise, and to sum dy with a tail
    ... slope / unit, offset, scale                    to write dx

A mean is held as values of x are computed, and what that rounds off it is added to its low part: saved rows may come
from arithmetic of another precision, or from others altogether.
"""

from __future__ import annotations

import math

from fastbn_kernels.build.decorators import Array, scalar
from fastbn_kernels.cpu.simd.ops import rounded, single
from fastbn_kernels.formulas import (
    between,
    coefficients,
    finite_or_zero,
    gradient_coefficients,
    split_mean,
    sum_with_xhat,
    unit_of,
)
from fastbn_kernels.saved import BIAS, D_MAX, EPS, INVSTD, M2, MEAN, MEAN_LO, R_MAX, ROWS, VAR, WEIGHT, D, R

ForwardParams = tuple[float, float, float, float]
GradientParams = tuple[float, float, float, float, float, float, float]

FORWARD_ROWS = 4
GRADIENT_ROWS = 7


@scalar
def as_pair(x: Array, origin: float, offset: float) -> tuple[float, float]:
    """Return origin + offset as (mean, low), the mean rounded to what values of x are computed with."""
    mean, low = split_mean(origin, offset)
    held = rounded(x, mean)
    return held, low + finite_or_zero(mean - held)


@scalar
def mean_pair(x: Array, saved: Array, c: int) -> tuple[float, float]:
    """Return the saved mean of channel c likewise."""
    mean = saved[MEAN, c]
    held = rounded(x, mean)
    return held, saved[MEAN_LO, c] + finite_or_zero(mean - held)


@scalar
def unit_for(x: Array, mean: float, invstd: float) -> float:
    """Return the unit that x - mean is taken in."""
    return unit_of(mean, invstd) if single(x) else 1.0


# ---------------------------------------------------------------- forward


@scalar
def channel_params(x: Array, saved: Array, c: int, eps: float) -> ForwardParams:
    """Return what y of channel c is computed with, from its mean and VAR; fill its INVSTD."""
    mean, low = mean_pair(x, saved, c)
    scale, shift, invstd = coefficients(low, saved[VAR, c], saved[WEIGHT, c], saved[BIAS, c], eps)
    saved[INVSTD, c] = invstd
    unit = unit_for(x, mean, invstd)
    return -mean * unit, unit, scale / unit, shift


@scalar
def renormalize(saved: Array, c0: int, c1: int) -> None:
    """Correct WEIGHT and BIAS of channels c0 to c1 from their batch's mean and VAR, if there is renormalization."""
    if saved.shape[0] == ROWS:
        return
    for c in range(c0, c1):
        r = between(math.sqrt(saved[VAR, c] + saved[EPS, c]) * saved[R, c], 1.0 / saved[R_MAX, c], saved[R_MAX, c])
        d = (saved[MEAN, c] - saved[D, c] + saved[MEAN_LO, c]) * saved[R, c]
        d = between(d, -saved[D_MAX, c], saved[D_MAX, c])
        saved[BIAS, c] += saved[WEIGHT, c] * d
        saved[WEIGHT, c] *= r
        saved[R, c], saved[D, c] = r, d


@scalar
def batch_params(x: Array, saved: Array, c: int, count: float, eps: float) -> ForwardParams:
    """Fill VAR of channel c from its M2, of `count` values; then as `channel_params`."""
    saved[VAR, c] = saved[M2, c] / count
    renormalize(saved, c, c + 1)
    minus, unit, scale, shift = channel_params(x, saved, c, eps)
    return minus, unit, scale, shift


# ---------------------------------------------------------------- backward


@scalar
def normalized_with(x: Array, saved: Array, c: int) -> ForwardParams:
    """Return what y of channel c was computed with, to the bit."""
    mean, low = mean_pair(x, saved, c)
    scale = saved[WEIGHT, c] * saved[INVSTD, c]
    unit = unit_for(x, mean, saved[INVSTD, c])
    return -mean * unit, unit, scale / unit, saved[BIAS, c] - low * scale


@scalar
def xhat_sum(x: Array, saved: Array, c: int, total: float, product: float) -> float:
    """Return the sum of dy * xhat of channel c from those of dy and of dy * (x - mean) * unit."""
    mean, low = mean_pair(x, saved, c)
    return sum_with_xhat(total, product / unit_for(x, mean, saved[INVSTD, c]), low, saved[INVSTD, c])


@scalar
def gradient_params(x: Array, count: float, saved: Array, c: int, total: float, product: float) -> GradientParams:
    """Return what dx of channel c is computed with, from its sums of dy and of dy * xhat over `count` values."""
    minus, unit, scale, shift = normalized_with(x, saved, c)
    _, low = mean_pair(x, saved, c)
    own, slope, offset = gradient_coefficients(count, low, saved[INVSTD, c], saved[WEIGHT, c], total, product)
    return minus, unit, scale, shift, slope / unit, offset, own
