"""Rows of channels, not many of them: a thread takes a group of columns from the first row to the last.

Everything about a group is done by one thread, while its values are in that core's cache: one loop over threads instead
of three, and no other work than its own before and after. 64 x 4096 float32, after a matrix product on 2 threads: see
docs/performance.md. With more rows than a few hundred, rows in pieces cost more than that saves.

What a column holds does not depend on its group, whose size may follow the number of threads. Workspace is allocated
before the loop, which an error could not leave.
"""

from __future__ import annotations

import numpy as np

from fastbn_kernels.build.decorators import ReadRC, Saved, Sums, Tail, WriteRC, kernel, prange, scalar
from fastbn_kernels.cpu.columns import fill_forward, fill_gradient, fill_sums, group_columns, save_moments, save_sums
from fastbn_kernels.cpu.loops.row_streams import sum_rows, write_rows
from fastbn_kernels.cpu.moments import column_means, sum_columns
from fastbn_kernels.cpu.params import FORWARD_ROWS, GRADIENT_ROWS
from fastbn_kernels.cpu.simd.tails import FROZEN
from fastbn_kernels.cpu.simd.types import LANES
from fastbn_kernels.cpu.sweeps import empty_params


@scalar
def column_bounds(task: int, groups: int, C: int) -> tuple[int, int]:
    """Return (c0, c1) of a group of columns: whole vectors but in the last one."""
    vectors = (C + LANES - 1) // LANES
    return task * vectors // groups * LANES, min(C, (task + 1) * vectors // groups * LANES)


@kernel
def forward_columns(x: ReadRC, saved: Saved, eps: float, past_cache: bool, groups: int, y: WriteRC, tail: Tail) -> None:
    """Normalise with the batch's own statistics to y, which may be x, groups of columns spread over the threads."""
    R, C = x.shape
    around, sums, params = empty_params(x, 2, C), np.empty((2, C)), empty_params(x, FORWARD_ROWS, C)
    for task in prange(0, groups):
        c0, c1 = column_bounds(task, groups, C)
        width = c1 - c0
        column_means(x, 0, R, c0, around, c0, width)
        sum_columns(x, 0, R, c0, around, c0, width, sums)
        group_columns(x, c0, 1.0 / R, around, c0, c1, sums)
        save_moments(x, np.float64(R), sums, c0, c0, c1, saved)
        fill_forward(x, saved, eps, c0, c1, params, c0)
        write_rows(None, x, c0, C, R, width, params, c0, y, False, tail)


@kernel
def backward_columns(
    dy: ReadRC, x: ReadRC, saved: Saved, frozen: bool, past_cache: bool, groups: int, dx: WriteRC, sums: Sums,
    tail: Tail,
) -> None:  # fmt: skip
    """Write dx, which may be dy or x, and the sums, groups of columns spread over the threads."""
    R, C = x.shape
    params, found = empty_params(x, GRADIENT_ROWS, C), np.zeros((2, C))
    for task in prange(0, groups):
        c0, c1 = column_bounds(task, groups, C)
        width = c1 - c0
        fill_sums(x, saved, c0, c1, params, c0)
        sum_rows(dy, x, c0, C, R, width, params, c0, found, tail)
        save_sums(x, saved, c0, c1, found, c0, sums)
        fill_gradient(x, np.float64(R), saved, sums, c0, c1, params, c0)
        if not frozen:
            write_rows(dy, x, c0, C, R, width, params, c0, dx, False, tail)
        elif tail is None:
            write_rows(dy, None, c0, C, R, width, params, c0, dx, False, None)
        else:
            write_rows(dy, x, c0, C, R, width, params, c0, dx, False, (tail, FROZEN))
