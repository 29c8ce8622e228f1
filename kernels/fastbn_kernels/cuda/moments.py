"""Mean and sum of squared deviations a channel; the twin of `fastbn_kernels.cpu.moments`.

A channel is summed as (x - k) and (x - k)^2 in float64 around one shift k, its first value. Chan's merge of partial
results that share a shift is an addition, so threads, warps and blocks add. If k proves to be more than 8 standard
deviations off the mean, the channel is summed once more around the mean.

Two families: channels first, x (N, C, S), by `loops.segments`; channels last, x (R, C), by `loops.rows`. A group of
`blocks` blocks takes a channel, or a group of columns, at a time.
"""

from __future__ import annotations

from typing import Any

from fastbn_kernels import formulas
from fastbn_kernels.cuda.build.decorators import Counters, Data, Doubles, Long, device, kernel, shared_formula
from fastbn_kernels.cuda.build.numba_cuda import cuda, f64, i32, i64
from fastbn_kernels.cuda.element import vector_from
from fastbn_kernels.cuda.loops.rows import columns_sums, rows_sums, seat
from fastbn_kernels.cuda.loops.segments import segments_sums, value
from fastbn_kernels.cuda.reduce import block_group_columns, block_group_sums
from fastbn_kernels.cuda.simd.ops import rounded, width
from fastbn_kernels.saved import M2, MEAN, MEAN_LO

finite_or_zero = shared_formula(formulas.finite_or_zero)
group = shared_formula(formulas.group)
shift_is_off = shared_formula(formulas.shift_is_off)
split_mean = shared_formula(formulas.split_mean)

# What a block has in shared memory beside the vectors that it keeps, channels last, in float64: the sums of every warp,
# of the block, the shifts and the params, for at most 64 columns and 8 warps. `STATIC` in `backends/cuda/plan.py`
# counts with these.
COLUMNS = 64
SUMS = 2 * COLUMNS
SCRATCH = 8 * SUMS
WARP_SCRATCH = 16  # two numbers a warp, in the family channels_first


@device
def as_pair(x: Any, origin: float, offset: float) -> tuple[float, float]:
    """Return origin + offset as (mean, mean_lo), the mean rounded to what values of x are computed with."""
    mean, mean_lo = split_mean(origin, offset)
    near = f64(rounded(x, mean))
    return near, mean_lo + finite_or_zero(mean - near)


@device
def channel_moments(
    x: Any, c: int, N: int, C: int, S: int, Q: int, smem: Any, smem_vectors: int, scratch: Any,
    block_group: int, rank: int, blocks: int, block_groups: int, phase: int, slots: Any, barriers: Any,
) -> tuple[float, float, float, int]:  # fmt: skip
    """Return (mean, mean_lo, m2) of channel c, and the next phase."""
    threads = i32(cuda.blockDim.x)
    first = i32(rank * threads + cuda.threadIdx.x)
    step = i32(blocks * threads)
    share = 1.0 / (f64(N) * f64(S))
    k = finite_or_zero(value(x, i64(c) * S, i64(N) * C * S))
    linear = 0.0
    squares = 0.0
    again = True
    attempt = 0
    while again:
        linear, squares = segments_sums(x, c, N, C, S, Q, first, step, k, smem, smem_vectors)
        linear, squares = block_group_sums(
            linear, squares, scratch, block_group, rank, blocks, block_groups, phase, slots, barriers
        )
        phase = i32(1 - phase)
        again = attempt == 0 and shift_is_off(share, linear, squares)  # the same bits in every block
        if again:
            k = f64(rounded(x, k + linear * share))
        attempt += 1
    offset, m2 = group(share, 0.0, linear, squares)
    mean, mean_lo = as_pair(x, k, offset)
    return mean, mean_lo, m2, phase


@device
def save_moments(saved: Any, c: int, C: int, mean: float, mean_lo: float, m2: float) -> None:
    """Fill the rows of a channel that moments fill."""
    row = i64(C)
    saved[MEAN * row + c] = mean
    saved[MEAN_LO * row + c] = mean_lo
    saved[M2 * row + c] = m2


