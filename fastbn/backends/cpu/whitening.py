"""Launches of whitening on the processor: channels in groups of d, whose products are summed and which are combined.

Everything is computed in float64, from data of any dtype. Statistics of pairs of channels are (C, d), a row a channel.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fastbn import arithmetic, layout
from fastbn.backends.cpu import launch, plan
from fastbn.moments import Statistic
from fastbn_kernels.build import threads
from fastbn_kernels.cpu import kernel
from fastbn_kernels.saved import MEAN, MEAN_LO, ROWS

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class Comoments(NamedTuple):
    """Statistics of groups of d channels of one array."""

    mean: Statistic  # (2, C): a high and a low part
    products: Statistic  # (C, d): sums of (x_i - mean_i) * (x_j - mean_j)


def _seen(array: Array, own: layout.Layout) -> Array:
    """Return a contiguous array of a layout as the kernels take it."""
    return launch.as_bits(arithmetic.seen(own.view(array), arithmetic.EXACT))


def _launch(name: str, work: int, x: Array, *arguments: Any) -> None:
    parallel = work >= plan.PARALLEL_FROM and threads.count() > 1
    kernel(name).launch(x.dtype, parallel, x, *arguments)


def comoments(x: Array, axis: int, d: int) -> Comoments:
    """Return the mean of every channel, and sums of products of what differs from it; x is not empty."""
    if not layout.of(x, axis).contiguous:
        x = np.array(x, order="K")
    own = layout.of(x, axis)
    channels = x.shape[axis]
    saved = np.empty((ROWS, channels))
    launch.moments(arithmetic.seen(own.view(x), arithmetic.EXACT), saved)
    mean = np.stack([saved[MEAN], saved[MEAN_LO]])
    found = np.empty((channels, d + 1))
    seen = _seen(x, own)
    _launch("products", x.size * d, seen, mean, seen, mean, True, found)
    return Comoments(mean, np.ascontiguousarray(found[:, :d]))


def combined(x: Array, axis: int, mean: Statistic, matrix: Statistic, bias: Statistic, y: Array) -> None:
    """Write bias + matrix (x - mean), group by group, to y, which may be x."""
    source, target, buffer = layout.for_forward(x, y, axis)
    source, target = (launch.as_bits(arithmetic.seen(array, arithmetic.EXACT)) for array in (source, target))
    d = matrix.shape[1]
    if x.size:
        _launch("combine", x.size * d, source, mean, source, mean, np.ascontiguousarray(matrix), bias, d, target)
    if buffer is not None:
        y[...] = buffer


class Pair(NamedTuple):
    """A gradient and an x as kernels take them, and an array in whose layout both are."""

    dy: Array
    x: Array
    template: Array


def pair(dy: Array, x: Array, axis: int) -> Pair:
    """Bring a gradient and x into one layout."""
    dy, x, template = layout.for_backward(dy, x, axis)
    dy, x = (launch.as_bits(arithmetic.seen(array, arithmetic.EXACT)) for array in (dy, x))
    return Pair(dy, x, template)


def products(given: Pair, mean: Statistic, d: int) -> tuple[Statistic, Statistic]:
    """Return the sums of dy_i * (x_j - mean_j), (C, d), and those of dy, (C,)."""
    channels = mean.shape[1]
    found = np.empty((channels, d + 1))
    _launch("products", given.x.size * d, given.dy, np.zeros((2, channels)), given.x, mean, False, found)
    return np.ascontiguousarray(found[:, :d]), found[:, d].copy()


def gradient(given: Pair, dy_mean: Statistic, mean: Statistic, matrix: Statistic, d: int, axis: int, dx: Array) -> None:
    """Write matrix[:, :d] (dy - dy_mean), and + matrix[:, d:] (x - mean) if it is that wide, to dx."""
    fits = layout.of(dx, axis).fits(layout.of(given.template, axis))
    buffer = dx if fits else layout.empty(given.template)
    target = _seen(buffer, layout.of(buffer, axis))
    coefficients = np.ascontiguousarray(matrix), np.zeros(mean.shape[1])
    _launch("combine", given.x.size * d, given.dy, dy_mean, given.x, mean, *coefficients, d, target)
    if not fits:
        dx[...] = buffer
