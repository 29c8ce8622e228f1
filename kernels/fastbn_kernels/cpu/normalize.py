"""Normalise, scale and shift; alone, or fused with the statistics before it.

Fused, one thread takes a channel, sums it and normalises it while it is still in that core's cache: the tensor is read
from memory once. With few channels (`forward_tiles`) or rows of channels, it is read twice.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastbn_kernels.build.decorators import (
    Array,
    ReadNCS,
    ReadRC,
    Saved,
    Tail,
    WriteNCS,
    WriteRC,
    kernel,
    prange,
    scalar,
)
from fastbn_kernels.cpu.columns import all_batch_params, all_params, fill_forward
from fastbn_kernels.cpu.loops.segments import write_segment
from fastbn_kernels.cpu.moments import block_moments, channel_moments, merge_blocks, merge_tiles, tile_moments
from fastbn_kernels.cpu.params import FORWARD_ROWS, batch_params
from fastbn_kernels.cpu.simd.ops import fence
from fastbn_kernels.cpu.sweeps import empty_params, empty_wide, repeat_rows, write_block, write_tile
from fastbn_kernels.cpu.tiles import (
    block_tasks,
    group_bounds,
    merge_tasks,
    rows_together,
    stretch_shape,
    stretch_tasks,
    tile_count,
)
from fastbn_kernels.saved import M2, MEAN, MEAN_LO


@scalar
def normalize_stretch(x: Array, task: int, params: Array, y: Array, past_cache: bool, tail: Any) -> None:
    """Normalise one of the `stretch_tasks` of x (N, C, S), in the order of memory."""
    _, C, S = x.shape
    groups, pieces, length = stretch_shape(C, S)
    n = task // (groups * pieces)
    group = task // pieces % groups
    s0 = task % pieces * length
    c0, c1 = group_bounds(group, groups, C)
    for c in range(c0, c1):
        given = params[0, c], params[1, c], params[2, c], params[3, c]
        write_segment(None, x, (n * C + c) * S + s0, min(length, S - s0), given, y, past_cache, tail)
    if past_cache:
        fence()


@kernel
def normalize_channels_first(
    x: ReadNCS, saved: Saved, eps: float, past_cache: bool, groups: int, y: WriteNCS, tail: Tail
) -> None:
    """Normalise with given statistics to y, which may be x, stretches of memory spread over the threads."""
    params = all_params(x, saved, eps)
    tasks = stretch_tasks(x)
    for task in prange(tasks):
        normalize_stretch(x, tasks - 1 - task, params, y, past_cache, tail)


@kernel
def normalize_channels_last(
    x: ReadRC, saved: Saved, eps: float, past_cache: bool, groups: int, y: WriteRC, tail: Tail
) -> None:
    """Normalise with given statistics to y, which may be x, tiles spread over the threads."""
    R, C = x.shape
    _, tasks = block_tasks(R, C)
    params = empty_wide(x, FORWARD_ROWS)
    fill_forward(x, saved, eps, 0, C, params, 0)
    repeat_rows(params, C)
    for task in prange(tasks):
        write_block(None, x, tasks - 1 - task, params, y, past_cache, tail)


@kernel
def forward_channels_first(
    x: ReadNCS, saved: Saved, eps: float, past_cache: bool, groups: int, y: WriteNCS, tail: Tail
) -> None:
    """Normalise with the batch's own statistics to y, which may be x, whole channels spread over the threads."""
    N, C, S = x.shape
    tiles = tile_count(N, S)
    for c in prange(C):
        saved[MEAN, c], saved[MEAN_LO, c], saved[M2, c] = channel_moments(x, c)
        params = batch_params(x, saved, c, np.float64(N * S), eps)
        for tile in range(tiles):
            write_tile(None, x, c, tiles - 1 - tile, params, y, past_cache, tail)


@kernel
def forward_tiles(x: ReadNCS, saved: Saved, eps: float, past_cache: bool, groups: int, y: WriteNCS, tail: Tail) -> None:
    """Normalise with the batch's own statistics to y, which may be x, tiles of channels spread over the threads.

    For fewer channels than keep the threads busy.
    """
    N, C, S = x.shape
    tiles = tile_count(N, S)
    slots = np.empty((C * tiles, 3))
    for task in prange(C * tiles):
        slots[task, 0], slots[task, 1], slots[task, 2] = tile_moments(x, task // tiles, task % tiles)
    for c in range(C):
        merge_tiles(x, c, slots, saved)
    params = all_batch_params(x, saved, np.float64(N * S), eps)
    tasks = stretch_tasks(x)
    for task in prange(tasks):
        normalize_stretch(x, tasks - 1 - task, params, y, past_cache, tail)


@kernel
def forward_channels_last(
    x: ReadRC, saved: Saved, eps: float, past_cache: bool, groups: int, y: WriteRC, tail: Tail
) -> None:
    """Normalise with the batch's own statistics to y, which may be x, tiles spread over the threads."""
    R, C = x.shape
    blocks, tasks = block_tasks(R, C)
    width = rows_together(C) * C
    sums = np.empty((blocks, 2, width))
    shifts = empty_params(x, 2 * blocks, width).reshape((blocks, 2, width))
    for task in prange(tasks):
        block_moments(x, task, shifts, sums)
    for task in prange(merge_tasks(C)):
        merge_blocks(x, task, sums, saved)
    params = empty_wide(x, FORWARD_ROWS)
    fill_forward(x, saved, eps, 0, C, params, 0)
    repeat_rows(params, C)
    for task in prange(tasks):
        write_block(None, x, tasks - 1 - task, params, y, past_cache, tail)
