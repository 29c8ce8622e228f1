"""The numbers of a channel that vectors are computed with, made of what is saved of it; the twin of `cpu.params`.

They are float64 in shared memory, a row each for as many columns as a block has, and in the order that `element` has:

    -mean * unit, unit, scale / unit, shift            to normalise, and to sum dy with a tail
    ... slope / unit, offset                           to write dx

A mean is held as values of x are computed, and what that rounds off it is added to its low part: saved rows may come
from arithmetic of another precision, or from the CPU. But for float32 data in float32 arithmetic the unit is 1: its row
is not touched, and no instruction comes of it.
"""

from __future__ import annotations

from typing import Any

from fastbn_kernels import formulas
from fastbn_kernels.cuda.build.decorators import device, shared_formula
from fastbn_kernels.cuda.build.numba_cuda import f64, i32, i64
from fastbn_kernels.cuda.simd.ops import in_units, put, rounded, single, splat, width
from fastbn_kernels.saved import BIAS, INVSTD, MEAN, MEAN_LO, WEIGHT

finite_or_zero = shared_formula(formulas.finite_or_zero)
gradient_coefficients = shared_formula(formulas.gradient_coefficients)
split_mean = shared_formula(formulas.split_mean)
sum_with_xhat = shared_formula(formulas.sum_with_xhat)

FORWARD_ROWS = 4
GRADIENT_ROWS = 6


@device
def as_pair(x: Any, origin: float, offset: float) -> tuple[float, float]:
    """Return origin + offset as (mean, low), the mean rounded to what values of x are computed with."""
    mean, low = split_mean(origin, offset)
    held = f64(rounded(x, mean))
    return held, low + finite_or_zero(mean - held)


@device
def mean_pair(x: Any, saved: Any, c: int, C: int) -> tuple[float, float]:
    """Return the saved mean of channel c likewise."""
    mean, low = saved[MEAN * i64(C) + c], saved[MEAN_LO * i64(C) + c]
    if single(x):
        held = f64(rounded(x, mean))
        low += finite_or_zero(mean - held)
        mean = held
    return mean, low


@device
def unit_for(x: Any, mean: float, invstd: float) -> tuple[float, float]:
    """Return the unit that x - mean is taken in, a power of two, and one over it.

    `formulas.unit_of` in steps of 2^32, which are chosen without a branch or a division: x - mean is between 2^-17 and
    2^17 then, and gradients below 1e-33 have fewer digits than float32.
    """
    unit = 1.0
    inverse = 1.0
    if in_units(x):
        for step in (2.0**32, 2.0**64, 2.0**96):
            if invstd > step * 2.0**-16:
                unit, inverse = step, 1.0 / step
            if invstd < 2.0**16 / step:
                unit, inverse = 1.0 / step, step
        if abs(mean) * unit > formulas.MOST:
            unit, inverse = 1.0, 1.0
    return unit, inverse


@device
def set_centre(x: Any, shared: Any, columns: int, i: int, around: float, unit: float) -> None:
    """Fill what column i is centred with."""
    shared[i] = -around * unit
    if in_units(x):
        shared[columns + i] = unit


@device
def set_forward_params(
    x: Any, shared: Any, columns: int, i: int, mean: float, invstd: float, scale: float, shift: float
) -> None:
    """Fill column i of the params of a forward pass."""
    unit, inverse = unit_for(x, mean, invstd)
    set_centre(x, shared, columns, i, mean, unit)
    shared[2 * columns + i] = scale * inverse
    shared[3 * columns + i] = shift


@device
def normalized_with(x: Any, saved: Any, c: int, C: int) -> tuple[float, float, float, float]:
    """Return -mean * unit, unit, scale / unit and shift that y of channel c was computed with, to the bit."""
    row = i64(C)
    mean, low = mean_pair(x, saved, c, C)
    scale = saved[WEIGHT * row + c] * saved[INVSTD * row + c]
    unit, inverse = unit_for(x, mean, saved[INVSTD * row + c])
    return -mean * unit, unit, scale * inverse, saved[BIAS * row + c] - low * scale


