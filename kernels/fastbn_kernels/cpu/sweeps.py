"""Sweeps over one tile of a tensor (see `tiles`): its sums, or its results. dy, x and tail as in `element`.

Results are written last segment first: of a channel larger than the cache, the second sweep then meets first what the
first one left there. With `past_cache` they go to memory directly: storing them through the cache would first read what
stood there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba.extending import overload

from fastbn_kernels.build.decorators import Array, scalar
from fastbn_kernels.cpu.loops.row_streams import sum_rows, write_rows
from fastbn_kernels.cpu.loops.segments import segments_sums, to_line, write_segment
from fastbn_kernels.cpu.simd.ops import fence, single
from fastbn_kernels.cpu.simd.types import LANES, computed, lanes64
from fastbn_kernels.cpu.tiles import block_bounds, rows_together, tile_bounds

# ---------------------------------------------------------------- channels first


@scalar
def tile_sums(
    dy: Array | None, x: Array, c: int, tile: int, shift: tuple[float, ...], tail: Any
) -> tuple[float, float]:
    """Return the two sums over one tile of channel c."""
    N, C, S = x.shape
    n0, n1, s0, s1 = tile_bounds(tile, N, S)
    t, p = segments_sums(dy, x, (n0 * C + c) * S + s0, C * S, n1 - n0, s1 - s0, shift, tail)
    return t, p


@scalar
def write_tile(
    dy: Array | None, x: Array | None, c: int, tile: int, params: tuple[float, ...], out: Array, past_cache: bool,
    tail: Any,
) -> None:  # fmt: skip
    """Write the results of one tile of channel c."""
    N, C, S = out.shape
    n0, n1, s0, s1 = tile_bounds(tile, N, S)
    for i in range(n1 - n0):
        start = ((n1 - 1 - i) * C + c) * S + s0
        write_segment(dy, x, start, s1 - s0, params, out, past_cache, tail)
    if past_cache:
        fence()


# ---------------------------------------------------------------- channels last


def empty_params(x: Array, rows: int, columns: int) -> Array:
    """Return a new array of parameters a column, in the dtype that values of x are computed in."""
    return np.empty((rows, columns), np.float32 if single(x) else np.float64)


@overload(empty_params)  # type: ignore[untyped-decorator]
def _empty_params(x: Any, rows: Any, columns: Any) -> Any:
    dtype = np.float64 if computed(x) is lanes64 else np.float32

    def implementation(x: Any, rows: Any, columns: Any) -> Any:
        return np.empty((rows, columns), dtype)

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
    """Return parameters (rows, C) of the channels of x (R, C) as those of a wide row and LANES columns more."""
    rows, C = values.shape
    result = empty_wide(x, rows)
    for row in range(rows):
        for c in range(C):
            result[row, c] = values[row, c]
    repeat_rows(result, C)
    return result


@scalar
def empty_wide(x: Array, rows: int) -> Array:
    """Return new parameters of a wide row of x (R, C), to be filled in for C channels and repeated."""
    C = x.shape[1]
    return empty_params(x, rows, rows_together(C) * C + LANES)


@scalar
def repeat_rows(params: Array, C: int) -> None:
    """Fill every row with its first C values over and over."""
    for row in range(params.shape[0]):
        repeat(params[row], C)


@scalar
def block_sums(dy: Array | None, x: Array, task: int, params: Array, sums: Array, tail: Any) -> None:
    """Fill the sums (2, wide C) of one block by a group of columns, for the first C of which all are added up."""
    R, C = x.shape
    _, r0, r1, c0, c1 = block_bounds(task, R, C)
    together = rows_together(C)
    for c in range(c0, c1):
        sums[0, c] = 0.0
        sums[1, c] = 0.0
    rows = (r1 - r0) // together
    sum_rows(dy, x, r0 * C + c0, together * C, rows, c1 - c0, params, c0, sums, tail)
    if together > 1:
        add_repeats(sums[0, c0:c1], C)
        add_repeats(sums[1, c0:c1], C)
        rest = (r1 - r0) % together
        sum_rows(dy, x, (r1 - rest) * C, C, rest, C, params, c0, sums, tail)


@scalar
def wide_rows(task: int, R: int, C: int) -> tuple[int, int, int, int, int, int, int]:
    """Return (start, step, rows, c0, c1, rest, rest_start) of a tile of x (R, C).

    It is `rows` wide rows, `step` elements each, whose columns c0 to c1 begin at element `start`; and `rest` rows of C
    channels from element `rest_start` on, too few for another wide row.
    """
    _, r0, r1, c0, c1 = block_bounds(task, R, C)
    together = rows_together(C)
    rows = (r1 - r0) // together
    rest = (r1 - r0) % together
    return r0 * C + c0, together * C, rows, c0, c1, rest, (r1 - rest) * C


@scalar
def write_block(
    dy: Array | None, x: Array | None, task: int, params: Array, out: Array, past_cache: bool, tail: Any
) -> None:
    """Write the results of one block by a group of columns; params are those of a wide row and LANES columns more.

    Past the cache, whole lines are written alone, so rows are taken from the first line on that `out` starts: the
    columns are then shifted, and the last few are the first of the next row.
    """
    R, C = out.shape
    start, step, rows, c0, c1, rest, rest_start = wide_rows(task, R, C)
    lines = past_cache and c1 - c0 == step and step % LANES == 0 and rows > 1
    head = to_line(out, start, step) if lines else 0
    for piece in range(4):  # one call, of which LLVM makes one copy
        at, gap, count, width, column = start, step, rows, c1 - c0, c0
        if piece == 0 and lines:
            at, count, width, column = start + head, rows - 1, step, head
        elif piece == 1:
            count, width = 1, head
        elif piece == 2:
            at, count, width, column = start + (rows - 1) * step + head, 1, step - head if lines else 0, head
        elif piece == 3:
            at, gap, count, width, column = rest_start, C, rest, C, 0
        write_rows(dy, x, at, gap, count, width, params, column, out, lines and piece == 0, tail)
    if lines:
        fence()
