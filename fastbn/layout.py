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
    contiguous: bool  # whether the array in that order is C-contiguous, hence can be viewed

    def fits(self, other: Layout) -> bool:
        """Return whether arrays of one shape in these layouts can go through a kernel together."""
        return self.contiguous and other.contiguous and self.order == other.order


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


def empty(like: Array) -> Array:
    """Return a new array in the memory order of `like`, contiguous even where `like` is not."""
    return np.empty_like(like, order="K", subok=False)


def conform(array: Array, axis: int, scratch: Array) -> Array:
    """Return an array as (N, C, S) in the layout of `scratch`: a view if it is stored so, else a copy in `scratch`."""
    own, target = of(array, axis), of(scratch, axis)
    if own.fits(target):
        return view(array, own)
    np.copyto(scratch, array)
    return view(scratch, target)


def for_forward(x: Array, y: Array, axis: int) -> tuple[Array, Array, Array | None]:
    """Return x and y as (N, C, S) in one layout, and a buffer to copy to y afterwards, if there must be one.

    An x that cannot be viewed is copied into y and normalised there.
    """
    own, target = of(x, axis), of(y, axis)
    if own.fits(target) or (target.contiguous and not own.contiguous):
        return conform(x, axis, y), view(y, target), None
    buffer = empty(x)
    return conform(x, axis, buffer), view(buffer, of(buffer, axis)), buffer


def for_backward(dy: Array, x: Array, axis: int) -> tuple[Array, Array, Array]:
    """Return dy and x as (N, C, S) in one layout, and an array that is stored in it."""
    template = next((array for array in (x, dy) if of(array, axis).contiguous), None)
    if template is None:
        template = x = np.array(x, order="K")
    layout = of(template, axis)
    views = [
        view(array, layout) if of(array, axis).fits(layout) else conform(array, axis, empty(template))
        for array in (dy, x)
    ]
    return views[0], views[1], template
