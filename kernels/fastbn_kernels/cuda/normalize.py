"""Normalise, scale and shift; alone, or fused with the statistics before. The twin of `fastbn_kernels.cpu.normalize`.

Fused, a team of blocks sums a channel, keeps of it what fits on the chip, waits until all of the team are there, and
normalises it from where it is: the tensor is read from memory once. What does not fit is read again, backwards, so
that it is met first in the second-level cache.

`given` says what a call came with: 1 a weight, 2 a bias, 4 running statistics to update (or, where nothing is summed,
to use).
"""

from __future__ import annotations

from typing import Any

from fastbn_kernels import formulas
from fastbn_kernels.cuda.loops.rows import rows_normalize, seat, vector_from
from fastbn_kernels.cuda.loops.segments import runs_normalize
from fastbn_kernels.cuda.moments import (
    COLUMNS,
    SCRATCH,
    SUMS,
    WARP_SCRATCH,
    as_pair,
    channel_moments,
    group_moments,
)
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
from fastbn_kernels.saved import BIAS, INVSTD, M2, MEAN, MEAN_LO, VAR, WEIGHT

coefficients = shared_formula(formulas.coefficients)


@device
def affine(weight: Any, bias: Any, c: int, given: int) -> tuple[float, float]:
    """Return the weight and bias of a channel."""
    w = 1.0
    b = 0.0
    if given & 1 != 0:
        w = f64(weight[c])
    if given & 2 != 0:
        b = f64(bias[c])
    return w, b


@device
def finish(
    weight: Any, bias: Any, running_mean: Any, running_var: Any, momentum: float, correction: float, eps: float,
    given: int, count: float, c: int, C: int, mean: float, low: float, m2: float, write: bool, table: Any,
) -> tuple[float, float]:  # fmt: skip
    """Return scale and shift of a channel; with `write`, fill its column of the table, move its running statistics."""
    w, b = affine(weight, bias, c, given)
    scale, shift, invstd = coefficients(low, m2 / count, w, b, eps)
    if write:
        row = i64(C)
        table[MEAN * row + c] = mean
        table[MEAN_LO * row + c] = low
        table[M2 * row + c] = m2
        table[VAR * row + c] = m2 / count
        table[INVSTD * row + c] = invstd
        table[WEIGHT * row + c] = w
        table[BIAS * row + c] = b
        if given & 4 != 0:
            running_mean[c] = f64(running_mean[c]) * (1.0 - momentum) + (mean + low) * momentum
            running_var[c] = f64(running_var[c]) * (1.0 - momentum) + m2 / (count - correction) * momentum
    return scale, shift


@device
def given_statistics(
    x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, eps: float, given: int, c: int, C: int,
    write: bool, table: Any,
) -> tuple[float, float, float]:  # fmt: skip
    """Return mean, scale and shift of a channel from running statistics or, without any, those in the table.

    With `write`, fill the rest of the channel's column.
    """
    row = i64(C)
    if given & 4 != 0:
        mean, low = as_pair(x, f64(running_mean[c]), 0.0)
        var = f64(running_var[c])
    else:
        mean, low, var = table[MEAN * row + c], table[MEAN_LO * row + c], table[VAR * row + c]
    w, b = affine(weight, bias, c, given)
    scale, shift, invstd = coefficients(low, var, w, b, eps)
    if write:
        if given & 4 != 0:  # otherwise other blocks may still read them
            table[MEAN * row + c] = mean
            table[MEAN_LO * row + c] = low
            table[VAR * row + c] = var
        table[INVSTD * row + c] = invstd
        table[WEIGHT * row + c] = w
        table[BIAS * row + c] = b
    return mean, scale, shift


