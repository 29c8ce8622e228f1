"""The gradients: two sums a channel, then one linear combination a value. The twin of `fastbn_kernels.cpu.backward`.

The sums are of g and of g * (x - mean), in the unit of the channel (see `params`), where g is dy behind what is done
after the normalization (see `element`), which is the gradient of a residual too. With frozen statistics nothing flows
back through them, and dx is g * scale alone, finite even where x is not. Groups of blocks and what they keep are as in
`normalize`, of dy and x both.
"""

from __future__ import annotations

from typing import Any

from fastbn_kernels.cuda.build.decorators import (
    Counters,
    Data,
    Doubles,
    Long,
    Params,
    Tail,
    device,
    kernel,
)
from fastbn_kernels.cuda.build.numba_cuda import cuda, f64, i32, i64
from fastbn_kernels.cuda.loops.rows import columns_sums, rows_gradient, rows_gradient_sums, seat
from fastbn_kernels.cuda.loops.segments_gradient import segments_gradient, segments_gradient_sums
from fastbn_kernels.cuda.moments import COLUMNS, SCRATCH, SUMS, WARP_SCRATCH, sums_over_copies
from fastbn_kernels.cuda.normalize import COLUMN_PARAMS, GIVEN_BIAS, GIVEN_WEIGHT
from fastbn_kernels.cuda.params import (
    GRADIENT_ROWS,
    channel_gradient_params,
    column_gradient_params,
    column_params,
    set_centre,
    set_gradient_params,
    set_terms_params,
    terms_params,
    xhat_sum,
)
from fastbn_kernels.cuda.reduce import block_group_columns, block_group_sums
from fastbn_kernels.cuda.simd.ops import behind, width, writes

COLUMN_GRADIENT_PARAMS = GRADIENT_ROWS * COLUMNS


@device
def write_parameter_gradients(dweight: Any, dbias: Any, given: int, c: int, sum_dy: float, sum_dy_xhat: float) -> None:
    """Write the gradients of weight and bias of a channel as far as they are `given`."""
    if given & GIVEN_WEIGHT != 0:
        dweight[c] = sum_dy_xhat
    if given & GIVEN_BIAS != 0:
        dbias[c] = sum_dy


# ---------------------------------------------------------------- channels first


@device
def channel_sums(
    dy: Any, x: Any, saved: Any, c: int, N: int, C: int, S: int, Q: int, smem: Any, smem_vectors: int, scratch: Any,
    block_group: int, rank: int, blocks: int, block_groups: int, phase: int, slots: Any, barriers: Any,
    after: Any,
) -> tuple[float, float, int]:  # fmt: skip
    """Return the sums of g and of g * xhat over channel c, and the next phase."""
    threads = i32(cuda.blockDim.x)
    first = i32(rank * threads + cuda.threadIdx.x)
    linear, products = segments_gradient_sums(
        dy, x, c, N, C, S, Q, first, i32(blocks * threads), terms_params(x, saved, c, C), smem, smem_vectors, after
    )
    linear, products = block_group_sums(
        linear, products, scratch, block_group, rank, blocks, block_groups, phase, slots, barriers
    )
    return linear, xhat_sum(x, saved, c, C, linear, products), i32(1 - phase)


