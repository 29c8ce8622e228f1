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
    channel_sums,
    merge_block_sums,
    merge_tile_sums,
    normalized_with,
    wide_sums_params,
)
from fastbn_kernels.cpu.sweeps import block_sums, tile_sums, wide, write_block, write_tile
from fastbn_kernels.cpu.tiles import block_bounds, block_tasks, merge_tasks, tile_count
from fastbn_kernels.formulas import sum_with_xhat
from fastbn_kernels.saved import INVSTD, MEAN, MEAN_LO, WEIGHT


@scalar
def tangent_params(
    count: float, saved: Array, k: int, tweight: float, tbias: float, sum_tx: float, sum_tx_xhat: float
) -> tuple[float, float, float, float, float]:
    """Return (mean, a, 0, b, c) of channel k so that ty = a * tx + b * (x - mean) + c; see `gradient_params`."""
    invstd = saved[INVSTD, k]
    a = saved[WEIGHT, k] * invstd
    b = invstd * (tweight - a * (sum_tx_xhat / count))
    return saved[MEAN, k], a, 0.0, b, tbias - a * (sum_tx / count) - b * saved[MEAN_LO, k]


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
            total, product = channel_sums(tx, x, k, normalized_with(saved, k), None)
            product = sum_with_xhat(total, product, saved[MEAN_LO, k], saved[INVSTD, k])
        params = tangent_params(np.float64(N * S), saved, k, tweight[k], tbias[k], total, product)
        for tile in range(tiles):
            write_tile(tx, x, k, tiles - 1 - tile, params, ty, past_cache, None)


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
            slots[task, 0], slots[task, 1] = tile_sums(tx, x, k, task % tiles, normalized_with(saved, k), None)
        for k in range(C):
            merge_tile_sums(x, k, saved, slots, sums)
    for i in prange(C * tiles):
        task = C * tiles - 1 - i
        k = task // tiles
        params = tangent_params(np.float64(N * S), saved, k, tweight[k], tbias[k], sums[0, k], sums[1, k])
        write_tile(tx, x, k, task % tiles, params, ty, past_cache, None)


@kernel
def jvp_channels_last(
    tx: ReadRC, x: ReadRC, saved: Saved, tweight: ReadC, tbias: ReadC, frozen: bool, past_cache: bool, ty: WriteRC
) -> None:
    """Write ty, tiles spread over the threads."""
    R, C = x.shape
    blocks, tasks = block_tasks(R, C)
    sums = np.zeros((2, C))
    if not frozen:
        mean = wide_sums_params(x, saved, None)
        slots = np.empty((blocks, 2, mean.shape[1]))
        for task in prange(tasks):
            block_sums(tx, x, task, mean, slots[block_bounds(task, R, C)[0]], None)
        for task in prange(merge_tasks(C)):
            merge_block_sums(task, slots, saved, sums)
    params = np.empty((5, C))
    for k in range(C):
        params[0, k], params[1, k], params[2, k], params[3, k], params[4, k] = tangent_params(
            np.float64(R), saved, k, tweight[k], tbias[k], sums[0, k], sums[1, k]
        )
    wide_params = wide(x, params)
    for task in prange(tasks):
        write_block(tx, x, tasks - 1 - task, wide_params, ty, past_cache, None)
