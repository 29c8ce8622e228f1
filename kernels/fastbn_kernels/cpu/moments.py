"""Mean and sum of squared deviations a channel.

A tile is summed in one sweep as (x - k) and (x - k)^2, where the shift k is near its mean; should it prove too far off,
the tile, still in the cache, is summed once more around its mean. Tiles are merged by Chan's formula. Means travel as
offsets from the channel's first value, which keeps the digits that a float64 mean of 1e6 standard deviations would
drop.

In float64, k is a value of the tile, and too far are 8 standard deviations: at most 6 of the 53 bits cancel, at any
mean, and the usual tile is swept once. In float32 there are 24 bits, of which not one can be spared: k is the mean of a
few values, too far is one standard deviation, and too far are values whose squares leave the range of float32: they are
taken in another unit.

Channels first, x is (N, C, S) with S values of a channel side by side; channels last, it is (R, C).
"""

from __future__ import annotations

import math

import numpy as np

from fastbn_kernels.build.decorators import Array, ReadNCS, ReadRC, Saved, kernel, prange, scalar
from fastbn_kernels.cpu.columns import group_columns, save_moments
from fastbn_kernels.cpu.loops.row_streams import sum_rows
from fastbn_kernels.cpu.loops.segments import segments_sums
from fastbn_kernels.cpu.params import as_pair
from fastbn_kernels.cpu.simd.channels import finite, held, put
from fastbn_kernels.cpu.simd.ops import add, like, load, mul, rounded, single, total, value, widen
from fastbn_kernels.cpu.simd.types import LANES
from fastbn_kernels.cpu.sweeps import block_sums, empty_params, repeat
from fastbn_kernels.cpu.tiles import (
    block_bounds,
    block_tasks,
    merge_bounds,
    merge_tasks,
    rows_together,
    tile_bounds,
    tile_count,
)
from fastbn_kernels.formulas import finite_or_zero, group, merge, shift_is_off
from fastbn_kernels.saved import M2, MEAN, MEAN_LO

# Rows whose mean is the shift of a block of rows, in float32. With 8 of them one column in 200 is summed again, with 32
# none; columns are summed again by themselves, but not those of a wide row, which are the channels several times.
SAMPLE, SAMPLE_WIDE = 8, 32

# ---------------------------------------------------------------- channels first


@scalar
def channel_origin(x: Array, c: int) -> float:
    """Return what the offsets of channel c are measured from: its first value, if that is finite."""
    return finite_or_zero(value(x, c * x.shape[2]))


@scalar
def first_mean(x: Array, at: int, step: int, segments: int, length: int) -> float:
    """Return the mean of the first values of segments, `step` apart: as many as a power of two, and a vector, have."""
    count = 1
    while count < LANES and 2 * count <= length:
        count *= 2
    taken = 1
    while taken * count < LANES and 2 * taken <= segments:
        taken *= 2
    found = widen(load(x, at, count))
    for segment in range(1, taken):
        found = add(found, widen(load(x, at + segment * step, count)))
    return finite_or_zero(rounded(x, total(found) / (count * taken)))


@scalar
def tile_shift(x: Array, c: int, tile: int) -> float:
    """Return what the sums of a tile of channel c are taken around."""
    N, C, S = x.shape
    n0, n1, s0, s1 = tile_bounds(tile, N, S)
    at = (n0 * C + c) * S + s0
    return first_mean(x, at, C * S, n1 - n0, s1 - s0) if single(x) else finite_or_zero(value(x, at))


@scalar
def sum_again(x: Array, share: float, total: float, squares: float) -> bool:
    """Return whether a tile, which is in the cache, is summed again around its mean.

    Where the shift was far off, and always for float64 data: there the digits that a shift by up to 3 standard
    deviations costs, 6e-15 of the variance, are seen. Around the mean it is 5e-16.
    """
    if single(x):
        return 2.0 * (total * (total * share)) > squares
    return shift_is_off(share, total, squares) or (x.itemsize == 8 and math.isfinite(total))


@scalar
def unit_again(x: Array, share: float, squares: float, k: float) -> float:
    """Return the unit that values of a tile are to be squared in, from what their squares in the unit 1 added up to.

    Near zero, 2^-20 being far enough, values differ by 2^-44 at least if they differ: nothing is lost of their squares.
    """
    if single(x):
        mean_square = squares * share
        if not mean_square <= 2.0**100:
            return 2.0**-70
        if mean_square < 2.0**-100 and abs(k) < 2.0**-20:
            return 2.0**100
    return 1.0


# How often a tile may be summed again: in float32 once for the unit, and once around the mean.
AGAIN, AGAIN_SINGLE = 1, 2


