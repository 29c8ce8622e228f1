"""The gradients: two sums a channel, then one linear combination a value. The twin of `fastbn_kernels.cpu.backward`.

The sums are of dy and of dy * (x - mean). With frozen statistics nothing flows back through them, and dx is dy * scale
alone, finite even where x is not. Teams of blocks and what they keep are as in `normalize`, of dy and x both.
"""

from __future__ import annotations

from typing import Any

from fastbn_kernels import formulas
from fastbn_kernels.cuda.loops.rows import columns_sums, rows_gradient, rows_gradient_sums, seat, vector_from
from fastbn_kernels.cuda.loops.segments_gradient import runs_gradient, runs_gradient_sums
from fastbn_kernels.cuda.moments import COLUMNS, SCRATCH, SUMS, WARP_SCRATCH, folded
from fastbn_kernels.cuda.reduce import team_columns, team_sums
from fastbn_kernels.cuda.simd.ops import width
from fastbn_kernels.cuda.toolkit import (
    Counters,
    Data,
    Doubles,
    Long,
    Parameters,
    cuda,
    device,
    f64,
    i32,
    i64,
    kernel,
    shared_formula,
)
from fastbn_kernels.saved import INVSTD, MEAN_LO, WEIGHT

sum_with_xhat = shared_formula(formulas.sum_with_xhat)
gradient_coefficients = shared_formula(formulas.gradient_coefficients)


@device
def column_coefficients(table: Any, c: int, C: int, count: float, sum_dy: float, sum_dy_xhat: float) -> Any:
    """Return a, b and the shift of dx = a * dy + b * (x - mean) + shift in a channel."""
    row = i64(C)
    low, invstd, weight = table[MEAN_LO * row + c], table[INVSTD * row + c], table[WEIGHT * row + c]
    return gradient_coefficients(count, low, invstd, weight, sum_dy, sum_dy_xhat)


# ---------------------------------------------------------------- channels apart


@device
def channel_sums(
    dy: Any, x: Any, table: Any, c: int, N: int, C: int, S: int, Q: int, held: Any, room: int, scratch: Any,
    team: int, rank: int, blocks: int, teams: int, side: int, slots: Any, words: Any,
) -> tuple[float, float, int]:  # fmt: skip
    """Return the sums of dy and of dy * xhat over channel c, and the next side."""
    threads = i32(cuda.blockDim.x)
    first = i32(rank * threads + cuda.threadIdx.x)
    row = i64(C)
    linear, products = runs_gradient_sums(dy, x, c, N, C, S, Q, first, i32(blocks * threads), table[c], held, room)
    linear, products = team_sums(linear, products, scratch, team, rank, blocks, teams, side, slots, words)
    return linear, sum_with_xhat(linear, products, table[MEAN_LO * row + c], table[INVSTD * row + c]), i32(1 - side)


