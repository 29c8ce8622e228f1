"""Plans and launches on the processor.

Every array of data comes as (N, C, S), contiguous; per-channel arrays come as float64 (C,). A plan is

- the family: channels adjacent if S is 1, else channels apart;
- serial for small tensors, where waking the threads costs more than they save;
- whole channels a thread if they keep all threads busy, else tiles of channels over all threads, which reads x once
  more. Both give the same bits, so the number of threads may decide.
"""

from __future__ import annotations

import os
from typing import Any, TypeAlias

import numpy as np

from fastbn_kernels import threads
from fastbn_kernels.cpu import backward as backward_kernels
from fastbn_kernels.cpu import moments as moments_kernels
from fastbn_kernels.cpu import normalize as normalize_kernels
from fastbn_kernels.jit import Kernel

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

# Values from which a parallel kernel is launched. One thread takes about 0.25 ns a value; waking the others takes
# 2 to 10 us.
PARALLEL_FROM = 32768


def _last_level_cache() -> int:
    """Return the size of the last-level cache in bytes, as far as the C library tells, else 32 MB."""
    for name in ("SC_LEVEL3_CACHE_SIZE", "SC_LEVEL2_CACHE_SIZE"):
        try:
            size = os.sysconf(name)
        except (AttributeError, OSError, ValueError):
            continue
        if size > 0:
            return size
    return 32 << 20


LAST_LEVEL_CACHE = _last_level_cache()

# The share of the threads that whole channels must keep busy.
BUSY = 0.8


def _rows(array: Array) -> Array:
    """Return (R, C, 1) as (R, C)."""
    return array.reshape(array.shape[:2])


def _per_channel(count: int, x: Array) -> list[Array]:
    """Return that many new float64 arrays (C,)."""
    return list(np.empty((count, x.shape[1])))


def _adjacent(x: Array) -> bool:
    return bool(x.shape[2] == 1)


def _past_cache(tensors: int, x: Array) -> bool:
    """Return whether so many tensors like x are well more than the last-level cache: the result then goes past it.

    Stored through the cache, every line of the result is first read from memory. Below that size the next layer would
    miss it in the cache, and at just that size (4096 x 1024 float32, 32 MB) it takes 0.86 against 0.63 ms.
    """
    return bool(tensors * x.nbytes > 1.5 * LAST_LEVEL_CACHE)


def _run(kernel: Kernel, x: Array, *arguments: Any) -> None:
    kernel.get(x.dtype, x.size >= PARALLEL_FROM)(*arguments)


def _whole_channels(x: Array) -> bool:
    """Return whether whole channels keep the threads busy."""
    channels: int = x.shape[1]
    if x.size < PARALLEL_FROM:
        return True
    count = threads.count()
    turns = -(-channels // count)
    return channels >= BUSY * turns * count


def moments(x: Array) -> tuple[Array, Array, Array]:
    """Return mean, low (what float64 rounds off the mean) and m2 of every channel."""
    mean, low, m2 = _per_channel(3, x)
    if _adjacent(x):
        _run(moments_kernels.moments_adjacent, x, _rows(x), mean, low, m2)
    else:
        _run(moments_kernels.moments_apart, x, x, mean, low, m2)
    return mean, low, m2


def forward(x: Array, weight: Array, bias: Array, eps: float, y: Array) -> tuple[Array, Array, Array, Array]:
    """Normalise with the batch's own statistics; return mean, low, m2, invstd."""
    if not _adjacent(x) and not _whole_channels(x):
        mean, low, m2 = moments(x)
        return mean, low, m2, normalize(x, mean, low, m2 / (x.shape[0] * x.shape[2]), weight, bias, eps, y)
    mean, low, m2, invstd = _per_channel(4, x)
    given = (weight, bias, eps, _past_cache(2, x))
    if _adjacent(x):
        _run(normalize_kernels.forward_adjacent, x, _rows(x), *given, _rows(y), mean, low, m2, invstd)
    else:
        _run(normalize_kernels.forward_apart, x, x, *given, y, mean, low, m2, invstd)
    return mean, low, m2, invstd


def normalize(x: Array, mean: Array, low: Array, var: Array, weight: Array, bias: Array, eps: float, y: Array) -> Array:
    """Normalise with given statistics; return invstd."""
    scale, shift, invstd = _per_channel(3, x)
    normalize_kernels.fold_parameters.get(mean.dtype, False)(low, var, weight, bias, eps, scale, shift, invstd)
    if _adjacent(x):
        _run(normalize_kernels.normalize_adjacent, x, _rows(x), mean, scale, shift, _past_cache(2, x), _rows(y))
    else:
        _run(normalize_kernels.normalize_apart, x, x, mean, scale, shift, _past_cache(2, x), y)
    return invstd


def sums(dy: Array, x: Array, mean: Array, low: Array, invstd: Array) -> tuple[Array, Array]:
    """Return the sums of dy and of dy * xhat of every channel."""
    sum_dy, sum_dy_xhat = _per_channel(2, x)
    if _adjacent(x):
        _run(backward_kernels.sums_adjacent, x, _rows(dy), _rows(x), mean, low, invstd, sum_dy, sum_dy_xhat)
    else:
        _run(backward_kernels.sums_apart, x, dy, x, mean, low, invstd, sum_dy, sum_dy_xhat)
    return sum_dy, sum_dy_xhat


def gradient(
    dy: Array, x: Array, weight: Array, mean: Array, low: Array, invstd: Array, sum_dy: Array, sum_dy_xhat: Array,
    count: int, frozen: bool, dx: Array,
) -> None:  # fmt: skip
    """Write dx from given sums over `count` values a channel."""
    statistics = (weight, mean, low, invstd, sum_dy, sum_dy_xhat, float(count), frozen, _past_cache(3, x))
    if _adjacent(x):
        _run(backward_kernels.gradient_adjacent, x, _rows(dy), _rows(x), *statistics, _rows(dx))
    else:
        _run(backward_kernels.gradient_apart, x, dy, x, *statistics, dx)


def backward(
    dy: Array, x: Array, weight: Array, mean: Array, low: Array, invstd: Array, frozen: bool, dx: Array
) -> tuple[Array, Array]:
    """Write dx; return the sums of dy and of dy * xhat of every channel."""
    if not _adjacent(x) and not _whole_channels(x):
        given = sums(dy, x, mean, low, invstd)
        gradient(dy, x, weight, mean, low, invstd, *given, x.shape[0] * x.shape[2], frozen, dx)
        return given
    sum_dy, sum_dy_xhat = _per_channel(2, x)
    statistics = (weight, mean, low, invstd, frozen, _past_cache(3, x))
    if _adjacent(x):
        _run(backward_kernels.backward_adjacent, x, _rows(dy), _rows(x), *statistics, _rows(dx), sum_dy, sum_dy_xhat)
    else:
        _run(backward_kernels.backward_apart, x, dy, x, *statistics, dx, sum_dy, sum_dy_xhat)
    return sum_dy, sum_dy_xhat
