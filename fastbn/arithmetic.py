"""In which arithmetic float32 data are computed: what `precision=` and `FASTBN_PRECISION` mean.

"fast" is float32, "exact" is float64, rounded once. Kernels know it by the dtype of what they are given: float32, or
the same memory as int32, its bits. Data of any other dtype have one arithmetic, whatever the precision.
"""

from __future__ import annotations

import os
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

NAMES = FAST, EXACT = "fast", "exact"
FLOAT32 = np.dtype(np.float32)
BITS = np.dtype(np.intc)  # the int32 whose character is "i" on every platform, by which kernels are kept

# What FASTBN_PRECISION says; None before the first call. Asking the environment takes 1 us of a call of 5.
default: str | None = None


def learn() -> str:
    """Read the environment, once in a process; empty is "fast"."""
    global default
    value = os.environ.get("FASTBN_PRECISION", "")
    if value not in ("", *NAMES):
        raise ValueError(f"FASTBN_PRECISION: expected 'fast' or 'exact' in the environment, got {value!r}")
    default = value or FAST
    return default


def forget() -> None:
    """Read the environment again at the next call."""
    global default
    default = None


def own() -> str:
    """Return the precision of this process, that of calls that ask for none."""
    return default or learn()


def seen(array: Array, precision: str) -> Array:
    """Return an array as a backend hands it to kernels: as its bits if it is float32 to be computed in float64."""
    return array.view(BITS) if precision == EXACT and array.dtype == FLOAT32 else array
