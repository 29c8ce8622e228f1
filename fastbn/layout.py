"""Any shape and channel axis as the kernels' (N, C, S): outer, channels, inner.

Memory order decides, not the order of the axes: an (N, C, H, W) array stored channels-last is (N * H * W, C, 1).
Whatever is contiguous in some order of its axes is viewed and never copied; everything else is copied once.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class Layout(NamedTuple):
    """How an array is seen by the kernels."""

    order: tuple[int, ...]  # the axes, slowest first
    shape: tuple[int, int, int]  # (N, C, S)
    contiguous: bool  # whether the array in that order is C-contiguous, hence a view


@functools.lru_cache(maxsize=4096)
def analyse(shape: tuple[int, ...], strides: tuple[int, ...], itemsize: int, axis: int) -> Layout:
    """Return the layout of an array with elements and the given shape and strides; `axis` is not negative."""
    # Axes of size 1 have no place in memory and go first; otherwise the order of two equal layouts could differ.
    order = sorted(range(len(shape)), key=lambda i: (shape[i] > 1, -abs(strides[i])))
    expected = itemsize
    contiguous = True
    for i in reversed(order):
        if shape[i] > 1:
            contiguous = contiguous and strides[i] == expected
            expected *= shape[i]
    at = order.index(axis)
    N = math.prod(shape[i] for i in order[:at])
    S = math.prod(shape[i] for i in order[at + 1 :])
    return Layout(tuple(order), (N, shape[axis], S), contiguous)


def of(array: Array, axis: int) -> Layout:
    """Return the layout of an array."""
    layout = analyse(array.shape, array.strides, array.itemsize, axis)
    if layout.contiguous and not array.flags.aligned:
        return layout._replace(contiguous=False)
    return layout


def view(array: Array, layout: Layout) -> Array:
    """Return an array of a contiguous layout as (N, C, S), without a copy."""
    return array.transpose(layout.order).reshape(layout.shape)


def conform(array: Array, axis: int, layout: Layout, template: Array, scratch: Array | None = None) -> Array:
    """Return an array as (N, C, S) in `layout`: a view if it is stored that way, else a copy.

    `template` is an array stored in that layout. The copy goes into `scratch`, stored in that layout too, if given.
    """
    own = of(array, axis)
    if own.contiguous and own.order == layout.order:
        return view(array, own)
    if scratch is None:
        scratch = np.empty_like(template, subok=False)
    np.copyto(scratch, array)
    return view(scratch, of(scratch, axis))


def empty(like: Array) -> Array:
    """Return a new array in the memory order of `like`, contiguous even where `like` is not."""
    return np.empty_like(like, order="K", subok=False)
