"""What XLA calls on its own buffers: a forward or a backward pass by one kernel or two, which come by their address.

A call has the frame of XLA's (`xla_frame`), the addresses, a value of the dtype of x, one of that of parameters, and
one of the shape that the kernels want x in. It returns whether it failed. It does what `fastbn.backends.cpu` does in
Python, with the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import config
from numba.extending import overload

from fastbn.adapters.jax import xla_frame as frame
from fastbn.adapters.jax.xla_frame import call_int, call_none
from fastbn_kernels import saved
from fastbn_kernels.build import cache
from fastbn_kernels.build.decorators import scalar
from fastbn_kernels.cpu import small_calls as call
from fastbn_kernels.cpu.small_calls import REFUSED
from fastbn_kernels.saved import BIAS, INVSTD, M2, MEAN, MEAN_LO, WEIGHT

# The numbers of a call. Absent parameters are not among its buffers; FLAG is training, or backward, frozen.
N, C, S, EPS, MOMENTUM, CORRECTION, FLAG, PAST, GROUPS, HAS_WEIGHT, HAS_BIAS, HAS_RUNNING, NUMBERS = range(13)

ROWS, RUNS = (0, 0), (0, 0, 0)  # values of shapes


def shape_like(form: Any, numbers: Any) -> Any:
    """Return the shape of x: rows of channels, or runs of one."""


@overload(shape_like)  # type: ignore[untyped-decorator]
def _shape_like(form: Any, numbers: Any) -> Any:
    def rows(form: Any, numbers: Any) -> Any:
        return np.int64(numbers[N]), np.int64(numbers[C])

    def runs(form: Any, numbers: Any) -> Any:
        return np.int64(numbers[N]), np.int64(numbers[C]), np.int64(numbers[S])

    return rows if form.count == len(ROWS) else runs


# ---------------------------------------------------------------- forward


@scalar
def opened(given: Any, like: Any, own: Any, form: Any) -> Any:
    """Return x, weight, bias, running mean and variance, y, table, numbers; running statistics are the next ones."""
    numbers = frame.numbers(given, NUMBERS)
    channels = np.int64(numbers[C])
    shape = shape_like(form, numbers)
    x = frame.array(frame.buffer(given, frame.ARGUMENTS, 0), shape, like)
    y = frame.array(frame.buffer(given, frame.RESULTS, 0), shape, like)
    table = frame.array(frame.buffer(given, frame.RESULTS, 1), (saved.ROWS, channels), np.float64(0))
    lengths, addresses = np.empty(4, np.int64), np.zeros(4, np.int64)
    at = 1
    for i in range(4):
        lengths[i] = channels * np.int64(numbers[HAS_WEIGHT + min(i, 2)])
        if lengths[i] != 0:
            addresses[i] = frame.buffer(given, frame.ARGUMENTS, at)
            at += 1
    if numbers[FLAG] != 0 and lengths[2] != 0:  # the next ones begin as the old ones
        for i in (2, 3):
            old, new = addresses[i], frame.buffer(given, frame.RESULTS, i)
            frame.array(new, (channels,), own)[:] = frame.array(old, (channels,), own)
            addresses[i] = new
    weight = frame.array(addresses[0], (lengths[0],), own)
    bias = frame.array(addresses[1], (lengths[1],), own)
    mean = frame.array(addresses[2], (lengths[2],), own)
    var = frame.array(addresses[3], (lengths[3],), own)
    return x, weight, bias, mean, var, y, table, numbers


@scalar
def values_a_channel(numbers: Any) -> Any:
    """Return N * S."""
    return np.int64(numbers[N]) * np.int64(numbers[S])


@scalar
def closed(mean: Any, var: Any, table: Any, numbers: Any) -> None:
    """Move the running statistics."""
    call.update(values_a_channel(numbers), mean, var, numbers[MOMENTUM], numbers[CORRECTION], table)


@scalar
def whole(given: Any, kernel: int, other: int, like: Any, own: Any, form: Any) -> bool:
    """Go forward by a kernel that does everything."""
    x, weight, bias, mean, var, y, table, numbers = opened(given, like, own, form)
    options = numbers[MOMENTUM], numbers[CORRECTION], numbers[EPS], numbers[FLAG] != 0
    refused: bool = call_int(kernel, (x, weight, bias, mean, var) + options + (y, table)) == REFUSED  # noqa: RUF005
    return refused


@scalar
def training(given: Any, kernel: int, other: int, like: Any, own: Any, form: Any) -> bool:
    """Sum and normalise by one kernel."""
    x, weight, bias, mean, var, y, t, numbers = opened(given, like, own, form)
    call.take_all(x, weight, bias, mean, var, True, t)
    past = numbers[PAST] != 0
    call_none(kernel, (x, t[WEIGHT], t[BIAS], numbers[EPS], past, y, t[MEAN], t[MEAN_LO], t[M2], t[INVSTD]))
    closed(mean, var, t, numbers)
    return False


@scalar
def training_short(given: Any, kernel: int, other: int, like: Any, own: Any, form: Any) -> bool:
    """Sum and normalise short runs."""
    x, weight, bias, mean, var, y, t, numbers = opened(given, like, own, form)
    call.take_all(x, weight, bias, mean, var, True, t)
    past, groups = numbers[PAST] != 0, np.int64(numbers[GROUPS])
    call_none(kernel, (x, t[WEIGHT], t[BIAS], numbers[EPS], past, groups, y, t[MEAN], t[MEAN_LO], t[M2], t[INVSTD]))
    closed(mean, var, t, numbers)
    return False


@scalar
def training_overlapped(given: Any, kernel: int, other: int, like: Any, own: Any, form: Any) -> bool:
    """Sum a channel while the one before is normalised."""
    x, weight, bias, mean, var, y, t, numbers = opened(given, like, own, form)
    call.take_all(x, weight, bias, mean, var, True, t)
    groups = np.int64(numbers[GROUPS])
    call_none(kernel, (x, t[WEIGHT], t[BIAS], numbers[EPS], groups, y, t[MEAN], t[MEAN_LO], t[M2], t[INVSTD]))
    closed(mean, var, t, numbers)
    return False


@scalar
def training_in_two(given: Any, kernel: int, other: int, like: Any, own: Any, form: Any) -> bool:
    """Sum by one kernel, normalise by another."""
    x, weight, bias, mean, var, y, t, numbers = opened(given, like, own, form)
    call.take_all(x, weight, bias, mean, var, True, t)
    call_none(kernel, (x, t[MEAN], t[MEAN_LO], t[M2]))
    scale, shift = call.fold(values_a_channel(numbers), True, numbers[EPS], t)
    call_none(other, (x, t[MEAN], scale, shift, numbers[PAST] != 0, y))
    closed(mean, var, t, numbers)
    return False


@scalar
def inference(given: Any, kernel: int, other: int, like: Any, own: Any, form: Any) -> bool:
    """Normalise with running statistics."""
    x, weight, bias, mean, var, y, t, numbers = opened(given, like, own, form)
    call.take_all(x, weight, bias, mean, var, False, t)
    scale, shift = call.fold(1, False, numbers[EPS], t)
    call_none(kernel, (x, t[MEAN], scale, shift, numbers[PAST] != 0, y))
    return False


@scalar
def inference_short(given: Any, kernel: int, other: int, like: Any, own: Any, form: Any) -> bool:
    """Normalise short runs with running statistics."""
    x, weight, bias, mean, var, y, t, numbers = opened(given, like, own, form)
    call.take_all(x, weight, bias, mean, var, False, t)
    scale, shift = call.fold(1, False, numbers[EPS], t)
    call_none(kernel, (x, t[MEAN], scale, shift, numbers[PAST] != 0, np.int64(numbers[GROUPS]), y))
    return False


# ---------------------------------------------------------------- backward


@scalar
def opened_back(given: Any, like: Any, own: Any, form: Any) -> Any:
    """Return dy, x, table, dx, dweight, dbias, numbers."""
    numbers = frame.numbers(given, NUMBERS)
    channels = np.int64(numbers[C])
    shape = shape_like(form, numbers)
    x = frame.array(frame.buffer(given, frame.ARGUMENTS, 0), shape, like)
    table = frame.array(frame.buffer(given, frame.ARGUMENTS, 1), (saved.ROWS, channels), np.float64(0))
    dy = frame.array(frame.buffer(given, frame.ARGUMENTS, 2), shape, like)
    dx = frame.array(frame.buffer(given, frame.RESULTS, 0), shape, like)
    dweight = frame.array(frame.buffer(given, frame.RESULTS, 1), (channels,), own)
    dbias = frame.array(frame.buffer(given, frame.RESULTS, 2), (channels,), own)
    return dy, x, table, dx, dweight, dbias, numbers


@scalar
def whole_back(given: Any, kernel: int, other: int, like: Any, own: Any, form: Any) -> bool:
    """Go back by a kernel that does everything."""
    dy, x, table, dx, dweight, dbias, numbers = opened_back(given, like, own, form)
    refused: bool = call_int(kernel, (dy, x, table, numbers[FLAG] != 0, dx, dweight, dbias)) == REFUSED
    return refused


@scalar
def gradients(given: Any, kernel: int, other: int, like: Any, own: Any, form: Any) -> bool:
    """Sum and write dx by one kernel."""
    dy, x, t, dx, dweight, dbias, numbers = opened_back(given, like, own, form)
    sums = np.empty((2, dbias.size))
    options = numbers[FLAG] != 0, numbers[PAST] != 0
    call_none(kernel, (dy, x, t[WEIGHT], t[MEAN], t[MEAN_LO], t[INVSTD]) + options + (dx, sums[0], sums[1]))  # noqa: RUF005
    dbias[:], dweight[:] = sums[0], sums[1]
    return False


@scalar
def gradients_short(given: Any, kernel: int, other: int, like: Any, own: Any, form: Any) -> bool:
    """Sum and write dx of short runs."""
    dy, x, t, dx, dweight, dbias, numbers = opened_back(given, like, own, form)
    sums = np.empty((2, dbias.size))
    options = numbers[FLAG] != 0, numbers[PAST] != 0, np.int64(numbers[GROUPS])
    call_none(kernel, (dy, x, t[WEIGHT], t[MEAN], t[MEAN_LO], t[INVSTD]) + options + (dx, sums[0], sums[1]))  # noqa: RUF005
    dbias[:], dweight[:] = sums[0], sums[1]
    return False


@scalar
def gradients_overlapped(given: Any, kernel: int, other: int, like: Any, own: Any, form: Any) -> bool:
    """Sum a channel while the dx of the one before is written."""
    dy, x, t, dx, dweight, dbias, numbers = opened_back(given, like, own, form)
    sums = np.empty((2, dbias.size))
    groups = np.int64(numbers[GROUPS])
    call_none(kernel, (dy, x, t[WEIGHT], t[MEAN], t[MEAN_LO], t[INVSTD], groups, dx, sums[0], sums[1]))
    dbias[:], dweight[:] = sums[0], sums[1]
    return False


@scalar
def gradients_in_two(given: Any, kernel: int, other: int, like: Any, own: Any, form: Any) -> bool:
    """Sum by one kernel, write dx by another."""
    dy, x, t, dx, dweight, dbias, numbers = opened_back(given, like, own, form)
    sums = np.empty((2, dbias.size))
    call_none(kernel, (dy, x, t[MEAN], t[MEAN_LO], t[INVSTD], sums[0], sums[1]))
    options = numbers[N] * numbers[S], numbers[FLAG] != 0, numbers[PAST] != 0
    call_none(other, (dy, x, t[WEIGHT], t[MEAN], t[MEAN_LO], t[INVSTD], sums[0], sums[1]) + options + (dx,))  # noqa: RUF005
    dbias[:], dweight[:] = sums[0], sums[1]
    return False


FORWARD = whole, training, training_short, training_overlapped, training_in_two, inference, inference_short
BACKWARD = whole_back, gradients, gradients_short, gradients_overlapped, gradients_in_two

if not config.DISABLE_JIT:  # compiled once a machine, then loaded
    for body in FORWARD + BACKWARD:
        cache.enable(body)
