"""Launches on the processor.

Every array of data comes as (N, C, S), contiguous; per-channel arrays come as float64 (C,). `plan` says which kernel
takes them.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from fastbn.backends import plan
from fastbn_kernels import threads
from fastbn_kernels.cpu import backward as backward_kernels
from fastbn_kernels.cpu import moments as moments_kernels
from fastbn_kernels.cpu import normalize as normalize_kernels
from fastbn_kernels.cpu import short as short_kernels

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def _plan(x: Array) -> plan.Plan:
    count = threads.count() if x.size >= plan.PARALLEL_FROM else 1
    N, C, S = x.shape
    return plan.make(N, C, S, x.itemsize, count)


def _data(array: Array, own: plan.Plan) -> Array:
    """Return (N, C, S) as a kernel takes it: rows if S is 1, the bits of a 16-bit float as an integer."""
    if array.dtype.itemsize == 2:
        array = array.view(np.int16 if array.dtype == np.float16 else np.uint16)
    return array[:, :, 0] if own.family == "adjacent" else array


def _per_channel(count: int, x: Array) -> list[Array]:
    """Return that many new float64 arrays (C,)."""
    return list(np.empty((count, x.shape[1])))


def moments(x: Array) -> tuple[Array, Array, Array]:
    """Return mean, low (what the arithmetic on x rounds off the mean) and m2 of every channel."""
    own = _plan(x)
    mean, low, m2 = _per_channel(3, x)
    kernel = moments_kernels.moments_adjacent if own.family == "adjacent" else moments_kernels.moments_apart
    data = _data(x, own)
    kernel.get(data.dtype, own.parallel)(data, mean, low, m2)
    return mean, low, m2


def forward(x: Array, weight: Array, bias: Array, eps: float, y: Array) -> tuple[Array, Array, Array, Array]:
    """Normalise with the batch's own statistics; return mean, low, m2, invstd."""
    own = _plan(x)
    if own.family == "apart" and not own.whole:
        mean, low, m2 = moments(x)
        return mean, low, m2, _normalize(x, mean, low, m2 / (x.shape[0] * x.shape[2]), weight, bias, eps, y)
    statistics = _per_channel(4, x)
    data = _data(x, own)
    given = data, weight, bias, eps, own.past_cache[0]
    if own.family == "short":
        short = short_kernels.forward_short.get(data.dtype, own.parallel)
        short(*given, own.groups, _data(y, own), *statistics)
    else:
        adjacent = own.family == "adjacent"
        kernel = normalize_kernels.forward_adjacent if adjacent else normalize_kernels.forward_apart
        kernel.get(data.dtype, own.parallel)(*given, _data(y, own), *statistics)
    mean, low, m2, invstd = statistics
    return mean, low, m2, invstd


def normalize(
    x: Array, mean: Array, var: Array, weight: Array, bias: Array, eps: float, y: Array
) -> tuple[Array, Array, Array]:
    """Normalise with given statistics; return mean, low and invstd."""
    low = np.zeros_like(mean)
    if x.itemsize == 2:  # as the arithmetic holds it, and what that rounds off
        with np.errstate(over="ignore", invalid="ignore"):
            held = mean.astype(np.float32).astype(np.float64)
            low = np.nan_to_num(mean - held, nan=0.0, posinf=0.0, neginf=0.0)
        mean = held
    return mean, low, _normalize(x, mean, low, var, weight, bias, eps, y)


def _normalize(
    x: Array, mean: Array, low: Array, var: Array, weight: Array, bias: Array, eps: float, y: Array
) -> Array:
    own = _plan(x)
    scale, shift, invstd = _per_channel(3, x)
    normalize_kernels.fold_parameters.get(mean.dtype, False)(low, var, weight, bias, eps, scale, shift, invstd)
    data = _data(x, own)
    given = data, mean, scale, shift, own.past_cache[0]
    if own.family == "short":
        short_kernels.normalize_short.get(data.dtype, own.parallel)(*given, own.groups, _data(y, own))
    else:
        adjacent = own.family == "adjacent"
        kernel = normalize_kernels.normalize_adjacent if adjacent else normalize_kernels.normalize_apart
        kernel.get(data.dtype, own.parallel)(*given, _data(y, own))
    return invstd


def sums(dy: Array, x: Array, mean: Array, low: Array, invstd: Array) -> tuple[Array, Array]:
    """Return the sums of dy and of dy * xhat of every channel."""
    own = _plan(x)
    sum_dy, sum_dy_xhat = _per_channel(2, x)
    kernel = backward_kernels.sums_adjacent if own.family == "adjacent" else backward_kernels.sums_apart
    data = _data(x, own)
    kernel.get(data.dtype, own.parallel)(_data(dy, own), data, mean, low, invstd, sum_dy, sum_dy_xhat)
    return sum_dy, sum_dy_xhat


def gradient(
    dy: Array, x: Array, weight: Array, mean: Array, low: Array, invstd: Array, sum_dy: Array, sum_dy_xhat: Array,
    count: int, frozen: bool, dx: Array,
) -> None:  # fmt: skip
    """Write dx from given sums over `count` values a channel."""
    own = _plan(x)
    statistics = weight, mean, low, invstd, sum_dy, sum_dy_xhat, float(count), frozen, own.past_cache[1]
    kernel = backward_kernels.gradient_adjacent if own.family == "adjacent" else backward_kernels.gradient_apart
    data = _data(x, own)
    kernel.get(data.dtype, own.parallel)(_data(dy, own), data, *statistics, _data(dx, own))


def backward(
    dy: Array, x: Array, weight: Array, mean: Array, low: Array, invstd: Array, frozen: bool, dx: Array
) -> tuple[Array, Array]:
    """Write dx; return the sums of dy and of dy * xhat of every channel."""
    own = _plan(x)
    if own.family == "apart" and not own.whole:
        given = sums(dy, x, mean, low, invstd)
        gradient(dy, x, weight, mean, low, invstd, *given, x.shape[0] * x.shape[2], frozen, dx)
        return given
    sum_dy, sum_dy_xhat = _per_channel(2, x)
    data = _data(x, own)
    arguments = _data(dy, own), data, weight, mean, low, invstd, frozen, own.past_cache[1]
    results = _data(dx, own), sum_dy, sum_dy_xhat
    if own.family == "short":
        short_kernels.backward_short.get(data.dtype, own.parallel)(*arguments, own.groups, *results)
    else:
        adjacent = own.family == "adjacent"
        kernel = backward_kernels.backward_adjacent if adjacent else backward_kernels.backward_apart
        kernel.get(data.dtype, own.parallel)(*arguments, *results)
    return sum_dy, sum_dy_xhat
