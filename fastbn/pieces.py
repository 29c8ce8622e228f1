"""A data set in pieces: an array, perhaps on disk, or batches; and the statistics of channels, merged from pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fastbn import layout
from fastbn.checks import arrays, datasets
from fastbn.moments import Statistic
from fastbn.whitening import cpu

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Data: TypeAlias = Array | Iterable[Array]

# Values of an array that are taken at a time: 16 MB of float32. What is read is as much and what is written as much, so
# that a data set on disk needs some 32 MB of memory.
PIECE = 1 << 22


class Gathered:
    """Mean and products of channels of what was added, as offsets from the first mean, which keeps their digits."""

    def __init__(self, channels: int, groups: int) -> None:
        self.count = 0
        self.origin, self.offset = np.zeros((2, channels))
        self.products = np.zeros((groups, channels // groups, channels // groups))

    def add(self, x: Array, axis: int) -> None:
        """Merge the statistics of a piece."""
        count = x.size // self.origin.size
        if count == 0:
            return
        groups, d, _ = self.products.shape
        (mean, low), products = cpu().comoments(x, axis, d)
        if self.count == 0:
            self.origin, self.offset = mean, low
        share = count / (self.count + count)
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite stays so, without a warning
            delta = (mean - self.origin) + (low - self.offset)
            self.offset = self.offset + delta * share
            apart = delta.reshape(groups, d)
            self.products += products.reshape(groups, d, d)
            self.products += apart[:, :, None] * apart[:, None, :] * (self.count * share)
        self.count += count

    def mean(self) -> tuple[Statistic, Statistic]:
        """Return the mean and what float64 rounds off it (Knuth's TwoSum)."""
        with np.errstate(invalid="ignore"):
            mean = self.origin + self.offset
            back = mean - self.origin
            return mean, np.nan_to_num((self.origin - (mean - back)) + (self.offset - back))


@dataclass(frozen=True, slots=True, eq=False)
class Source:
    """A data set: an array, or batches."""

    array: Array | None
    batches: Iterable[Any]
    axis: int
    out: Array | None  # where the result goes, as the caller passed it

    @classmethod
    def of(cls, data: Data, axis: int, out: Array | None) -> Source:
        """Check a data set."""
        if not isinstance(data, np.ndarray):
            return cls(None, datasets.batches(data, out), axis, None)
        array = arrays.data(data, "data")
        arrays.axis(axis, array)
        if out is not None:
            arrays.output(out, array, {"data": array}, {})
        return cls(array, (), axis, out)

    def pieces(self) -> Iterator[Array]:
        """Go through it once."""
        if self.array is not None:
            yield from (self.array[piece] for piece in self._cuts(self.array))
            return
        channels: int | None = None
        for each in self.batches:
            batch = datasets.batch(each, self.axis, channels)
            channels = batch.shape[arrays.axis(self.axis, batch)]
            yield batch

    def prepared(self, transform: Callable[..., Array]) -> Any:
        """Go through it again."""
        if self.array is None:
            return (transform(batch) for batch in self.pieces())
        result = layout.empty(self.array) if self.out is None else self.out
        target = result.view(np.ndarray)
        for piece in self._cuts(self.array):
            transform(self.array[piece], out=target[piece])
        return result

    def _cuts(self, array: Array) -> Iterator[tuple[slice, ...]]:
        """Cut it along its first axis, or the second one if channels come first; depends on the shape alone."""
        along = 1 if self.axis % array.ndim == 0 else 0
        length = array.shape[along]
        step = max(1, PIECE * length // max(array.size, 1))
        for begin in range(0, length, step):
            piece = slice(begin, begin + step)
            yield (slice(None), piece) if along else (piece,)
