"""The gradients: two sums a channel, then one linear combination a value.

The sums are of dy and of dy * (x - mean), never of dy * x: at a mean of 1e4 standard deviations the latter loses four
digits more. With frozen statistics nothing flows back through them, and dx is dy * scale alone, finite even where x
is not.

Of the sums (2, C) that kernels return, row 0 is sum dy, the gradient of the bias, and row 1 sum dy * xhat, that of the
weight.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastbn_kernels.build.decorators import (
    Array,
    ReadNCS,
    ReadRC,
    Saved,
    Sums,
    Tail,
    WriteNCS,
    WriteRC,
    kernel,
    prange,
    scalar,
)
from fastbn_kernels.cpu.columns import fill_gradient, fill_sums, save_sums
from fastbn_kernels.cpu.params import (
    FORWARD_ROWS,
    GRADIENT_ROWS,
    ForwardParams,
    GradientParams,
    gradient_params,
    normalized_with,
    xhat_sum,
)
from fastbn_kernels.cpu.simd.tails import FROZEN
from fastbn_kernels.cpu.sweeps import block_sums, empty_wide, repeat_rows, tile_sums, write_block, write_tile
from fastbn_kernels.cpu.tiles import block_bounds, block_tasks, merge_bounds, merge_tasks, tile_count

# ---------------------------------------------------------------- channels first


@scalar
def write_tile_gradient(
    dy: Array, x: Array, c: int, tile: int, params: GradientParams, frozen: bool, dx: Array,
    past_cache: bool, tail: Any,
) -> None:  # fmt: skip
    """Write dx of one tile of channel c."""
    if not frozen:
        write_tile(dy, x, c, tile, params, dx, past_cache, tail)
    elif tail is None:
        write_tile(dy, None, c, tile, (params[6],), dx, past_cache, None)
    else:
        write_tile(dy, x, c, tile, params, dx, past_cache, (tail, FROZEN))


@scalar
def channel_sums(dy: Array, x: Array, c: int, params: ForwardParams, tail: Any) -> tuple[float, float]:
    """Return the sums of dy and dy * (x - mean) * unit over channel c, tile after tile."""
    total = 0.0
    product = 0.0
    for tile in range(tile_count(x.shape[0], x.shape[2])):
        t, p = tile_sums(dy, x, c, tile, params, tail)
        total += t
        product += p
    return total, product


@scalar
def channel_gradient(
    dy: Array, x: Array, c: int, saved: Array, k: int, frozen: bool, dx: Array, past_cache: bool, tail: Any
) -> tuple[float, float]:
    """Write dx of channel c, of which column k of `saved` is; return its sums of dy and dy * xhat."""
    N, _, S = x.shape
    tiles = tile_count(N, S)
    total, product = channel_sums(dy, x, c, normalized_with(x, saved, k), tail)
    product = xhat_sum(x, saved, k, total, product)
    params = gradient_params(x, np.float64(N * S), saved, k, total, product)
    for tile in range(tiles):
        write_tile_gradient(dy, x, c, tiles - 1 - tile, params, frozen, dx, past_cache, tail)
    return total, product


@scalar
def merge_tile_sums(x: Array, c: int, saved: Array, slots: Array, sums: Array) -> None:
    """Fill the sums of channel c from those of its tiles, (tiles of all channels, 2)."""
    tiles = tile_count(x.shape[0], x.shape[2])
    total = 0.0
    product = 0.0
    for task in range(c * tiles, (c + 1) * tiles):
        total += slots[task, 0]
        product += slots[task, 1]
    sums[0, c] = total
    sums[1, c] = xhat_sum(x, saved, c, total, product)


@kernel
def sums_channels_first(dy: ReadNCS, x: ReadNCS, saved: Saved, sums: Sums, tail: Tail) -> None:
    """Fill the sums of dy and dy * xhat, tiles of channels spread over the threads."""
    N, C, S = x.shape
    tiles = tile_count(N, S)
    slots = np.empty((C * tiles, 2))
    for task in prange(0, C * tiles):
        c = task // tiles
        slots[task, 0], slots[task, 1] = tile_sums(dy, x, c, task % tiles, normalized_with(x, saved, c), tail)
    for c in range(C):
        merge_tile_sums(x, c, saved, slots, sums)


@kernel
def gradient_channels_first(
    dy: ReadNCS, x: ReadNCS, saved: Saved, sums: Sums, count: float, frozen: bool, past_cache: bool, groups: int,
    dx: WriteNCS, tail: Tail,
) -> None:  # fmt: skip
    """Write dx, which may be dy or x, from sums over `count` values, tiles of channels spread over the threads."""
    N, C, S = x.shape
    tiles = tile_count(N, S)
    for i in prange(0, C * tiles):
        task = C * tiles - 1 - i
        c = task // tiles
        params = gradient_params(x, count, saved, c, sums[0, c], sums[1, c])
        write_tile_gradient(dy, x, c, task % tiles, params, frozen, dx, past_cache, tail)


@kernel
def backward_channels_first(
    dy: ReadNCS, x: ReadNCS, saved: Saved, frozen: bool, past_cache: bool, groups: int, dx: WriteNCS, sums: Sums,
    tail: Tail,
) -> None:  # fmt: skip
    """Write dx, which may be dy or x, and the sums, whole channels spread over the threads: each is read once."""
    for c in prange(0, x.shape[1]):
        sums[0, c], sums[1, c] = channel_gradient(dy, x, c, saved, c, frozen, dx, past_cache, tail)


@kernel
def backward_tiles(
    dy: ReadNCS, x: ReadNCS, saved: Saved, frozen: bool, past_cache: bool, groups: int, dx: WriteNCS, sums: Sums,
    tail: Tail,
) -> None:  # fmt: skip
    """Write dx, which may be dy or x, and the sums, tiles of channels spread over the threads; as `forward_tiles`."""
    N, C, S = x.shape
    tiles = tile_count(N, S)
    slots = np.empty((C * tiles, 2))
    for task in prange(0, C * tiles):
        c = task // tiles
        slots[task, 0], slots[task, 1] = tile_sums(dy, x, c, task % tiles, normalized_with(x, saved, c), tail)
    for c in range(C):
        merge_tile_sums(x, c, saved, slots, sums)
    for i in prange(0, C * tiles):
        task = C * tiles - 1 - i
        c = task // tiles
        params = gradient_params(x, np.float64(N * S), saved, c, sums[0, c], sums[1, c])
        write_tile_gradient(dy, x, c, task % tiles, params, frozen, dx, past_cache, tail)


# ---------------------------------------------------------------- channels last


@scalar
def add_rows(total: Array, other: Array) -> None:
    """Add the sums (C,) of another block to those of the blocks before it; vectorises over the channels."""
    for c in range(total.size):
        total[c] += other[c]


@scalar
def merge_block_sums(x: Array, task: int, slots: Array, saved: Array, sums: Array) -> None:
    """Fill this group of channels of the sums from those of all blocks, (blocks, 2, wide C); block 0 is overwritten."""
    c0, c1 = merge_bounds(task, saved.shape[1])
    for block in range(1, slots.shape[0]):
        add_rows(slots[0, 0, c0:c1], slots[block, 0, c0:c1])
        add_rows(slots[0, 1, c0:c1], slots[block, 1, c0:c1])
    save_sums(x, saved, c0, c1, slots[0], c0, sums)


@scalar
def wide_gradient_params(x: Array, count: float, saved: Array, sums: Array) -> Array:
    """Return what `gradient_params` of every channel returns as params of a wide row."""
    C = saved.shape[1]
    params = empty_wide(x, GRADIENT_ROWS)
    fill_gradient(x, count, saved, sums, 0, C, params, 0)
    repeat_rows(params, C)
    return params


@scalar
def wide_sums_params(x: Array, saved: Array) -> Array:
    """Return what `normalized_with` of every channel returns as params of a wide row."""
    C = saved.shape[1]
    params = empty_wide(x, FORWARD_ROWS)
    fill_sums(x, saved, 0, C, params, 0)
    repeat_rows(params, C)
    return params


@scalar
def write_block_gradient(
    dy: Array, x: Array, task: int, params: Array, frozen: bool, dx: Array, past_cache: bool, tail: Any
) -> None:
    """Write dx of one block by a group of columns."""
    if not frozen:
        write_block(dy, x, task, params, dx, past_cache, tail)
    elif tail is None:
        write_block(dy, None, task, params, dx, past_cache, None)
    else:
        write_block(dy, x, task, params, dx, past_cache, (tail, FROZEN))


@kernel
def sums_channels_last(dy: ReadRC, x: ReadRC, saved: Saved, sums: Sums, tail: Tail) -> None:
    """Fill the sums of dy and dy * xhat, tiles spread over the threads."""
    R, C = x.shape
    blocks, tasks = block_tasks(R, C)
    params = wide_sums_params(x, saved)
    slots = np.empty((blocks, 2, params.shape[1]))
    for task in prange(0, tasks):
        block_sums(dy, x, task, params, slots[block_bounds(task, R, C)[0]], tail)
    for task in prange(0, merge_tasks(C)):
        merge_block_sums(x, task, slots, saved, sums)


@kernel
def gradient_channels_last(
    dy: ReadRC, x: ReadRC, saved: Saved, sums: Sums, count: float, frozen: bool, past_cache: bool, groups: int,
    dx: WriteRC, tail: Tail,
) -> None:  # fmt: skip
    """Write dx, which may be dy or x, from sums over `count` values, tiles spread over the threads."""
    R, C = x.shape
    _, tasks = block_tasks(R, C)
    params = wide_gradient_params(x, count, saved, sums)
    for task in prange(0, tasks):
        write_block_gradient(dy, x, tasks - 1 - task, params, frozen, dx, past_cache, tail)


@kernel
def backward_channels_last(
    dy: ReadRC, x: ReadRC, saved: Saved, frozen: bool, past_cache: bool, groups: int, dx: WriteRC, sums: Sums,
    tail: Tail,
) -> None:  # fmt: skip
    """Write dx, which may be dy or x, and the sums, tiles spread over the threads."""
    R, C = x.shape
    blocks, tasks = block_tasks(R, C)
    params = wide_sums_params(x, saved)
    slots = np.empty((blocks, 2, params.shape[1]))
    for task in prange(0, tasks):
        block_sums(dy, x, task, params, slots[block_bounds(task, R, C)[0]], tail)
    for task in prange(0, merge_tasks(C)):
        merge_block_sums(x, task, slots, saved, sums)
    written = wide_gradient_params(x, np.float64(R), saved, sums)
    for task in prange(0, tasks):
        write_block_gradient(dy, x, tasks - 1 - task, written, frozen, dx, past_cache, tail)
