"""The gradients: two sums a channel, then one linear combination a value.

The sums are of dy and of dy * (x - mean), never of dy * x: at a mean of 1e4 standard deviations the latter loses four
digits more. With frozen statistics nothing flows back through them, and dx is dy * scale alone, finite even where x
is not. `past_cache` as in `normalize`.

Of the sums (2, C), row 0 is sum dy, the gradient of the bias, and row 1 sum dy * xhat, that of the weight.
"""

from __future__ import annotations

import numpy as np

from fastbn_kernels.build.decorators import (
    Array,
    ReadNCS,
    ReadRC,
    Saved,
    Sums,
    WriteNCS,
    WriteRC,
    kernel,
    prange,
    scalar,
)
from fastbn_kernels.cpu.loops.row_streams import rows_gradient, rows_gradient_sums, rows_scale
from fastbn_kernels.cpu.loops.segments import run_gradient, run_scale, runs_gradient_sums, to_line
from fastbn_kernels.cpu.simd.ops import fence
from fastbn_kernels.cpu.simd.types import LANES
from fastbn_kernels.cpu.tiles import (
    block_bounds,
    block_tasks,
    merge_bounds,
    merge_tasks,
    rows_together,
    tile_bounds,
    tile_count,
)
from fastbn_kernels.cpu.wide_rows import add_repeats, wide, wide_rows
from fastbn_kernels.formulas import gradient_coefficients, sum_with_xhat
from fastbn_kernels.saved import INVSTD, MEAN, MEAN_LO, WEIGHT

# ---------------------------------------------------------------- tiles


@scalar
def tile_sums(dy: Array, x: Array, c: int, tile: int, mean: float) -> tuple[float, float]:
    """Return the sums of dy and dy * (x - mean) over one tile of channel c."""
    N, C, S = x.shape
    n0, n1, s0, s1 = tile_bounds(tile, N, S)
    total, product = runs_gradient_sums(dy, x, (n0 * C + c) * S + s0, C * S, n1 - n0, s1 - s0, mean)
    return total, product


@scalar
def tile_gradient(
    dy: Array, x: Array, channel: int, tile: int, mean: float, a: float, b: float, c: float, frozen: bool, dx: Array,
    past_cache: bool,
) -> None:  # fmt: skip
    """Write dx of one tile of a channel, last run first."""
    N, C, S = x.shape
    n0, n1, s0, s1 = tile_bounds(tile, N, S)
    for i in range(n1 - n0):
        start = ((n1 - 1 - i) * C + channel) * S + s0
        if frozen:
            run_scale(dy, start, s1 - s0, a, dx)
        else:
            run_gradient(dy, x, start, s1 - s0, mean, a, b, c, dx, past_cache)
    if past_cache:
        fence()


@scalar
def channel_sums(dy: Array, x: Array, c: int, mean: float) -> tuple[float, float]:
    """Return the sums of dy and dy * (x - mean) over channel c, tile after tile."""
    total = 0.0
    product = 0.0
    for tile in range(tile_count(x.shape[0], x.shape[2])):
        t, p = tile_sums(dy, x, c, tile, mean)
        total += t
        product += p
    return total, product


@scalar
def channel_gradient(
    dy: Array, x: Array, channel: int, mean: float, low: float, invstd: float, weight: float, frozen: bool, dx: Array,
    past_cache: bool,
) -> tuple[float, float]:  # fmt: skip
    """Write dx of one channel; return its sums of dy and dy * xhat."""
    N, _, S = x.shape
    tiles = tile_count(N, S)
    total, product = channel_sums(dy, x, channel, mean)
    product = sum_with_xhat(total, product, low, invstd)
    a, b, c = gradient_coefficients(np.float64(N * S), low, invstd, weight, total, product)
    for tile in range(tiles):
        tile_gradient(dy, x, channel, tiles - 1 - tile, mean, a, b, c, frozen, dx, past_cache)
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
    sums[1, c] = sum_with_xhat(total, product, saved[MEAN_LO, c], saved[INVSTD, c])


@scalar
def tile_gradient_of_sums(
    dy: Array, x: Array, task: int, saved: Array, sums: Array, count: float, frozen: bool, dx: Array, past_cache: bool
) -> None:
    """Write dx of one of the tiles of all channels from the sums of its channel."""
    tiles = tile_count(x.shape[0], x.shape[2])
    k = task // tiles
    a, b, c = gradient_coefficients(
        count, saved[MEAN_LO, k], saved[INVSTD, k], saved[WEIGHT, k], sums[0, k], sums[1, k]
    )
    tile_gradient(dy, x, k, task % tiles, saved[MEAN, k], a, b, c, frozen, dx, past_cache)


