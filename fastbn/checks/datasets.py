"""Checks of whitening, and of data sets: groups of channels, one array or several batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np

from fastbn.checks import arrays, scalars

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

METHODS = "zca", "pca"


def groups(value: object, channels: int, of: str = "num_features") -> int:
    """Check the number of groups that channels are whitened in, and return it."""
    result = scalars.integer("groups", value)
    if not 1 <= result <= channels or channels % result:
        raise ValueError(
            f"groups: expected a divisor of {of}, {channels}, for groups of as many channels each, got {result}"
        )
    return result


def method(value: object) -> str:
    """Check how to decorrelate."""
    if isinstance(value, str) and value in METHODS:
        return value
    kind = ValueError if isinstance(value, str) else TypeError
    raise kind(f"method: expected 'zca' or 'pca', got {scalars.described(value)}")


def regularization(value: object) -> float:
    """Check what is added to the variances of a data set."""
    expected = "a number >= 0"
    result = scalars.number("eps", value, expected)
    if result < 0.0:
        raise ValueError(f"eps: expected {expected}, got {result}")
    return result


def batches(value: object, out: object) -> Iterable[Any]:
    """Check data that are no array: something to go through twice, and no place for all of it."""
    if isinstance(value, str | bytes) or not isinstance(value, Iterable):
        raise TypeError(f"data: expected a numpy.ndarray or batches of them, got {scalars.described(value)}")
    if isinstance(value, Iterator):
        raise TypeError(
            f"data: expected batches that can be gone through twice, for the statistics and for the result, got an "
            f"iterator ({type(value).__name__}), which is at its end after once; pass a list, or an object whose "
            "__iter__ begins anew"
        )
    if out is not None:
        raise ValueError("out: expected None for batches, whose results come one after the other, got an array")
    return value


def batch(value: object, axis: int, channels: int | None) -> Array:
    """Check one of several batches; the first says how many channels the others have."""
    array = arrays.data(value, "data")
    own = arrays.axis(axis, array)
    if channels is not None and array.shape[own] != channels:
        raise ValueError(
            f"data: expected {channels} channels along axis {axis} in every batch, as in the first, "
            f"got shape {array.shape}"
        )
    return array


def some(count: int) -> None:
    """Check that there is something to take statistics of."""
    if count == 0:
        raise ValueError("data: expected at least one value a channel, got none")
