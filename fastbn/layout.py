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
    in_order: bool  # whether that order is the array's own
    compact_shape: tuple[int, ...]  # the shape without an S of 1
    per_channel: int  # values a channel
    size: int  # values

    def view(self, array: Array) -> Array:
        """Return a contiguous array of this layout as (N, C, S), without a copy."""
        return array.reshape(self.shape) if self.in_order else array.transpose(self.order).reshape(self.shape)

    def compact(self, array: Array) -> Array:
        """Return a contiguous array of this layout as (N, C) if S is 1, else as (N, C, S), without a copy."""
        if self.in_order and array.shape == self.compact_shape:  # a square array in another order has that shape too
            return array
        return array.reshape(self.compact_shape) if self.in_order else self.view(array).reshape(self.compact_shape)

    def positions(self, mask: Array) -> Array:
        """Return a mask, in the shape of an array of this layout with one channel, as (N, S)."""
        N, _, S = self.shape
        return np.ascontiguousarray(mask.transpose(self.order)).reshape(N, S)

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
    in_order = order == list(range(len(shape)))
    full = N, shape[axis], S
    compact = full[:2] if S == 1 else full
    return Layout(tuple(order), full, contiguous, in_order, compact, N * S, math.prod(shape))


def of(array: Array, axis: int) -> Layout:
    """Return the layout of an array."""
    layout = analyse(array.shape, array.strides, array.itemsize, axis)
    if layout.contiguous and not array.flags.aligned:
        return layout._replace(contiguous=False)
    return layout


def empty(like: Array) -> Array:
    """Return a new array in the memory order of `like`, contiguous even where `like` is not."""
    return np.empty_like(like, order="K", subok=False)


def conform(array: Array, axis: int, scratch: Array, *, copy: bool = False) -> Array:
    """Return an array as (N, C, S) in the layout of `scratch`: a view if it is stored so, else a copy.

    The copy is `scratch`, or with `copy` a new array like it.
    """
    own, target = of(array, axis), of(scratch, axis)
    if own.fits(target):
        return own.view(array)
    if copy:
        scratch = empty(scratch)
    np.copyto(scratch, array)
    return target.view(scratch)


def for_forward(x: Array, y: Array, axis: int) -> tuple[Array, Array, Array | None]:
    """Return x and y as (N, C, S) in one layout, and a buffer to copy to y afterwards, if there must be one.

    An x that cannot be viewed is copied into y and normalised there.
    """
    own, target = of(x, axis), of(y, axis)
    if own.fits(target) or (target.contiguous and not own.contiguous):
        return conform(x, axis, y), target.view(y), None
    buffer = empty(x)
    return conform(x, axis, buffer), of(buffer, axis).view(buffer), buffer


def for_backward(dy: Array, x: Array, axis: int) -> tuple[Array, Array, Array]:
    """Return dy and x as (N, C, S) in one layout, and an array that is stored in it."""
    template = next((array for array in (x, dy) if of(array, axis).contiguous), None)
    if template is None:
        template = x = np.array(x, order="K")
    layout = of(template, axis)
    views = [
        layout.view(array) if of(array, axis).fits(layout) else conform(array, axis, empty(template))
        for array in (dy, x)
    ]
    return views[0], views[1], template
