"""Batch normalization of the rows that a mask chooses, channels last; the twin of `fastbn_kernels.cpu.masked_rows`.

Two launches, as in `masked`; a group of `blocks` blocks takes a group of columns at a time, as in `moments`.
"""

from __future__ import annotations

from typing import Any

from fastbn_kernels.cuda.backward import COLUMN_GRADIENT_PARAMS, write_parameter_gradients
from fastbn_kernels.cuda.build.decorators import Counters, Data, Doubles, Mask, Params, Tail, device, kernel
from fastbn_kernels.cuda.build.numba_cuda import cuda, f64, i32, i64
from fastbn_kernels.cuda.loops.masked_rows import (
    masked_rows_gradient,
    masked_rows_gradient_sums,
    masked_rows_normalize,
    masked_rows_sums,
)
from fastbn_kernels.cuda.loops.rows import SAMPLE, columns_sums, seat
from fastbn_kernels.cuda.loops.segments import value
from fastbn_kernels.cuda.masked import share_of
from fastbn_kernels.cuda.moments import COLUMNS, SCRATCH, SHIFTS, SUMS, moments_of, sum_again, sums_over_copies
from fastbn_kernels.cuda.normalize import COLUMN_PARAMS, batch_statistics, given_statistics
from fastbn_kernels.cuda.params import (
    column_centre,
    column_gradient_params,
    column_params,
    finite_or_zero,
    set_centre,
    set_forward_params,
    set_gradient_params,
    set_terms_params,
    xhat_sum,
)
from fastbn_kernels.cuda.reduce import block_group_columns
from fastbn_kernels.cuda.simd.ops import rounded, width