@kernel(waits=False)
def normalize_apart(
    x: Data, weight: Parameters, bias: Parameters, running_mean: Parameters, running_var: Parameters, eps: float,
    y: Data, table: Doubles, given: int, N: int, C: int, S: Long, Q: int, blocks: int, teams: int,
) -> None:  # fmt: skip
    """Write (x - mean) * scale + shift to y, which may be x, with statistics that were taken before."""
    held = cuda.shared.array(0, f64, 16)
    chosen = cuda.shared.array(3, f64)
    team, rank = i32(cuda.blockIdx.x // blocks), i32(cuda.blockIdx.x % blocks)
    threads = i32(cuda.blockDim.x)
    thread = i32(cuda.threadIdx.x)
    c = team
    while c < C:
        if thread == 0:
            chosen[0], chosen[1], chosen[2] = given_statistics(
                x, weight, bias, running_mean, running_var, eps, given, c, C, rank == 0, table
            )
        cuda.syncthreads()
        mean, scale, shift = chosen[0], chosen[1], chosen[2]
        first = i32(rank * threads + thread)
        runs_normalize(x, c, N, C, S, Q, first, i32(blocks * threads), mean, scale, shift, y, held, 0)
        cuda.syncthreads()
        c = i32(c + teams)


@kernel(waits=True)
def forward_apart(
    x: Data, weight: Parameters, bias: Parameters, running_mean: Parameters, running_var: Parameters,
    momentum: float, correction: float, eps: float, y: Data, table: Doubles, given: int,
    N: int, C: int, S: Long, Q: int, blocks: int, teams: int, room: int, slots: Doubles, words: Counters,
) -> None:  # fmt: skip
    """Normalise with the batch's own statistics to y, which may be x; a team of blocks takes a channel at a time."""
    held = cuda.shared.array(0, f64, 16)
    scratch = cuda.shared.array(WARP_SCRATCH, f64)
    chosen = cuda.shared.array(2, f64)
    team, rank = i32(cuda.blockIdx.x // blocks), i32(cuda.blockIdx.x % blocks)
    threads = i32(cuda.blockDim.x)
    thread = i32(cuda.threadIdx.x)
    count = f64(N) * f64(S)
    side = i32(0)
    c = team
    while c < C:
        mean, low, m2, side = channel_moments(
            x, c, N, C, S, Q, held, room, scratch, team, rank, blocks, teams, side, slots, words
        )
        if thread == 0:
            chosen[0], chosen[1] = finish(
                weight, bias, running_mean, running_var, momentum, correction, eps,
                given, count, c, C, mean, low, m2, rank == 0, table,
            )  # fmt: skip
        cuda.syncthreads()
        scale, shift = chosen[0], chosen[1]
        first = i32(rank * threads + thread)
        runs_normalize(x, c, N, C, S, Q, first, i32(blocks * threads), mean, scale, shift, y, held, room)
        c = i32(c + teams)


@kernel(waits=False)
def normalize_adjacent(
    x: Data, weight: Parameters, bias: Parameters, running_mean: Parameters, running_var: Parameters, eps: float,
    y: Data, table: Doubles, given: int, R: int, C: int, together: int, lanes: int, blocks: int, teams: int,
) -> None:  # fmt: skip
    """Write (x - mean) * scale + shift to y, which may be x, with statistics that were taken before."""
    held = cuda.shared.array(0, f64, 16)
    means = cuda.shared.array(COLUMNS, f64)
    scales = cuda.shared.array(COLUMNS, f64)
    shifts = cuda.shared.array(COLUMNS, f64)
    team, rank = i32(cuda.blockIdx.x // blocks), i32(cuda.blockIdx.x % blocks)
    thread = i32(cuda.threadIdx.x)
    columns = i32(lanes * width(x))
    wide = i64(C) * together
    base = i32(team * columns)
    while base < wide:
        if thread < columns and base + thread < wide:
            write = rank == 0 and base + thread < C
            means[thread], scales[thread], shifts[thread] = given_statistics(
                x, weight, bias, running_mean, running_var, eps, given, i32((base + thread) % C), C, write, table
            )
        cuda.syncthreads()
        lane, first, step = seat(x, base, rank, lanes, blocks, R, wide)
        mean, scale, shift = vector_from(x, means, lane), vector_from(x, scales, lane), vector_from(x, shifts, lane)
        rows_normalize(x, i32(base + lane), first, step, R, wide, mean, scale, shift, y, held, 0)
        cuda.syncthreads()
        base = i32(base + teams * columns)


@kernel(waits=True)
def forward_adjacent(
    x: Data, weight: Parameters, bias: Parameters, running_mean: Parameters, running_var: Parameters,
    momentum: float, correction: float, eps: float, y: Data, table: Doubles, given: int,
    R: int, C: int, together: int, lanes: int, blocks: int, teams: int, room: int, slots: Doubles, words: Counters,
) -> None:  # fmt: skip
    """Normalise with the batch's own statistics to y, which may be x; a team of blocks takes some columns at a time."""
    held = cuda.shared.array(0, f64, 16)
    scratch = cuda.shared.array(SCRATCH, f64)
    sums = cuda.shared.array(SUMS, f64)
    shifts = cuda.shared.array(COLUMNS, f64)
    means = cuda.shared.array(COLUMNS, f64)
    scales = cuda.shared.array(COLUMNS, f64)
    biases = cuda.shared.array(COLUMNS, f64)
    team, rank = i32(cuda.blockIdx.x // blocks), i32(cuda.blockIdx.x % blocks)
    thread = i32(cuda.threadIdx.x)
    columns = i32(lanes * width(x))
    wide = i64(C) * together
    count = f64(R) * together
    side = i32(0)
    base = i32(team * columns)
    while base < wide:
        mean_, low, m2, side = group_moments(
            x, base, R, C, together, lanes, held, room, scratch, sums, shifts, team, rank, blocks, teams, side, slots,
            words,
        )  # fmt: skip
        if thread < columns and base + thread < wide:
            write = rank == 0 and base + thread < C
            means[thread] = mean_
            scales[thread], biases[thread] = finish(
                weight, bias, running_mean, running_var, momentum, correction, eps,
                given, count, i32((base + thread) % C), C, mean_, low, m2, write, table,
            )  # fmt: skip
        cuda.syncthreads()
        lane, first, step = seat(x, base, rank, lanes, blocks, R, wide)
        mean, scale, shift = vector_from(x, means, lane), vector_from(x, scales, lane), vector_from(x, biases, lane)
        rows_normalize(x, i32(base + lane), first, step, R, wide, mean, scale, shift, y, held, room)
        base = i32(base + teams * columns)
