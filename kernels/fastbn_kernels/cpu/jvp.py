"""The forward pass along tangents: two sums a channel, then one linear combination a value.

With xhat = (x - mean) * invstd, n values a channel, and tangents of x, weight and bias:

    ty = weight * invstd * (tx - mean(tx) - xhat * mean(tx * xhat)) + tweight * xhat + tbias

The sums are those of the backward pass with tx for dy, and so is the loop: ty = a * tx + b * (x - mean) + c. Through
running statistics nothing flows, and both means are zero. `past_cache` as in `normalize`.
"""

from __future__ import annotations

import numpy as np

from fastbn_kernels.build.decorators import (
    Array,
    ReadC,
    ReadNCS,
    ReadRC,
    Saved,
    WriteNCS,
    WriteRC,
    kernel,
    prange,
    scalar,
)
from fastbn_kernels.cpu.backward import (
    block_gradient,
    block_gradient_sums,
    channel_sums,
    merge_block_sums,
    merge_tile_sums,
    tile_gradient,
    tile_sums,
)
from fastbn_kernels.cpu.tiles import block_tasks, merge_tasks, tile_count
from fastbn_kernels.cpu.wide_rows import wide
from fastbn_kernels.formulas import sum_with_xhat
from fastbn_kernels.saved import INVSTD, MEAN, MEAN_LO, WEIGHT


@scalar
def tangent_coefficients(
    count: float, saved: Array, k: int, tweight: float, tbias: float, sum_tx: float, sum_tx_xhat: float
) -> tuple[float, float, float]:
    """Return (a, b, c) of channel k so that ty = a * tx + b * (x - mean) + c."""
    invstd = saved[INVSTD, k]
    a = saved[WEIGHT, k] * invstd
    b = invstd * (tweight - a * (sum_tx_xhat / count))
    return a, b, tbias - a * (sum_tx / count) - b * saved[MEAN_LO, k]


@kernel
def jvp_channels_first(
    tx: ReadNCS, x: ReadNCS, saved: Saved, tweight: ReadC, tbias: ReadC, frozen: bool, past_cache: bool, ty: WriteNCS
) -> None:
    """Write ty, whole channels spread over the threads: each is read from memory once."""
    N, C, S = x.shape
    tiles = tile_count(N, S)
    for k in prange(C):
        total, product = 0.0, 0.0
        if not frozen:
            total, product = channel_sums(tx, x, k, saved[MEAN, k])
            product = sum_with_xhat(total, product, saved[MEAN_LO, k], saved[INVSTD, k])
        a, b, c = tangent_coefficients(np.float64(N * S), saved, k, tweight[k], tbias[k], total, product)
        for tile in range(tiles):
            tile_gradient(tx, x, k, tiles - 1 - tile, saved[MEAN, k], a, b, c, False, ty, past_cache)


@kernel
def jvp_tiles(
    tx: ReadNCS, x: ReadNCS, saved: Saved, tweight: ReadC, tbias: ReadC, frozen: bool, past_cache: bool, ty: WriteNCS
) -> None:
    """Write ty, tiles of channels spread over the threads: for few channels."""
    N, C, S = x.shape
    tiles = tile_count(N, S)
    sums = np.zeros((2, C))
    if not frozen:
        slots = np.empty((C * tiles, 2))
        for task in prange(C * tiles):
            k = task // tiles
            slots[task, 0], slots[task, 1] = tile_sums(tx, x, k, task % tiles, saved[MEAN, k])
        for k in range(C):
            merge_tile_sums(x, k, saved, slots, sums)
    count = np.float64(N * S)
    for i in prange(C * tiles):
        task = C * tiles - 1 - i
        k = task // tiles
        a, b, c = tangent_coefficients(count, saved, k, tweight[k], tbias[k], sums[0, k], sums[1, k])
        tile_gradient(tx, x, k, task % tiles, saved[MEAN, k], a, b, c, False, ty, past_cache)


@kernel
def jvp_channels_last(
    tx: ReadRC, x: ReadRC, saved: Saved, tweight: ReadC, tbias: ReadC, frozen: bool, past_cache: bool, ty: WriteRC
) -> None:
    """Write ty, tiles spread over the threads."""
    R, C = x.shape
    blocks, tasks = block_tasks(R, C)
    mean = wide(x, saved[MEAN])
    sums = np.zeros((2, C))
    if not frozen:
        totals = np.empty((blocks, mean.size))
        products = np.empty((blocks, mean.size))
        for task in prange(tasks):
            block_gradient_sums(tx, x, task, mean, totals, products)
        for task in prange(merge_tasks(C)):
            merge_block_sums(task, totals, products, saved, sums)
    a, b, c = np.empty(C), np.empty(C), np.empty(C)
    for k in range(C):
        a[k], b[k], c[k] = tangent_coefficients(np.float64(R), saved, k, tweight[k], tbias[k], sums[0, k], sums[1, k])
    av, bv, cv = wide(x, a), wide(x, b), wide(x, c)
    for task in prange(tasks):
        block_gradient(tx, x, tasks - 1 - task, mean, av, bv, cv, False, ty, past_cache)
