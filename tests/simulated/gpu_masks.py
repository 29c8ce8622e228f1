"""The twin of `fastbn_kernels.cuda.simd.masks` in plain Python."""

from __future__ import annotations

from typing import Any

__all__ = ["choose"]


def choose(vector: tuple[Any, ...], bits: int) -> tuple[Any, ...]:
    """Return the vector with zero in the places whose bit is not set."""
    return tuple(value if bits >> i & 1 else type(value)(0) for i, value in enumerate(vector))
