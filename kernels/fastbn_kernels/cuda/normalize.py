"""Normalise, scale and shift; alone, or fused with the statistics before. The twin of `fastbn_kernels.cpu.normalize`.

Fused, a group of blocks sums a channel, keeps of it what fits into shared memory, waits until all of the group are
there, and normalises it from where it is: the tensor is read from memory once. What does not fit is read again,
backwards, so that it is met first in the second-level cache.

`given` says what a call came with: a weight, a bias, running statistics to update or, where nothing is summed, to use.
"""

from __future__ import annotations

from typing import Any

from fastbn_kernels import formulas
from fastbn_kernels.cuda.build.decorators import (
    Counters,
    Data,
    Doubles,
    Long,
    Params,
    Tail,
    device,
    kernel,
    shared_formula,
)
from fastbn_kernels.cuda.build.numba_cuda import cuda, f64, i32, i64
from fastbn_kernels.cuda.loops.rows import rows_normalize, seat
from fastbn_kernels.cuda.loops.segments import segments_normalize
from fastbn_kernels.cuda.moments import (
    COLUMNS,
    SCRATCH,
    SHIFTS,
    SUMS,
    WARP_SCRATCH,
    channel_moments,
    group_moments,
    save_moments,
)
from fastbn_kernels.cuda.params import (
    FORWARD_ROWS,
    as_pair,
    channel_params,
    column_params,
    mean_pair,
    set_forward_params,
)
from fastbn_kernels.cuda.simd.ops import width
from fastbn_kernels.saved import BIAS, INVSTD, MEAN, MEAN_LO, VAR, WEIGHT

coefficients = shared_formula(formulas.coefficients)

COLUMN_PARAMS = FORWARD_ROWS * COLUMNS

# The bits of `given`.
GIVEN_WEIGHT, GIVEN_BIAS, GIVEN_RUNNING = 1, 2, 4


@device
def affine(weight: Any, bias: Any, c: int, given: int) -> tuple[float, float]:
    """Return the weight and bias of a channel."""
    w = 1.0
    b = 0.0
    if given & GIVEN_WEIGHT != 0:
        w = f64(weight[c])
    if given & GIVEN_BIAS != 0:
        b = f64(bias[c])
    return w, b


@device
def save_normalization(saved: Any, c: int, C: int, invstd: float, w: float, b: float) -> None:
    """Fill the rows of a channel that every forward pass fills."""
    row = i64(C)
    saved[INVSTD * row + c] = invstd
    saved[WEIGHT * row + c] = w
    saved[BIAS * row + c] = b


@device
def batch_statistics(
    saved: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, momentum: float, correction: float,
    eps: float, given: int, count: float, c: int, C: int, mean: float, mean_lo: float, m2: float, write: bool,
) -> tuple[float, float, float]:  # fmt: skip
    """Return invstd, scale and shift of a channel from its moments; with `write`, save all, move running statistics."""
    w, b = affine(weight, bias, c, given)
    scale, shift, invstd = coefficients(mean_lo, m2 / count, w, b, eps)
    if write:
        save_moments(saved, c, C, mean, mean_lo, m2)
        saved[VAR * i64(C) + c] = m2 / count
        save_normalization(saved, c, C, invstd, w, b)
        if given & GIVEN_RUNNING != 0:
            running_mean[c] = f64(running_mean[c]) * (1.0 - momentum) + (mean + mean_lo) * momentum
            running_var[c] = f64(running_var[c]) * (1.0 - momentum) + m2 / (count - correction) * momentum
    return invstd, scale, shift


@device
def given_statistics(
    x: Any, saved: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, eps: float, given: int, c: int,
    C: int, write: bool,
) -> tuple[float, float, float, float]:  # fmt: skip
    """Return mean, invstd, scale and shift of a channel from running statistics or, without any, those that are saved.

    With `write`, save the rest.
    """
    row = i64(C)
    if given & GIVEN_RUNNING != 0:
        mean, mean_lo = as_pair(x, f64(running_mean[c]), 0.0)
        var = f64(running_var[c])
    else:
        mean, mean_lo = mean_pair(x, saved, c, C)
        var = saved[VAR * row + c]
    w, b = affine(weight, bias, c, given)
    scale, shift, invstd = coefficients(mean_lo, var, w, b, eps)
    if write:
        if given & GIVEN_RUNNING != 0:  # otherwise other blocks may still read them
            saved[MEAN * row + c] = mean
            saved[MEAN_LO * row + c] = mean_lo
            saved[VAR * row + c] = var
        save_normalization(saved, c, C, invstd, w, b)
    return mean, invstd, scale, shift


