"""What XLA calls on its own buffers: a forward or a backward pass, as the row of words that kernels' steps take.

Of a call they get the frame (`xla_frame`), a step and its kernel (`fastbn_kernels.cpu.flat_calls`) by their addresses,
and the bytes of a parameter's value. They return whether the step refused, which it does not: XLA's buffers are apart.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import config

from fastbn.adapters.jax import xla_frame as frame
from fastbn_kernels.build import cache
from fastbn_kernels.build.addresses import array, call_int
from fastbn_kernels.build.decorators import scalar
from fastbn_kernels.cpu import flat_calls as flat

# The numbers of a call. Absent parameters are not among its buffers; FLAG is training, or backward, frozen.
N, C, S, EPS, MOMENTUM, CORRECTION, FLAG, PAST_CACHE, GROUPS = range(9)
HAS_WEIGHT, HAS_BIAS, HAS_RUNNING, HAS_RESIDUAL, NUMBERS = range(9, 14)


@scalar
def begun(given: Any, kernel: int) -> Any:
    """Return a row without data, as words, and the numbers of the call."""
    numbers = frame.numbers(given, NUMBERS)
    row = np.zeros(flat.WORDS, np.int64)
    values = row.view(np.float64)
    row[flat.KERNEL] = kernel
    row[flat.N], row[flat.C], row[flat.S] = np.int64(numbers[N]), np.int64(numbers[C]), np.int64(numbers[S])
    row[flat.FLAG], row[flat.PAST_CACHE], row[flat.GROUPS] = (
        np.int64(numbers[FLAG]), np.int64(numbers[PAST_CACHE]), np.int64(numbers[GROUPS])
    )  # fmt: skip
    values[flat.EPS], values[flat.MOMENTUM], values[flat.CORRECTION] = (
        numbers[EPS], numbers[MOMENTUM], numbers[CORRECTION]
    )  # fmt: skip
    return row, numbers


@scalar
def run(step: int, row: Any) -> bool:
    """Call a step."""
    refused: bool = call_int(step, (row.ctypes.data,)) != 0
    return refused


@scalar
def forward(given: Any, step: int, kernel: int, itemsize: int) -> bool:
    """Go forward; running statistics are the next ones, which begin as the old ones."""
    row, numbers = begun(given, kernel)
    row[flat.X] = frame.buffer(given, frame.ARGUMENTS, 0)
    row[flat.OUT] = frame.buffer(given, frame.RESULTS, 0)
    row[flat.SAVED] = frame.buffer(given, frame.RESULTS, 1)
    at = 1
    for i in range(4):
        if numbers[HAS_WEIGHT + min(i, 2)] != 0:
            row[flat.WEIGHT + i] = frame.buffer(given, frame.ARGUMENTS, at)
            at += 1
    if numbers[HAS_RESIDUAL] != 0:
        row[flat.RESIDUAL] = frame.buffer(given, frame.ARGUMENTS, at)
    if numbers[FLAG] != 0 and numbers[HAS_RUNNING] != 0:
        for i in (2, 3):
            new = frame.buffer(given, frame.RESULTS, i)
            size = (row[flat.C] * itemsize,)
            array(new, size, np.uint8(0))[:] = array(row[flat.WEIGHT + i], size, np.uint8(0))
            row[flat.WEIGHT + i] = new
    return run(step, row)


@scalar
def backward(given: Any, step: int, kernel: int, itemsize: int) -> bool:
    """Go back."""
    row, numbers = begun(given, kernel)
    row[flat.X] = frame.buffer(given, frame.ARGUMENTS, 0)
    row[flat.SAVED] = frame.buffer(given, frame.ARGUMENTS, 1)
    row[flat.DY] = frame.buffer(given, frame.ARGUMENTS, 2)
    row[flat.OUT] = frame.buffer(given, frame.RESULTS, 0)
    row[flat.FIRST] = frame.buffer(given, frame.RESULTS, 1)
    row[flat.SECOND] = frame.buffer(given, frame.RESULTS, 2)
    if numbers[HAS_RESIDUAL] != 0:
        row[flat.RESIDUAL] = frame.buffer(given, frame.ARGUMENTS, 3)
        row[flat.DRESIDUAL] = frame.buffer(given, frame.RESULTS, 3)
    return run(step, row)


if not config.DISABLE_JIT:  # compiled once a machine, then loaded
    for body in (forward, backward):
        cache.enable(body)
