"""The operations of `vector` in NumPy: what they mean, and what runs under NUMBA_DISABLE_JIT=1."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastbn_kernels.build.decorators import Array
from fastbn_kernels.formulas import unit_of

LANES = 16


def decode(array: Array) -> Array:
    """Return stored elements as they are computed with: float32, or float64 if they are that or the bits of float32."""
    if array.dtype == np.int16:
        return array.view(np.float16).astype(np.float32)
    if array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    if array.dtype == np.int32:
        return array.view(np.float32).astype(np.float64)
    return array.copy()


def encode(vector: Array, dtype: np.dtype[np.generic]) -> Array:
    """Round computed values to elements as they are stored."""
    if dtype == np.int16:
        with np.errstate(over="ignore"):
            return vector.astype(np.float16).view(np.int16)
    if dtype == np.uint16:
        bits = vector.astype(np.float32).view(np.uint32)
        rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
        return np.where(np.isnan(vector), 0x7FC0, rounded).astype(np.uint16)
    with np.errstate(over="ignore"):
        return vector.astype(np.float32).view(np.int32) if dtype == np.int32 else vector.astype(dtype)


def reach(count: int | Array | None) -> int:
    """Return how many elements an operation may touch: all, the first so many, or up to the last one chosen."""
    if isinstance(count, np.ndarray):
        return int(np.flatnonzero(count)[-1]) + 1 if count.any() else 0
    return LANES if count is None else count


def span(array: Array, index: int, count: int | None) -> Array:
    """Return a view of array.flat[index : index + count], all of which must be there; None stands for LANES."""
    count = LANES if count is None else count
    if not (0 <= count <= LANES and 0 <= index <= index + count <= array.size):
        raise IndexError(f"a vector reaches out of its array: {index} + {count} of {array.size}")
    return array.reshape(-1)[index : index + count]


def _filled(part: Array) -> Array:
    return np.concatenate([part, np.zeros(LANES - part.size, part.dtype)])


def load(array: Array, index: int, count: int | Array | None) -> Array:
    """Return array.flat[index : index + LANES], or of a part and zeros."""
    found = reach(count)
    if not found:  # no flag: the index may be anywhere
        zeros: Array = splat(array, 0.0)
        return zeros
    return keep(_filled(decode(span(array, index, found))), count)


def param(array: Array, row: int, index: int, count: int | None) -> Array:
    """Return array[row, index : index + LANES] of parameters in the dtype of the arithmetic, or of a part."""
    return _filled(span(array, row * array.shape[1] + index, count).copy())


def value(array: Array, index: int) -> float:
    """Return array.flat[index] as a float64."""
    return float(decode(span(array, index, 1))[0])


def address(array: Array) -> int:
    """Return where an array begins."""
    return array.ctypes.data


def single(array: Array) -> bool:
    """Return whether values of an array are computed in float32."""
    return array.dtype not in (np.float64, np.int32)


def rounded(array: Array, number: float) -> float:
    """Return a number as the arithmetic on an array holds it."""
    return float(np.float32(number)) if single(array) else number


def store(array: Array, index: int, count: int | Array | None, vector: Array) -> None:
    """Write array.flat[index : index + LANES], or a part."""
    found = reach(count)
    if not found:
        return
    chosen = count[:found] if isinstance(count, np.ndarray) else slice(None)
    span(array, index, found)[chosen] = encode(vector[:found], array.dtype)[chosen]


def stream(array: Array, index: int, vector: Array) -> None:
    """Write array.flat[index : index + LANES], which `offset_from_line` calls aligned."""
    assert offset_from_line(array, index) == 0
    store(array, index, None, vector)


def offset_from_line(array: Array, index: int) -> int:
    """Return how many elements array.flat[index] lies behind a multiple of a vector's bytes, at most 64."""
    return int((array.ctypes.data + index * array.itemsize) % min(64, LANES * array.itemsize) // array.itemsize)


def prefetch(array: Array | None, index: int) -> None:
    """Do nothing."""


def fence() -> None:
    """Do nothing."""


def splat(array: Array, number: float | tuple[float, ...]) -> Any:
    """Return a vector of one number, to compute with values of an array; of a tuple of numbers, a tuple of vectors."""
    if isinstance(number, tuple):
        return tuple(splat(array, each) for each in number)
    return np.full(LANES, number, np.float32 if single(array) else np.float64)


def like(vector: Array, number: float) -> Array:
    """Return a vector of one number, to compute with another vector."""
    return np.full(LANES, number, vector.dtype)


def keep(vector: Array, count: int | Array | None) -> Array:
    """Return the vector with lanes that `count`, if that is not None, does not stand for replaced by zero."""
    if count is None:
        return vector
    chosen = count if isinstance(count, np.ndarray) else np.arange(LANES) < count
    return np.where(chosen, vector, vector.dtype.type(0))


def centre(array: Array, vector: Array, minus: Array, unit: Array) -> Array:
    """Return (vector - mean) * unit of values of an array, given minus = -mean * unit."""
    return vector * unit + minus


def add(a: Array, b: Array) -> Array:
    """Return a + b."""
    with np.errstate(over="ignore"):
        return a + b


def sub(a: Array, b: Array) -> Array:
    """Return a - b."""
    return a - b


def mul(a: Array, b: Array) -> Array:
    """Return a * b."""
    return a * b


def div(a: Array, b: Array) -> Array:
    """Return a / b; lanes that do not count may divide nothing by nothing."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return a / b


def fma(a: Array, b: Array, c: Array) -> Array:
    """Return a * b + c, which is rounded twice here."""
    return a * b + c


def clamp(a: Array, low: float, high: float | None) -> Array:
    """Return a where it is between two numbers or NaN, else the nearer of them; of zeros, the number."""
    high = np.inf if high is None else high
    return np.where(a <= low, a.dtype.type(low), np.where(a >= high, a.dtype.type(high), a))


def narrow(array: Array, vector: Array) -> Array:
    """Return a vector of the arithmetic on an array as float32, unless the array is float64."""
    with np.errstate(over="ignore"):
        return vector.astype(np.float64 if array.dtype == np.float64 else np.float32)


def arithmetic(array: Array, vector: Array) -> Array:
    """Return what `narrow` returned, or was computed of that, as a vector of the arithmetic on an array."""
    return vector.astype(np.float32 if single(array) else np.float64)


def exp_neg_abs(array: Array, a: Array) -> Array:
    """Return exp(-|a|) as `narrow` returns a, but of a as it is; rounded once, where its own errs by two units."""
    return narrow(array, np.exp(-np.abs(a).astype(np.float64)))


def _normal(a: Array) -> tuple[Array, Array, Array]:
    """Return a, at least -40, its normal distribution, and the density."""
    wide = np.maximum(a.astype(np.float64), -40)
    exact = -wide.astype(np.longdouble) / np.sqrt(np.longdouble(2))
    rounded = exact.astype(np.float64)  # whose error counts far from zero
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        bell = np.exp(-exact * exact) / np.sqrt(np.longdouble(np.pi))
        off = np.where(bell > 0, bell * (exact - rounded), 0)
        beyond = np.array([math.erfc(x) / 2 for x in rounded]) - off
    return wide, beyond.astype(np.float64), (bell / np.sqrt(np.longdouble(2))).astype(np.float64)


def gelu(array: Array, a: Array) -> Array:
    """Return a (1 + erf(a / sqrt(2))) / 2 likewise."""
    wide, phi, _ = _normal(a)
    return narrow(array, wide * phi)


def gelu_slope(array: Array, a: Array) -> Array:
    """Return its derivative likewise."""
    wide, phi, density = _normal(a)
    return narrow(array, phi + np.minimum(wide, 40) * density)


def tanh(a: Array) -> Array:
    """Return tanh(a)."""
    return np.tanh(a)


def where_above(a: Array, b: Array, c: Array) -> Array:
    """Return b in lanes where a is positive, else c."""
    return np.where(a > 0, b, c)


def where_positive(a: Array, b: Array) -> Array:
    """Return b in lanes where a is positive or NaN, else zero."""
    return np.where(a <= 0, b.dtype.type(0), b)


def where_negative(a: Array, b: Array, c: Array) -> Array:
    """Return b in lanes where a has a negative sign, else c."""
    return np.where(np.signbit(a), b, c)


def where_between(a: Array, low: float, high: float, b: Array) -> Array:
    """Return b in lanes where low < a < high or a is NaN, else zero."""
    return np.where((a <= low) | (a >= high), b.dtype.type(0), b)


def widen(vector: Array) -> Array:
    """Return a vector as float64."""
    return vector.astype(np.float64)


def packed(mask: Array, index: int, count: int, vector: int) -> np.uint64:
    """Return the bits of mask.flat[index : index + count], booleans, as those of one of the 4 vectors of a word."""
    assert 0 <= index <= index + count <= mask.size
    chosen = np.flatnonzero(mask.reshape(-1)[index : index + count])
    return np.uint64(sum(1 << int(i) for i in chosen) << (vector * LANES))


def packed_word(mask: Array, index: int) -> np.uint64:
    """Return the bits of mask.flat[index : index + 64]."""
    assert 0 <= index <= index + 64 <= mask.size
    return np.uint64(sum(1 << int(i) for i in np.flatnonzero(mask.reshape(-1)[index : index + 64])))


def flags(word: int, vector: int) -> Array:
    """Return the flags of one of the 4 vectors of a word: booleans here."""
    return np.array([int(word) >> (int(vector) * LANES + i) & 1 for i in range(LANES)], bool)


def shifted(word: int, following: int, by: int) -> np.uint64:
    """Return the 64 bits from bit `by` on of a word and the one that follows."""
    return np.uint64((int(word) | int(following) << 64) >> int(by) & 2**64 - 1)


def ones(word: int) -> int:
    """Return how many positions of a word count."""
    return int(word).bit_count()


def lowest(word: int) -> int:
    """Return the first position of a word that counts."""
    return (int(word) & -int(word)).bit_length() - 1


def put(array: Array, row: int, index: int, count: int, vector: Array) -> None:
    """Write `count` numbers to array[row, index : index + count], rounded to its dtype."""
    assert 0 <= index <= index + count <= array.shape[1]
    with np.errstate(over="ignore"):
        array[row, index : index + count] = vector[:count]


def put_value(array: Array, index: int, number: float) -> None:
    """Write a float64 number to array.flat[index], as the array stores it."""
    span(array, index, 1)[...] = encode(fitted(array, np.array([number])), array.dtype)


def fitted(array: Array, vector: Array) -> Array:
    """Return float64 numbers as those that values of an array are computed in."""
    with np.errstate(over="ignore"):
        return vector.astype(np.float32) if single(array) else vector


def sqrt(a: Array) -> Array:
    """Return the square root."""
    with np.errstate(invalid="ignore"):
        return np.sqrt(a)


def finite(a: Array) -> Array:
    """Return a where it is finite, else zero."""
    return np.where(np.isfinite(a), a, 0.0)


def held(array: Array, a: Array) -> Array:
    """Return numbers as the arithmetic on an array holds them."""
    with np.errstate(over="ignore"):
        return a.astype(np.float32).astype(np.float64) if single(array) else a


def unit_by(array: Array, mean: Array, invstd: Array) -> Array:
    """Return `formulas.unit_of` of values of an array, or 1 where they are computed in float64."""
    if not single(array):
        return np.ones(LANES)
    return np.array([unit_of(*pair) for pair in zip(mean, invstd, strict=True)])


def total(vector: Array) -> float:
    """Return the sum of float64 lanes: halves added to halves."""
    while vector.size > 1:
        vector = vector[: vector.size // 2] + vector[vector.size // 2 :]
    return float(vector[0])
