"""Back through the backward pass: five sums a channel, then two linear combinations a value.

With xhat = (x - mean) * invstd, n values a channel and P(u) = u - mean(u) - xhat * mean(u * xhat), the backward pass is

    dx = weight * invstd * P(dy)        dweight = sum dy * xhat        dbias = sum dy

Let v, ddweight, ddbias be the gradients of a loss by these three, and g = dy. As P is its own transpose, the loss is
linear in them through L = weight * invstd * A + ddweight * sum(g * xhat) + ddbias * sum(g), where

    A = sum v * P(g) = sum(v * g) - n * mean(v) * mean(g) - n * V * G    V = mean(v * xhat)    G = mean(g * xhat)

By g, that is ddy. By the weight, it is invstd * A: nothing is divided by a weight. By x, invstd changes by
-invstd^2 * xhat / n, and what changes with xhat by h changes with x by invstd * P(h); A changes with xhat by
-(G * v + V * g). So

    ddy     = weight * invstd * P(v) + ddweight * xhat + ddbias
    dweight = invstd * A
    dx      = ddweight * invstd * P(g) - weight * invstd^2 * (xhat * A / n + G * P(v) + V * P(g))

Both are combinations of v, g, x - mean and 1, whose coefficients are made once a channel. Through running statistics,
P(u) = u and dx has its first term alone: `fastbn/backends/cpu/derivatives.py` makes that of other kernels.
"""

from __future__ import annotations

import numpy as np

from fastbn_kernels.build.decorators import (
    Array,
    ReadC,
    ReadNCS,
    ReadRC,
    Saved,
    WriteC,
    WriteNCS,
    WriteRC,
    kernel,
    prange,
    scalar,
)
from fastbn_kernels.cpu.backward import add_rows
from fastbn_kernels.cpu.element import SECOND_PARAMS, SECOND_SUMS
from fastbn_kernels.cpu.loops.double_backward import (
    segments_second_sums,
    sum_second_streams,
    write_second_segment,
    write_second_streams,
)
from fastbn_kernels.cpu.sweeps import add_repeats, wide, wide_rows
from fastbn_kernels.cpu.tiles import (
    block_bounds,
    block_tasks,
    merge_bounds,
    merge_tasks,
    rows_together,
    tile_bounds,
    tile_count,
)
from fastbn_kernels.formulas import sum_with_xhat
from fastbn_kernels.saved import INVSTD, MEAN, MEAN_LO, WEIGHT

FiveSums = tuple[float, float, float, float, float]
Params = tuple[float, float, float, float, float, float, float]

# Rows that are summed, or written, at once; see `row_streams`. Three tensors are read.
STREAMS = 4

# ---------------------------------------------------------------- channels first


@scalar
def second_params(
    count: float, saved: Array, k: int, ddweight: float, ddbias: float, sums: FiveSums
) -> tuple[Params, float]:
    """Return (mean, a, b, c, e, h, o) of channel k, and the gradient of its weight.

    ddy = a * v + (b * (x - mean) + c)        dx = e * v + (b * g + (h * (x - mean) + o))
    """
    low, invstd = saved[MEAN_LO, k], saved[INVSTD, k]
    v, vx, vg, g, gx = sums
    v_xhat = sum_with_xhat(v, vx, low, invstd) / count
    g_xhat = sum_with_xhat(g, gx, low, invstd) / count
    v, g = v / count, g / count
    product = vg / count - v * g - v_xhat * g_xhat
    a = saved[WEIGHT, k] * invstd
    b = invstd * (ddweight - a * v_xhat)
    e = -a * invstd * g_xhat
    h = -invstd * (e * v_xhat + b * g_xhat + a * invstd * product)
    params = saved[MEAN, k], a, b, ddbias - a * v - b * low, e, h, -e * v - b * g - h * low
    return params, invstd * product * count


