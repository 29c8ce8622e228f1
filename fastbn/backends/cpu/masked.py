"""Launches of what a mask chooses: the functions of `launch`, with a mask behind x.

Arrays of data come as for `launch`: (N, C, S), as `arithmetic.seen` made them. The mask is booleans (N, S), contiguous,
for the positions of all channels; where it is False, nothing is read, and zeros are written. Statistics are those of
the positions that count; without any, means and sums are 0 and variances NaN. Where all count, sums are those
of `launch`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastbn.backends.cpu import launch
from fastbn.backends.cpu.launch import Array, as_bits, plan_of, with_arrays
from fastbn.moments import held_mean
from fastbn_kernels.cpu import kernel
from fastbn_kernels.cpu.simd.masks import WORD
from fastbn_kernels.cpu.tiles import tile_count
from fastbn_kernels.saved import M2, MEAN, MEAN_LO, VAR

# The dtype that a kernel without data is kept under.
NO_DATA = np.dtype(np.float64)

# Positions from which threads are woken to pack a mask: some 20 us of one thread.
PACKED_FROM = 1 << 18

# The names of all kernels that are launched here: of an operation, channels first or last.
OPERATIONS = "moments", "normalize", "sums", "gradient"
KERNELS = (
    "pack_mask", "masked_forward_channels_first", "masked_backward_channels_first",
    *(f"masked_{operation}_{order}" for operation in OPERATIONS for order in ("channels_first", "channels_last")),
)  # fmt: skip


class Masked:
    """One tensor and its mask, as kernels take both.

    Parameters
    ----------
    x : array, (N, C, S)
        What is normalised, for its shape and dtype too.
    mask : array of bool, (N, S)
        The positions that count.
    """

    def __init__(self, x: Array, mask: Array) -> None:
        own = plan_of(x)
        self.in_rows, self.parallel, self.past_cache = own.in_rows, own.parallel, own.past_cache
        self.whole_channels = not own.in_rows and own.family != "tiles"
        self.x = self.data(x)
        if self.in_rows:
            rows = np.flatnonzero(mask)
            self.count = rows.size
            self.chosen: tuple[Array, ...] = ((rows * x.shape[1]).astype(np.int64, copy=False),)
        else:
            N, S = mask.shape
            words = np.empty((N, -(-S // WORD) + 1), np.uint64)
            tiles = np.empty((tile_count(N, S) + 1, 2), np.int64)
            kernel("pack_mask").launch(NO_DATA, self.parallel and mask.size >= PACKED_FROM, mask, words, tiles)
            self.count = int(tiles[-1, 0])
            self.chosen = words, tiles

    def data(self, array: Array) -> Array:
        """Return an array like x as kernels take it."""
        array = as_bits(array)
        return array[:, :, 0] if self.in_rows else array

    def tail(self, tail: Any) -> Any:
        """Return what is done after the normalization, with its arrays as kernels take them."""
        return with_arrays(tail, self.data)

    def launch(self, operation: str, *arguments: Any) -> None:
        """Run the kernel of an operation; arguments are those behind the mask, and before it dy if it is an array."""
        order = "channels_last" if self.in_rows else "channels_first"
        kernel(f"masked_{operation}_{order}").launch(self.x.dtype, self.parallel, *arguments)

    def moments(self, saved: Array) -> None:
        """Fill MEAN, MEAN_LO and M2."""
        self.launch("moments", self.x, *self.chosen, saved)

    def normalize(self, saved: Array, eps: float, y: Array, tail: Any) -> None:
        """Normalise with MEAN, MEAN_LO and VAR; fill INVSTD."""
        self.launch("normalize", self.x, *self.chosen, saved, eps, self.past_cache[0], self.data(y), self.tail(tail))

    def sums(self, dy: Array, saved: Array, tail: Any) -> Array:
        """Return the sums of dy and of dy * xhat."""
        found = np.empty((2, saved.shape[1]))
        self.launch("sums", self.data(dy), self.x, *self.chosen, saved, found, self.tail(tail))
        return found

    def gradient(
        self, dy: Array, saved: Array, sums: Array, count: float, frozen: bool, dx: Array, tail: Any
    ) -> None:  # fmt: skip
        """Write dx from given sums."""
        data = self.data(dy), self.x
        options = float(count), frozen, self.past_cache[1]
        self.launch("gradient", *data, *self.chosen, saved, sums, *options, self.data(dx), self.tail(tail))


def moments(x: Array, mask: Array, saved: Array) -> None:
    """Fill MEAN, MEAN_LO and M2."""
    if mask.all():
        launch.moments(x, saved)
    else:
        Masked(x, mask).moments(saved)


def forward(x: Array, mask: Array, saved: Array, eps: float, y: Array, tail: Any = None) -> None:
    """Normalise with the statistics of what counts; WEIGHT and BIAS are given, all other rows are filled.

    Whole channels are summed and normalised from the cache of one thread; where there are too few of them, or rows,
    x is read from memory twice.
    """
    if mask.all():
        launch.forward(x, saved, eps, y, tail)
        return
    own = Masked(x, mask)
    if own.whole_channels:
        options = eps, float(own.count), own.past_cache[0]
        own.launch("forward", own.x, *own.chosen, saved, *options, own.data(y), own.tail(tail))
    else:
        own.moments(saved)
        if not own.in_rows:  # of rows, moments come with the variance, and renormalized
            with np.errstate(invalid="ignore"):
                saved[VAR] = saved[M2] / float(own.count)
            launch.renormalize(saved, 0, saved.shape[1])
        own.normalize(saved, eps, y, tail)


def normalize(x: Array, mask: Array, saved: Array, eps: float, y: Array, tail: Any = None) -> None:
    """Normalise with MEAN, MEAN_LO and VAR; fill INVSTD. For 16-bit x, fill MEAN_LO with what MEAN is rounded by."""
    if x.itemsize == 2:
        saved[MEAN], saved[MEAN_LO] = held_mean(saved[MEAN])
    Masked(x, mask).normalize(saved, eps, y, tail)


def sums(dy: Array, x: Array, mask: Array, saved: Array, tail: Any = None) -> Array:
    """Return the sums of dy and of dy * xhat of every channel, (2, C), over what counts."""
    return launch.sums(dy, x, saved, tail) if mask.all() else Masked(x, mask).sums(dy, saved, tail)


def gradient(
    dy: Array, x: Array, mask: Array, saved: Array, sums: Array, count: float, frozen: bool, dx: Array,
    tail: Any = None,
) -> None:  # fmt: skip
    """Write dx from given sums, (2, C), over `count` values a channel."""
    Masked(x, mask).gradient(dy, saved, sums, count, frozen, dx, tail)


def backward(dy: Array, x: Array, mask: Array, saved: Array, frozen: bool, dx: Array, tail: Any = None) -> Array:
    """Write dx; return the sums of dy and of dy * xhat of every channel, (2, C), over what counts."""
    if mask.all():
        return launch.backward(dy, x, saved, frozen, dx, tail)
    own = Masked(x, mask)
    if not own.whole_channels:
        found = own.sums(dy, saved, tail)
        own.gradient(dy, saved, found, max(own.count, 1), frozen, dx, tail)
        return found
    found = np.empty((2, saved.shape[1]))
    options = float(max(own.count, 1)), frozen, own.past_cache[1]  # through frozen statistics there may be none
    own.launch("backward", own.data(dy), own.x, *own.chosen, saved, *options, own.data(dx), found, own.tail(tail))
    return found
