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
    Table,
    WriteNCS,
    WriteRC,
    kernel,
    prange,
    scalar,
)
from fastbn_kernels.cpu.backward import block_gradient, channel_sums, tile_gradient
from fastbn_kernels.cpu.tiles import block_tasks, tile_count
from fastbn_kernels.cpu.wide_rows import wide
from fastbn_kernels.formulas import sum_with_xhat
from fastbn_kernels.saved import INVSTD, MEAN, MEAN_LO, WEIGHT


@scalar
def tangent_coefficients(
    count: float, table: Array, k: int, tweight: float, tbias: float, sum_tx: float, sum_tx_xhat: float
) -> tuple[float, float, float]:
    """Return (a, b, c) of channel k so that ty = a * tx + b * (x - mean) + c."""
    invstd = table[INVSTD, k]
    a = table[WEIGHT, k] * invstd
    b = invstd * (tweight - a * (sum_tx_xhat / count))
    return a, b, tbias - a * (sum_tx / count) - b * table[MEAN_LO, k]


@kernel
def jvp_apart(
    tx: ReadNCS, x: ReadNCS, table: Table, tweight: ReadC, tbias: ReadC, past_cache: bool, ty: WriteNCS
) -> None:
    """Write ty through the batch's own statistics, whole channels spread over the threads: each is read once."""
    N, C, S = x.shape
    tiles = tile_count(N, S)
    for k in prange(C):
        mean = table[MEAN, k]
        total, product = channel_sums(tx, x, k, mean)
        product = sum_with_xhat(total, product, table[MEAN_LO, k], table[INVSTD, k])
        a, b, c = tangent_coefficients(np.float64(N * S), table, k, tweight[k], tbias[k], total, product)
        for tile in range(tiles):
            tile_gradient(tx, x, k, tiles - 1 - tile, mean, a, b, c, False, ty, past_cache)


@kernel
def tangent_apart(
    tx: ReadNCS, x: ReadNCS, table: Table, tweight: ReadC, tbias: ReadC, sum_tx: ReadC, sum_tx_xhat: ReadC,
    past_cache: bool, ty: WriteNCS,
) -> None:  # fmt: skip
    """Write ty from sums, zeros for running statistics, tiles spread over the threads."""
    N, C, S = x.shape
    tiles = tile_count(N, S)
    for i in prange(C * tiles):
        task = C * tiles - 1 - i
        k = task // tiles
        count = np.float64(N * S)
        a, b, c = tangent_coefficients(count, table, k, tweight[k], tbias[k], sum_tx[k], sum_tx_xhat[k])
        tile_gradient(tx, x, k, task % tiles, table[MEAN, k], a, b, c, False, ty, past_cache)


@kernel
def tangent_adjacent(
    tx: ReadRC, x: ReadRC, table: Table, tweight: ReadC, tbias: ReadC, sum_tx: ReadC, sum_tx_xhat: ReadC,
    past_cache: bool, ty: WriteRC,
) -> None:  # fmt: skip
    """Write ty from sums, zeros for running statistics, tiles spread over the threads."""
    R, C = x.shape
    _, tasks = block_tasks(R, C)
    a, b, c = np.empty(C), np.empty(C), np.empty(C)
    for k in range(C):
        a[k], b[k], c[k] = tangent_coefficients(
            np.float64(R), table, k, tweight[k], tbias[k], sum_tx[k], sum_tx_xhat[k]
        )
    mean, av, bv, cv = wide(x, table[MEAN]), wide(x, a), wide(x, b), wide(x, c)
    for task in prange(tasks):
        block_gradient(tx, x, tasks - 1 - task, mean, av, bv, cv, False, ty, past_cache)
