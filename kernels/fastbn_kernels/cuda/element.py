"""What is computed of an element, forward and backward: here and nowhere else on the GPU.

Loops say where: they load, keep and store. What they have loaded goes through the functions here, 16 bytes at a time,
with the params of its channels and the choice of a `tail`, what is done after the normalization; loops and kernels hand
both down without looking at them. `tail` is a constant of every compiled kernel (`build.decorators`), None or a number
of this file: what it does not ask for costs no instruction, no load and no register.

With the mean, scale and shift of a channel, and its slope and offset once its sums are known:

    u  = (x - mean) * scale + shift                     y = finish(u)
    g  = dy * finish'(u), with u computed again
    dx = g * scale + (x - mean) * slope + offset        g * scale with frozen statistics

An activation is one more case in `finish` and in `incoming`. A residual, which is added to u, is besides one more
array that the loops load.

Params are float64 in shared memory, a row each for as many columns as a block has, and vectors in the loops.
"""

from __future__ import annotations

from typing import Any

from fastbn_kernels import formulas
from fastbn_kernels.cuda.build.decorators import device, shared_formula
from fastbn_kernels.cuda.build.numba_cuda import i32, i64
from fastbn_kernels.cuda.simd.ops import decoded, fma, mul, put, splat, sub, where_positive, width
from fastbn_kernels.saved import BIAS, INVSTD, MEAN, MEAN_LO, WEIGHT

gradient_coefficients = shared_formula(formulas.gradient_coefficients)

# What may be done after the normalization, besides nothing.
RELU = 1

# Rows of params: mean, scale and shift forward; these, slope and offset backward.
FORWARD_PARAMS = 3
GRADIENT_PARAMS = 5


# ---------------------------------------------------------------- an element


@device
def centred(x: Any, raw: Any, around: Any) -> Any:
    """Return x - around, the terms of the sums that moments are made of."""
    return sub(decoded(x, raw), around)


@device
def finish(u: Any, tail: int | None) -> Any:
    """Return y of what was normalised."""
    if tail is None:
        return u
    return where_positive(u, u)


@device
def incoming(grad: Any, off: Any, params: Any, tail: int | None) -> Any:
    """Return the gradient by what was normalised, g, from that by y; `off` is x - mean."""
    if tail is None:
        return grad
    return where_positive(fma(off, params[1], params[2]), grad)


@device
def normalized(x: Any, raw: Any, params: Any, tail: int | None) -> Any:
    """Return y."""
    return finish(fma(centred(x, raw, params[0]), params[1], params[2]), tail)


@device
def gradient_terms(dy: Any, raw_dy: Any, x: Any, raw: Any, params: Any, tail: int | None) -> tuple[Any, Any]:
    """Return g and x - mean: the sums of the first and of their product are those of the backward pass."""
    off = centred(x, raw, params[0])
    return incoming(decoded(dy, raw_dy), off, params, tail), off


@device
def gradient(dy: Any, raw_dy: Any, x: Any, raw: Any, params: Any, tail: int | None) -> Any:
    """Return dx."""
    grad, off = gradient_terms(dy, raw_dy, x, raw, params, tail)
    return fma(grad, params[1], fma(off, params[3], params[4]))


@device
def frozen_gradient(dy: Any, raw_dy: Any, x: Any, raw: Any, params: Any, tail: int | None) -> Any:
    """Return dx where nothing flows back through the statistics: finite even where x is not."""
    grad, _ = gradient_terms(dy, raw_dy, x, raw, params, tail)
    return mul(grad, params[1])


# ---------------------------------------------------------------- the params of a channel


@device
def scale_and_shift(saved: Any, c: int, C: int) -> tuple[float, float]:
    """Return the scale and shift that y was computed with, to the bit."""
    row = i64(C)
    scale = saved[WEIGHT * row + c] * saved[INVSTD * row + c]
    return scale, saved[BIAS * row + c] - saved[MEAN_LO * row + c] * scale


@device
def set_forward_params(shared: Any, columns: int, i: int, mean: float, scale: float, shift: float) -> None:
    """Fill column i of the params of a forward pass."""
    shared[i] = mean
    shared[columns + i] = scale
    shared[2 * columns + i] = shift


@device
def set_terms_params(shared: Any, columns: int, i: int, saved: Any, c: int, C: int, tail: int | None) -> None:
    """Fill what `gradient_terms` takes of column i, channel c: the mean and, if there is a tail, scale and shift."""
    shared[i] = saved[MEAN * i64(C) + c]
    if tail is not None:
        shared[columns + i], shared[2 * columns + i] = scale_and_shift(saved, c, C)


@device
def set_gradient_params(
    shared: Any, columns: int, i: int, saved: Any, c: int, C: int, count: float, sum_dy: float, sum_dy_xhat: float
) -> None:
    """Fill what `gradient` takes of column i, channel c, beside what `set_terms_params` has filled."""
    row = i64(C)
    low, invstd, weight = saved[MEAN_LO * row + c], saved[INVSTD * row + c], saved[WEIGHT * row + c]
    scale, slope, offset = gradient_coefficients(count, low, invstd, weight, sum_dy, sum_dy_xhat)
    shared[columns + i] = scale
    shared[3 * columns + i] = slope
    shared[4 * columns + i] = offset


@device
def terms_params(x: Any, saved: Any, c: int, C: int) -> Any:
    """Return what `gradient_terms` takes of channel c, without a detour through shared memory."""
    scale, shift = scale_and_shift(saved, c, C)
    return splat(x, saved[MEAN * i64(C) + c]), splat(x, scale), splat(x, shift)


@device
def channel_params(x: Any, shared: Any) -> Any:
    """Return mean, scale and shift of a channel, all vectors of which are alike; `shared` has one column."""
    return splat(x, shared[0]), splat(x, shared[1]), splat(x, shared[2])


@device
def channel_gradient_params(x: Any, shared: Any) -> Any:
    """Return mean, scale, shift, slope and offset likewise."""
    mean, scale, shift = channel_params(x, shared)
    return mean, scale, shift, splat(x, shared[3]), splat(x, shared[4])


@device
def vector_from(x: Any, shared: Any, at: int) -> Any:
    """Return a vector of x from float64 in shared memory."""
    vector = splat(x, 0.0)
    for i in range(width(x)):
        vector = put(vector, i32(i), shared[at + i])
    return vector


@device
def column_params(x: Any, shared: Any, columns: int, i: int) -> Any:
    """Return mean, scale and shift of the columns of a vector that begins at column i."""
    return vector_from(x, shared, i), vector_from(x, shared, columns + i), vector_from(x, shared, 2 * columns + i)


@device
def column_gradient_params(x: Any, shared: Any, columns: int, i: int) -> Any:
    """Return mean, scale, shift, slope and offset likewise."""
    mean, scale, shift = column_params(x, shared, columns, i)
    return mean, scale, shift, vector_from(x, shared, 3 * columns + i), vector_from(x, shared, 4 * columns + i)