@kernel(waits=True)
def sums_apart(
    dy: Data, x: Data, table: Doubles, sums: Doubles, N: int, C: int, S: Long, Q: int, blocks: int, teams: int,
    room: int, slots: Doubles, words: Counters,
) -> None:  # fmt: skip
    """Fill sums, (2, C), with those of dy and of dy * xhat of every channel."""
    held = cuda.shared.array(0, f64, 16)
    scratch = cuda.shared.array(WARP_SCRATCH, f64)
    team, rank = i32(cuda.blockIdx.x // blocks), i32(cuda.blockIdx.x % blocks)
    side = i32(0)
    c = team
    while c < C:
        linear, products, side = channel_sums(
            dy, x, table, c, N, C, S, Q, held, 0, scratch, team, rank, blocks, teams, side, slots, words
        )
        if rank == 0 and cuda.threadIdx.x == 0:
            sums[c] = linear
            sums[i64(C) + c] = products
        c = i32(c + teams)


@kernel(waits=False)
def gradient_apart(
    dy: Data, x: Data, table: Doubles, sums: Doubles, count: float, frozen: int, dx: Data,
    N: int, C: int, S: Long, Q: int, blocks: int, teams: int,
) -> None:  # fmt: skip
    """Write dx, which may be dy or x, from sums over `count` values."""
    held = cuda.shared.array(0, f64, 16)
    chosen = cuda.shared.array(3, f64)
    team, rank = i32(cuda.blockIdx.x // blocks), i32(cuda.blockIdx.x % blocks)
    threads = i32(cuda.blockDim.x)
    thread = i32(cuda.threadIdx.x)
    c = team
    while c < C:
        if thread == 0:
            chosen[0], chosen[1], chosen[2] = column_coefficients(table, c, C, count, sums[c], sums[i64(C) + c])
        cuda.syncthreads()
        first = i32(rank * threads + thread)
        runs_gradient(
            dy, x, c, N, C, S, Q, first, i32(blocks * threads),
            table[c], chosen[0], chosen[1], chosen[2], frozen, dx, held, 0,
        )  # fmt: skip
        cuda.syncthreads()
        c = i32(c + teams)


@kernel(waits=True)
def backward_apart(
    dy: Data, x: Data, table: Doubles, frozen: int, dx: Data, dweight: Parameters, dbias: Parameters, given: int,
    N: int, C: int, S: Long, Q: int, blocks: int, teams: int, room: int, slots: Doubles, words: Counters,
) -> None:  # fmt: skip
    """Write dx, which may be dy or x, and the gradients of weight and bias as far as they are `given`."""
    held = cuda.shared.array(0, f64, 16)
    scratch = cuda.shared.array(WARP_SCRATCH, f64)
    chosen = cuda.shared.array(3, f64)
    team, rank = i32(cuda.blockIdx.x // blocks), i32(cuda.blockIdx.x % blocks)
    threads = i32(cuda.blockDim.x)
    thread = i32(cuda.threadIdx.x)
    count = f64(N) * f64(S)
    side = i32(0)
    c = team
    while c < C:
        linear, products, side = channel_sums(
            dy, x, table, c, N, C, S, Q, held, room, scratch, team, rank, blocks, teams, side, slots, words
        )
        if thread == 0:
            chosen[0], chosen[1], chosen[2] = column_coefficients(table, c, C, count, linear, products)
            if rank == 0 and given & 1 != 0:
                dweight[c] = products
            if rank == 0 and given & 2 != 0:
                dbias[c] = linear
        cuda.syncthreads()
        first = i32(rank * threads + thread)
        runs_gradient(
            dy, x, c, N, C, S, Q, first, i32(blocks * threads),
            table[c], chosen[0], chosen[1], chosen[2], frozen, dx, held, room,
        )  # fmt: skip
        c = i32(c + teams)


# ---------------------------------------------------------------- channels adjacent


@device
def group_sums(
    dy: Any, x: Any, table: Any, base: int, R: int, C: int, together: int, lanes: int, held: Any, room: int,
    scratch: Any, sums: Any, means: Any, team: int, rank: int, blocks: int, teams: int, side: int, slots: Any,
    words: Any,
) -> tuple[float, float, int]:  # fmt: skip
    """Return the sums of dy and of dy * xhat over the channel of the column `base` + this thread, and the next side.

    means is filled with the means of the columns.
    """
    V = width(x)
    thread = i32(cuda.threadIdx.x)
    columns = i32(lanes * V)
    wide = i64(C) * together
    one = thread < columns and base + thread < wide
    c = i32((base + thread) % C)
    if one:
        means[thread] = table[c]
    elif thread < columns:
        means[thread] = 0.0
    cuda.syncthreads()
    lane, first, step = seat(x, base, rank, lanes, blocks, R, wide)
    mean = vector_from(x, means, lane)
    a, b = rows_gradient_sums(dy, x, i32(base + lane), first, step, R, wide, mean, held, room)
    columns_sums(a, b, lanes, columns, V, scratch, sums)
    team_columns(sums, i32(2 * columns), team, rank, blocks, teams, side, slots, words)
    linear = 0.0
    products = 0.0
    if one:
        linear, products = folded(sums, thread, columns, C, together)
        products = sum_with_xhat(linear, products, table[MEAN_LO * i64(C) + c], table[INVSTD * i64(C) + c])
    return linear, products, i32(1 - side)


@device
def group_gradient(
    dy: Any, x: Any, base: int, first: int, step: int, R: int, wide: int, lane: int, means: Any, slopes: Any,
    weights: Any, shifts: Any, frozen: int, dx: Any, held: Any, room: int,
) -> None:  # fmt: skip
    """Write dx of this thread's columns, whose coefficients are in shared memory."""
    mean, a = vector_from(x, means, lane), vector_from(x, slopes, lane)
    b, shift = vector_from(x, weights, lane), vector_from(x, shifts, lane)
    rows_gradient(dy, x, i32(base + lane), first, step, R, wide, mean, a, b, shift, frozen, dx, held, room)


@kernel(waits=True)
def sums_adjacent(
    dy: Data, x: Data, table: Doubles, sums: Doubles, R: int, C: int, together: int, lanes: int, blocks: int,
    teams: int, room: int, slots: Doubles, words: Counters,
) -> None:  # fmt: skip
    """Fill sums, (2, C), with those of dy and of dy * xhat of every channel."""
    held = cuda.shared.array(0, f64, 16)
    scratch = cuda.shared.array(SCRATCH, f64)
    own = cuda.shared.array(SUMS, f64)
    means = cuda.shared.array(COLUMNS, f64)
    team, rank = i32(cuda.blockIdx.x // blocks), i32(cuda.blockIdx.x % blocks)
    thread = i32(cuda.threadIdx.x)
    columns = i32(lanes * width(x))
    side = i32(0)
    base = i32(team * columns)
    while base < i64(C) * together:
        linear, products, side = group_sums(
            dy, x, table, base, R, C, together, lanes, held, 0, scratch, own, means, team, rank, blocks, teams, side,
            slots, words,
        )  # fmt: skip
        if rank == 0 and thread < columns and base + thread < C:
            sums[base + thread] = linear
            sums[i64(C) + base + thread] = products
        cuda.syncthreads()
        base = i32(base + teams * columns)


@kernel(waits=False)
def gradient_adjacent(
    dy: Data, x: Data, table: Doubles, sums: Doubles, count: float, frozen: int, dx: Data,
    R: int, C: int, together: int, lanes: int, blocks: int, teams: int,
) -> None:  # fmt: skip
    """Write dx, which may be dy or x, from sums over `count` values."""
    held = cuda.shared.array(0, f64, 16)
    means = cuda.shared.array(COLUMNS, f64)
    slopes = cuda.shared.array(COLUMNS, f64)
    weights = cuda.shared.array(COLUMNS, f64)
    shifts = cuda.shared.array(COLUMNS, f64)
    team, rank = i32(cuda.blockIdx.x // blocks), i32(cuda.blockIdx.x % blocks)
    thread = i32(cuda.threadIdx.x)
    columns = i32(lanes * width(x))
    # As in `seat`, which is computed in the loop and spills 20 bytes here, of float64 on sm_90.
    lane = i32(thread % lanes * width(x))
    rows = i32(cuda.blockDim.x // lanes)
    wide = i64(C) * together
    base = i32(team * columns)
    while base < wide:
        if thread < columns and base + thread < wide:
            c = i32((base + thread) % C)
            means[thread] = table[c]
            slopes[thread], weights[thread], shifts[thread] = column_coefficients(
                table, c, C, count, sums[c], sums[i64(C) + c]
            )
        cuda.syncthreads()
        first = i32(rank * rows + thread // lanes) if base + lane < wide else R
        step = i32(blocks * rows)
        group_gradient(dy, x, base, first, step, R, wide, lane, means, slopes, weights, shifts, frozen, dx, held, 0)
        cuda.syncthreads()
        base = i32(base + teams * columns)


@kernel(waits=True)
def backward_adjacent(
    dy: Data, x: Data, table: Doubles, frozen: int, dx: Data, dweight: Parameters, dbias: Parameters, given: int,
    R: int, C: int, together: int, lanes: int, blocks: int, teams: int, room: int, slots: Doubles, words: Counters,
) -> None:  # fmt: skip
    """Write dx, which may be dy or x, and the gradients of weight and bias as far as they are `given`."""
    held = cuda.shared.array(0, f64, 16)
    scratch = cuda.shared.array(SCRATCH, f64)
    own = cuda.shared.array(SUMS, f64)
    means = cuda.shared.array(COLUMNS, f64)
    slopes = cuda.shared.array(COLUMNS, f64)
    weights = cuda.shared.array(COLUMNS, f64)
    shifts = cuda.shared.array(COLUMNS, f64)
    team, rank = i32(cuda.blockIdx.x // blocks), i32(cuda.blockIdx.x % blocks)
    thread = i32(cuda.threadIdx.x)
    columns = i32(lanes * width(x))
    wide = i64(C) * together
    count = f64(R) * together
    side = i32(0)
    base = i32(team * columns)
    while base < wide:
        linear, products, side = group_sums(
            dy, x, table, base, R, C, together, lanes, held, room, scratch, own, means, team, rank, blocks, teams, side,
            slots, words,
        )  # fmt: skip
        if thread < columns and base + thread < wide:
            c = i32((base + thread) % C)
            slopes[thread], weights[thread], shifts[thread] = column_coefficients(table, c, C, count, linear, products)
            if rank == 0 and base + thread < C:
                if given & 1 != 0:
                    dweight[c] = products
                if given & 2 != 0:
                    dbias[c] = linear
        cuda.syncthreads()
        lane, first, step = seat(x, base, rank, lanes, blocks, R, wide)
        group_gradient(dy, x, base, first, step, R, wide, lane, means, slopes, weights, shifts, frozen, dx, held, room)
        cuda.syncthreads()
        base = i32(base + teams * columns)
