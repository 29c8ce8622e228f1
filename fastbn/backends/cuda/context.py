"""What a forward pass on a GPU leaves for the backward pass."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from fastbn.backends.cuda.arrays import library
from fastbn.context import Context
from fastbn.layout import Layout

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class DeviceContext(Context):
    """A `Context` whose x and saved rows are on a GPU. Looking at its statistics fetches them, and waits."""

    device = "cuda"

    __slots__ = ("on_host", "saved_there")

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


class SentContext(DeviceContext):
    """A `DeviceContext` of a NumPy array that was sent. Its x is on the GPU, as (N, C, S)."""

    __slots__ = ("caller_x", "layout")

    layout: Layout  # of the caller's x
    caller_x: Array  # or after a backward pass that overwrote it, nothing but its shape

    @property
    def like(self) -> Any:
        """Return the caller's x, which dy has to be like."""
        return None if self.x is None else self.caller_x
