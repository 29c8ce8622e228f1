"""Launches on the processor.

Every array of data comes as (N, C, S), contiguous. The table of a call holds a row (C,) of float64 each of mean, low
(what the arithmetic on x rounds off the mean), m2, invstd, weight and bias. `plan` says which kernel takes them.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from fastbn.backends.cpu import plan
from fastbn_kernels.build import threads
from fastbn_kernels.cpu import backward as backward_kernels
from fastbn_kernels.cpu import moments as moments_kernels
from fastbn_kernels.cpu import normalize as normalize_kernels
from fastbn_kernels.cpu import overlapped as overlap_kernels
from fastbn_kernels.cpu import short_segments as short_kernels
from fastbn_kernels.cpu import small_calls as call_kernels

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def plan_of(x: Array) -> plan.Plan:
    """Return the plan of x for the threads that there are now."""
    count = threads.count() if x.size >= plan.PARALLEL_FROM else 1
    N, C, S = x.shape
    return plan.make(N, C, S, x.itemsize, count)


def data_of(array: Array, own: plan.Plan) -> Array:
    """Return (N, C, S) as a kernel takes it: rows if S is 1, the bits of a 16-bit float as an integer."""
    array = _bits(array)
    return array[:, :, 0] if own.family == "adjacent" else array


def moments(x: Array, saved: Array) -> None:
    """Fill mean, low and m2 of every channel."""
    own = plan_of(x)
    mean, low, m2 = saved[:3]
    kernel = moments_kernels.moments_adjacent if own.family == "adjacent" else moments_kernels.moments_apart
    data = data_of(x, own)
    kernel.launch(data.dtype, own.parallel, data, mean, low, m2)


def forward(x: Array, table: Array, eps: float, y: Array) -> None:
    """Normalise with the batch's own statistics, which fill the table."""
    own = plan_of(x)
    mean, low, m2, var, invstd, weight, bias = table
    if own.family == "apart" and not own.whole:
        data = data_of(x, own)
        moments_kernels.moments_apart.launch(data.dtype, own.parallel, data, mean, low, m2)
        np.divide(m2, x.shape[0] * x.shape[2], out=var)
        _normalize(x, table, eps, y)
        return
    data = data_of(x, own)
    given = data, weight, bias, eps, own.past_cache[0]
    if own.family == "short":
        short_kernels.forward_short.launch(
            data.dtype, own.parallel, *given, own.groups, data_of(y, own), mean, low, m2, invstd
        )
    elif own.stretches and own.past_cache[0]:
        overlap_kernels.forward_overlapped.launch(
            data.dtype, own.parallel, data, weight, bias, eps, own.stretches, data_of(y, own), mean, low, m2, invstd
        )
    else:
        adjacent = own.family == "adjacent"
        kernel = normalize_kernels.forward_adjacent if adjacent else normalize_kernels.forward_apart
        kernel.launch(data.dtype, own.parallel, *given, data_of(y, own), mean, low, m2, invstd)


def normalize(x: Array, table: Array, eps: float, y: Array) -> None:
    """Normalise with the mean and variance in the table; fill low and invstd."""
    if x.itemsize == 2:  # the mean as the arithmetic holds it, and what that rounds off
        with np.errstate(over="ignore", invalid="ignore"):
            held = table[0].astype(np.float32).astype(np.float64)
            table[1] = np.nan_to_num(table[0] - held, nan=0.0, posinf=0.0, neginf=0.0)
        table[0] = held
    _normalize(x, table, eps, y)


def _normalize(x: Array, table: Array, eps: float, y: Array) -> None:
    own = plan_of(x)
    mean, low, _, var, invstd, weight, bias = table
    scale, shift = np.empty((2, mean.size))
    normalize_kernels.fold_parameters.get(table.dtype, False)(low, var, weight, bias, eps, scale, shift, invstd)
    data = data_of(x, own)
    given = data, mean, scale, shift, own.past_cache[0]
    if own.family == "short":
        short_kernels.normalize_short.launch(data.dtype, own.parallel, *given, own.groups, data_of(y, own))
    else:
        adjacent = own.family == "adjacent"
        kernel = normalize_kernels.normalize_adjacent if adjacent else normalize_kernels.normalize_apart
        kernel.launch(data.dtype, own.parallel, *given, data_of(y, own))


def sums(dy: Array, x: Array, table: Array) -> Array:
    """Return the sums of dy and of dy * xhat of every channel."""
    own = plan_of(x)
    mean, low, _, _, invstd, _, _ = table
    sum_dy, sum_dy_xhat = np.empty((2, mean.size))
    kernel = backward_kernels.sums_adjacent if own.family == "adjacent" else backward_kernels.sums_apart
    data = data_of(x, own)
    kernel.launch(data.dtype, own.parallel, data_of(dy, own), data, mean, low, invstd, sum_dy, sum_dy_xhat)
    return np.stack([sum_dy, sum_dy_xhat])


