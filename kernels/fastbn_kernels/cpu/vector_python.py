"""The operations of `vector` in NumPy: what they mean, and what runs under NUMBA_DISABLE_JIT=1."""

from __future__ import annotations

import numpy as np

from fastbn_kernels.jit import Array

LANES = 16


def load(array: Array, index: int) -> Array:
    """Return array.flat[index : index + LANES]."""
    return array.reshape(-1)[index : index + LANES].astype(np.float64)


def load_part(array: Array, index: int, count: int) -> Array:
    """Return array.flat[index : index + count] and zeros."""
    value = np.zeros(LANES)
    value[:count] = array.reshape(-1)[index : index + count]
    return value


def store(array: Array, index: int, value: Array) -> None:
    """Write array.flat[index : index + LANES]."""
    array.reshape(-1)[index : index + LANES] = value


def store_part(array: Array, index: int, count: int, value: Array) -> None:
    """Write array.flat[index : index + count]."""
    array.reshape(-1)[index : index + count] = value[:count]


def stream(array: Array, index: int, value: Array) -> None:
    """Write array.flat[index : index + LANES], aligned to 64 bytes."""
    assert offset_from_line(array, index) == 0
    store(array, index, value)


def offset_from_line(array: Array, index: int) -> int:
    """Return how many elements array.flat[index] lies behind a multiple of 64 bytes."""
    return int((array.ctypes.data + index * array.itemsize) % 64 // array.itemsize)


def prefetch(array: Array, index: int) -> None:
    """Do nothing."""


def fence() -> None:
    """Do nothing."""


def splat(value: float) -> Array:
    """Return a vector of one value."""
    return np.full(LANES, value)


def keep(value: Array, count: int) -> Array:
    """Return the vector with lanes from `count` on replaced by zero."""
    return np.where(np.arange(LANES) < count, value, 0.0)


def add(a: Array, b: Array) -> Array:
    """Return a + b."""
    return a + b


def sub(a: Array, b: Array) -> Array:
    """Return a - b."""
    return a - b


def mul(a: Array, b: Array) -> Array:
    """Return a * b."""
    return a * b


def fma(a: Array, b: Array, c: Array) -> Array:
    """Return a * b + c, which is rounded twice here."""
    return a * b + c


def total(value: Array) -> float:
    """Return the sum of the lanes: halves added to halves."""
    while value.size > 1:
        value = value[: value.size // 2] + value[value.size // 2 :]
    return float(value[0])
