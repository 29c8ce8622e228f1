"""Batch normalization of the rows that a mask chooses, channels last.

The kernels of `moments`, `normalize` and `backward` for x (R, C), of which a row counts in every channel or in none.

Kernels take the rows that count as a list of where they begin (`masked_rows_of`). What does not count is not read, and
the result is 0 there. Sums go over blocks of the list, all as long: neither bits nor the work of a thread depend on
where in memory rows lie. Results are written in blocks of memory. Rows are not taken together where they are narrow.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastbn_kernels.build.decorators import (
    Array,
    ReadRC,
    Rows,
    Saved,
    Sums,
    Tail,
    WriteRC,
    kernel,
    prange,
    scalar,
)
from fastbn_kernels.cpu.backward import merge_block_sums
from fastbn_kernels.cpu.columns import fill_forward, fill_gradient, fill_sums, group_columns, save_channel_moments
from fastbn_kernels.cpu.loops.listed_rows import sum_listed, write_listed, write_zeros
from fastbn_kernels.cpu.loops.row_streams import STREAMS
from fastbn_kernels.cpu.moments import AGAIN, AGAIN_SINGLE, SAMPLE, merge_rows, settled
from fastbn_kernels.cpu.params import FORWARD_ROWS, GRADIENT_ROWS
from fastbn_kernels.cpu.simd.channels import finite, held, put
from fastbn_kernels.cpu.simd.ops import add, fence, like, load, mul, single, value, widen
from fastbn_kernels.cpu.simd.tails import FROZEN
from fastbn_kernels.cpu.simd.types import LANES
from fastbn_kernels.cpu.sweeps import empty_params, repeat_rows
from fastbn_kernels.cpu.tiles import BLOCK, COLUMNS, FEW_BLOCKS, MOST_BLOCKS, TALL, merge_bounds, merge_tasks
from fastbn_kernels.formulas import finite_or_zero

# ---------------------------------------------------------------- how rows are cut


@scalar
def listed_shape(rows: int, C: int) -> tuple[int, int, int]:
    """Cut so many rows of C channels: (rows a block, blocks, groups of columns); see `tiles.block_shape`."""
    tall = min(TALL, (rows + FEW_BLOCKS - 1) // FEW_BLOCKS)
    height = max(BLOCK // C, tall, (rows + MOST_BLOCKS - 1) // MOST_BLOCKS, 1)
    height = (height + STREAMS - 1) // STREAMS * STREAMS
    return height, (rows + height - 1) // height, (C + COLUMNS - 1) // COLUMNS


@scalar
def listed_bounds(task: int, rows: int, C: int) -> tuple[int, int, int, int, int]:
    """Return (block, k0, k1, c0, c1) of a tile of rows and columns."""
    height, _, columns = listed_shape(rows, C)
    block = task // columns
    c0 = task % columns * COLUMNS
    return block, block * height, min(rows, (block + 1) * height), c0, min(C, c0 + COLUMNS)


@scalar
def first_from(rows: Array, start: int) -> int:
    """Return the place in the list of the first row that begins at `start` or behind."""
    low, high = 0, rows.size
    while low < high:
        middle = (low + high) // 2
        if rows[middle] < start:
            low = middle + 1
        else:
            high = middle
    return low


# ---------------------------------------------------------------- moments


@scalar
def listed_means(x: Array, rows: Array, k0: int, k1: int, c0: int, width: int, around: Array) -> None:
    """Fill row 0 of `around` with -k of columns c0 on, and row 1 with the unit, 1; see `moments.column_means`."""
    taken = 1
    while single(x) and taken < SAMPLE and 2 * taken <= k1 - k0:
        taken *= 2
    step = (k1 - k0) // taken
    for c in range(c0, c0 + width, LANES):
        n = min(LANES, c0 + width - c)
        found = load(x, rows[k0] + c, n)
        for row in range(1, taken):
            found = add(found, load(x, rows[k0 + row * step] + c, n))
        k = finite(held(x, mul(widen(found), like(widen(found), 1.0 / taken))))
        put(around, 0, c, n, mul(k, like(k, -1.0)))
        put(around, 1, c, n, like(k, 1.0))


@scalar
def listed_block_moments(x: Array, rows: Array, task: int, shifts: Array, sums: Array) -> None:
    """Fill this tile's part of `sums`, (blocks, 2, C): the offsets of the means from the first row, and m2.

    Columns whose shift was off are summed again, 16 by themselves; see `moments.sum_columns`.
    """
    block, k0, k1, c0, c1 = listed_bounds(task, rows.size, x.shape[1])
    around, found = shifts[block], sums[block]
    share = 1.0 / (k1 - k0)
    listed_means(x, rows, k0, k1, c0, c1 - c0, around)
    for time in range((AGAIN_SINGLE if single(x) else AGAIN) + 1):
        width = c1 - c0 if time == 0 or x.itemsize == 8 else LANES
        for c in range(c0, c1, width):
            n = min(width, c1 - c)
            if time > 0 and settled(x, share, around, c, n, found):
                continue
            for i in range(c, c + n):
                found[0, i] = 0.0
                found[1, i] = 0.0
            sum_listed(None, x, rows, k0, k1, c, n, around, found, None)
    group_columns(x, rows[0] + c0, share, around, c0, c1, found)


@scalar
def merge_listed(x: Array, rows: Array, task: int, sums: Array, numbers: Array) -> None:
    """Fill numbers (3, C) of a group of channels, origin, mean - origin and m2, from all blocks; 0 is overwritten."""
    C = x.shape[1]
    _, blocks, columns = listed_shape(rows.size, C)
    c0, c1 = merge_bounds(task, C)
    count = 0.0
    for block in range(blocks):
        _, k0, k1, _, _ = listed_bounds(block * columns, rows.size, C)
        own = np.float64(k1 - k0)
        if block > 0:
            merge_rows(count, sums[0, 0, c0:c1], sums[0, 1, c0:c1], own, sums[block, 0, c0:c1], sums[block, 1, c0:c1])
        count += own
    for c in range(c0, c1):
        numbers[0, c] = finite_or_zero(value(x, rows[0] + c)) if blocks > 0 else 0.0
        numbers[1, c] = sums[0, 0, c]
        numbers[2, c] = sums[0, 1, c]


@kernel
def masked_moments_channels_last(x: ReadRC, rows: Rows, saved: Saved) -> None:
    """Fill MEAN, MEAN_LO, M2 and VAR, tiles spread over the threads."""
    C = x.shape[1]
    _, blocks, columns = listed_shape(rows.size, C)
    sums = np.zeros((max(blocks, 1), 2, C))
    shifts = empty_params(x, 2 * blocks, C).reshape((blocks, 2, C))
    for task in prange(0, blocks * columns):
        listed_block_moments(x, rows, task, shifts, sums)
    numbers = np.empty((3, C))
    for task in prange(0, merge_tasks(C)):
        merge_listed(x, rows, task, sums, numbers)
    save_channel_moments(x, np.float64(rows.size), numbers, saved)


# ---------------------------------------------------------------- results


@scalar
def write_masked_block(
    dy: Array | None, x: Array | None, rows: Array, task: int, params: Array, out: Array, past_cache: bool, tail: Any
) -> None:
    """Write the results of rows that count of a tile of rows and columns of `out`, and zeros."""
    R, C = out.shape
    _, r0, r1, c0, c1 = listed_bounds(task, R, C)
    k0, k1 = first_from(rows, r0 * C), first_from(rows, r1 * C)
    lines = past_cache and C % LANES == 0 and c1 - c0 == C
    write_listed(dy, x, rows, k0, k1, c0, c1 - c0, params, out, lines, tail)
    start = r0 * C
    for k in range(k0, k1 + 1):  # what lies between a row that counts, or the first one, and the next
        end = rows[k] if k < k1 else r1 * C
        while start < end:
            write_zeros(out, start + c0, c1 - c0, lines)
            start += C
        start = end + C
    if lines:
        fence()


@kernel
def masked_normalize_channels_last(
    x: ReadRC, rows: Rows, saved: Saved, eps: float, past_cache: bool, y: WriteRC, tail: Tail
) -> None:  # fmt: skip
    """Normalise with given statistics to y, which may be x, tiles spread over the threads."""
    R, C = x.shape
    _, blocks, columns = listed_shape(R, C)
    params = empty_params(x, FORWARD_ROWS, C + LANES)
    fill_forward(x, saved, eps, 0, C, params, 0)
    repeat_rows(params, C)
    for task in prange(0, blocks * columns):
        write_masked_block(None, x, rows, blocks * columns - 1 - task, params, y, past_cache, tail)


@scalar
def write_masked_block_gradient(
    dy: Array, x: Array, rows: Array, task: int, params: Array, frozen: bool, dx: Array, past_cache: bool, tail: Any
) -> None:
    """Write dx of one tile of rows and columns."""
    if not frozen:
        write_masked_block(dy, x, rows, task, params, dx, past_cache, tail)
    elif tail is None:
        write_masked_block(dy, None, rows, task, params, dx, past_cache, None)
    else:
        write_masked_block(dy, x, rows, task, params, dx, past_cache, (tail, FROZEN))


@kernel
def masked_sums_channels_last(dy: ReadRC, x: ReadRC, rows: Rows, saved: Saved, sums: Sums, tail: Tail) -> None:
    """Fill the sums of dy and dy * xhat, tiles spread over the threads."""
    C = x.shape[1]
    _, blocks, columns = listed_shape(rows.size, C)
    params = empty_params(x, FORWARD_ROWS, C)
    fill_sums(x, saved, 0, C, params, 0)
    slots = np.zeros((max(blocks, 1), 2, C))
    for task in prange(0, blocks * columns):
        block, k0, k1, c0, c1 = listed_bounds(task, rows.size, C)
        sum_listed(dy, x, rows, k0, k1, c0, c1 - c0, params, slots[block], tail)
    for task in prange(0, merge_tasks(C)):
        merge_block_sums(x, task, slots, saved, sums)


@kernel
def masked_gradient_channels_last(
    dy: ReadRC, x: ReadRC, rows: Rows, saved: Saved, sums: Sums, count: float, frozen: bool, past_cache: bool,
    dx: WriteRC, tail: Tail,
) -> None:  # fmt: skip
    """Write dx, which may be dy or x, from sums over `count` values, tiles spread over the threads."""
    R, C = x.shape
    _, blocks, columns = listed_shape(R, C)
    params = empty_params(x, GRADIENT_ROWS, C + LANES)
    fill_gradient(x, count, saved, sums, 0, C, params, 0)
    repeat_rows(params, C)
    for task in prange(0, blocks * columns):
        write_masked_block_gradient(dy, x, rows, blocks * columns - 1 - task, params, frozen, dx, past_cache, tail)
