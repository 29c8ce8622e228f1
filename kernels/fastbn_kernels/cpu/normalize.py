"""Normalise, scale and shift; alone, or fused with the statistics before it.

Fused, one thread takes a channel, sums it and normalises it while it is still in that core's cache: the tensor is
read from memory once. The second sweep runs backwards, so that of a channel larger than the cache it meets first
what the first sweep left there.
"""

from __future__ import annotations

import numpy as np

from fastbn_kernels.cpu.moments import block_moments, channel_moments, merge_blocks
from fastbn_kernels.cpu.tiles import block_bounds, block_tasks, merge_tasks, tile_bounds, tile_count
from fastbn_kernels.formulas import coefficients
from fastbn_kernels.jit import (
    Array,
    ReadC,
    ReadNCS,
    ReadRC,
    WriteC,
    WriteNCS,
    WriteRC,
    elementwise,
    kernel,
    prange,
    scalar,
)


@elementwise
def normalize_run(x: Array, mean: float, scale: float, shift: float, y: Array) -> None:
    """Write y = (x - mean) * scale + shift over a 1-D run of one channel, in float64, rounded once."""
    for i in range(x.size):
        y[i] = (np.float64(x[i]) - mean) * scale + shift


@elementwise
def normalize_row(x: Array, mean: Array, scale: Array, shift: Array, y: Array) -> None:
    """Write y = (x - mean) * scale + shift over one row of adjacent channels."""
    for c in range(mean.size):
        y[c] = (np.float64(x[c]) - mean[c]) * scale[c] + shift[c]


@scalar
def normalize_tile(x: Array, c: int, tile: int, mean: float, scale: float, shift: float, y: Array) -> None:
    """Normalise one tile of channel c of x (N, C, S), last run first."""
    n0, n1, s0, s1 = tile_bounds(tile, x.shape[0], x.shape[2])
    for i in range(n1 - n0):
        n = n1 - 1 - i
        normalize_run(x[n, c, s0:s1], mean, scale, shift, y[n, c, s0:s1])


@scalar
def normalize_block(x: Array, task: int, mean: Array, scale: Array, shift: Array, y: Array) -> None:
    """Normalise one tile of x (R, C)."""
    _, r0, r1, c0, c1 = block_bounds(task, x.shape[0], x.shape[1])
    for r in range(r0, r1):
        normalize_row(x[r, c0:c1], mean[c0:c1], scale[c0:c1], shift[c0:c1], y[r, c0:c1])


@kernel
def fold(
    low: ReadC, var: ReadC, weight: ReadC, bias: ReadC, eps: float, scale: WriteC, shift: WriteC, invstd: WriteC
) -> None:
    """Fill scale, shift and invstd (C,) from the statistics and parameters of every channel."""
    for c in range(low.size):
        scale[c], shift[c], invstd[c] = coefficients(low[c], var[c], weight[c], bias[c], eps)


@kernel
def normalize_apart(x: ReadNCS, mean: ReadC, scale: ReadC, shift: ReadC, y: WriteNCS) -> None:
    """Write (x - mean) * scale + shift to y, which may be x, tiles spread over the threads."""
    tiles = tile_count(x.shape[0], x.shape[2])
    tasks = x.shape[1] * tiles
    for i in prange(tasks):
        task = tasks - 1 - i
        c = task // tiles
        normalize_tile(x, c, task % tiles, mean[c], scale[c], shift[c], y)


@kernel
def normalize_adjacent(x: ReadRC, mean: ReadC, scale: ReadC, shift: ReadC, y: WriteRC) -> None:
    """Write (x - mean) * scale + shift to y, which may be x, tiles spread over the threads."""
    _, tasks = block_tasks(x.shape[0], x.shape[1])
    for task in prange(tasks):
        normalize_block(x, tasks - 1 - task, mean, scale, shift, y)


@kernel
def forward_apart(
    x: ReadNCS, weight: ReadC, bias: ReadC, eps: float,
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
            normalize_tile(x, c, tiles - 1 - tile, mean[c], scale, shift, y)


@kernel
def forward_adjacent(
    x: ReadRC, weight: ReadC, bias: ReadC, eps: float,
    y: WriteRC, mean: WriteC, low: WriteC, m2: WriteC, invstd: WriteC,
) -> None:  # fmt: skip
    """Normalise with the batch's own statistics to y, which may be x, tiles spread over the threads."""
    R, C = x.shape
    blocks, tasks = block_tasks(R, C)
    offsets = np.empty((blocks, C))
    squares = np.empty((blocks, C))
    shifts = np.empty((blocks, C))
    scale = np.empty(C)
    shift = np.empty(C)
    for task in prange(tasks):
        block_moments(x, task, shifts, offsets, squares)
    for task in prange(merge_tasks(C)):
        merge_blocks(x, task, offsets, squares, mean, low, m2)
    for c in range(C):
        scale[c], shift[c], invstd[c] = coefficients(low[c], m2[c] / np.float64(R), weight[c], bias[c], eps)
    for task in prange(tasks):
        normalize_block(x, tasks - 1 - task, mean, scale, shift, y)
