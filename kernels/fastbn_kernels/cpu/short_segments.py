"""Channels first with short segments, as planes of 7 x 7: several channels at a time, as rows of their values.

The values of adjacent channels in one sample lie side by side, so x (N, C, S) is also N rows of C * S columns, of which
a group of channels is a stretch. The loops of `row_streams` take it as such, with the parameters of a channel repeated
for its S columns: whole vectors instead of a rest a segment, memory in order instead of a jump a segment. From the
cache, 64 x 512 x 7 x 7 on 2 cores: 44 GB/s against 33 for segments (float32, read once and written once); 32 x 1024 x
14 x 14 42 against 21.

A thread takes whole groups, so that a group is read from memory once. Columns are summed alone and then added up, in an
order that does not depend on the group: its size may follow the number of threads.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastbn_kernels.build.decorators import Array, ReadNCS, Saved, Sums, Tail, WriteNCS, kernel, prange, scalar
from fastbn_kernels.cpu.loops.row_streams import sum_rows, write_rows
from fastbn_kernels.cpu.loops.segments import column_total, to_line
from fastbn_kernels.cpu.moments import channel_origin, tile_group, tile_shift
from fastbn_kernels.cpu.params import (
    FORWARD_ROWS,
    GRADIENT_ROWS,
    as_pair,
    channel_params,
    gradient_params,
    normalized_with,
    renormalize,
    xhat_sum,
)
from fastbn_kernels.cpu.simd.ops import fence, splat, store
from fastbn_kernels.cpu.simd.tails import FROZEN
from fastbn_kernels.cpu.simd.types import LANES
from fastbn_kernels.cpu.sweeps import empty_params
from fastbn_kernels.cpu.tiles import group_bounds, tile_bounds, tile_count
from fastbn_kernels.formulas import merge
from fastbn_kernels.saved import M2, MEAN, MEAN_LO, VAR


@scalar
def spread(params: Array, row: int, c: int, S: int, number: float) -> None:
    """Fill the S columns of the group's channel c with its number, and up to LANES behind, which come later."""
    vector = splat(params, number)
    start = row * params.shape[1]
    for i in range(start + c * S, start + (c + 1) * S, LANES):
        store(params, i, None, vector)


@scalar
def spread_all(params: Array, c: int, S: int, numbers: tuple[float, ...]) -> None:
    """Fill the S columns of the group's channel c with its numbers, a row each."""
    for row, number in enumerate(numbers):
        spread(params, row, c, S, number)


@scalar
def group_moments(x: Array, c0: int, c1: int, saved: Array) -> None:
    """Fill MEAN, MEAN_LO and M2 of channels c0 to c1."""
    N, C, S = x.shape
    width = (c1 - c0) * S
    around = empty_params(x, 2, width + LANES)
    around[1] = 1.0
    sums = np.empty((2, width))
    offsets = np.zeros(c1 - c0)
    squares = np.zeros(c1 - c0)
    count = 0.0
    for tile in range(tile_count(N, S)):
        n0, n1, _, _ = tile_bounds(tile, N, S)
        start = (n0 * C + c0) * S
        values = np.float64((n1 - n0) * S)
        for c in range(c1 - c0):
            spread(around, 0, c, S, -tile_shift(x, c0 + c, tile))
        sums[:] = 0.0
        sum_rows(None, x, start, C * S, n1 - n0, width, around, 0, sums, None)
        for c in range(c1 - c0):
            total = column_total(sums, c * S, S)
            square = column_total(sums, width + c * S, S)
            _, offset, squared = tile_group(x, c0 + c, tile, -np.float64(around[0, c * S]), total, square)
            offsets[c], squares[c] = merge(count, offsets[c], squares[c], values, offset, squared)
        count += values
    for c in range(c1 - c0):
        saved[MEAN, c0 + c], saved[MEAN_LO, c0 + c] = as_pair(x, channel_origin(x, c0 + c), offsets[c])
        saved[M2, c0 + c] = squares[c]


@scalar
def write_group(
    dy: Array | None, x: Array | None, c0: int, width: int, params: Array, out: Array, past_cache: bool, tail: Any
) -> None:
    """Write the results of `width` columns from channel c0 on, with parameters a column and LANES columns more."""
    N, C, S = out.shape
    start, step = c0 * S, C * S
    lines = past_cache and step % LANES == 0
    head = to_line(out, start, width) if lines else 0
    for piece in range(2):  # what comes before a line, if lines are written; see `write_block`
        at, columns = (head, width - head) if piece else (0, head)
        write_rows(dy, x, start + at, step, N, columns, params, at, out, lines and piece == 1, tail)
    if lines:
        fence()


@scalar
def group_normalize(
    x: Array, c0: int, c1: int, saved: Array, eps: float, y: Array, past_cache: bool, tail: Any
) -> None:
    """Normalise channels c0 to c1 with their MEAN, MEAN_LO and VAR; fill their INVSTD."""
    S = x.shape[2]
    width = (c1 - c0) * S
    params = empty_params(x, FORWARD_ROWS, width + LANES)
    for c in range(c1 - c0):
        spread_all(params, c, S, channel_params(x, saved, c0 + c, eps))
    write_group(None, x, c0, width, params, y, past_cache, tail)


@kernel
def forward_short_segments(
    x: ReadNCS, saved: Saved, eps: float, past_cache: bool, groups: int, y: WriteNCS, tail: Tail
) -> None:
    """Normalise with the batch's own statistics to y, which may be x, groups of channels spread over the threads."""
    N, C, S = x.shape
    for task in prange(0, groups):
        c0, c1 = group_bounds(task, groups, C)
        group_moments(x, c0, c1, saved)
        for c in range(c0, c1):
            saved[VAR, c] = saved[M2, c] / np.float64(N * S)
        renormalize(saved, c0, c1)
        group_normalize(x, c0, c1, saved, eps, y, past_cache, tail)


@kernel
def backward_short_segments(
    dy: ReadNCS, x: ReadNCS, saved: Saved, frozen: bool, past_cache: bool, groups: int, dx: WriteNCS, sums: Sums,
    tail: Tail,
) -> None:  # fmt: skip
    """Write dx, which may be dy or x, and the sums, groups of channels spread over the threads."""
    N, C, S = x.shape
    count = np.float64(N * S)
    for task in prange(0, groups):
        c0, c1 = group_bounds(task, groups, C)
        width = (c1 - c0) * S
        params = empty_params(x, GRADIENT_ROWS, width + LANES)
        for c in range(c1 - c0):
            spread_all(params, c, S, normalized_with(x, saved, c0 + c))
        columns = np.zeros((2, width))
        sum_rows(dy, x, c0 * S, C * S, N, width, params, 0, columns, tail)
        for c in range(c1 - c0):
            k = c0 + c
            sums[0, k] = column_total(columns, c * S, S)
            product = column_total(columns, width + c * S, S)
            sums[1, k] = xhat_sum(x, saved, k, sums[0, k], product)
            spread_all(params, c, S, gradient_params(x, count, saved, k, sums[0, k], sums[1, k]))
        if not frozen:
            write_group(dy, x, c0, width, params, dx, past_cache, tail)
        elif tail is None:
            write_group(dy, None, c0, width, params, dx, past_cache, None)
        else:
            write_group(dy, x, c0, width, params, dx, past_cache, (tail, FROZEN))