@scalar
def tile_group(x: Array, c: int, tile: int, k: float, total: float, squares: float) -> tuple[float, float, float]:
    """Return (count, mean - origin, m2) of one tile of channel c from its sums around k, taken again if need be."""
    N, C, S = x.shape
    n0, n1, s0, s1 = tile_bounds(tile, N, S)
    count = np.float64((n1 - n0) * (s1 - s0))
    share = 1.0 / count
    unit = 1.0
    for _ in range(AGAIN_SINGLE if single(x) else AGAIN):
        wanted = unit_again(x, share, squares, k) if unit == 1.0 else unit
        if wanted == unit and not sum_again(x, share, total, squares):
            break
        if math.isfinite(total):
            k = rounded(x, k + total / count / unit)
        unit = wanted
        around = -k * unit, unit
        total, squares = segments_sums(None, x, (n0 * C + c) * S + s0, C * S, n1 - n0, s1 - s0, around, None)
    offset, m2 = group(share, k - channel_origin(x, c), total / unit, squares / (unit * unit))
    return count, offset, m2


@scalar
def tile_moments(x: Array, c: int, tile: int) -> tuple[float, float, float]:
    """Return (count, mean - origin, m2) of one tile of channel c."""
    N, C, S = x.shape
    n0, n1, s0, s1 = tile_bounds(tile, N, S)
    k = tile_shift(x, c, tile)
    total, squares = segments_sums(None, x, (n0 * C + c) * S + s0, C * S, n1 - n0, s1 - s0, (-k, 1.0), None)
    return tile_group(x, c, tile, k, total, squares)


@scalar
def channel_group(x: Array, c: int) -> tuple[float, float]:
    """Return (mean - origin, m2) of channel c, tile after tile."""
    count = 0.0
    offset = 0.0
    m2 = 0.0
    for tile in range(tile_count(x.shape[0], x.shape[2])):
        tile_n, tile_offset, tile_m2 = tile_moments(x, c, tile)
        offset, m2 = merge(count, offset, m2, tile_n, tile_offset, tile_m2)
        count += tile_n
    return offset, m2


@scalar
def channel_moments(x: Array, c: int) -> tuple[float, float, float]:
    """Return (mean, low, m2) of channel c."""
    offset, m2 = channel_group(x, c)
    mean, low = as_pair(x, channel_origin(x, c), offset)
    return mean, low, m2


@scalar
def merge_tiles(x: Array, c: int, slots: Array, saved: Array) -> None:
    """Fill MEAN, MEAN_LO and M2 of channel c from the moments of its tiles, (tiles of all channels, 3)."""
    tiles = tile_count(x.shape[0], x.shape[2])
    count = 0.0
    offset = 0.0
    m2 = 0.0
    for task in range(c * tiles, (c + 1) * tiles):
        offset, m2 = merge(count, offset, m2, slots[task, 0], slots[task, 1], slots[task, 2])
        count += slots[task, 0]
    saved[MEAN, c], saved[MEAN_LO, c] = as_pair(x, channel_origin(x, c), offset)
    saved[M2, c] = m2