@scalar
def tile_second_sums(v: Array, g: Array, x: Array, k: int, tile: int, mean: float) -> FiveSums:
    """Return the sums of one tile of channel k."""
    N, C, S = x.shape
    n0, n1, s0, s1 = tile_bounds(tile, N, S)
    t0, t1, t2, t3, t4 = segments_second_sums(v, g, x, (n0 * C + k) * S + s0, C * S, n1 - n0, s1 - s0, mean)
    return t0, t1, t2, t3, t4


@scalar
def write_second_tile(v: Array, g: Array, x: Array, k: int, tile: int, params: Params, ddy: Array, dx: Array) -> None:
    """Write ddy and dx of one tile of channel k, last segment first."""
    N, C, S = x.shape
    n0, n1, s0, s1 = tile_bounds(tile, N, S)
    for i in range(n1 - n0):
        write_second_segment(v, g, x, ((n1 - 1 - i) * C + k) * S + s0, s1 - s0, params, ddy, dx)


@kernel
def double_backward_channels_first(
    v: ReadNCS, g: ReadNCS, x: ReadNCS, saved: Saved, ddweight: ReadC, ddbias: ReadC,
    ddy: WriteNCS, dx: WriteNCS, dweight: WriteC,
) -> None:  # fmt: skip
    """Write ddy, dx and dweight, whole channels spread over the threads: each is read from memory once."""
    N, C, S = x.shape
    tiles = tile_count(N, S)
    for k in prange(0, C):
        s0, s1, s2, s3, s4 = 0.0, 0.0, 0.0, 0.0, 0.0
        for tile in range(tiles):
            p0, p1, p2, p3, p4 = tile_second_sums(v, g, x, k, tile, saved[MEAN, k])
            s0, s1, s2, s3, s4 = s0 + p0, s1 + p1, s2 + p2, s3 + p3, s4 + p4
        params, dweight[k] = second_params(np.float64(N * S), saved, k, ddweight[k], ddbias[k], (s0, s1, s2, s3, s4))
        for tile in range(tiles):
            write_second_tile(v, g, x, k, tiles - 1 - tile, params, ddy, dx)


@kernel
def double_backward_tiles(
    v: ReadNCS, g: ReadNCS, x: ReadNCS, saved: Saved, ddweight: ReadC, ddbias: ReadC,
    ddy: WriteNCS, dx: WriteNCS, dweight: WriteC,
) -> None:  # fmt: skip
    """Write ddy, dx and dweight, tiles of channels spread over the threads: for few channels."""
    N, C, S = x.shape
    tiles = tile_count(N, S)
    slots = np.empty((C * tiles, SECOND_SUMS))
    made = np.empty((C, SECOND_PARAMS))
    for task in prange(0, C * tiles):
        k = task // tiles
        sums = tile_second_sums(v, g, x, k, task % tiles, saved[MEAN, k])
        slots[task, 0], slots[task, 1], slots[task, 2], slots[task, 3], slots[task, 4] = sums
    for k in range(C):
        s0, s1, s2, s3, s4 = 0.0, 0.0, 0.0, 0.0, 0.0
        for task in range(k * tiles, (k + 1) * tiles):
            s0, s1, s2 = s0 + slots[task, 0], s1 + slots[task, 1], s2 + slots[task, 2]
            s3, s4 = s3 + slots[task, 3], s4 + slots[task, 4]
        params, dweight[k] = second_params(np.float64(N * S), saved, k, ddweight[k], ddbias[k], (s0, s1, s2, s3, s4))
        made[k, 0], made[k, 1], made[k, 2], made[k, 3], made[k, 4], made[k, 5], made[k, 6] = params
    for i in prange(0, C * tiles):
        task = C * tiles - 1 - i
        k = task // tiles
        given = made[k, 0], made[k, 1], made[k, 2], made[k, 3], made[k, 4], made[k, 5], made[k, 6]
        write_second_tile(v, g, x, k, task % tiles, given, ddy, dx)


