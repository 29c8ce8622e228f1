"""Cases, their numbers, and the layouts that the same numbers are given in.

A tensor is drawn as (C, n): n values of each of C channels. Every layout holds the same values of every channel, so
what one implementation is given and what another is given, in another layout, have one exact result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from problem import numpy_dtype, parameter_dtype

# Values that are worked on together where 80-bit temporaries of a whole tensor would be too large.
PIECE = 1 << 20

LAYOUTS = ("NC", "NCL", "NCHW", "NHWC", "channels_last")

# "none" is neither a weight nor a bias. In "near" and "cancelling" the bias of every channel cancels weight * xhat of
# one of its values: up to a millionth, or to the last place, where y is what rounding the bias left, some 2^-25 of it.
AFFINE = ("none", "random", "near", "cancelling")
LEFT = {"near": 2.0**-20, "cancelling": 0.0}


@dataclass(frozen=True)
class Case:
    """What numbers are drawn."""

    dtype: str
    channels: int
    split: tuple[int, int, int]  # N, H, W
    offset: float = 0.0  # of the mean, in standard deviations
    std: float = 1.0
    affine: str = "random"

    @property
    def count(self) -> int:
        """Values a channel."""
        return int(np.prod(self.split))

    @property
    def eps(self) -> float:
        """The usual one at the usual scale; at others, one that means something (as in `test_numerics.py`).

        It is a float32, which is what some take it as, and so no more than 1e38.
        """
        return float(np.float32(1e-5 if self.std == 1 else min(1e-3 * self.std**2 + 1e-45, 1e38)))

    @property
    def label(self) -> str:
        """What sets the case apart from others of its dtype and count."""
        return f"mean {self.offset:g} std" if self.std == 1 else f"std {self.std:g}"


class Problem(NamedTuple):
    """The numbers of a case: x and dy (C, n); weight and bias (C,) or None."""

    case: Case
    x: np.ndarray
    dy: np.ndarray
    weight: np.ndarray | None
    bias: np.ndarray | None

    def arrange(self, values: np.ndarray, layout: str) -> np.ndarray:
        """Return values (C, n) in a layout."""
        box = values.reshape(self.case.channels, *self.case.split)
        if layout == "NC":
            return np.ascontiguousarray(values.T)
        if layout in ("NCHW", "NCL"):
            images = np.ascontiguousarray(box.transpose(1, 0, 2, 3))
            return images if layout == "NCHW" else images.reshape(*images.shape[:2], -1)
        last = np.ascontiguousarray(box.transpose(1, 2, 3, 0))
        return last if layout == "NHWC" else last.transpose(0, 3, 1, 2)


def axis(layout: str) -> int:
    """Return the channel axis of a layout."""
    return -1 if layout == "NHWC" else 1


def restore(array: Any, channel_axis: int) -> np.ndarray:
    """Return an array of any layout as (C, n)."""
    first = np.moveaxis(np.asarray(array), channel_axis, 0)
    return first.reshape(first.shape[0], -1)


def pieces(channels: int, count: int) -> Iterator[slice]:
    """Yield the columns of (C, n) in pieces."""
    step = max(1, PIECE // channels)
    for start in range(0, count, step):
        yield slice(start, min(count, start + step))


def draw(case: Case, rng: np.random.Generator) -> Problem:
    """Return fresh numbers. dy is as large as xhat, whatever the scale of x."""
    dtype = numpy_dtype(case.dtype)
    shape = case.channels, case.count
    x, dy = np.empty(shape, dtype), np.empty(shape, dtype)
    for at in pieces(*shape):
        part = x[:, at].shape
        x[:, at] = (rng.standard_normal(part) * case.std + case.offset * case.std).astype(dtype)
        dy[:, at] = rng.standard_normal(part).astype(dtype)
    if case.affine == "none":
        return Problem(case, x, dy, None, None)
    own = parameter_dtype(dtype)
    weight, bias = rng.standard_normal((2, case.channels)).astype(own)
    if case.affine in LEFT:
        chosen = rng.integers(0, case.count, case.channels)
        wide = x.astype(np.longdouble)
        wide -= wide[:, :1]  # as in `exact`
        mean = wide.mean(1)
        invstd = 1 / np.sqrt(((wide - mean[:, None]) ** 2).mean(1) + np.longdouble(case.eps))
        xhat = (wide[np.arange(case.channels), chosen] - mean) * invstd
        bias = (-weight * xhat * (1 + LEFT[case.affine])).astype(own)
    return Problem(case, x, dy, weight, bias)