@scalar
def block_gradient_sums(dy: Array, x: Array, task: int, mean: Array, totals: Array, products: Array) -> None:
    """Fill this tile's part of the sums totals and products (blocks, wide C); mean is that of a wide row."""
    C = x.shape[1]
    block, r0, r1, c0, c1 = block_bounds(task, x.shape[0], C)
    together = rows_together(C)
    total = totals[block, c0:c1]
    product = products[block, c0:c1]
    for c in range(c1 - c0):
        total[c] = 0.0
        product[c] = 0.0
    rows = (r1 - r0) // together
    rows_gradient_sums(dy, x, r0 * C + c0, together * C, rows, c1 - c0, mean[c0:c1], total, product)
    if together > 1:
        add_repeats(total, C)
        add_repeats(product, C)
        rest = (r1 - r0) % together
        rows_gradient_sums(dy, x, (r1 - rest) * C, C, rest, C, mean, total, product)


@scalar
def add_rows(total: Array, other: Array) -> None:
    """Add the sums (C,) of another block to those of the blocks before it; vectorises over the channels."""
    for c in range(total.size):
        total[c] += other[c]


@scalar
def merge_block_sums(task: int, totals: Array, products: Array, saved: Array, sums: Array) -> None:
    """Fill this group of channels of the sums from those of all blocks; block 0 is overwritten."""
    c0, c1 = merge_bounds(task, saved.shape[1])
    for block in range(1, totals.shape[0]):
        add_rows(totals[0, c0:c1], totals[block, c0:c1])
        add_rows(products[0, c0:c1], products[block, c0:c1])
    for c in range(c0, c1):
        sums[0, c] = totals[0, c]
        sums[1, c] = sum_with_xhat(totals[0, c], products[0, c], saved[MEAN_LO, c], saved[INVSTD, c])


@scalar
def wide_coefficients(x: Array, count: float, saved: Array, sums: Array) -> tuple[Array, Array, Array]:
    """Return the coefficients a, b and c of dx as those of a wide row."""
    C = saved.shape[1]
    a, b, c = np.empty(C), np.empty(C), np.empty(C)
    for k in range(C):
        a[k], b[k], c[k] = gradient_coefficients(
            count, saved[MEAN_LO, k], saved[INVSTD, k], saved[WEIGHT, k], sums[0, k], sums[1, k]
        )
    return wide(x, a), wide(x, b), wide(x, c)


@scalar
def block_gradient(
    dy: Array, x: Array, task: int, mean: Array, a: Array, b: Array, c: Array, frozen: bool, dx: Array,
    past_cache: bool,
) -> None:  # fmt: skip
    """Write dx of one tile of rows and columns; mean, a, b and c are those of a wide row."""
    C = x.shape[1]
    start, step, rows, c0, c1, rest, tail = wide_rows(task, x.shape[0], C)
    if frozen:
        rows_scale(dy, start, step, rows, c1 - c0, a[c0:c1], dx)
        rows_scale(dy, tail, C, rest, min(C, c1 - c0), a, dx)
        return
    if past_cache and c1 - c0 == step and step % LANES == 0 and rows > 1:  # as in `normalize_block`
        head = to_line(dx, start, step)
        last = start + (rows - 1) * step + head
        rows_gradient(dy, x, start, step, 1, head, mean, a, b, c, dx, False)
        m, av, bv, cv = mean[head:], a[head:], b[head:], c[head:]
        rows_gradient(dy, x, start + head, step, rows - 1, step, m, av, bv, cv, dx, True)
        rows_gradient(dy, x, last, step, 1, step - head, m, av, bv, cv, dx, False)
        fence()
    else:
        rows_gradient(dy, x, start, step, rows, c1 - c0, mean[c0:c1], a[c0:c1], b[c0:c1], c[c0:c1], dx, False)
    if rest > 0:
        rows_gradient(dy, x, tail, C, rest, C, mean, a, b, c, dx, False)


# ---------------------------------------------------------------- kernels, channels first


@kernel
def sums_channels_first(dy: ReadNCS, x: ReadNCS, saved: Saved, sums: Sums) -> None:
    """Fill the sums of dy and dy * xhat, tiles of channels spread over the threads."""
    N, C, S = x.shape
    tiles = tile_count(N, S)
    slots = np.empty((C * tiles, 2))
    for task in prange(C * tiles):
        c = task // tiles
        slots[task, 0], slots[task, 1] = tile_sums(dy, x, c, task % tiles, saved[MEAN, c])
    for c in range(C):
        merge_tile_sums(x, c, saved, slots, sums)


