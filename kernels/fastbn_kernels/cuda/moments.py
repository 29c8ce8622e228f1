"""Mean and sum of squared deviations a channel; the twin of `fastbn_kernels.cpu.moments`.

A channel is summed as (x - k) and (x - k)^2 around one shift k near its mean. Chan's merge of partial results that
share a shift is an addition, so threads, warps and blocks add. If k proves too far off the mean, the channel is summed
once more around the mean.

In float64, k is the first value, and too far are 8 standard deviations. In float32, of whose 24 bits not one can be
spared, k is the mean of values from all over the channel, a load for each of some threads in the place of one for all,
and too far is the square root of 3; sums are of 8 values at most, then float64. Where squares leave the range of
float32, values are taken in another unit.

Two families: channels first, x (N, C, S), by `loops.segments`; channels last, x (R, C), by `loops.rows`. A group of
`blocks` blocks takes a channel, or a group of columns, at a time.
"""

from __future__ import annotations

from typing import Any

from fastbn_kernels import formulas
from fastbn_kernels.cuda.build.decorators import Counters, Data, Doubles, Long, device, kernel, shared_formula
from fastbn_kernels.cuda.build.numba_cuda import cuda, f64, i32, i64
from fastbn_kernels.cuda.loops.rows import columns_sums, rows_sums, sample_rows, seat
from fastbn_kernels.cuda.loops.segments import sample, segments_sums, value
from fastbn_kernels.cuda.params import as_pair, channel_centre, column_centre, finite_or_zero, set_centre
from fastbn_kernels.cuda.reduce import WARP, block_group_columns, block_group_sums, block_sums
from fastbn_kernels.cuda.simd.ops import in_units, rounded, single, width
from fastbn_kernels.saved import M2, MEAN, MEAN_LO

group = shared_formula(formulas.group)
shift_is_off = shared_formula(formulas.shift_is_off)

# What a block has in shared memory beside the vectors that it keeps, channels last, in float64: the sums of every warp,
# of the block, the shifts and the params, for at most 64 columns and 8 warps. `STATIC` in `backends/cuda/plan.py`
# counts with these.
COLUMNS = 64
SUMS = 2 * COLUMNS
SHIFTS = 2 * COLUMNS
SCRATCH = 8 * SUMS
WARP_SCRATCH = 16  # two numbers a warp, in the family channels_first


@device
def sum_again(
    x: Any, k: float, unit: float, attempt: int, share: float, total: float, squares: float
) -> tuple[bool, float, float]:
    """Return whether sums around k in a unit are to be taken again, and around what in which unit.

    In float32 that may be twice: the first time the unit is chosen, the second time the sums are in range.
    """
    again = False
    wanted = unit
    if single(x):
        square = squares * share
        if in_units(x) and attempt == 0:
            if not square <= 2.0**100:  # or NaN
                wanted = 2.0**-70
            # Values near 2^-20 and beyond differ by 2^-44 at least if they differ: their squares are in range.
            elif square < 2.0**-100 and abs(k) < 2.0**-20:
                wanted = 2.0**100
        if attempt == 0 or (attempt == 1 and unit != 1.0):
            again = wanted != unit or 4.0 * (total * (total * share)) > 3.0 * squares
        moved = f64(rounded(x, k + total * share * inverse_of(x, unit)))
        if again and abs(moved) < 2.0**128:
            k = moved
    else:
        again = attempt == 0 and shift_is_off(share, total, squares)
        if again:
            k = f64(rounded(x, k + total * share))
    return again, k, wanted


@device
def inverse_of(x: Any, unit: float) -> float:
    """Return one over a unit of `sum_again`."""
    inverse = 1.0
    if in_units(x):
        inverse = 2.0**70 if unit < 1.0 else inverse
        inverse = 2.0**-100 if unit > 1.0 else inverse
    return inverse


@device
def moments_of(x: Any, k: float, unit: float, share: float, total: float, squares: float) -> tuple[float, float, float]:
    """Return (mean, mean_lo, m2) from sums around k in a unit."""
    offset, m2 = group(share, 0.0, total, squares)
    inverse = inverse_of(x, unit)
    offset *= inverse
    m2 *= inverse * inverse
    mean, mean_lo = as_pair(x, k, offset)
    return mean, mean_lo, m2


