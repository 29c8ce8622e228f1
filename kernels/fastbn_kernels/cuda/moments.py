"""Mean and sum of squared deviations a channel; the twin of `fastbn_kernels.cpu.moments`.

A channel is summed as (x - k) and (x - k)^2 in float64 around one shift k, its first value. Chan's merge of partial
results that share a shift is an addition, so threads, warps and blocks add. If k proves to be more than 8 standard
deviations off the mean, the channel is summed once more around the mean.

Two families: channels apart, x (N, C, S), by `runs`; channels adjacent, x (R, C), by `rows`. A team of `blocks` blocks
takes a channel, or a group of columns, at a time.
"""

from __future__ import annotations

from typing import Any

from fastbn_kernels import formulas
from fastbn_kernels.cuda.loops.rows import columns_sums, rows_sums, seat, vector_from
from fastbn_kernels.cuda.loops.segments import runs_sums, value
from fastbn_kernels.cuda.reduce import team_columns, team_sums
from fastbn_kernels.cuda.simd.ops import number, width
from fastbn_kernels.cuda.toolkit import (
    Counters,
    Data,
    Doubles,
    Long,
    cuda,
    device,
    f64,
    i32,
    i64,
    kernel,
    shared_formula,
)
from fastbn_kernels.saved import M2

finite_or_zero = shared_formula(formulas.finite_or_zero)
group = shared_formula(formulas.group)
shift_is_off = shared_formula(formulas.shift_is_off)
split_mean = shared_formula(formulas.split_mean)

# What blocks of the adjacent family share beside what they keep, in float64: the sums of every warp, of the block, the
# shifts and four coefficients, for at most 64 columns and 8 warps. `backends/cuda_plan.py` counts with these.
COLUMNS = 64
SUMS = 2 * COLUMNS
SCRATCH = 8 * SUMS
WARP_SCRATCH = 16  # two numbers a warp, in the family apart


@device
def as_pair(x: Any, origin: float, offset: float) -> tuple[float, float]:
    """Return origin + offset as (mean, low), the mean rounded to what values of x are computed with."""
    mean, low = split_mean(origin, offset)
    held = f64(number(x, mean))
    return held, low + finite_or_zero(mean - held)


@device
def channel_moments(
    x: Any, c: int, N: int, C: int, S: int, Q: int, held: Any, room: int, scratch: Any,
    team: int, rank: int, blocks: int, teams: int, side: int, slots: Any, words: Any,
) -> tuple[float, float, float, int]:  # fmt: skip
    """Return (mean, low, m2) of channel c, and the next side."""
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
        linear, squares = runs_sums(x, c, N, C, S, Q, first, step, k, held, room)
        linear, squares = team_sums(linear, squares, scratch, team, rank, blocks, teams, side, slots, words)
        side = i32(1 - side)
        again = attempt == 0 and shift_is_off(share, linear, squares)  # the same bits in every block
        if again:
            k = f64(number(x, k + linear * share))
        attempt += 1
    offset, m2 = group(share, 0.0, linear, squares)
    mean, low = as_pair(x, k, offset)
    return mean, low, m2, side


@kernel(waits=True)
def moments_apart(
    x: Data, table: Doubles, N: int, C: int, S: Long, Q: int, blocks: int, teams: int, room: int, slots: Doubles,
    words: Counters,
) -> None:  # fmt: skip
    """Fill mean, low and m2 of every channel."""
    held = cuda.shared.array(0, f64, 16)
    scratch = cuda.shared.array(WARP_SCRATCH, f64)
    team, rank = i32(cuda.blockIdx.x // blocks), i32(cuda.blockIdx.x % blocks)
    side = i32(0)
    c = team
    while c < C:
        mean, low, m2, side = channel_moments(
            x, c, N, C, S, Q, held, 0, scratch, team, rank, blocks, teams, side, slots, words
        )
        if rank == 0 and cuda.threadIdx.x == 0:
            table[c] = mean
            table[i64(C) + c] = low
            table[M2 * i64(C) + c] = m2
        c = i32(c + teams)


@device
def folded(sums: Any, column: int, columns: int, C: int, together: int) -> tuple[float, float]:
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
    x: Any, base: int, R: int, C: int, together: int, lanes: int, held: Any, room: int, scratch: Any, sums: Any,
    shifts: Any, team: int, rank: int, blocks: int, teams: int, side: int, slots: Any, words: Any,
) -> tuple[float, float, float, int]:  # fmt: skip
    """Return (mean, low, m2) of the channel of the column `base` + this thread, if it is one, and the next side.

    R and the columns are those of wide rows, `together` rows of C channels each.
    """
    V = width(x)
    thread = i32(cuda.threadIdx.x)
    columns = i32(lanes * V)
    wide = i64(C) * together
    share = 1.0 / (f64(R) * together)
    one = thread < columns and base + thread < wide
    if one:
        shifts[thread] = finite_or_zero(value(x, (base + thread) % C, R * wide))
    elif thread < columns:
        shifts[thread] = 0.0
    cuda.syncthreads()
    lane, first, step = seat(x, base, rank, lanes, blocks, R, wide)
    linear = 0.0
    squares = 0.0
    again = True
    attempt = 0
    while again:
        around = vector_from(x, shifts, lane)
        a, b = rows_sums(x, i32(base + lane), first, step, R, wide, around, held, room)
        columns_sums(a, b, lanes, columns, V, scratch, sums)
        team_columns(sums, i32(2 * columns), team, rank, blocks, teams, side, slots, words)
        side = i32(1 - side)
        off = False
        if one:
            linear, squares = folded(sums, thread, columns, C, together)
            off = attempt == 0 and shift_is_off(share, linear, squares)
            if off:
                shifts[thread] = f64(number(x, shifts[thread] + linear * share))
        again = cuda.syncthreads_or(i32(off)) != 0
        attempt += 1
    mean = 0.0
    low = 0.0
    m2 = 0.0
    if one:
        offset, m2 = group(share, 0.0, linear, squares)
        mean, low = as_pair(x, shifts[thread], offset)
    return mean, low, m2, side


@kernel(waits=True)
def moments_adjacent(
    x: Data, table: Doubles, R: int, C: int, together: int, lanes: int, blocks: int, teams: int, room: int,
    slots: Doubles, words: Counters,
) -> None:  # fmt: skip
    """Fill mean, low and m2 of every channel."""
    held = cuda.shared.array(0, f64, 16)
    scratch = cuda.shared.array(SCRATCH, f64)
    sums = cuda.shared.array(SUMS, f64)
    shifts = cuda.shared.array(COLUMNS, f64)
    team, rank = i32(cuda.blockIdx.x // blocks), i32(cuda.blockIdx.x % blocks)
    thread = i32(cuda.threadIdx.x)
    columns = i32(lanes * width(x))
    side = i32(0)
    base = i32(team * columns)
    while base < i64(C) * together:
        mean, low, m2, side = group_moments(
            x, base, R, C, together, lanes, held, 0, scratch, sums, shifts, team, rank, blocks, teams, side, slots,
            words,
        )  # fmt: skip
        if rank == 0 and thread < columns and base + thread < C:
            table[base + thread] = mean
            table[i64(C) + base + thread] = low
            table[M2 * i64(C) + base + thread] = m2
        base = i32(base + teams * columns)
