"""The gradients: two sums a channel, then one linear combination a value.

The sums are of dy and of dy * (x - mean), never of dy * x: at a mean of 1e4 standard deviations the latter loses four
digits more. With frozen statistics nothing flows back through them, and dx is dy * scale alone, finite even where x
is not.
"""

from __future__ import annotations

import numpy as np

from fastbn_kernels.cpu.tiles import block_bounds, block_tasks, merge_bounds, merge_tasks, tile_bounds, tile_count
from fastbn_kernels.formulas import gradient_coefficients, sum_with_xhat
from fastbn_kernels.jit import (
    Array,
    ReadC,
    ReadNCS,
    ReadRC,
    WriteC,
    WriteNCS,
    WriteRC,
    elementwise,
    kernel,
    prange,
    reduction,
    scalar,
)

# ---------------------------------------------------------------- inner loops


@reduction
def run_gradient_sums(dy: Array, x: Array, mean: float) -> tuple[float, float]:
    """Return the sums of dy and dy * (x - mean) over a 1-D run."""
    total = 0.0
    product = 0.0
    for i in range(dy.size):
        g = np.float64(dy[i])
        total += g
        product += g * (np.float64(x[i]) - mean)
    return total, product


@elementwise
def run_gradient(dy: Array, x: Array, mean: float, a: float, b: float, c: float, dx: Array) -> None:
    """Write dx = a * dy + b * (x - mean) + c over a 1-D run."""
    for i in range(dy.size):
        dx[i] = np.float64(dy[i]) * a + ((np.float64(x[i]) - mean) * b + c)


@elementwise
def run_scale(dy: Array, a: float, dx: Array) -> None:
    """Write dx = a * dy over a 1-D run."""
    for i in range(dy.size):
        dx[i] = np.float64(dy[i]) * a


@reduction
def row_gradient_sums(dy: Array, x: Array, mean: Array, total: Array, product: Array) -> None:
    """Add dy and dy * (x - mean) of one row (C,) to its channels."""
    for c in range(mean.size):
        g = np.float64(dy[c])
        total[c] += g
        product[c] += g * (np.float64(x[c]) - mean[c])


@reduction
def rows_gradient_sums(
    g0: Array, g1: Array, g2: Array, g3: Array, x0: Array, x1: Array, x2: Array, x3: Array,
    mean: Array, total: Array, product: Array,
) -> None:  # fmt: skip
    """Add dy and dy * (x - mean) of four rows (C,) to their channels."""
    for c in range(mean.size):
        m = mean[c]
        d0 = np.float64(g0[c])
        d1 = np.float64(g1[c])
        d2 = np.float64(g2[c])
        d3 = np.float64(g3[c])
        total[c] += (d0 + d1) + (d2 + d3)
        product[c] += (d0 * (np.float64(x0[c]) - m) + d1 * (np.float64(x1[c]) - m)) + (
            d2 * (np.float64(x2[c]) - m) + d3 * (np.float64(x3[c]) - m)
        )


@elementwise
def row_gradient(dy: Array, x: Array, mean: Array, a: Array, b: Array, c: Array, dx: Array) -> None:
    """Write dx = a * dy + b * (x - mean) + c over one row of adjacent channels."""
    for i in range(mean.size):
        dx[i] = np.float64(dy[i]) * a[i] + ((np.float64(x[i]) - mean[i]) * b[i] + c[i])


@elementwise
def row_scale(dy: Array, a: Array, dx: Array) -> None:
    """Write dx = a * dy over one row of adjacent channels."""
    for i in range(a.size):
        dx[i] = np.float64(dy[i]) * a[i]


# ---------------------------------------------------------------- tiles


@scalar
def tile_sums(dy: Array, x: Array, c: int, tile: int, mean: float) -> tuple[float, float]:
    """Return the sums of dy and dy * (x - mean) over one tile of channel c."""
    n0, n1, s0, s1 = tile_bounds(tile, x.shape[0], x.shape[2])
    total = 0.0
    product = 0.0
    for n in range(n0, n1):
        t, p = run_gradient_sums(dy[n, c, s0:s1], x[n, c, s0:s1], mean)
        total += t
        product += p
    return total, product