@kernel(cooperative=False)
def normalize_channels_first(
    x: Data, saved: Doubles, weight: Params, bias: Params, running_mean: Params, running_var: Params, eps: float,
    y: Data, given: int, residual: Data, N: int, C: int, S: Long, Q: int, blocks: int, block_groups: int, tail: Tail,
) -> None:  # fmt: skip
    """Normalise with statistics that were taken before to y, which may be x."""
    after = tail, residual, residual
    smem = cuda.shared.array(0, f64, 16)
    params = cuda.shared.array(FORWARD_ROWS, f64)
    block_group, rank = i32(cuda.blockIdx.x // blocks), i32(cuda.blockIdx.x % blocks)
    threads = i32(cuda.blockDim.x)
    thread = i32(cuda.threadIdx.x)
    c = block_group
    while c < C:
        if thread == 0:
            mean, invstd, scale, shift = given_statistics(
                x, saved, weight, bias, running_mean, running_var, eps, given, c, C, rank == 0
            )
            set_forward_params(x, params, 1, 0, mean, invstd, scale, shift)
        cuda.syncthreads()
        first = i32(rank * threads + thread)
        segments_normalize(x, c, N, C, S, Q, first, i32(blocks * threads), channel_params(x, params), y, smem, 0, after)
        cuda.syncthreads()
        c = i32(c + block_groups)


@kernel(cooperative=True)
def forward_channels_first(
    x: Data, saved: Doubles, weight: Params, bias: Params, running_mean: Params, running_var: Params,
    momentum: float, correction: float, eps: float, y: Data, given: int, residual: Data, N: int, C: int, S: Long,
    Q: int, blocks: int, block_groups: int, smem_vectors: int, slots: Doubles, barriers: Counters, tail: Tail,
) -> None:  # fmt: skip
    """Normalise with the batch's own statistics to y, which may be x; a group of blocks takes a channel at a time."""
    after = tail, residual, residual
    smem = cuda.shared.array(0, f64, 16)
    scratch = cuda.shared.array(WARP_SCRATCH, f64)
    params = cuda.shared.array(FORWARD_ROWS, f64)
    block_group, rank = i32(cuda.blockIdx.x // blocks), i32(cuda.blockIdx.x % blocks)
    threads = i32(cuda.blockDim.x)
    thread = i32(cuda.threadIdx.x)
    count = f64(N) * f64(S)
    phase = i32(0)
    c = block_group
    while c < C:
        mean, mean_lo, m2, phase = channel_moments(
            x, c, N, C, S, Q, smem, smem_vectors, scratch, block_group, rank, blocks, block_groups, phase, slots,
            barriers,
        )  # fmt: skip
        if thread == 0:
            invstd, scale, shift = batch_statistics(
                saved, weight, bias, running_mean, running_var, momentum, correction, eps,
                given, count, c, C, mean, mean_lo, m2, rank == 0,
            )  # fmt: skip
            set_forward_params(x, params, 1, 0, mean, invstd, scale, shift)
        cuda.syncthreads()
        first = i32(rank * threads + thread)
        segments_normalize(
            x, c, N, C, S, Q, first, i32(blocks * threads), channel_params(x, params), y, smem, smem_vectors, after
        )
        c = i32(c + block_groups)


@kernel(cooperative=False)
def normalize_channels_last(
    x: Data, saved: Doubles, weight: Params, bias: Params, running_mean: Params, running_var: Params, eps: float,
    y: Data, given: int, residual: Data, R: int, C: int, together: int, row_threads: int, blocks: int,
    block_groups: int, tail: Tail,
) -> None:  # fmt: skip
    """Normalise with statistics that were taken before to y, which may be x."""
    after = tail, residual, residual
    smem = cuda.shared.array(0, f64, 16)
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
        rows_normalize(x, i32(base + column), first, step, R, wide, thread_params, y, smem, 0, after)
        cuda.syncthreads()
        base = i32(base + block_groups * columns)


@kernel(cooperative=True)
def forward_channels_last(
    x: Data, saved: Doubles, weight: Params, bias: Params, running_mean: Params, running_var: Params,
    momentum: float, correction: float, eps: float, y: Data, given: int, residual: Data, R: int, C: int, together: int,
    row_threads: int, blocks: int, block_groups: int, smem_vectors: int, slots: Doubles, barriers: Counters, tail: Tail,
) -> None:  # fmt: skip
    """Normalise with the batch's own statistics to y, which may be x; a group of blocks takes columns at a time."""
    after = tail, residual, residual
    smem = cuda.shared.array(0, f64, 16)
    scratch = cuda.shared.array(SCRATCH, f64)
    sums = cuda.shared.array(SUMS, f64)
    shifts = cuda.shared.array(SHIFTS, f64)
    params = cuda.shared.array(COLUMN_PARAMS, f64)
    block_group, rank = i32(cuda.blockIdx.x // blocks), i32(cuda.blockIdx.x % blocks)
    thread = i32(cuda.threadIdx.x)
    columns = i32(row_threads * width(x))
    wide = i64(C) * together
    count = f64(R) * together
    phase = i32(0)
    base = i32(block_group * columns)
    while base < wide:
        mean, mean_lo, m2, phase = group_moments(
            x, base, R, C, together, row_threads, smem, smem_vectors, scratch, sums, shifts,
            block_group, rank, blocks, block_groups, phase, slots, barriers,
        )  # fmt: skip
        if thread < columns and base + thread < wide:
            write = rank == 0 and base + thread < C
            invstd, scale, shift = batch_statistics(
                saved, weight, bias, running_mean, running_var, momentum, correction, eps,
                given, count, i32((base + thread) % C), C, mean, mean_lo, m2, write,
            )  # fmt: skip
            set_forward_params(x, params, COLUMNS, thread, mean, invstd, scale, shift)
        cuda.syncthreads()
        column, first, step = seat(x, base, rank, row_threads, blocks, R, wide)
        thread_params = column_params(x, params, COLUMNS, column)
        rows_normalize(x, i32(base + column), first, step, R, wide, thread_params, y, smem, smem_vectors, after)
        base = i32(base + block_groups * columns)
