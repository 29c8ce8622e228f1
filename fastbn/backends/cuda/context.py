"""What a forward pass on a GPU leaves for the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np

from fastbn.backends.cuda.arrays import library
from fastbn.context import Context, GhostContext
from fastbn.layout import Layout

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class DeviceContext(Context):
    """A `Context` whose x and saved rows are on a GPU. Looking at its statistics fetches them, and waits."""

    device = "cuda"

    __slots__ = ("corrections", "on_host", "saved_there")

    corrections: tuple[Array, Array] | None  # of `Renorm`: r and d
    on_host: tuple[bool, bool]  # whether weight and bias came from NumPy, and their gradients go there
    saved_there: Any

    @property
    def channels(self) -> int:
        """Return C."""
        return int(self.saved_there.shape[1])

    @property
    def saved(self) -> Array:
        """Return a copy of the saved rows on the host."""
        return library(self.saved_there).fetch(self.saved_there)

    @saved.setter
    def saved(self, value: Any) -> None:
        self.saved_there = value
        self.corrections = None

    @property
    def data(self) -> Any:
        """Return x on the GPU, or y that was written there."""
        return self.y if self.x is None else self.x


class SentContext(DeviceContext):
    """A `DeviceContext` of a NumPy array that was sent. Its x is on the GPU, as (N, C, S)."""

    __slots__ = ("caller_x", "layout")

    layout: Layout  # of the caller's x
    caller_x: Array  # or after a backward pass that overwrote it, nothing but its shape

    @property
    def like(self) -> Any:
        """Return the caller's x, which dy has to be like."""
        return None if self.x is None and self.y is None else self.caller_x


class DeviceGhostContext(GhostContext):
    """A `GhostContext` whose parts are on a GPU, or were sent there."""

    device = "cuda"

    __slots__ = ("each",)

    each: tuple[Context, ...]

    @property
    def saved(self) -> Array:
        """Return copies of the saved rows of all parts."""
        return np.stack([part.saved for part in self.each])

    @saved.setter
    def saved(self, value: Any) -> None:
        """Leave them to the parts."""

    @property
    def channels(self) -> int:
        """Return C."""
        return self.each[0].channels

    def parts(self) -> Iterator[Context]:
        """Return the context of every ghost batch."""
        return iter(self.each)