@scalar
def tile_gradient(
    dy: Array, x: Array, channel: int, tile: int, mean: float, a: float, b: float, c: float, frozen: bool, dx: Array
) -> None:
    """Write dx of one tile of a channel, last run first."""
    n0, n1, s0, s1 = tile_bounds(tile, x.shape[0], x.shape[2])
    for i in range(n1 - n0):
        n = n1 - 1 - i
        if frozen:
            run_scale(dy[n, channel, s0:s1], a, dx[n, channel, s0:s1])
        else:
            run_gradient(dy[n, channel, s0:s1], x[n, channel, s0:s1], mean, a, b, c, dx[n, channel, s0:s1])


@scalar
def block_sums(dy: Array, x: Array, task: int, mean: Array, totals: Array, products: Array) -> None:
    """Fill this tile's part of the sums totals and products (blocks, C)."""
    block, r0, r1, c0, c1 = block_bounds(task, x.shape[0], x.shape[1])
    m = mean[c0:c1]
    total = totals[block, c0:c1]
    product = products[block, c0:c1]
    for c in range(c1 - c0):
        total[c] = 0.0
        product[c] = 0.0
    r = r0
    while r + 4 <= r1:
        rows_gradient_sums(
            dy[r, c0:c1], dy[r + 1, c0:c1], dy[r + 2, c0:c1], dy[r + 3, c0:c1],
            x[r, c0:c1], x[r + 1, c0:c1], x[r + 2, c0:c1], x[r + 3, c0:c1],
            m, total, product,
        )  # fmt: skip
        r += 4
    while r < r1:
        row_gradient_sums(dy[r, c0:c1], x[r, c0:c1], m, total, product)
        r += 1


@scalar
def add_rows(total: Array, other: Array) -> None:
    """Add the sums (C,) of another block to those of the blocks before it; vectorises over the channels."""
    for c in range(total.size):
        total[c] += other[c]


@scalar
def merge_block_sums(task: int, totals: Array, products: Array) -> None:
    """Add all blocks of this group of channels of the sums (blocks, C) into block 0."""
    c0, c1 = merge_bounds(task, totals.shape[1])
    for block in range(1, totals.shape[0]):
        add_rows(totals[0, c0:c1], totals[block, c0:c1])
        add_rows(products[0, c0:c1], products[block, c0:c1])


@scalar
def block_gradient(
    dy: Array, x: Array, task: int, mean: Array, a: Array, b: Array, c: Array, frozen: bool, dx: Array
) -> None:
    """Write dx of one tile of rows and columns."""
    _, r0, r1, c0, c1 = block_bounds(task, x.shape[0], x.shape[1])
    for r in range(r0, r1):
        if frozen:
            row_scale(dy[r, c0:c1], a[c0:c1], dx[r, c0:c1])
        else:
            row_gradient(dy[r, c0:c1], x[r, c0:c1], mean[c0:c1], a[c0:c1], b[c0:c1], c[c0:c1], dx[r, c0:c1])


# ---------------------------------------------------------------- kernels, channels apart


@kernel
def sums_apart(
    dy: ReadNCS, x: ReadNCS, mean: ReadC, low: ReadC, invstd: ReadC, sum_dy: WriteC, sum_dy_xhat: WriteC
) -> None:
    """Fill sum dy and sum dy * xhat of every channel, tiles spread over the threads."""
    N, C, S = x.shape
    tiles = tile_count(N, S)
    slots = np.empty((C * tiles, 2))
    for task in prange(C * tiles):
        c = task // tiles
        slots[task, 0], slots[task, 1] = tile_sums(dy, x, c, task % tiles, mean[c])
    for c in range(C):
        total = 0.0
        product = 0.0
        for task in range(c * tiles, (c + 1) * tiles):
            total += slots[task, 0]
            product += slots[task, 1]
        sum_dy[c] = total
        sum_dy_xhat[c] = sum_with_xhat(total, product, low[c], invstd[c])


@kernel
def gradient_apart(
    dy: ReadNCS, x: ReadNCS, weight: ReadC, mean: ReadC, low: ReadC, invstd: ReadC, sum_dy: ReadC, sum_dy_xhat: ReadC,
    count: float, frozen: bool, dx: WriteNCS,
) -> None:  # fmt: skip
    """Write dx, which may be dy or x, from sums over `count` values, tiles spread over the threads."""
    N, C, S = x.shape
    tiles = tile_count(N, S)
    for i in prange(C * tiles):
        task = C * tiles - 1 - i
        k = task // tiles
        a, b, c = gradient_coefficients(count, low[k], invstd[k], weight[k], sum_dy[k], sum_dy_xhat[k])
        tile_gradient(dy, x, k, task % tiles, mean[k], a, b, c, frozen, dx)


