"""What XLA calls on its own buffers: a forward or a backward pass by one kernel, which comes by its address.

A call has the frame of XLA's (`xla_frame`), the address, a value of the dtype of x, one of that of parameters, and
one of the shape that the kernels want x in. It returns whether it failed. It does what `fastbn.backends.cpu.launch`
does in Python, with the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import config
from numba.extending import overload

from fastbn.adapters.jax import xla_frame as frame
from fastbn.adapters.jax.xla_frame import call_int, call_none
from fastbn_kernels.build import cache
from fastbn_kernels.build.decorators import scalar
from fastbn_kernels.cpu import small_calls
from fastbn_kernels.cpu.small_calls import REFUSED
from fastbn_kernels.saved import ROWS

# The numbers of a call. Absent parameters are not among its buffers; FLAG is training, or backward, frozen.
N, C, S, EPS, MOMENTUM, CORRECTION, FLAG, PAST_CACHE, GROUPS, HAS_WEIGHT, HAS_BIAS, HAS_RUNNING, NUMBERS = range(13)

CHANNELS_LAST, CHANNELS_FIRST = (0, 0), (0, 0, 0)  # values of shapes


def shape_like(form: Any, numbers: Any) -> Any:
    """Return the shape of x as kernels take it: (N, C) or (N, C, S)."""


@overload(shape_like)  # type: ignore[untyped-decorator]
def _shape_like(form: Any, numbers: Any) -> Any:
    def channels_last(form: Any, numbers: Any) -> Any:
        return np.int64(numbers[N]), np.int64(numbers[C])

    def channels_first(form: Any, numbers: Any) -> Any:
        return np.int64(numbers[N]), np.int64(numbers[C]), np.int64(numbers[S])

    return channels_last if form.count == len(CHANNELS_LAST) else channels_first


# ---------------------------------------------------------------- forward


@scalar
def opened(given: Any, like: Any, own: Any, form: Any) -> Any:
    """Return x, weight, bias, running mean and variance, y, saved, numbers; running statistics are the next ones."""
    numbers = frame.numbers(given, NUMBERS)
    channels = np.int64(numbers[C])
    shape = shape_like(form, numbers)
    x = frame.array(frame.buffer(given, frame.ARGUMENTS, 0), shape, like)
    y = frame.array(frame.buffer(given, frame.RESULTS, 0), shape, like)
    saved = frame.array(frame.buffer(given, frame.RESULTS, 1), (ROWS, channels), np.float64(0))
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
    return x, weight, bias, mean, var, y, saved, numbers


@scalar
def whole_forward(given: Any, kernel: int, like: Any, own: Any, form: Any) -> bool:
    """Go forward by a kernel that does everything."""
    x, weight, bias, mean, var, y, saved, numbers = opened(given, like, own, form)
    options = numbers[MOMENTUM], numbers[CORRECTION], numbers[EPS], numbers[FLAG] != 0
    refused: bool = call_int(kernel, (x, weight, bias, mean, var) + options + (y, saved)) == REFUSED  # noqa: RUF005
    return refused


@scalar
def forward(given: Any, kernel: int, like: Any, own: Any, form: Any) -> bool:
    """Normalise by a kernel, with the batch's own statistics or running ones."""
    x, weight, bias, mean, var, y, saved, numbers = opened(given, like, own, form)
    training = numbers[FLAG] != 0
    small_calls.begin_saved(x, weight, bias, mean, var, training, saved)
    call_none(kernel, (x, saved, numbers[EPS], numbers[PAST_CACHE] != 0, np.int64(numbers[GROUPS]), y))
    if training:
        count: Any = np.int64(numbers[N]) * np.int64(numbers[S])
        small_calls.move_running(count, mean, var, numbers[MOMENTUM], numbers[CORRECTION], saved)
    return False


# ---------------------------------------------------------------- backward


@scalar
def opened_back(given: Any, like: Any, own: Any, form: Any) -> Any:
    """Return dy, x, saved, dx, dweight, dbias, numbers."""
    numbers = frame.numbers(given, NUMBERS)
    channels = np.int64(numbers[C])
    shape = shape_like(form, numbers)
    x = frame.array(frame.buffer(given, frame.ARGUMENTS, 0), shape, like)
    saved = frame.array(frame.buffer(given, frame.ARGUMENTS, 1), (ROWS, channels), np.float64(0))
    dy = frame.array(frame.buffer(given, frame.ARGUMENTS, 2), shape, like)
    dx = frame.array(frame.buffer(given, frame.RESULTS, 0), shape, like)
    dweight = frame.array(frame.buffer(given, frame.RESULTS, 1), (channels,), own)
    dbias = frame.array(frame.buffer(given, frame.RESULTS, 2), (channels,), own)
    return dy, x, saved, dx, dweight, dbias, numbers


@scalar
def whole_backward(given: Any, kernel: int, like: Any, own: Any, form: Any) -> bool:
    """Go back by a kernel that does everything."""
    dy, x, saved, dx, dweight, dbias, numbers = opened_back(given, like, own, form)
    refused: bool = call_int(kernel, (dy, x, saved, numbers[FLAG] != 0, dx, dweight, dbias)) == REFUSED
    return refused


@scalar
def backward(given: Any, kernel: int, like: Any, own: Any, form: Any) -> bool:
    """Sum and write dx by a kernel."""
    dy, x, saved, dx, dweight, dbias, numbers = opened_back(given, like, own, form)
    sums = np.empty((2, dbias.size))
    options = numbers[FLAG] != 0, numbers[PAST_CACHE] != 0, np.int64(numbers[GROUPS])
    call_none(kernel, (dy, x, saved) + options + (dx, sums))  # noqa: RUF005
    dbias[:], dweight[:] = sums[0], sums[1]
    return False


if not config.DISABLE_JIT:  # compiled once a machine, then loaded
    for body in (whole_forward, forward, whole_backward, backward):
        cache.enable(body)