@kernel
def moments_channels_first(x: ReadNCS, saved: Saved) -> None:
    """Fill MEAN, MEAN_LO and M2, tiles of channels spread over the threads."""
    N, C, S = x.shape
    tiles = tile_count(N, S)
    slots = np.empty((C * tiles, 3))
    for task in prange(0, C * tiles):
        slots[task, 0], slots[task, 1], slots[task, 2] = tile_moments(x, task // tiles, task % tiles)
    for c in range(C):
        merge_tiles(x, c, slots, saved)


# ---------------------------------------------------------------- channels last


@scalar
def column_means(x: Array, r0: int, r1: int, c0: int, around: Array, at: int, channels: int) -> None:
    """Fill row 0 of `around` from column `at` on with -k of channels c0 on, and row 1 with the unit, 1.

    k is the first value or, in float32, the mean of a few rows that are evenly spread from r0 to r1.
    """
    C = x.shape[1]
    rows, most = 1, SAMPLE if rows_together(C) == 1 else SAMPLE_WIDE
    while single(x) and rows < most and 2 * rows <= r1 - r0:
        rows *= 2
    step = (r1 - r0) // rows * C
    for c in range(0, channels, LANES):
        n = min(LANES, channels - c)
        i = r0 * C + c0 + c
        found = load(x, i, n)
        for row in range(1, rows):
            found = add(found, load(x, i + row * step, n))
        k = finite(held(x, mul(widen(found), like(widen(found), 1.0 / rows))))
        put(around, 0, at + c, n, mul(k, like(k, -1.0)))
        put(around, 1, at + c, n, like(k, 1.0))


@scalar
def settled(x: Array, share: float, around: Array, at: int, channels: int, sums: Array) -> bool:
    """Return whether sums of columns suffice as they are; otherwise change what they are to be taken around."""
    good = True
    for c in range(at, at + channels):
        good &= not sum_again(x, share, sums[0, c], sums[1, c])
        good &= around[1, c] != 1.0 or unit_again(x, share, sums[1, c], around[0, c]) == 1.0
    if not good:
        for c in range(at, at + channels):
            total, old = sums[0, c], np.float64(around[1, c])
            k = -np.float64(around[0, c]) / old
            unit = unit_again(x, share, sums[1, c], k) if old == 1.0 else old
            if (sum_again(x, share, total, sums[1, c]) or unit != old) and math.isfinite(total):
                k = rounded(x, k + total * share / old)
            around[0, c], around[1, c] = -k * unit, unit
    return good


@scalar
def sum_columns(
    x: Array, r0: int, r1: int, c0: int, around: Array, at: int, channels: int, sums: Array
) -> None:  # fmt: skip
    """Fill sums of rows r0 to r1 of columns c0 on, in columns `at` on; 16 columns again by themselves where need be."""
    C = x.shape[1]
    start, rows, share = r0 * C + c0, r1 - r0, 1.0 / (r1 - r0)
    again = AGAIN_SINGLE if single(x) else AGAIN
    for time in range(again + 1):
        width = channels if time == 0 or x.itemsize == 8 else LANES  # float64 is all summed twice, row after row
        for c in range(0, channels, width):
            n = min(width, channels - c)
            if time > 0 and settled(x, share, around, at + c, n, sums):
                continue
            for i in range(at + c, at + c + n):
                sums[0, i] = 0.0
                sums[1, i] = 0.0
            sum_rows(None, x, start + c, C, rows, n, around, at + c, sums, None)


@scalar
def block_moments(x: Array, task: int, shifts: Array, sums: Array) -> None:
    """Fill this tile's part of `sums`, (blocks, 2, wide C): the offsets of the means from row 0, and m2.

    `shifts`, (blocks, 2, wide C), is workspace.
    """
    C = x.shape[1]
    block, r0, r1, c0, c1 = block_bounds(task, x.shape[0], C)
    around, found = shifts[block], sums[block]
    channels = min(C, c1 - c0)
    share = 1.0 / (r1 - r0)
    column_means(x, r0, r1, c0, around, c0, channels)
    if rows_together(C) == 1:
        sum_columns(x, r0, r1, c0, around, c0, channels, found)
    else:
        times = 1 + (AGAIN_SINGLE if single(x) else AGAIN)
        for time in range(times):
            repeat(around[0, c0:c1], channels)
            repeat(around[1, c0:c1], channels)
            block_sums(None, x, task, around, found, None)
            if time == times - 1 or settled(x, share, around, c0, channels, found):
                break
    group_columns(x, c0, share, around, c0, c0 + channels, found)


@scalar
def merge_rows(
    count: float, offset: Array, m2: Array, other_count: float, other_offset: Array, other_m2: Array
) -> None:
    """Merge the moments (C,) of another block into those of the blocks before it; vectorises over the channels."""
    for c in range(offset.size):
        offset[c], m2[c] = merge(count, offset[c], m2[c], other_count, other_offset[c], other_m2[c])


@scalar
def merge_blocks(x: Array, task: int, sums: Array, saved: Array) -> None:
    """Fill all moments of this group of channels, and VAR, from those of all blocks; block 0 is overwritten."""
    R, C = x.shape
    blocks, tasks = block_tasks(R, C)
    c0, c1 = merge_bounds(task, C)
    count = 0.0
    for block in range(blocks):
        _, r0, r1, _, _ = block_bounds(block * (tasks // blocks), R, C)
        rows = np.float64(r1 - r0)
        if block > 0:
            merge_rows(count, sums[0, 0, c0:c1], sums[0, 1, c0:c1], rows, sums[block, 0, c0:c1], sums[block, 1, c0:c1])
        count += rows
    save_moments(x, count, sums[0], c0, c0, c1, saved)


@kernel
def moments_channels_last(x: ReadRC, saved: Saved) -> None:
    """Fill MEAN, MEAN_LO and M2, tiles spread over the threads."""
    R, C = x.shape
    blocks, tasks = block_tasks(R, C)
    width = rows_together(C) * C
    sums = np.empty((blocks, 2, width))
    shifts = empty_params(x, 2 * blocks, width).reshape((blocks, 2, width))
    for task in prange(0, tasks):
        block_moments(x, task, shifts, sums)
    for task in prange(0, merge_tasks(C)):
        merge_blocks(x, task, sums, saved)