@kernel(cooperative=True)
def moments_channels_first(
    x: Data, saved: Doubles, N: int, C: int, S: Long, Q: int, blocks: int, block_groups: int, smem_vectors: int,
    slots: Doubles, barriers: Counters,
) -> None:  # fmt: skip
    """Fill mean, mean_lo and m2 of every channel."""
    smem = cuda.shared.array(0, f64, 16)
    scratch = cuda.shared.array(WARP_SCRATCH, f64)
    block_group, rank = i32(cuda.blockIdx.x // blocks), i32(cuda.blockIdx.x % blocks)
    phase = i32(0)
    c = block_group
    while c < C:
        mean, mean_lo, m2, phase = channel_moments(
            x, c, N, C, S, Q, smem, 0, scratch, block_group, rank, blocks, block_groups, phase, slots, barriers
        )
        if rank == 0 and cuda.threadIdx.x == 0:
            save_moments(saved, c, C, mean, mean_lo, m2)
        c = i32(c + block_groups)


@device
def sums_over_copies(sums: Any, column: int, columns: int, C: int, together: int) -> tuple[float, float]:
    """Return both sums of the channel of a column, which stands `together` times in a wide row."""
    linear = sums[column]
    squares = sums[columns + column]
    if together > 1:
        linear = 0.0
        squares = 0.0
        for i in range(together):
            linear += sums[column % C + i * C]
            squares += sums[columns + column % C + i * C]
    return linear, squares


@device
def group_moments(
    x: Any, base: int, R: int, C: int, together: int, row_threads: int, smem: Any, smem_vectors: int, scratch: Any,
    sums: Any, shifts: Any, block_group: int, rank: int, blocks: int, block_groups: int, phase: int, slots: Any,
    barriers: Any,
) -> tuple[float, float, float, int]:  # fmt: skip
    """Return (mean, mean_lo, m2) of the channel of the column `base` + this thread, if it is one, and the next phase.

    R and the columns are those of wide rows, `together` rows of C channels each.
    """
    V = width(x)
    thread = i32(cuda.threadIdx.x)
    columns = i32(row_threads * V)
    wide = i64(C) * together
    share = 1.0 / (f64(R) * together)
    one = thread < columns and base + thread < wide
    if one:
        shifts[thread] = finite_or_zero(value(x, (base + thread) % C, R * wide))
    elif thread < columns:
        shifts[thread] = 0.0
    cuda.syncthreads()
    column, first, step = seat(x, base, rank, row_threads, blocks, R, wide)
    linear = 0.0
    squares = 0.0
    again = True
    attempt = 0
    while again:
        around = vector_from(x, shifts, column)
        a, b = rows_sums(x, i32(base + column), first, step, R, wide, around, smem, smem_vectors)
        columns_sums(a, b, row_threads, columns, V, scratch, sums)
        block_group_columns(sums, i32(2 * columns), block_group, rank, blocks, block_groups, phase, slots, barriers)
        phase = i32(1 - phase)
        off = False
        if one:
            linear, squares = sums_over_copies(sums, thread, columns, C, together)
            off = attempt == 0 and shift_is_off(share, linear, squares)
            if off:
                shifts[thread] = f64(rounded(x, shifts[thread] + linear * share))
        again = cuda.syncthreads_or(i32(off)) != 0
        attempt += 1
    mean = 0.0
    mean_lo = 0.0
    m2 = 0.0
    if one:
        offset, m2 = group(share, 0.0, linear, squares)
        mean, mean_lo = as_pair(x, shifts[thread], offset)
    return mean, mean_lo, m2, phase


@kernel(cooperative=True)
def moments_channels_last(
    x: Data, saved: Doubles, R: int, C: int, together: int, row_threads: int, blocks: int, block_groups: int,
    smem_vectors: int, slots: Doubles, barriers: Counters,
) -> None:  # fmt: skip
    """Fill mean, mean_lo and m2 of every channel."""
    smem = cuda.shared.array(0, f64, 16)
    scratch = cuda.shared.array(SCRATCH, f64)
    sums = cuda.shared.array(SUMS, f64)
    shifts = cuda.shared.array(COLUMNS, f64)
    block_group, rank = i32(cuda.blockIdx.x // blocks), i32(cuda.blockIdx.x % blocks)
    thread = i32(cuda.threadIdx.x)
    columns = i32(row_threads * width(x))
    phase = i32(0)
    base = i32(block_group * columns)
    while base < i64(C) * together:
        mean, mean_lo, m2, phase = group_moments(
            x, base, R, C, together, row_threads, smem, 0, scratch, sums, shifts,
            block_group, rank, blocks, block_groups, phase, slots, barriers,
        )  # fmt: skip
        if rank == 0 and thread < columns and base + thread < C:
            save_moments(saved, i32(base + thread), C, mean, mean_lo, m2)
        base = i32(base + block_groups * columns)