@kernel
def backward_apart(
    dy: ReadNCS, x: ReadNCS, weight: ReadC, mean: ReadC, low: ReadC, invstd: ReadC, frozen: bool, dx: WriteNCS,
    sum_dy: WriteC, sum_dy_xhat: WriteC,
) -> None:  # fmt: skip
    """Write dx, which may be dy or x, and the sums, whole channels spread over the threads: each is read once.

    sum_dy is the gradient of the bias, sum_dy_xhat that of the weight.
    """
    N, C, S = x.shape
    count = np.float64(N * S)
    tiles = tile_count(N, S)
    for k in prange(C):
        total = 0.0
        product = 0.0
        for tile in range(tiles):
            t, p = tile_sums(dy, x, k, tile, mean[k])
            total += t
            product += p
        sum_dy[k] = total
        sum_dy_xhat[k] = sum_with_xhat(total, product, low[k], invstd[k])
        a, b, c = gradient_coefficients(count, low[k], invstd[k], weight[k], sum_dy[k], sum_dy_xhat[k])
        for tile in range(tiles):
            tile_gradient(dy, x, k, tiles - 1 - tile, mean[k], a, b, c, frozen, dx)


# ---------------------------------------------------------------- kernels, channels adjacent


@kernel
def sums_adjacent(
    dy: ReadRC, x: ReadRC, mean: ReadC, low: ReadC, invstd: ReadC, sum_dy: WriteC, sum_dy_xhat: WriteC
) -> None:
    """Fill sum dy and sum dy * xhat of every channel, tiles spread over the threads."""
    blocks, tasks = block_tasks(x.shape[0], x.shape[1])
    totals = np.empty((blocks, x.shape[1]))
    products = np.empty((blocks, x.shape[1]))
    for task in prange(tasks):
        block_sums(dy, x, task, mean, totals, products)
    for task in prange(merge_tasks(x.shape[1])):
        merge_block_sums(task, totals, products)
    for c in range(x.shape[1]):
        sum_dy[c] = totals[0, c]
        sum_dy_xhat[c] = sum_with_xhat(totals[0, c], products[0, c], low[c], invstd[c])


@kernel
def gradient_adjacent(
    dy: ReadRC, x: ReadRC, weight: ReadC, mean: ReadC, low: ReadC, invstd: ReadC, sum_dy: ReadC, sum_dy_xhat: ReadC,
    count: float, frozen: bool, dx: WriteRC,
) -> None:  # fmt: skip
    """Write dx, which may be dy or x, from sums over `count` values, tiles spread over the threads."""
    R, C = x.shape
    _, tasks = block_tasks(R, C)
    a = np.empty(C)
    b = np.empty(C)
    c = np.empty(C)
    for k in range(C):
        a[k], b[k], c[k] = gradient_coefficients(count, low[k], invstd[k], weight[k], sum_dy[k], sum_dy_xhat[k])
    for task in prange(tasks):
        block_gradient(dy, x, tasks - 1 - task, mean, a, b, c, frozen, dx)


@kernel
def backward_adjacent(
    dy: ReadRC, x: ReadRC, weight: ReadC, mean: ReadC, low: ReadC, invstd: ReadC, frozen: bool, dx: WriteRC,
    sum_dy: WriteC, sum_dy_xhat: WriteC,
) -> None:  # fmt: skip
    """Write dx, which may be dy or x, and the sums, tiles spread over the threads.

    sum_dy is the gradient of the bias, sum_dy_xhat that of the weight.
    """
    R, C = x.shape
    blocks, tasks = block_tasks(R, C)
    totals = np.empty((blocks, C))
    products = np.empty((blocks, C))
    a = np.empty(C)
    b = np.empty(C)
    c = np.empty(C)
    for task in prange(tasks):
        block_sums(dy, x, task, mean, totals, products)
    for task in prange(merge_tasks(C)):
        merge_block_sums(task, totals, products)
    for k in range(C):
        sum_dy[k] = totals[0, k]
        sum_dy_xhat[k] = sum_with_xhat(totals[0, k], products[0, k], low[k], invstd[k])
        a[k], b[k], c[k] = gradient_coefficients(np.float64(R), low[k], invstd[k], weight[k], sum_dy[k], sum_dy_xhat[k])
    for task in prange(tasks):
        block_gradient(dy, x, tasks - 1 - task, mean, a, b, c, frozen, dx)
