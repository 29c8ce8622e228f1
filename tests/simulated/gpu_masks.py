"""The twin of `fastbn_kernels.cuda.simd.masks` in plain Python."""

from __future__ import annotations

from typing import Any

import numpy as np

from simulated.gpu_vector import Pointer

__all__ = ["choose", "nothing"]


def nothing(x: Pointer) -> Any:
    """Return what was loaded from x if nothing was."""
    return np.zeros(x.count, x.array.dtype)


def choose(vector: tuple[Any, ...], bits: int) -> tuple[Any, ...]:
    """Return the vector with zero in the places whose bit is not set."""
    return tuple(value if bits >> i & 1 else type(value)(0) for i, value in enumerate(vector))