def gradient(dy: Array, x: Array, table: Array, given: Array, count: int, frozen: bool, dx: Array) -> None:
    """Write dx from given sums over `count` values a channel."""
    own = plan_of(x)
    mean, low, _, _, invstd, weight, _ = table
    statistics = weight, mean, low, invstd, *given, float(count), frozen, own.past_cache[1]
    kernel = backward_kernels.gradient_adjacent if own.family == "adjacent" else backward_kernels.gradient_apart
    data = data_of(x, own)
    kernel.launch(data.dtype, own.parallel, data_of(dy, own), data, *statistics, data_of(dx, own))


def backward(dy: Array, x: Array, table: Array, frozen: bool, dx: Array) -> Array:
    """Write dx; return the sums of dy and of dy * xhat of every channel."""
    own = plan_of(x)
    if own.family == "apart" and not own.whole:
        given = sums(dy, x, table)
        gradient(dy, x, table, given, x.shape[0] * x.shape[2], frozen, dx)
        return given
    mean, low, _, _, invstd, weight, _ = table
    sum_dy, sum_dy_xhat = np.empty((2, mean.size))
    data = data_of(x, own)
    arguments = data_of(dy, own), data, weight, mean, low, invstd, frozen, own.past_cache[1]
    results = data_of(dx, own), sum_dy, sum_dy_xhat
    if own.family == "short":
        short_kernels.backward_short.launch(data.dtype, own.parallel, *arguments, own.groups, *results)
    elif own.stretches and own.past_cache[1] and not frozen:
        overlap_kernels.backward_overlapped.launch(data.dtype, own.parallel, *arguments[:-2], own.stretches, *results)
    else:
        adjacent = own.family == "adjacent"
        kernel = backward_kernels.backward_adjacent if adjacent else backward_kernels.backward_apart
        kernel.launch(data.dtype, own.parallel, *arguments, *results)
    return np.stack([sum_dy, sum_dy_xhat])


def _bits(array: Array) -> Array:
    """Return the bits of 16-bit floats as integers, whose sign tells float16 and bfloat16 apart."""
    if array.dtype.itemsize == 2:
        return array.view(np.int16 if array.dtype == np.float16 else np.uint16)
    return array


def call_forward(
    x: Array, weight: Array, bias: Array, running_mean: Array, running_var: Array, momentum: float, correction: float,
    eps: float, training: bool, y: Array, table: Array,
) -> int:  # fmt: skip
    """Check and do a forward pass of x, (N, C, S) or (N, C), and fill the table; answer as `cpu/call.py`.

    An empty parameter stands for none.
    """
    data, target = (x, y) if x.itemsize > 2 else (_bits(x), _bits(y))
    parameters = weight, bias, running_mean, running_var
    answer: int
    try:
        if data.size < plan.PARALLEL_FROM:
            kernel = call_kernels.call_forward_adjacent if data.ndim == 2 else call_kernels.call_forward_apart
            answer = kernel.get(data.dtype, False)(
                data, *parameters, momentum, correction, eps, training, target, table
            )
            return answer
        data = data.reshape((*data.shape, 1)[:3])
        target = target.reshape(data.shape)
        answer = call_kernels.enter.get(data.dtype, False)(data, *parameters, correction, training, target, table)
    except TypeError:  # Numba's dispatcher: an array of another dtype, memory order or writability
        return call_kernels.REFUSED
    if answer != call_kernels.REFUSED and not training:
        _normalize(x.reshape(data.shape), table, eps, y.reshape(data.shape))
    elif answer != call_kernels.REFUSED:
        forward(x.reshape(data.shape), table, eps, y.reshape(data.shape))
        call_kernels.leave.get(data.dtype, False)(data, running_mean, running_var, momentum, correction, table)
    return answer


def call_backward(dy: Array, x: Array, table: Array, frozen: bool, dx: Array, dweight: Array, dbias: Array) -> int:
    """Check and do a backward pass; answer as `cpu/call.py`."""
    arrays = (dy, x, dx) if x.itemsize > 2 else (_bits(dy), _bits(x), _bits(dx))
    data = arrays[1]
    answer: int
    try:
        if data.size < plan.PARALLEL_FROM:
            kernel = call_kernels.call_backward_adjacent if data.ndim == 2 else call_kernels.call_backward_apart
            answer = kernel.get(data.dtype, False)(arrays[0], data, table, frozen, arrays[2], dweight, dbias)
            return answer
        full = (*data.shape, 1)[:3]
        answer = call_kernels.enter_backward.get(data.dtype, False)(*(array.reshape(full) for array in arrays))
    except TypeError:
        return call_kernels.REFUSED
    if answer != call_kernels.REFUSED:
        sums_ = backward(dy.reshape(full), x.reshape(full), table, frozen, dx.reshape(full))
        dbias[...], dweight[...] = sums_
    return answer
