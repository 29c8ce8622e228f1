"""The scalar formulas of batch normalization, shared by both processors.

Every channel is described by float64 numbers. With n values x, their mean m, m2 = sum (x - m)^2, var = m2 / n:

    y  = (x - m) * scale + bias              scale = weight / sqrt(var + eps)
    dx = scale * (dy - sum_dy / n - (x - m) * sum_dy_xmu / (n * (var + eps)))

with sum_dy = sum dy and sum_dy_xmu = sum dy * (x - m). Both are evaluated as one subtraction and a chain of
multiply-adds a value, with coefficients made here once a channel (Ioffe and Szegedy 2015, arXiv:1502.03167, whose
backward pass these are after the terms in dmean and dvar are merged).

The mean is carried as `mean + low`: rounded to float64 alone it costs 6e-11 at a mean of 1e6, which is more than 4
float32 ulp of a y close to zero, and as many of a dx. The low part enters through coefficients that are made once a
channel, where it costs nothing.

Where values are computed in float32, the mean is rounded to that, and what is multiplied is (x - mean) * unit, a unit
being a power of two (`unit_of`): one multiply-add instead of the subtraction, with the same bits, but neither that nor
any coefficient leaves the range of float32, whatever that of x is. In float64 the unit is 1.
"""

from __future__ import annotations

import math

from fastbn_kernels.build.decorators import scalar


@scalar
def finite_or_zero(value: float) -> float:
    """Return `value` as a shift for sums: zero instead of NaN or infinity, so that an infinite mean stays infinite."""
    return value if math.isfinite(value) else 0.0


@scalar
def between(value: float, low: float, high: float) -> float:
    """Return a value, or the limit that it is beyond; NaN stays."""
    return low if value < low else high if value > high else value


@scalar
def merge(
    count: float, mean: float, m2: float, other_count: float, other_mean: float, other_m2: float
) -> tuple[float, float]:
    """Return mean and m2 of two groups of values together.

    Chan, Golub and LeVeque (1979), "Updating formulae and a pairwise algorithm for computing sample variances",
    formula (2.1).
    """
    share = other_count / (count + other_count)
    delta = other_mean - mean
    merged = mean + delta * share
    if not math.isfinite(delta):  # an infinite mean stays infinite, where inf - inf would make it NaN
        merged = mean * (1.0 - share) + other_mean * share
    return merged, m2 + other_m2 + delta * delta * count * share


@scalar
def group(share: float, shift: float, total: float, squares: float) -> tuple[float, float]:
    """Return mean and m2 of 1 / `share` values from the sums of (x - shift) and (x - shift)^2.

    The subtraction loses digits as far as the shift is off the mean; see `shift_is_off`.
    """
    offset = total * share
    m2 = squares - total * offset
    return shift + offset, 0.0 if m2 < 0.0 else m2


@scalar
def shift_is_off(share: float, total: float, squares: float) -> bool:
    """Return whether the shift is more than 8 standard deviations off the mean, so that `group` would lose 6 bits.

    squares = m2 + count * (mean - shift)^2, and total = count * (mean - shift). The sums are then taken again, around
    the mean that they gave. `share` is 1 / count, so that channels go without a division each.
    """
    return 65.0 * (total * (total * share)) > 64.0 * squares


@scalar
def split_mean(origin: float, offset: float) -> tuple[float, float]:
    """Return origin + offset as a pair: the nearest float64 and what it misses (Knuth's TwoSum)."""
    mean = origin + offset
    back = mean - origin
    low = (origin - (mean - back)) + (offset - back)
    if not math.isfinite(low):
        low = 0.0
    return mean, low


@scalar
def coefficients(low: float, var: float, weight: float, bias: float, eps: float) -> tuple[float, float, float]:
    """Return (scale, shift, invstd) so that y = (x - mean) * scale + shift."""
    invstd = 1.0 / math.sqrt(var + eps)
    scale = weight * invstd
    return scale, bias - low * scale, invstd


# The largest unit, one over the smallest one; and what a mean times one may be at most.
LARGEST = 2.0**120
MOST = 2.0**120


@scalar
def unit_of(mean: float, invstd: float) -> float:
    """Return the power of two below invstd, which brings x - mean to some 1.

    Far away, a mean times the unit would not be finite: only a channel of one value over and over has such a mean and
    a unit above 1, or one that is normalised with the statistics of others.
    """
    if not 1.0 / LARGEST <= invstd <= LARGEST:
        invstd = LARGEST if invstd > 1.0 else 1.0 / LARGEST
    unit = math.ldexp(0.5, math.frexp(invstd)[1])
    return 1.0 if abs(mean) * unit > MOST else unit


@scalar
def running_average(old: float, new: float, momentum: float) -> float:
    """Return a running statistic moved towards a new value."""
    return old * (1.0 - momentum) + new * momentum


@scalar
def sum_with_xhat(sum_dy: float, sum_dy_xmu: float, low: float, invstd: float) -> float:
    """Return sum dy * xhat from the sums of dy and of dy * (x - mean), whose mean lacks its low part."""
    return (sum_dy_xmu - low * sum_dy) * invstd


@scalar
def gradient_coefficients(
    count: float, low: float, invstd: float, weight: float, sum_dy: float, sum_dy_xhat: float
) -> tuple[float, float, float]:
    """Return (a, b, c) so that dx = a * dy + b * (x - mean) + c, for statistics taken over `count` values."""
    a = weight * invstd
    b = -a * invstd * (sum_dy_xhat / count)
    return a, b, -a * (sum_dy / count) - b * low
