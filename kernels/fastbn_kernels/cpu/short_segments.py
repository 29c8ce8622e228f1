"""Channels first with short runs, as planes of 7 x 7: several channels at a time, as rows of their values.

The values of adjacent channels in one sample lie side by side, so x (N, C, S) is also N rows of C * S columns, of
which a group of channels is a stretch. The loops of `bands` take it as such, with the numbers of a channel repeated for
its S columns: whole vectors instead of a tail a run, memory in order instead of a jump a run. From the cache,
64 x 512 x 7 x 7 on 2 cores: 44 GB/s against 33 for runs (float32, read once and written once); 32 x 1024 x 14 x 14 42
against 21.

A thread takes whole groups, so that a group is read from memory once. Columns are summed alone and then added up, in an
order that does not depend on the group: its size may follow the number of threads.
"""

from __future__ import annotations

import numpy as np

from fastbn_kernels.build.decorators import Array, ReadNCS, Saved, Sums, WriteNCS, kernel, prange, scalar
from fastbn_kernels.cpu.loops.row_streams import (
    rows_gradient,
    rows_gradient_sums,
    rows_normalize,
    rows_scale,
    rows_sums,
)
from fastbn_kernels.cpu.loops.segments import column_total, runs_sums, to_line
from fastbn_kernels.cpu.moments import as_pair, channel_origin, sum_again
from fastbn_kernels.cpu.simd.ops import fence, rounded, splat, store, value
from fastbn_kernels.cpu.simd.types import LANES
from fastbn_kernels.cpu.tiles import group_bounds, tile_bounds, tile_count
from fastbn_kernels.cpu.wide_rows import empty_numbers
from fastbn_kernels.formulas import (
    coefficients,
    finite_or_zero,
    gradient_coefficients,
    group,
    merge,
    sum_with_xhat,
)
from fastbn_kernels.saved import BIAS, INVSTD, M2, MEAN, MEAN_LO, VAR, WEIGHT


@scalar
def spread(values: Array, c: int, S: int, number: float) -> None:
    """Fill the S columns of the group's channel c with its number, and up to LANES behind, which come later."""
    vector = splat(values, number)
    for i in range(c * S, (c + 1) * S, LANES):
        store(values, i, vector)


@scalar
def group_moments(x: Array, c0: int, c1: int, saved: Array) -> None:
    """Fill MEAN, MEAN_LO and M2 of channels c0 to c1."""
    N, C, S = x.shape
    width = (c1 - c0) * S
    k = empty_numbers(x, width + LANES)
    t = np.empty(width)
    q = np.empty(width)
    offsets = np.zeros(c1 - c0)
    squares = np.zeros(c1 - c0)
    count = 0.0
    for tile in range(tile_count(N, S)):
        n0, n1, _, _ = tile_bounds(tile, N, S)
        start = (n0 * C + c0) * S
        values = np.float64((n1 - n0) * S)
        for c in range(c1 - c0):
            spread(k, c, S, finite_or_zero(value(x, start + c * S)))
        t[:] = 0.0
        q[:] = 0.0
        rows_sums(x, start, C * S, n1 - n0, width, k, t, q)
        for c in range(c1 - c0):
            shift = np.float64(k[c * S])
            total = column_total(t, c * S, S)
            square = column_total(q, c * S, S)
            if sum_again(x, 1.0 / values, total, square):
                shift = rounded(x, shift + total / values)
                total, square = runs_sums(x, start + c * S, C * S, n1 - n0, S, shift)
            offset, squared = group(1.0 / values, shift - channel_origin(x, c0 + c), total, square)
            offsets[c], squares[c] = merge(count, offsets[c], squares[c], values, offset, squared)
        count += values
    for c in range(c1 - c0):
        saved[MEAN, c0 + c], saved[MEAN_LO, c0 + c] = as_pair(x, channel_origin(x, c0 + c), offsets[c])
        saved[M2, c0 + c] = squares[c]