# ---------------------------------------------------------------- channels last


@scalar
def block_second_sums(v: Array, g: Array, x: Array, task: int, params: Array, slots: Array) -> None:
    """Fill this tile's part of the sums (blocks, SECOND_SUMS, wide C); params are those of a wide row."""
    C = x.shape[1]
    block, r0, r1, c0, c1 = block_bounds(task, x.shape[0], C)
    together = rows_together(C)
    sums = slots[block]
    sums[:, c0:c1] = 0.0
    start, step, rows, width = r0 * C + c0, together * C, (r1 - r0) // together, c1 - c0
    each = rows // STREAMS
    for row in range(each):
        sum_second_streams(v, g, x, start + row * step, each * step, STREAMS, width, params, c0, sums)
    for row in range(each * STREAMS, rows):
        sum_second_streams(v, g, x, start + row * step, step, 1, width, params, c0, sums)
    if together > 1:
        for i in range(SECOND_SUMS):
            add_repeats(sums[i, c0:c1], C)
        for row in range(r0 + rows * together, r1):
            sum_second_streams(v, g, x, row * C, C, 1, C, params, 0, sums)


@scalar
def merge_second_sums(
    task: int, count: float, slots: Array, saved: Array, ddweight: Array, ddbias: Array, made: Array, dweight: Array
) -> None:
    """Make the parameters of this group of channels from the sums of all blocks; block 0 is overwritten."""
    c0, c1 = merge_bounds(task, dweight.size)
    for block in range(1, slots.shape[0]):
        for i in range(SECOND_SUMS):
            add_rows(slots[0, i, c0:c1], slots[block, i, c0:c1])
    for k in range(c0, c1):
        params, dweight[k] = second_params(
            count, saved, k, ddweight[k], ddbias[k],
            (slots[0, 0, k], slots[0, 1, k], slots[0, 2, k], slots[0, 3, k], slots[0, 4, k]),
        )  # fmt: skip
        made[0, k], made[1, k], made[2, k], made[3, k], made[4, k], made[5, k], made[6, k] = params


@scalar
def write_second_block(v: Array, g: Array, x: Array, task: int, params: Array, ddy: Array, dx: Array) -> None:
    """Write ddy and dx of one block by a group of columns."""
    R, C = x.shape
    start, step, rows, c0, c1, rest, rest_start = wide_rows(task, R, C)
    each = rows // STREAMS
    for row in range(each):
        write_second_streams(v, g, x, start + row * step, each * step, STREAMS, c1 - c0, params, c0, ddy, dx)
    for row in range(each * STREAMS, rows):
        write_second_streams(v, g, x, start + row * step, step, 1, c1 - c0, params, c0, ddy, dx)
    for row in range(rest):
        write_second_streams(v, g, x, rest_start + row * C, C, 1, C, params, c0, ddy, dx)


@kernel
def double_backward_channels_last(
    v: ReadRC, g: ReadRC, x: ReadRC, saved: Saved, ddweight: ReadC, ddbias: ReadC,
    ddy: WriteRC, dx: WriteRC, dweight: WriteC,
) -> None:  # fmt: skip
    """Write ddy, dx and dweight, tiles spread over the threads."""
    R, C = x.shape
    blocks, tasks = block_tasks(R, C)
    mean = wide(x, saved[MEAN : MEAN + 1])
    slots = np.empty((blocks, SECOND_SUMS, mean.shape[1]))
    made = np.empty((SECOND_PARAMS, C))
    for task in prange(0, tasks):
        block_second_sums(v, g, x, task, mean, slots)
    for task in prange(0, merge_tasks(C)):
        merge_second_sums(task, np.float64(R), slots, saved, ddweight, ddbias, made, dweight)
    params = wide(x, made)
    for i in prange(0, tasks):
        write_second_block(v, g, x, tasks - 1 - i, params, ddy, dx)
