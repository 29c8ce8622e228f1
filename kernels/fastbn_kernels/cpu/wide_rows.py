"""Numbers of channels as those of a wide row, which is several narrow rows taken together (see `tiles`).

They are in the dtype of the arithmetic: float64, or float32 where the data have 16 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import overload

from fastbn_kernels.build.decorators import Array, scalar
from fastbn_kernels.cpu.simd.types import LANES
from fastbn_kernels.cpu.tiles import block_bounds, rows_together


def empty_numbers(x: Array, size: int) -> Array:
    """Return a new array for numbers that values of x are computed with."""
    return np.empty(size, np.float32 if x.itemsize == 2 else np.float64)


@overload(empty_numbers)  # type: ignore[untyped-decorator]
def _empty_numbers(x: Any, size: Any) -> Any:
    dtype = np.float32 if x.dtype.bitwidth == 16 else np.float64

    def implementation(x: Any, size: Any) -> Any:
        return np.empty(size, dtype)

    return implementation


@scalar
def repeat(values: Array, C: int) -> None:
    """Fill the array with its first C values over and over."""
    for c in range(C, values.size):
        values[c] = values[c - C]


@scalar
def add_repeats(values: Array, C: int) -> None:
    """Add what stands C, 2 C, ... behind each of the first C values to it."""
    for start in range(C, values.size, C):
        for c in range(C):
            values[c] += values[start + c]


@scalar
def wide(x: Array, values: Array) -> Array:
    """Return the numbers (C,) of every channel of x (R, C) as those of a wide row and LANES more."""
    C = values.size
    result = empty_numbers(x, rows_together(C) * C + LANES)
    for c in range(C):
        result[c] = values[c]
    repeat(result, C)
    return result


@scalar
def wide_rows(task: int, R: int, C: int) -> tuple[int, int, int, int, int, int, int]:
    """Return (start, step, rows, c0, c1, rest, tail) of a tile of x (R, C).

    It is `rows` wide rows, `step` elements each, whose columns c0 to c1 begin at element `start`; and `rest` rows of C
    channels from element `tail` on, too few for another wide row.
    """
    _, r0, r1, c0, c1 = block_bounds(task, R, C)
    together = rows_together(C)
    rows = (r1 - r0) // together
    rest = (r1 - r0) % together
    return r0 * C + c0, together * C, rows, c0, c1, rest, (r1 - rest) * C