@kernel
def gradient_channels_first(
    dy: ReadNCS, x: ReadNCS, saved: Saved, sums: Sums, count: float, frozen: bool, past_cache: bool, groups: int,
    dx: WriteNCS,
) -> None:  # fmt: skip
    """Write dx, which may be dy or x, from sums over `count` values, tiles of channels spread over the threads."""
    N, C, S = x.shape
    tasks = C * tile_count(N, S)
    for task in prange(tasks):
        tile_gradient_of_sums(dy, x, tasks - 1 - task, saved, sums, count, frozen, dx, past_cache)


@kernel
def backward_channels_first(
    dy: ReadNCS, x: ReadNCS, saved: Saved, frozen: bool, past_cache: bool, groups: int, dx: WriteNCS, sums: Sums
) -> None:
    """Write dx, which may be dy or x, and the sums, whole channels spread over the threads: each is read once."""
    for c in prange(x.shape[1]):
        sums[0, c], sums[1, c] = channel_gradient(
            dy, x, c, saved[MEAN, c], saved[MEAN_LO, c], saved[INVSTD, c], saved[WEIGHT, c], frozen, dx, past_cache
        )


@kernel
def backward_tiles(
    dy: ReadNCS, x: ReadNCS, saved: Saved, frozen: bool, past_cache: bool, groups: int, dx: WriteNCS, sums: Sums
) -> None:
    """Write dx, which may be dy or x, and the sums, tiles of channels spread over the threads; as `forward_tiles`."""
    N, C, S = x.shape
    tiles = tile_count(N, S)
    slots = np.empty((C * tiles, 2))
    for task in prange(C * tiles):
        c = task // tiles
        slots[task, 0], slots[task, 1] = tile_sums(dy, x, c, task % tiles, saved[MEAN, c])
    for c in range(C):
        merge_tile_sums(x, c, saved, slots, sums)
    count = np.float64(N * S)
    for task in prange(C * tiles):
        tile_gradient_of_sums(dy, x, C * tiles - 1 - task, saved, sums, count, frozen, dx, past_cache)


# ---------------------------------------------------------------- kernels, channels last


@kernel
def sums_channels_last(dy: ReadRC, x: ReadRC, saved: Saved, sums: Sums) -> None:
    """Fill the sums of dy and dy * xhat, tiles spread over the threads."""
    R, C = x.shape
    blocks, tasks = block_tasks(R, C)
    wide_mean = wide(x, saved[MEAN])
    totals = np.empty((blocks, wide_mean.size))
    products = np.empty((blocks, wide_mean.size))
    for task in prange(tasks):
        block_gradient_sums(dy, x, task, wide_mean, totals, products)
    for task in prange(merge_tasks(C)):
        merge_block_sums(task, totals, products, saved, sums)


@kernel
def gradient_channels_last(
    dy: ReadRC, x: ReadRC, saved: Saved, sums: Sums, count: float, frozen: bool, past_cache: bool, groups: int,
    dx: WriteRC,
) -> None:  # fmt: skip
    """Write dx, which may be dy or x, from sums over `count` values, tiles spread over the threads."""
    R, C = x.shape
    _, tasks = block_tasks(R, C)
    wide_mean = wide(x, saved[MEAN])
    a, b, c = wide_coefficients(x, count, saved, sums)
    for task in prange(tasks):
        block_gradient(dy, x, tasks - 1 - task, wide_mean, a, b, c, frozen, dx, past_cache)


@kernel
def backward_channels_last(
    dy: ReadRC, x: ReadRC, saved: Saved, frozen: bool, past_cache: bool, groups: int, dx: WriteRC, sums: Sums
) -> None:
    """Write dx, which may be dy or x, and the sums, tiles spread over the threads."""
    R, C = x.shape
    blocks, tasks = block_tasks(R, C)
    wide_mean = wide(x, saved[MEAN])
    totals = np.empty((blocks, wide_mean.size))
    products = np.empty((blocks, wide_mean.size))
    for task in prange(tasks):
        block_gradient_sums(dy, x, task, wide_mean, totals, products)
    for task in prange(merge_tasks(C)):
        merge_block_sums(task, totals, products, saved, sums)
    a, b, c = wide_coefficients(x, np.float64(R), saved, sums)
    for task in prange(tasks):
        block_gradient(dy, x, tasks - 1 - task, wide_mean, a, b, c, frozen, dx, past_cache)