@device
def masked_sampled_mean(x: Any, mask: Any, c: int, C: int, rows: int) -> float:
    """Return the mean of channel c over those that count of a few of its rows, from all over; of none, 0."""
    step = max(rows // SAMPLE, 1)
    total = 0.0
    taken = 0.0
    for i in range(SAMPLE):
        row = i * step
        if row < rows and mask[row] != 0:
            total += value(x, row * C + c, rows * C)
            taken += 1.0
    mean: float = 0.0
    if taken > 0.0:
        mean = finite_or_zero(total / taken)
    return mean


@kernel(cooperative=True)
def masked_moments_channels_last(
    x: Data, mask: Mask, saved: Doubles, weight: Params, bias: Params, running_mean: Params, running_var: Params,
    momentum: float, correction: float, eps: float, given: int, count: float, R: int, C: int, together: int,
    row_threads: int, blocks: int, block_groups: int, smem_vectors: int, slots: Doubles, barriers: Counters,
) -> None:  # fmt: skip
    """Fill all rows of every channel from its statistics, of `count` values; move the running ones."""
    scratch = cuda.shared.array(SCRATCH, f64)
    sums = cuda.shared.array(SUMS, f64)
    shifts = cuda.shared.array(SHIFTS, f64)
    block_group, rank = i32(cuda.blockIdx.x // blocks), i32(cuda.blockIdx.x % blocks)
    thread = i32(cuda.threadIdx.x)
    V = width(x)
    columns = i32(row_threads * V)
    wide = i64(C) * together
    share = share_of(count)
    phase = i32(0)
    base = i32(block_group * columns)
    while base < wide:
        one = thread < columns and base + thread < wide
        c = i32((base + thread) % C)
        k = 0.0
        unit = 1.0
        if one:
            k = f64(rounded(x, masked_sampled_mean(x, mask, c, C, i64(R) * together)))
        if thread < columns:
            set_centre(x, shifts, COLUMNS, thread, k, unit)
        cuda.syncthreads()
        column, first, step = seat(x, base, rank, row_threads, blocks, R, wide)
        linear = 0.0
        squares = 0.0
        again = True
        attempt = 0
        while again:
            around = column_centre(x, shifts, COLUMNS, column)
            a, b = masked_rows_sums(x, mask, i32(base + column), first, step, R, C, together, around)
            columns_sums(a, b, row_threads, columns, V, scratch, sums)
            block_group_columns(
                sums, i32(2 * columns), block_group, rank, blocks, block_groups, phase, slots, barriers
            )  # fmt: skip
            phase = i32(1 - phase)
            off = False
            if one:
                linear, squares = sums_over_copies(sums, thread, columns, C, together)
                off, k, unit = sum_again(x, k, unit, attempt, share, linear, squares)
                if off:
                    set_centre(x, shifts, COLUMNS, thread, k, unit)
            again = cuda.syncthreads_or(i32(off)) != 0
            attempt += 1
        if one and rank == 0 and base + thread < C:
            mean, mean_lo, m2 = moments_of(x, k, unit, share, linear, squares)
            batch_statistics(
                saved, weight, bias, running_mean, running_var, momentum, correction, eps,
                given, count, c, C, mean, mean_lo, m2, True,
            )  # fmt: skip
        base = i32(base + block_groups * columns)


@kernel(cooperative=False)
def masked_normalize_channels_last(
    x: Data, mask: Mask, saved: Doubles, weight: Params, bias: Params, running_mean: Params, running_var: Params,
    eps: float, y: Data, given: int, residual: Data, R: int, C: int, together: int, row_threads: int, blocks: int,
    block_groups: int, tail: Tail,
) -> None:  # fmt: skip
    """Normalise with statistics that were taken before to y, which may be x."""
    after = tail, residual, residual
    params = cuda.shared.array(COLUMN_PARAMS, f64)
    block_group, rank = i32(cuda.blockIdx.x // blocks), i32(cuda.blockIdx.x % blocks)
    thread = i32(cuda.threadIdx.x)
    columns = i32(row_threads * width(x))
    wide = i64(C) * together
    base = i32(block_group * columns)
    while base < wide:
        if thread < columns and base + thread < wide:
            write = rank == 0 and base + thread < C
            mean, invstd, scale, shift = given_statistics(
                x, saved, weight, bias, running_mean, running_var, eps, given, i32((base + thread) % C), C, write
            )
            set_forward_params(x, params, COLUMNS, thread, mean, invstd, scale, shift)
        cuda.syncthreads()
        column, first, step = seat(x, base, rank, row_threads, blocks, R, wide)
        thread_params = column_params(x, params, COLUMNS, column)
        masked_rows_normalize(x, mask, i32(base + column), first, step, R, C, together, thread_params, y, after)
        cuda.syncthreads()
        base = i32(base + block_groups * columns)


@kernel(cooperative=True)
def masked_sums_channels_last(
    dy: Data, x: Data, mask: Mask, saved: Doubles, sums: Doubles, dweight: Params, dbias: Params, given: int,
    residual: Data, R: int, C: int, together: int, row_threads: int, blocks: int, block_groups: int, smem_vectors: int,
    slots: Doubles, barriers: Counters, tail: Tail,
) -> None:  # fmt: skip
    """Fill sums, (2, C), with those of g and of g * xhat of every channel, and gradients as far as they are `given`."""
    after = tail, residual, residual
    scratch = cuda.shared.array(SCRATCH, f64)
    column_sums = cuda.shared.array(SUMS, f64)
    params = cuda.shared.array(COLUMN_PARAMS, f64)
    block_group, rank = i32(cuda.blockIdx.x // blocks), i32(cuda.blockIdx.x % blocks)
    thread = i32(cuda.threadIdx.x)
    V = width(x)
    columns = i32(row_threads * V)
    wide = i64(C) * together
    phase = i32(0)
    base = i32(block_group * columns)
    while base < wide:
        one = thread < columns and base + thread < wide
        c = i32((base + thread) % C)
        if one:
            set_terms_params(x, params, COLUMNS, thread, saved, c, C, tail)
        elif thread < columns:
            set_centre(x, params, COLUMNS, thread, 0.0, 1.0)
        cuda.syncthreads()
        column, first, step = seat(x, base, rank, row_threads, blocks, R, wide)
        thread_params = column_params(x, params, COLUMNS, column)
        a, b = masked_rows_gradient_sums(
            dy, x, mask, i32(base + column), first, step, R, C, together, thread_params, after
        )  # fmt: skip
        columns_sums(a, b, row_threads, columns, V, scratch, column_sums)
        block_group_columns(
            column_sums, i32(2 * columns), block_group, rank, blocks, block_groups, phase, slots, barriers
        )  # fmt: skip
        phase = i32(1 - phase)
        if one and rank == 0 and base + thread < C:
            linear, products = sums_over_copies(column_sums, thread, columns, C, together)
            products = xhat_sum(x, saved, c, C, linear, products)
            sums[c] = linear
            sums[i64(C) + c] = products
            write_parameter_gradients(dweight, dbias, given, c, linear, products)
        cuda.syncthreads()
        base = i32(base + block_groups * columns)


@kernel(cooperative=False)
def masked_gradient_channels_last(
    dy: Data, x: Data, mask: Mask, saved: Doubles, sums: Doubles, count: float, frozen: int, dx: Data,
    residual: Data, dresidual: Data, R: int, C: int, together: int, row_threads: int, blocks: int, block_groups: int,
    tail: Tail,
) -> None:  # fmt: skip
    """Write dx, which may be dy or x, from sums over `count` values."""
    after = tail, residual, dresidual
    smem = cuda.shared.array(0, f64, 16)
    params = cuda.shared.array(COLUMN_GRADIENT_PARAMS, f64)
    block_group, rank = i32(cuda.blockIdx.x // blocks), i32(cuda.blockIdx.x % blocks)
    thread = i32(cuda.threadIdx.x)
    columns = i32(row_threads * width(x))
    wide = i64(C) * together
    base = i32(block_group * columns)
    while base < wide:
        if thread < columns and base + thread < wide:
            c = i32((base + thread) % C)
            set_terms_params(x, params, COLUMNS, thread, saved, c, C, tail)
            set_gradient_params(x, params, COLUMNS, thread, saved, c, C, count, sums[c], sums[i64(C) + c])
        cuda.syncthreads()
        column, first, step = seat(x, base, rank, row_threads, blocks, R, wide)
        thread_params = column_gradient_params(x, params, COLUMNS, column)
        masked_rows_gradient(
            dy, x, mask, i32(base + column), first, step, R, C, together, thread_params, frozen, dx, smem, after
        )
        cuda.syncthreads()
        base = i32(base + block_groups * columns)