@kernel(cooperative=True)
def sums_channels_first(
    dy: Data, x: Data, saved: Doubles, sums: Doubles, residual: Data, N: int, C: int, S: Long, Q: int, blocks: int,
    block_groups: int, smem_vectors: int, slots: Doubles, barriers: Counters, tail: Tail,
) -> None:  # fmt: skip
    """Fill sums, (2, C), with those of g and of g * xhat of every channel."""
    after = tail, residual, residual
    smem = cuda.shared.array(0, f64, 16)
    scratch = cuda.shared.array(WARP_SCRATCH, f64)
    block_group, rank = i32(cuda.blockIdx.x // blocks), i32(cuda.blockIdx.x % blocks)
    phase = i32(0)
    c = block_group
    while c < C:
        linear, products, phase = channel_sums(
            dy, x, saved, c, N, C, S, Q, smem, 0, scratch, block_group, rank, blocks, block_groups, phase, slots,
            barriers, after,
        )  # fmt: skip
        if rank == 0 and cuda.threadIdx.x == 0:
            sums[c] = linear
            sums[i64(C) + c] = products
        c = i32(c + block_groups)


@kernel(cooperative=False)
def gradient_channels_first(
    dy: Data, x: Data, saved: Doubles, sums: Doubles, count: float, frozen: int, dx: Data,
    residual: Data, dresidual: Data, N: int, C: int, S: Long, Q: int, blocks: int, block_groups: int, tail: Tail,
) -> None:  # fmt: skip
    """Write dx, which may be dy or x, from sums over `count` values."""
    after = tail, residual, dresidual
    smem = cuda.shared.array(0, f64, 16)
    params = cuda.shared.array(GRADIENT_ROWS, f64)
    block_group, rank = i32(cuda.blockIdx.x // blocks), i32(cuda.blockIdx.x % blocks)
    threads = i32(cuda.blockDim.x)
    thread = i32(cuda.threadIdx.x)
    c = block_group
    while c < C:
        if thread == 0:
            set_terms_params(x, params, 1, 0, saved, c, C, tail)
            set_gradient_params(x, params, 1, 0, saved, c, C, count, sums[c], sums[i64(C) + c])
        cuda.syncthreads()
        first = i32(rank * threads + thread)
        segments_gradient(
            dy, x, c, N, C, S, Q, first, i32(blocks * threads), channel_gradient_params(x, params), frozen, dx, smem, 0,
            after,
        )  # fmt: skip
        cuda.syncthreads()
        c = i32(c + block_groups)


@kernel(cooperative=True)
def backward_channels_first(
    dy: Data, x: Data, saved: Doubles, frozen: int, dx: Data, dweight: Params, dbias: Params, given: int,
    residual: Data, dresidual: Data, N: int, C: int, S: Long, Q: int, blocks: int, block_groups: int, smem_vectors: int,
    slots: Doubles, barriers: Counters, tail: Tail,
) -> None:  # fmt: skip
    """Write dx, which may be dy or x, and the gradients of weight and bias as far as they are `given`."""
    after = tail, residual, dresidual
    kept = dy
    if writes(after):
        kept = dresidual
    smem = cuda.shared.array(0, f64, 16)
    scratch = cuda.shared.array(WARP_SCRATCH, f64)
    params = cuda.shared.array(GRADIENT_ROWS, f64)
    block_group, rank = i32(cuda.blockIdx.x // blocks), i32(cuda.blockIdx.x % blocks)
    threads = i32(cuda.blockDim.x)
    thread = i32(cuda.threadIdx.x)
    count = f64(N) * f64(S)
    phase = i32(0)
    c = block_group
    while c < C:
        linear, products, phase = channel_sums(
            dy, x, saved, c, N, C, S, Q, smem, smem_vectors, scratch, block_group, rank, blocks, block_groups, phase,
            slots, barriers, after,
        )  # fmt: skip
        if thread == 0:
            set_terms_params(x, params, 1, 0, saved, c, C, tail)
            set_gradient_params(x, params, 1, 0, saved, c, C, count, linear, products)
            if rank == 0:
                write_parameter_gradients(dweight, dbias, given, c, linear, products)
        cuda.syncthreads()
        first = i32(rank * threads + thread)
        segments_gradient(
            kept, x, c, N, C, S, Q, first, i32(blocks * threads), channel_gradient_params(x, params), frozen, dx, smem,
            smem_vectors, behind(after),
        )  # fmt: skip
        c = i32(c + block_groups)


# ---------------------------------------------------------------- channels last


@device
def group_sums(
    dy: Any, x: Any, saved: Any, base: int, R: int, C: int, together: int, row_threads: int, smem: Any,
    smem_vectors: int, scratch: Any, column_sums: Any, params: Any, block_group: int, rank: int, blocks: int,
    block_groups: int, phase: int, slots: Any, barriers: Any, after: Any,
) -> tuple[float, float, int]:  # fmt: skip
    """Return the sums of g and of g * xhat over the channel of the column `base` + this thread, and the next phase.

    params are filled as far as the sums take them.
    """
    V = width(x)
    thread = i32(cuda.threadIdx.x)
    columns = i32(row_threads * V)
    wide = i64(C) * together
    one = thread < columns and base + thread < wide
    c = i32((base + thread) % C)
    if one:
        set_terms_params(x, params, COLUMNS, thread, saved, c, C, after[0])
    elif thread < columns:
        set_centre(x, params, COLUMNS, thread, 0.0, 1.0)
    cuda.syncthreads()
    column, first, step = seat(x, base, rank, row_threads, blocks, R, wide)
    thread_params = column_params(x, params, COLUMNS, column)
    a, b = rows_gradient_sums(dy, x, i32(base + column), first, step, R, wide, thread_params, smem, smem_vectors, after)
    columns_sums(a, b, row_threads, columns, V, scratch, column_sums)
    block_group_columns(column_sums, i32(2 * columns), block_group, rank, blocks, block_groups, phase, slots, barriers)
    linear = 0.0
    products = 0.0
    if one:
        linear, products = sums_over_copies(column_sums, thread, columns, C, together)
        products = xhat_sum(x, saved, c, C, linear, products)
    return linear, products, i32(1 - phase)


@kernel(cooperative=True)
def sums_channels_last(
    dy: Data, x: Data, saved: Doubles, sums: Doubles, residual: Data, R: int, C: int, together: int, row_threads: int,
    blocks: int, block_groups: int, smem_vectors: int, slots: Doubles, barriers: Counters, tail: Tail,
) -> None:  # fmt: skip
    """Fill sums, (2, C), with those of g and of g * xhat of every channel."""
    after = tail, residual, residual
    smem = cuda.shared.array(0, f64, 16)
    scratch = cuda.shared.array(SCRATCH, f64)
    column_sums = cuda.shared.array(SUMS, f64)
    params = cuda.shared.array(COLUMN_PARAMS, f64)
    block_group, rank = i32(cuda.blockIdx.x // blocks), i32(cuda.blockIdx.x % blocks)
    thread = i32(cuda.threadIdx.x)
    columns = i32(row_threads * width(x))
    phase = i32(0)
    base = i32(block_group * columns)
    while base < i64(C) * together:
        linear, products, phase = group_sums(
            dy, x, saved, base, R, C, together, row_threads, smem, 0, scratch, column_sums, params,
            block_group, rank, blocks, block_groups, phase, slots, barriers, after,
        )  # fmt: skip
        if rank == 0 and thread < columns and base + thread < C:
            sums[base + thread] = linear
            sums[i64(C) + base + thread] = products
        cuda.syncthreads()
        base = i32(base + block_groups * columns)


@kernel(cooperative=False)
def gradient_channels_last(
    dy: Data, x: Data, saved: Doubles, sums: Doubles, count: float, frozen: int, dx: Data,
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
    # As in `seat`, which is computed in the loop and spills 20 bytes here, of float64 on sm_90.
    column = i32(thread % row_threads * width(x))
    rows = i32(cuda.blockDim.x // row_threads)
    wide = i64(C) * together
    base = i32(block_group * columns)
    while base < wide:
        if thread < columns and base + thread < wide:
            c = i32((base + thread) % C)
            set_terms_params(x, params, COLUMNS, thread, saved, c, C, tail)
            set_gradient_params(x, params, COLUMNS, thread, saved, c, C, count, sums[c], sums[i64(C) + c])
        cuda.syncthreads()
        first = i32(rank * rows + thread // row_threads) if base + column < wide else R
        thread_params = column_gradient_params(x, params, COLUMNS, column)
        rows_gradient(
            dy, x, i32(base + column), first, i32(blocks * rows), R, wide, thread_params, frozen, dx, smem, 0, after
        )
        cuda.syncthreads()
        base = i32(base + block_groups * columns)


@kernel(cooperative=True)
def backward_channels_last(
    dy: Data, x: Data, saved: Doubles, frozen: int, dx: Data, dweight: Params, dbias: Params, given: int,
    residual: Data, dresidual: Data, R: int, C: int, together: int, row_threads: int, blocks: int, block_groups: int,
    smem_vectors: int, slots: Doubles, barriers: Counters, tail: Tail,
) -> None:  # fmt: skip
    """Write dx, which may be dy or x, and the gradients of weight and bias as far as they are `given`."""
    after = tail, residual, dresidual
    kept = dy
    if writes(after):
        kept = dresidual
    smem = cuda.shared.array(0, f64, 16)
    scratch = cuda.shared.array(SCRATCH, f64)
    column_sums = cuda.shared.array(SUMS, f64)
    params = cuda.shared.array(COLUMN_GRADIENT_PARAMS, f64)
    block_group, rank = i32(cuda.blockIdx.x // blocks), i32(cuda.blockIdx.x % blocks)
    thread = i32(cuda.threadIdx.x)
    columns = i32(row_threads * width(x))
    wide = i64(C) * together
    count = f64(R) * together
    phase = i32(0)
    base = i32(block_group * columns)
    while base < wide:
        linear, products, phase = group_sums(
            dy, x, saved, base, R, C, together, row_threads, smem, smem_vectors, scratch, column_sums, params,
            block_group, rank, blocks, block_groups, phase, slots, barriers, after,
        )  # fmt: skip
        if thread < columns and base + thread < wide:
            c = i32((base + thread) % C)
            set_gradient_params(x, params, COLUMNS, thread, saved, c, C, count, linear, products)
            if rank == 0 and base + thread < C:
                write_parameter_gradients(dweight, dbias, given, c, linear, products)
        cuda.syncthreads()
        column, first, step = seat(x, base, rank, row_threads, blocks, R, wide)
        thread_params = column_gradient_params(x, params, COLUMNS, column)
        rows_gradient(
            kept,
            x,
            i32(base + column),
            first,
            step,
            R,
            wide,
            thread_params,
            frozen,
            dx,
            smem,
            smem_vectors,
            behind(after),
        )
        cuda.syncthreads()
        base = i32(base + block_groups * columns)
