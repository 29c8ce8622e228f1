"""What may be done after the normalization, by name: known without Numba."""

from __future__ import annotations

from typing import NamedTuple

from fastbn_kernels.activation_names import NAMES as NAMES
from fastbn_kernels.activation_names import SLOPE as SLOPE


class Activation(NamedTuple):
    """An activation of a call: its name and, of leaky_relu, its slope below zero."""

    name: str
    slope: float | None = None

    @property
    def invertible(self) -> bool:
        """Whether what it was applied to can be told from what came out."""
        return self.name == "leaky_relu" and self.slope is not None and self.slope > 0