@device
def set_terms_params(x: Any, shared: Any, columns: int, i: int, saved: Any, c: int, C: int, tail: Any) -> None:
    """Fill what the sums take of column i, channel c: of a tail, scale and shift too."""
    minus, unit, scale, shift = normalized_with(x, saved, c, C)
    shared[i] = minus
    if in_units(x):
        shared[columns + i] = unit
    if tail is not None:
        shared[2 * columns + i] = scale
        shared[3 * columns + i] = shift


@device
def set_gradient_params(
    x: Any, shared: Any, columns: int, i: int, saved: Any, c: int, C: int, count: float, sum_dy: float,
    sum_dy_xhat: float,
) -> None:  # fmt: skip
    """Fill what dx takes of column i, channel c, beside what `set_terms_params` has filled."""
    row = i64(C)
    mean, low = mean_pair(x, saved, c, C)
    invstd, weight = saved[INVSTD * row + c], saved[WEIGHT * row + c]
    scale, slope, offset = gradient_coefficients(count, low, invstd, weight, sum_dy, sum_dy_xhat)
    _, inverse = unit_for(x, mean, invstd)
    shared[2 * columns + i] = scale * inverse
    shared[4 * columns + i] = slope * inverse
    shared[5 * columns + i] = offset


@device
def xhat_sum(x: Any, saved: Any, c: int, C: int, total: float, products: float) -> float:
    """Return the sum of g * xhat of channel c from those of g and of g * (x - mean) * unit."""
    mean, low = mean_pair(x, saved, c, C)
    invstd = saved[INVSTD * i64(C) + c]
    _, inverse = unit_for(x, mean, invstd)
    found: float = sum_with_xhat(total, products * inverse, low, invstd)
    return found


# ---------------------------------------------------------------- as vectors


@device
def channel_centre(x: Any, minus: float, unit: float) -> tuple[Any, Any]:
    """Return what all values of a channel are centred with."""
    return splat(x, minus), splat(x, unit if in_units(x) else 1.0)


@device
def terms_params(x: Any, saved: Any, c: int, C: int) -> Any:
    """Return what the sums take of channel c, without a detour through shared memory."""
    minus, unit, scale, shift = normalized_with(x, saved, c, C)
    minus, unit = channel_centre(x, minus, unit)
    return minus, unit, splat(x, scale), splat(x, shift)


@device
def channel_params(x: Any, shared: Any) -> Any:
    """Return the params of a forward pass of a channel, all vectors of which are alike; `shared` has one column."""
    minus, unit = channel_centre(x, shared[0], shared[1])
    return minus, unit, splat(x, shared[2]), splat(x, shared[3])


@device
def channel_gradient_params(x: Any, shared: Any) -> Any:
    """Return those of a backward pass likewise."""
    minus, unit, scale, shift = channel_params(x, shared)
    return minus, unit, scale, shift, splat(x, shared[4]), splat(x, shared[5])


@device
def vector_from(x: Any, shared: Any, at: int) -> Any:
    """Return a vector of x from float64 in shared memory."""
    vector = splat(x, 0.0)
    for i in range(width(x)):
        vector = put(vector, i32(i), shared[at + i])
    return vector


@device
def column_centre(x: Any, shared: Any, columns: int, i: int) -> tuple[Any, Any]:
    """Return what the columns of a vector that begins at column i are centred with."""
    unit = splat(x, 1.0)
    if in_units(x):
        unit = vector_from(x, shared, columns + i)
    return vector_from(x, shared, i), unit


@device
def column_params(x: Any, shared: Any, columns: int, i: int) -> Any:
    """Return the params of a forward pass of the columns of a vector that begins at column i."""
    minus, unit = column_centre(x, shared, columns, i)
    return minus, unit, vector_from(x, shared, 2 * columns + i), vector_from(x, shared, 3 * columns + i)


@device
def column_gradient_params(x: Any, shared: Any, columns: int, i: int) -> Any:
    """Return those of a backward pass likewise."""
    minus, unit, scale, shift = column_params(x, shared, columns, i)
    slope, offset = vector_from(x, shared, 4 * columns + i), vector_from(x, shared, 5 * columns + i)
    return minus, unit, scale, shift, slope, offset
