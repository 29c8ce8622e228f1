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
    ReadNCS,
    ReadRC,
    Saved,
    WriteNCS,
    WriteRC,
    kernel,
    prange,
    scalar,
)
from fastbn_kernels.cpu.loops.row_streams import rows_normalize
from fastbn_kernels.cpu.loops.segments import run_normalize, to_line
from fastbn_kernels.cpu.moments import block_moments, channel_moments, merge_blocks, merge_tiles, tile_moments
from fastbn_kernels.cpu.simd.ops import fence
from fastbn_kernels.cpu.simd.types import LANES
from fastbn_kernels.cpu.tiles import (
    block_tasks,
    group_bounds,
    merge_tasks,
    rows_together,
    stretch_shape,
    stretch_tasks,
    tile_bounds,
    tile_count,
)
from fastbn_kernels.cpu.wide_rows import empty_numbers, wide, wide_rows
from fastbn_kernels.formulas import coefficients
from fastbn_kernels.saved import BIAS, INVSTD, M2, MEAN, MEAN_LO, VAR, WEIGHT


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


@scalar
def make_coefficients(saved: Array, eps: float) -> tuple[Array, Array]:
    """Return scale and shift (C,) so that y = (x - mean) * scale + shift; fill INVSTD."""
    C = saved.shape[1]
    scale, shift = np.empty(C), np.empty(C)
    for c in range(C):
        scale[c], shift[c], saved[INVSTD, c] = coefficients(
            saved[MEAN_LO, c], saved[VAR, c], saved[WEIGHT, c], saved[BIAS, c], eps
        )
    return scale, shift


@scalar
def batch_coefficients(saved: Array, count: float, eps: float) -> tuple[Array, Array]:
    """Fill VAR from M2, of `count` values a channel; then as `make_coefficients`."""
    for c in range(saved.shape[1]):
        saved[VAR, c] = saved[M2, c] / count
    scale, shift = make_coefficients(saved, eps)
    return scale, shift


@scalar
def channel_coefficients(saved: Array, c: int, count: float, eps: float) -> tuple[float, float]:
    """Return scale and shift of channel c; fill its VAR, from its M2, and INVSTD."""
    saved[VAR, c] = saved[M2, c] / count
    scale, shift, saved[INVSTD, c] = coefficients(
        saved[MEAN_LO, c], saved[VAR, c], saved[WEIGHT, c], saved[BIAS, c], eps
    )
    return scale, shift


@scalar
def normalize_stretch(x: Array, task: int, mean: Array, scale: Array, shift: Array, y: Array, past_cache: bool) -> None:
    """Normalise one of the `stretch_tasks` of x (N, C, S), in the order of memory."""
    _, C, S = x.shape
    groups, pieces, length = stretch_shape(C, S)
    n = task // (groups * pieces)
    group = task // pieces % groups
    s0 = task % pieces * length
    c0, c1 = group_bounds(group, groups, C)
    for c in range(c0, c1):
        run_normalize(x, (n * C + c) * S + s0, min(length, S - s0), mean[c], scale[c], shift[c], y, past_cache)
    if past_cache:
        fence()


@kernel
def normalize_channels_first(x: ReadNCS, saved: Saved, eps: float, past_cache: bool, groups: int, y: WriteNCS) -> None:
    """Normalise with given statistics to y, which may be x, stretches of memory spread over the threads."""
    scale, shift = make_coefficients(saved, eps)
    mean = saved[MEAN]
    tasks = stretch_tasks(x)
    for task in prange(tasks):
        normalize_stretch(x, tasks - 1 - task, mean, scale, shift, y, past_cache)


@kernel
def normalize_channels_last(x: ReadRC, saved: Saved, eps: float, past_cache: bool, groups: int, y: WriteRC) -> None:
    """Normalise with given statistics to y, which may be x, tiles spread over the threads."""
    R, C = x.shape
    _, tasks = block_tasks(R, C)
    scale, shift = make_coefficients(saved, eps)
    wide_mean, wide_scale, wide_shift = wide(x, saved[MEAN]), wide(x, scale), wide(x, shift)
    for task in prange(tasks):
        normalize_block(x, tasks - 1 - task, wide_mean, wide_scale, wide_shift, y, past_cache)


@kernel
def forward_channels_first(x: ReadNCS, saved: Saved, eps: float, past_cache: bool, groups: int, y: WriteNCS) -> None:
    """Normalise with the batch's own statistics to y, which may be x, whole channels spread over the threads."""
    N, C, S = x.shape
    tiles = tile_count(N, S)
    for c in prange(C):
        mean, saved[MEAN_LO, c], saved[M2, c] = channel_moments(x, c)
        saved[MEAN, c] = mean
        scale, shift = channel_coefficients(saved, c, np.float64(N * S), eps)
        for tile in range(tiles):
            normalize_tile(x, c, tiles - 1 - tile, mean, scale, shift, y, past_cache)


@kernel
def forward_tiles(x: ReadNCS, saved: Saved, eps: float, past_cache: bool, groups: int, y: WriteNCS) -> None:
    """Normalise with the batch's own statistics to y, which may be x, tiles of channels spread over the threads.

    For fewer channels than keep the threads busy: x is read from memory twice.
    """
    N, C, S = x.shape
    tiles = tile_count(N, S)
    slots = np.empty((C * tiles, 3))
    for task in prange(C * tiles):
        slots[task, 0], slots[task, 1], slots[task, 2] = tile_moments(x, task // tiles, task % tiles)
    for c in range(C):
        merge_tiles(x, c, slots, saved)
    scale, shift = batch_coefficients(saved, np.float64(N * S), eps)
    mean = saved[MEAN]
    tasks = stretch_tasks(x)
    for task in prange(tasks):
        normalize_stretch(x, tasks - 1 - task, mean, scale, shift, y, past_cache)


@kernel
def forward_channels_last(x: ReadRC, saved: Saved, eps: float, past_cache: bool, groups: int, y: WriteRC) -> None:
    """Normalise with the batch's own statistics to y, which may be x, tiles spread over the threads."""
    R, C = x.shape
    blocks, tasks = block_tasks(R, C)
    width = rows_together(C) * C
    offsets = np.empty((blocks, width))
    squares = np.empty((blocks, width))
    shifts = empty_numbers(x, blocks * width).reshape((blocks, width))
    for task in prange(tasks):
        block_moments(x, task, shifts, offsets, squares)
    for task in prange(merge_tasks(C)):
        merge_blocks(x, task, offsets, squares, saved)
    scale, shift = batch_coefficients(saved, np.float64(R), eps)
    wide_mean, wide_scale, wide_shift = wide(x, saved[MEAN]), wide(x, scale), wide(x, shift)
    for task in prange(tasks):
        normalize_block(x, tasks - 1 - task, wide_mean, wide_scale, wide_shift, y, past_cache)
