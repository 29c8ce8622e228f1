"""Which arrays share memory."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def same(a: Array, b: Array) -> bool:
    """Return whether two arrays are the same memory seen in the same way."""
    return (
        a.__array_interface__["data"][0] == b.__array_interface__["data"][0]
        and a.shape == b.shape
        and (a.strides == b.strides or _steps(a) == _steps(b))
        and a.dtype == b.dtype
    )


def _steps(array: Array) -> list[int]:
    """Return the strides that matter: an axis of one element may have any."""
    return [stride for stride, n in zip(array.strides, array.shape, strict=True) if n > 1]


def overlap(a: Array, b: Array) -> bool:
    """Return whether two arrays share memory; where that is hard to tell, the answer is yes."""
    if not np.may_share_memory(a, b):
        return False
    try:
        return np.shares_memory(a, b, max_work=1000)  # type: ignore[arg-type]  # the stubs know 0 and -1 alone
    except np.exceptions.TooHardError:
        return True


def overlaps_itself(array: Array) -> bool:
    """Return whether two elements of an array may share memory: whether an axis steps less than those inside it span.

    Every layout that slicing and transposing an ordinary array can give is told rightly.
    """
    if array.size == 0:
        return False
    span = array.itemsize - 1
    for stride, n in sorted((abs(stride), n) for stride, n in zip(array.strides, array.shape, strict=True) if n > 1):
        if stride <= span:
            return True
        span += stride * (n - 1)
    return False
