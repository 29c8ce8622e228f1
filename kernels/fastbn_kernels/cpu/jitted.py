"""Batch normalization inside a caller's own `@njit` functions.

Import these from `fastbn_kernels.cpu`. They are compiled functions of arrays, to be called from `@njit` code, parallel
or not, and from Python. They run in the thread that calls them, hold no lock, and use the tiles and sums of the kernels
in this folder, so that results are those of `fastbn.batch_norm`, float32 with precision="fast": the same bits unless
fastbn takes several channels at once, which adds sums up in another order, within the same bounds: short segments
(`short_segments.py`: at most 256 values a segment, at least 16 samples and 16 channels, 32768 values and more) and few
rows of float32 (`column_groups.py`: at most 1024, at least 256 channels, 32768 values and more).

    x, y, dy, dx                 float32 or float64, all of one dtype, C-contiguous, (N, C, S) or (N, C). y may be x; dx
                                 may be dy or x. Numba has no arrays of 16-bit floats.
    weight, bias, dweight, dbias float32 or float64, (C,)
    invstd                       float64, (C,); in float32 it costs dx and dweight 6e-8 of their terms
    mean                         float64, (C,) or (2, C). The second row holds what rounding to the first lost; without
                                 it, x - mean is off by up to 1.1e-16 |mean| (in float32 6e-8 |mean|) in the gradients.
                                 y never depends on the dtype or rows of mean.
    activation                   RELU, RELU6, TANH, SIGMOID, SILU, GELU or what `leaky_relu(slope)` returned, as a
                                 global name of the caller's module; nothing by default. What is done after the
                                 normalization costs no pass over memory. The backward pass then needs the bias.
    residual                     as x; added before the activation. y may be it. With an activation the backward pass
                                 needs it, as it was, and fills dresidual, which is as x and shares memory with nothing;
                                 without one its gradient is dy.

What Numba knows of a type is checked when a call is compiled (TypingError), shapes, aliases and eps when it runs
(ValueError, nothing written). The `_channel` functions, which stand inside the caller's own loop, check types alone:
a shape or channel that does not fit reads or writes memory that is not theirs, as array indices in `@njit` code do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import config, types
from numba.core.errors import TypingError
from numba.extending import overload

from fastbn_kernels.build import cache
from fastbn_kernels.build.decorators import Array, scalar
from fastbn_kernels.cpu import backward, normalize
from fastbn_kernels.cpu.jitted_tails import absent, backward_tail, bias_of, forward_tail, has_channels, leaky_relu
from fastbn_kernels.cpu.moments import channel_moments
from fastbn_kernels.cpu.params import unit_for
from fastbn_kernels.cpu.simd.ops import address
from fastbn_kernels.cpu.simd.tails import GELU, RELU, RELU6, SIGMOID, SILU, TANH
from fastbn_kernels.cpu.small_calls import apart
from fastbn_kernels.cpu.sweeps import write_tile
from fastbn_kernels.cpu.tiles import tile_count
from fastbn_kernels.formulas import coefficients, finite_or_zero
from fastbn_kernels.saved import BIAS, INVSTD, MEAN, MEAN_LO, ROWS, VAR, WEIGHT

__all__ = [
    "GELU",
    "RELU",
    "RELU6",
    "SIGMOID",
    "SILU",
    "TANH",
    "batch_norm_backward",
    "batch_norm_backward_channel",
    "batch_norm_forward",
    "batch_norm_forward_channel",
    "batch_norm_inference",
    "leaky_relu",
]

# The sources of the kernels, serial.
forward_rows = scalar(normalize.forward_channels_last.source)
normalize_rows = scalar(normalize.normalize_channels_last.source)
normalize_segments = scalar(normalize.normalize_channels_first.source)
backward_rows = scalar(backward.backward_channels_last.source)


# ---------------------------------------------------------------- what is checked


def compile_time_check(read: tuple[Array, ...], written: tuple[Array, ...], numbers: tuple[Array, ...]) -> None:
    """Refuse types that the functions here are not for, before a call is compiled: the data, and numbers a channel."""


@overload(compile_time_check)  # type: ignore[untyped-decorator]
def _compile_time_check(read: Any, written: Any, numbers: Any) -> Any:
    data = [array for array in (*read, *written) if not absent(array)]
    written = [array for array in written if not absent(array)]
    numbers = [array for array in numbers if not absent(array)]
    for array in data:
        if not isinstance(array, types.Array) or array.dtype not in (types.float32, types.float64):
            raise TypingError(f"fastbn: x, y, dy, dx and residuals are arrays of float32 or float64, got {array}")
        if array.layout != "C" or array.ndim not in (2, 3):
            raise TypingError(
                f"fastbn: x, y, dy, dx and residuals are C-contiguous, (N, C) or (N, C, S), got {array}; "
                "np.ascontiguousarray"
            )
        if (array.dtype, array.ndim) != (data[0].dtype, data[0].ndim):
            raise TypingError(
                f"fastbn: x, y, dy, dx and residuals have one dtype and one shape, got {data[0]} and {array}"
            )
    for array in written:
        if not array.mutable:
            raise TypingError(f"fastbn: y, dx and dresidual are written, got {array}")
    for array in numbers:
        if not isinstance(array, types.Array) or array.dtype not in (types.float32, types.float64):
            raise TypingError(f"fastbn: parameters and statistics are arrays of float32 or float64, got {array}")

    def implementation(read: Any, written: Any, numbers: Any) -> None:
        pass

    return implementation


@scalar
def same_or_disjoint(a: Array, b: Array) -> bool:
    """Return whether two arrays are the same memory, or share none."""
    return address(a) == address(b) or disjoint(a, b)


@scalar
def disjoint(a: Array, b: Array) -> bool:
    """Return whether two arrays share no memory."""
    alone: bool = apart(address(a), a.size * a.itemsize, address(b), b.size * b.itemsize)
    return alone


@scalar
def check_residual(residual: Any, x: Array, y: Array) -> None:
    """Check what is added in a forward pass."""
    if residual is not None and (residual.shape != x.shape or not same_or_disjoint(residual, y)):
        raise ValueError("fastbn: residual has the shape of x, and y is it or shares no memory with it")


@scalar
def check_residuals(residual: Any, dresidual: Any, dy: Array, x: Array, dx: Array) -> None:
    """Check what was added, and where its gradient goes."""
    if residual is not None and dresidual is not None:
        if residual.shape != x.shape or dresidual.shape != x.shape or not disjoint(residual, dx):
            raise ValueError(
                "fastbn: residual and dresidual have the shape of x, and residual shares no memory with dx"
            )
        if not (disjoint(dresidual, x) and disjoint(dresidual, dy) and disjoint(dresidual, dx)):
            raise ValueError("fastbn: dresidual shares no memory with x, dy and dx")
        if not disjoint(dresidual, residual):
            raise ValueError("fastbn: dresidual shares no memory with residual")


@scalar
def mean_fits(mean: Array, C: int) -> bool:
    """Return whether the mean is (C,) or (2, C)."""
    fits: bool = mean.shape == (2, C) if mean.ndim == 2 else mean.size == C
    return fits


# ---------------------------------------------------------------- the mean, in one row or two


@scalar
def put_mean(mean: Array, c: int, value: float, low: float) -> None:
    """Keep the mean of channel c, which is value + low, in as many digits as the array has room for."""
    if mean.ndim == 2:
        mean[0, c] = value
        mean[1, c] = finite_or_zero(value - mean[0, c]) + low
    else:
        mean[c] = value + low


@scalar
def mean_of(mean: Array, c: int) -> tuple[float, float]:
    """Return (mean, low) of channel c."""
    if mean.ndim == 2:
        return np.float64(mean[0, c]), np.float64(mean[1, c])
    return np.float64(mean[c]), 0.0


# ---------------------------------------------------------------- one channel


@scalar
def batch_norm_forward_channel(
    x: Array, c: int, weight: Array, bias: Array, eps: float, y: Array, mean: Array, invstd: Array,
    activation: Any = None, residual: Any = None,
) -> None:  # fmt: skip
    """Normalise channel c of x (N, C, S) to y, which may be x; fill its mean and invstd.

    For a loop of the caller's own over channels, `prange` or not. Nothing but types is checked.
    """
    compile_time_check((x, residual), (y,), (weight, bias, mean, invstd))
    tail = forward_tail(activation, residual)
    N, _, S = x.shape
    value, low, m2 = channel_moments(x, c)
    scale, shift, held = coefficients(low, m2 / np.float64(N * S), np.float64(weight[c]), np.float64(bias[c]), eps)
    unit = unit_for(x, value, held)
    tiles = tile_count(N, S)
    for tile in range(tiles):
        write_tile(None, x, c, tiles - 1 - tile, (-value * unit, unit, scale / unit, shift), y, False, tail)
    put_mean(mean, c, value, low)
    invstd[c] = held


@scalar
def batch_norm_backward_channel(
    dy: Array, x: Array, c: int, weight: Array, mean: Array, invstd: Array, dx: Array, dweight: Array, dbias: Array,
    activation: Any = None, bias: Any = None, residual: Any = None, dresidual: Any = None,
) -> None:  # fmt: skip
    """Write dx, which may be dy or x, of channel c of x (N, C, S); fill its dweight and dbias.

    For a loop of the caller's own over channels, `prange` or not. Nothing but types is checked.
    """
    compile_time_check((x, dy, residual), (dx, dresidual), (weight, mean, invstd, dweight, dbias, bias))
    tail = backward_tail(activation, bias, residual, dresidual)
    saved = np.empty((ROWS, 1))
    saved[MEAN, 0], saved[MEAN_LO, 0] = mean_of(mean, c)
    saved[INVSTD, 0], saved[WEIGHT, 0], saved[BIAS, 0] = invstd[c], weight[c], bias_of(bias, c)
    dbias[c], dweight[c] = backward.channel_gradient(dy, x, c, saved, 0, False, dx, False, tail)


# ---------------------------------------------------------------- whole arrays


@scalar
def batch_norm_forward(
    x: Array, weight: Array, bias: Array, eps: float, y: Array, mean: Array, invstd: Array, activation: Any = None,
    residual: Any = None,
) -> None:  # fmt: skip
    """Normalise x, (N, C, S) or (N, C), with its own statistics to y, which may be x; fill mean and invstd.

    ``y = activation((x - mean) * invstd * weight + bias + residual)``, ``invstd = 1 / sqrt(var + eps)``, a channel at a
    time.
    """
    compile_time_check((x, residual), (y,), (weight, bias, mean, invstd))
    tail = forward_tail(activation, residual)
    C = x.shape[1]
    if x.size == 0:
        raise ValueError("fastbn: an empty batch has no statistics")
    if y.shape != x.shape or not same_or_disjoint(x, y):
        raise ValueError("fastbn: y has the shape of x, and is x or shares no memory with it")
    if weight.size != C or bias.size != C or invstd.size != C or not mean_fits(mean, C):
        raise ValueError("fastbn: weight, bias and invstd have the shape (C,), mean (C,) or (2, C)")
    if not eps > 0.0:
        raise ValueError("fastbn: eps is larger than 0")
    check_residual(residual, x, y)
    if x.ndim == 2:
        saved = np.empty((ROWS, C))
        for c in range(C):
            saved[WEIGHT, c], saved[BIAS, c] = weight[c], bias[c]
        forward_rows(x, saved, eps, False, 0, y, tail)
        for c in range(C):
            put_mean(mean, c, saved[MEAN, c], saved[MEAN_LO, c])
            invstd[c] = saved[INVSTD, c]
    else:
        for c in range(C):
            batch_norm_forward_channel(x, c, weight, bias, eps, y, mean, invstd, activation, residual)


@scalar
def batch_norm_backward(
    dy: Array, x: Array, weight: Array, mean: Array, invstd: Array, dx: Array, dweight: Array, dbias: Array,
    activation: Any = None, bias: Any = None, residual: Any = None, dresidual: Any = None,
) -> None:  # fmt: skip
    """Write the gradient dx, which may be dy or x, and fill dweight, dbias and, of a residual, dresidual.

    mean and invstd are those that `batch_norm_forward` filled; x, bias and residual are what it read.
    """
    compile_time_check((x, dy, residual), (dx, dresidual), (weight, mean, invstd, dweight, dbias, bias))
    tail = backward_tail(activation, bias, residual, dresidual)
    C = x.shape[1]
    if x.size == 0:
        raise ValueError("fastbn: an empty batch has no statistics")
    if dy.shape != x.shape or dx.shape != x.shape or not same_or_disjoint(dx, dy) or not same_or_disjoint(dx, x):
        raise ValueError("fastbn: dy and dx have the shape of x, and dx is one of them or shares no memory with them")
    if weight.size != C or invstd.size != C or dweight.size != C or dbias.size != C or not mean_fits(mean, C):
        raise ValueError("fastbn: weight, invstd, dweight and dbias have the shape (C,), mean (C,) or (2, C)")
    if not has_channels(bias, C):
        raise ValueError("fastbn: bias has the shape (C,)")
    check_residuals(residual, dresidual, dy, x, dx)
    if x.ndim == 2:
        saved, sums = np.empty((ROWS, C)), np.empty((2, C))
        for c in range(C):
            saved[MEAN, c], saved[MEAN_LO, c] = mean_of(mean, c)
            saved[INVSTD, c], saved[WEIGHT, c], saved[BIAS, c] = invstd[c], weight[c], bias_of(bias, c)
        backward_rows(dy, x, saved, False, False, 0, dx, sums, tail)
        for c in range(C):
            dbias[c], dweight[c] = sums[0, c], sums[1, c]
    else:
        for c in range(C):
            batch_norm_backward_channel(
                dy, x, c, weight, mean, invstd, dx, dweight, dbias, activation, bias, residual, dresidual
            )


@scalar
def batch_norm_inference(
    x: Array, mean: Array, var: Array, weight: Array, bias: Array, eps: float, y: Array, activation: Any = None,
    residual: Any = None,
) -> None:  # fmt: skip
    """Normalise x, (N, C, S) or (N, C), with given statistics to y, which may be x."""
    compile_time_check((x, residual), (y,), (weight, bias, mean, var))
    tail = forward_tail(activation, residual)
    C = x.shape[1]
    if y.shape != x.shape or not same_or_disjoint(x, y):
        raise ValueError("fastbn: y has the shape of x, and is x or shares no memory with it")
    if weight.size != C or bias.size != C or var.size != C or not mean_fits(mean, C):
        raise ValueError("fastbn: weight, bias and var have the shape (C,), mean (C,) or (2, C)")
    if not eps > 0.0:
        raise ValueError("fastbn: eps is larger than 0")
    check_residual(residual, x, y)
    if x.size == 0:
        return
    saved = np.empty((ROWS, C))
    for c in range(C):
        saved[MEAN, c], saved[MEAN_LO, c] = mean_of(mean, c)
        saved[VAR, c], saved[WEIGHT, c], saved[BIAS, c] = var[c], weight[c], bias[c]
    if x.ndim == 2:
        normalize_rows(x, saved, eps, False, 0, y, tail)
    else:
        normalize_segments(x, saved, eps, False, 0, y, tail)


if not config.DISABLE_JIT:  # compiled once a machine, then loaded, whether Python or `@njit` code calls
    for name in __all__:
        if name.startswith("batch_norm"):
            cache.enable(globals()[name])
