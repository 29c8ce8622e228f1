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
from fastbn_kernels.cpu.backward import channel_sums, merge_block_sums, merge_tile_sums, wide_sums_params
from fastbn_kernels.cpu.params import GRADIENT_ROWS, GradientParams, mean_pair, normalized_with, xhat_sum
from fastbn_kernels.cpu.sweeps import block_sums, tile_sums, wide, write_block, write_tile
from fastbn_kernels.cpu.tiles import block_bounds, block_tasks, merge_tasks, tile_count
from fastbn_kernels.saved import INVSTD, WEIGHT


@scalar
def tangent_params(
    x: Array, count: float, saved: Array, k: int, tweight: float, tbias: float, sum_tx: float, sum_tx_xhat: float
) -> GradientParams:
    """Return what ty = a * tx + b * (x - mean) + c of channel k is computed with, in the place of dx."""
    minus, unit, _, _ = normalized_with(x, saved, k)
    _, low = mean_pair(x, saved, k)
    invstd = saved[INVSTD, k]
    a = saved[WEIGHT, k] * invstd
    b = invstd * (tweight - a * (sum_tx_xhat / count))
    return minus, unit, 0.0, 0.0, b / unit, tbias - a * (sum_tx / count) - b * low, a


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
            total, product = channel_sums(tx, x, k, normalized_with(x, saved, k), None)
            product = xhat_sum(x, saved, k, total, product)
        params = tangent_params(x, np.float64(N * S), saved, k, tweight[k], tbias[k], total, product)
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
            slots[task, 0], slots[task, 1] = tile_sums(tx, x, k, task % tiles, normalized_with(x, saved, k), None)
        for k in range(C):
            merge_tile_sums(x, k, saved, slots, sums)
    for i in prange(C * tiles):
        task = C * tiles - 1 - i
        k = task // tiles
        params = tangent_params(x, np.float64(N * S), saved, k, tweight[k], tbias[k], sums[0, k], sums[1, k])
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
        given = wide_sums_params(x, saved)
        slots = np.empty((blocks, 2, given.shape[1]))
        for task in prange(tasks):
            block_sums(tx, x, task, given, slots[block_bounds(task, R, C)[0]], None)
        for task in prange(merge_tasks(C)):
            merge_block_sums(x, task, slots, saved, sums)
    params = np.empty((GRADIENT_ROWS, C))
    for k in range(C):
        made = tangent_params(x, np.float64(R), saved, k, tweight[k], tbias[k], sums[0, k], sums[1, k])
        params[0, k], params[1, k], params[2, k], params[3, k], params[4, k], params[5, k], params[6, k] = made
    wide_params = wide(x, params)
    for task in prange(tasks):
        write_block(tx, x, tasks - 1 - task, wide_params, ty, past_cache, None)