@device
def channel_shift(x: Any, c: int, N: int, C: int, S: int, Q: int, scratch: Any) -> float:
    """Return what the sums of channel c are taken around at first, the same in every block."""
    k: float = 0.0
    if single(x):
        one, count = sample(x, c, N, C, S, Q, i32(cuda.threadIdx.x), WARP)
        one, count = block_sums(one, count, scratch)
        k = f64(rounded(x, finite_or_zero(one / count)))
    else:
        k = finite_or_zero(value(x, i64(c) * S, i64(N) * C * S))
    return k


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
    k = channel_shift(x, c, N, C, S, Q, scratch)
    unit = 1.0
    linear = 0.0
    squares = 0.0
    again = True
    attempt = 0
    while again:
        around = channel_centre(x, -k * unit, unit)
        linear, squares = segments_sums(x, c, N, C, S, Q, first, step, around, smem, smem_vectors)
        linear, squares = block_group_sums(
            linear, squares, scratch, block_group, rank, blocks, block_groups, phase, slots, barriers
        )
        phase = i32(1 - phase)
        again, k, unit = sum_again(x, k, unit, attempt, share, linear, squares)  # the same bits in every block
        attempt += 1
    mean, mean_lo, m2 = moments_of(x, k, unit, share, linear, squares)
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
def sampled_mean(scratch: Any, column: int, columns: int, rows: int, C: int, together: int) -> float:
    """Return the mean of the channel of a column over the rows of `sample_rows`."""
    first = column % C if together > 1 else column
    total: float = 0.0
    for row in range(rows):
        for i in range(together):
            total += scratch[row * columns + first + i * C]
    mean: float = total / (f64(rows) * together)
    return mean


@device
def group_moments(
    x: Any, base: int, R: int, C: int, together: int, row_threads: int, smem: Any, smem_vectors: int, scratch: Any,
    sums: Any, shifts: Any, block_group: int, rank: int, blocks: int, block_groups: int, phase: int, slots: Any,
    barriers: Any,
) -> tuple[float, float, float, int]:  # fmt: skip
    """Return (mean, mean_lo, m2) of the channel of the column `base` + this thread, if it is one, and the next phase.

    R and the columns are those of wide rows, `together` rows of C channels each. `shifts` is for what they are centred
    with.
    """
    V = width(x)
    thread = i32(cuda.threadIdx.x)
    columns = i32(row_threads * V)
    wide = i64(C) * together
    share = 1.0 / (f64(R) * together)
    one = thread < columns and base + thread < wide
    k = 0.0
    unit = 1.0
    if single(x):
        sampled = sample_rows(x, base, R, wide, row_threads, columns, scratch)
        cuda.syncthreads()
        if one:
            k = f64(rounded(x, finite_or_zero(sampled_mean(scratch, thread, columns, sampled, C, together))))
    elif one:
        k = finite_or_zero(value(x, (base + thread) % C, R * wide))
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
        a, b = rows_sums(x, i32(base + column), first, step, R, wide, around, smem, smem_vectors)
        columns_sums(a, b, row_threads, columns, V, scratch, sums)
        block_group_columns(sums, i32(2 * columns), block_group, rank, blocks, block_groups, phase, slots, barriers)
        phase = i32(1 - phase)
        off = False
        if one:
            linear, squares = sums_over_copies(sums, thread, columns, C, together)
            off, k, unit = sum_again(x, k, unit, attempt, share, linear, squares)
            if off:
                set_centre(x, shifts, COLUMNS, thread, k, unit)
        again = cuda.syncthreads_or(i32(off)) != 0
        attempt += 1
    mean = 0.0
    mean_lo = 0.0
    m2 = 0.0
    if one:
        mean, mean_lo, m2 = moments_of(x, k, unit, share, linear, squares)
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
    shifts = cuda.shared.array(SHIFTS, f64)
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
