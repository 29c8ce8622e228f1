"""Normalise, scale and shift; alone, or fused with the statistics before it.

Fused, one thread takes a channel, sums it and normalises it while it is still in that core's cache: the tensor is
read from memory once. The second sweep runs backwards, so that of a channel larger than the cache it meets first
what the first sweep left there. With `past_cache`, y goes to memory directly: storing it through the cache would first
read what stood there.
"""

from __future__ import annotations

import numpy as np

from fastbn_kernels.build.decorators import (
    Array,
    ReadC,
    ReadNCS,
    ReadRC,
    WriteC,
    WriteNCS,
    WriteRC,
    kernel,
    prange,
    scalar,
)
from fastbn_kernels.cpu.loops.row_streams import rows_normalize
from fastbn_kernels.cpu.loops.segments import run_normalize, to_line
from fastbn_kernels.cpu.moments import block_moments, channel_moments, merge_blocks
from fastbn_kernels.cpu.simd.ops import fence
from fastbn_kernels.cpu.simd.types import LANES
from fastbn_kernels.cpu.tiles import (
    block_tasks,
    group_bounds,
    merge_tasks,
    rows_together,
    stretch_shape,
    tile_bounds,
    tile_count,
)
from fastbn_kernels.cpu.wide_rows import empty_numbers, wide, wide_rows
from fastbn_kernels.formulas import coefficients


@scalar
def normalize_tile(
    x: Array, c: int, tile: int, mean: float, scale: float, shift: float, y: Array, past_cache: bool
) -> None:
    """Normalise one tile of channel c of x (N, C, S), last run first."""
    N, C, S = x.shape
    n0, n1, s0, s1 = tile_bounds(tile, N, S)
    for i in range(n1 - n0):
        start = ((n1 - 1 - i) * C + c) * S + s0
        run_normalize(x, start, s1 - s0, mean, scale, shift, y, past_cache)
    if past_cache:
        fence()


@scalar
def normalize_block(x: Array, task: int, mean: Array, scale: Array, shift: Array, y: Array, past_cache: bool) -> None:
    """Normalise one tile of x (R, C); mean, scale and shift are those of a wide row and LANES more.

    Past the cache, whole lines of y are written alone, so rows are taken from the first line on that y starts: the
    columns are then shifted, and the last few are the first of the next row.
    """
    C = x.shape[1]
    start, step, rows, c0, c1, rest, tail = wide_rows(task, x.shape[0], C)
    if past_cache and c1 - c0 == step and step % LANES == 0 and rows > 1:
        head = to_line(y, start, step)
        last = start + (rows - 1) * step + head
        rows_normalize(x, start, step, 1, head, mean, scale, shift, y, False)
        rows_normalize(x, start + head, step, rows - 1, step, mean[head:], scale[head:], shift[head:], y, True)
        rows_normalize(x, last, step, 1, step - head, mean[head:], scale[head:], shift[head:], y, False)
        fence()
    else:
        rows_normalize(x, start, step, rows, c1 - c0, mean[c0:c1], scale[c0:c1], shift[c0:c1], y, False)
    if rest > 0:
        rows_normalize(x, tail, C, rest, C, mean, scale, shift, y, False)


@kernel
def fold_parameters(
    low: ReadC, var: ReadC, weight: ReadC, bias: ReadC, eps: float, scale: WriteC, shift: WriteC, invstd: WriteC
) -> None:
    """Fill scale, shift and invstd (C,) from the statistics and parameters of every channel."""
    for c in range(low.size):
        scale[c], shift[c], invstd[c] = coefficients(low[c], var[c], weight[c], bias[c], eps)


@kernel
def normalize_apart(x: ReadNCS, mean: ReadC, scale: ReadC, shift: ReadC, past_cache: bool, y: WriteNCS) -> None:
    """Write (x - mean) * scale + shift to y, which may be x, in the order of memory, spread over the threads."""
    N, C, S = x.shape
    groups, pieces, length = stretch_shape(C, S)
    tasks = N * groups * pieces
    for i in prange(tasks):
        task = tasks - 1 - i
        n = task // (groups * pieces)
        group = task // pieces % groups
        s0 = task % pieces * length
        c0, c1 = group_bounds(group, groups, C)
        for c in range(c0, c1):
            run_normalize(x, (n * C + c) * S + s0, min(length, S - s0), mean[c], scale[c], shift[c], y, past_cache)
        if past_cache:
            fence()


@kernel
def normalize_adjacent(x: ReadRC, mean: ReadC, scale: ReadC, shift: ReadC, past_cache: bool, y: WriteRC) -> None:
    """Write (x - mean) * scale + shift to y, which may be x, tiles spread over the threads."""
    R, C = x.shape
    _, tasks = block_tasks(R, C)
    wide_mean, wide_scale, wide_shift = wide(x, mean), wide(x, scale), wide(x, shift)
    for task in prange(tasks):
        normalize_block(x, tasks - 1 - task, wide_mean, wide_scale, wide_shift, y, past_cache)


@kernel
def forward_apart(
    x: ReadNCS, weight: ReadC, bias: ReadC, eps: float, past_cache: bool,
    y: WriteNCS, mean: WriteC, low: WriteC, m2: WriteC, invstd: WriteC,
) -> None:  # fmt: skip
    """Normalise with the batch's own statistics to y, which may be x, whole channels spread over the threads."""
    N, C, S = x.shape
    count = np.float64(N * S)
    tiles = tile_count(N, S)
    for c in prange(C):
        mean[c], low[c], m2[c] = channel_moments(x, c)
        scale, shift, invstd[c] = coefficients(low[c], m2[c] / count, weight[c], bias[c], eps)
        for tile in range(tiles):
            normalize_tile(x, c, tiles - 1 - tile, mean[c], scale, shift, y, past_cache)


@kernel
def forward_adjacent(
    x: ReadRC, weight: ReadC, bias: ReadC, eps: float, past_cache: bool,
    y: WriteRC, mean: WriteC, low: WriteC, m2: WriteC, invstd: WriteC,
) -> None:  # fmt: skip
    """Normalise with the batch's own statistics to y, which may be x, tiles spread over the threads."""
    R, C = x.shape
    blocks, tasks = block_tasks(R, C)
    width = rows_together(C) * C
    offsets = np.empty((blocks, width))
    squares = np.empty((blocks, width))
    shifts = empty_numbers(x, blocks * width).reshape((blocks, width))
    scale = np.empty(C)
    shift = np.empty(C)
    for task in prange(tasks):
        block_moments(x, task, shifts, offsets, squares)
    for task in prange(merge_tasks(C)):
        merge_blocks(x, task, offsets, squares, mean, low, m2)
    for c in range(C):
        scale[c], shift[c], invstd[c] = coefficients(low[c], m2[c] / np.float64(R), weight[c], bias[c], eps)
    wide_mean, wide_scale, wide_shift = wide(x, mean), wide(x, scale), wide(x, shift)
    for task in prange(tasks):
        normalize_block(x, tasks - 1 - task, wide_mean, wide_scale, wide_shift, y, past_cache)