@scalar
def group_normalize(x: Array, c0: int, c1: int, saved: Array, eps: float, y: Array, past_cache: bool) -> None:
    """Normalise channels c0 to c1 with their MEAN, MEAN_LO and VAR; fill their INVSTD."""
    N, C, S = x.shape
    width = (c1 - c0) * S
    m = empty_numbers(x, width + LANES)
    a = empty_numbers(x, width + LANES)
    b = empty_numbers(x, width + LANES)
    for c in range(c1 - c0):
        k = c0 + c
        scale, shift, saved[INVSTD, k] = coefficients(
            saved[MEAN_LO, k], saved[VAR, k], saved[WEIGHT, k], saved[BIAS, k], eps
        )
        spread(m, c, S, saved[MEAN, k])
        spread(a, c, S, scale)
        spread(b, c, S, shift)
    start, step = c0 * S, C * S
    if past_cache and step % LANES == 0:
        head = to_line(y, start, width)
        rows_normalize(x, start, step, N, head, m, a, b, y, False)
        rows_normalize(x, start + head, step, N, width - head, m[head:], a[head:], b[head:], y, True)
        fence()
    else:
        rows_normalize(x, start, step, N, width, m, a, b, y, False)


@kernel
def forward_short_segments(x: ReadNCS, saved: Saved, eps: float, past_cache: bool, groups: int, y: WriteNCS) -> None:
    """Normalise with the batch's own statistics to y, which may be x, groups of channels spread over the threads."""
    N, C, S = x.shape
    for task in prange(groups):
        c0, c1 = group_bounds(task, groups, C)
        group_moments(x, c0, c1, saved)
        for c in range(c0, c1):
            saved[VAR, c] = saved[M2, c] / np.float64(N * S)
        group_normalize(x, c0, c1, saved, eps, y, past_cache)


@kernel
def normalize_short_segments(x: ReadNCS, saved: Saved, eps: float, past_cache: bool, groups: int, y: WriteNCS) -> None:
    """Normalise with given statistics to y, which may be x, groups of channels spread over the threads."""
    for task in prange(groups):
        c0, c1 = group_bounds(task, groups, x.shape[1])
        group_normalize(x, c0, c1, saved, eps, y, past_cache)


@kernel
def backward_short_segments(
    dy: ReadNCS, x: ReadNCS, saved: Saved, frozen: bool, past_cache: bool, groups: int, dx: WriteNCS, sums: Sums
) -> None:
    """Write dx, which may be dy or x, and the sums, groups of channels spread over the threads."""
    N, C, S = x.shape
    count = np.float64(N * S)
    for task in prange(groups):
        c0, c1 = group_bounds(task, groups, C)
        width = (c1 - c0) * S
        start, step = c0 * S, C * S
        m = empty_numbers(x, width + LANES)
        a = empty_numbers(x, width + LANES)
        b = empty_numbers(x, width + LANES)
        k = empty_numbers(x, width + LANES)
        for c in range(c1 - c0):
            spread(m, c, S, saved[MEAN, c0 + c])
        t = np.zeros(width)
        p = np.zeros(width)
        rows_gradient_sums(dy, x, start, step, N, width, m, t, p)
        for c in range(c0, c1):
            low, invstd = saved[MEAN_LO, c], saved[INVSTD, c]
            total = column_total(t, (c - c0) * S, S)
            product = sum_with_xhat(total, column_total(p, (c - c0) * S, S), low, invstd)
            sums[0, c], sums[1, c] = total, product
            av, bv, cv = gradient_coefficients(count, low, invstd, saved[WEIGHT, c], total, product)
            spread(a, c - c0, S, av)
            spread(b, c - c0, S, bv)
            spread(k, c - c0, S, cv)
        if frozen:
            rows_scale(dy, start, step, N, width, a, dx)
        elif past_cache and step % LANES == 0:
            head = to_line(dx, start, width)
            rows_gradient(dy, x, start, step, N, head, m, a, b, k, dx, False)
            rows_gradient(dy, x, start + head, step, N, width - head, m[head:], a[head:], b[head:], k[head:], dx, True)
            fence()
        else:
            rows_gradient(dy, x, start, step, N, width, m, a, b, k, dx, False)
