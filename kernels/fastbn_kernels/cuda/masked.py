"""Batch normalization of the positions that a mask chooses, channels first; the twin of `fastbn_kernels.cpu.masked`.

Statistics, and sums of the backward pass, are one launch, what is written with them another: a tensor is read twice. A
group of `blocks` blocks takes a channel at a time, as in `moments`.
"""

from __future__ import annotations

from fastbn_kernels.cuda.backward import write_parameter_gradients
from fastbn_kernels.cuda.build.decorators import (
    Counters,
    Data,
    Doubles,
    Long,
    Mask,
    Params,
    Tail,
    device,
    kernel,
)
from fastbn_kernels.cuda.build.numba_cuda import cuda, f64, i32, i64
from fastbn_kernels.cuda.loops.masked_segments import (
    masked_gradient,
    masked_gradient_sums,
    masked_sample,
    masked_segments_normalize,
    masked_segments_sums,
)
from fastbn_kernels.cuda.moments import WARP_SCRATCH, moments_of, sum_again
from fastbn_kernels.cuda.normalize import batch_statistics, given_statistics
from fastbn_kernels.cuda.params import (
    FORWARD_ROWS,
    GRADIENT_ROWS,
    channel_centre,
    channel_gradient_params,
    channel_params,
    finite_or_zero,
    set_forward_params,
    set_gradient_params,
    set_terms_params,
    terms_params,
    xhat_sum,
)
from fastbn_kernels.cuda.reduce import WARP, block_group_sums, block_sums
from fastbn_kernels.cuda.simd.ops import rounded


@device
def share_of(count: float) -> float:
    """Return one over a count; of none 0, so that moments of nothing are."""
    share: float = 0.0
    if count > 0.0:
        share = 1.0 / count
    return share


@kernel(cooperative=True)
def masked_moments_channels_first(
    x: Data, mask: Mask, saved: Doubles, weight: Params, bias: Params, running_mean: Params, running_var: Params,
    momentum: float, correction: float, eps: float, given: int, count: float, N: int, C: int, S: Long, Q: int,
    blocks: int, block_groups: int, smem_vectors: int, slots: Doubles, barriers: Counters,
) -> None:  # fmt: skip
    """Fill all rows of every channel from its statistics, of `count` values; move the running ones."""
    scratch = cuda.shared.array(WARP_SCRATCH, f64)
    block_group, rank = i32(cuda.blockIdx.x // blocks), i32(cuda.blockIdx.x % blocks)
    threads = i32(cuda.blockDim.x)
    first = i32(rank * threads + cuda.threadIdx.x)
    step = i32(blocks * threads)
    share = share_of(count)
    phase = i32(0)
    c = block_group
    while c < C:
        one, taken = masked_sample(x, mask, c, N, C, S, Q, i32(cuda.threadIdx.x), WARP)
        one, taken = block_sums(one, taken, scratch)
        k = 0.0
        if taken > 0.0:
            k = f64(rounded(x, finite_or_zero(one / taken)))
        unit = 1.0
        linear = 0.0
        squares = 0.0
        again = True
        attempt = 0
        while again:
            around = channel_centre(x, -k * unit, unit)
            linear, squares = masked_segments_sums(x, mask, c, N, C, S, Q, first, step, around)
            linear, squares = block_group_sums(
                linear, squares, scratch, block_group, rank, blocks, block_groups, phase, slots, barriers
            )
            phase = i32(1 - phase)
            again, k, unit = sum_again(x, k, unit, attempt, share, linear, squares)  # the same bits in every block
            attempt += 1
        if rank == 0 and cuda.threadIdx.x == 0:
            mean, mean_lo, m2 = moments_of(x, k, unit, share, linear, squares)
            batch_statistics(
                saved, weight, bias, running_mean, running_var, momentum, correction, eps,
                given, count, c, C, mean, mean_lo, m2, True,
            )  # fmt: skip
        c = i32(c + block_groups)


@kernel(cooperative=False)
def masked_normalize_channels_first(
    x: Data, mask: Mask, saved: Doubles, weight: Params, bias: Params, running_mean: Params, running_var: Params,
    eps: float, y: Data, given: int, residual: Data, N: int, C: int, S: Long, Q: int, blocks: int, block_groups: int,
    tail: Tail,
) -> None:  # fmt: skip
    """Normalise with statistics that were taken before to y, which may be x."""
    after = tail, residual, residual
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
        masked_segments_normalize(
            x, mask, c, N, C, S, Q, first, i32(blocks * threads), channel_params(x, params), y, after
        )
        cuda.syncthreads()
        c = i32(c + block_groups)


@kernel(cooperative=True)
def masked_sums_channels_first(
    dy: Data, x: Data, mask: Mask, saved: Doubles, sums: Doubles, dweight: Params, dbias: Params, given: int,
    residual: Data, N: int, C: int, S: Long, Q: int, blocks: int, block_groups: int, smem_vectors: int, slots: Doubles,
    barriers: Counters, tail: Tail,
) -> None:  # fmt: skip
    """Fill sums, (2, C), with those of g and of g * xhat of every channel, and gradients as far as they are `given`."""
    after = tail, residual, residual
    scratch = cuda.shared.array(WARP_SCRATCH, f64)
    block_group, rank = i32(cuda.blockIdx.x // blocks), i32(cuda.blockIdx.x % blocks)
    threads = i32(cuda.blockDim.x)
    first = i32(rank * threads + cuda.threadIdx.x)
    phase = i32(0)
    c = block_group
    while c < C:
        params = terms_params(x, saved, c, C)
        linear, products = masked_gradient_sums(
            dy, x, mask, c, N, C, S, Q, first, i32(blocks * threads), params, after
        )  # fmt: skip
        linear, products = block_group_sums(
            linear, products, scratch, block_group, rank, blocks, block_groups, phase, slots, barriers
        )
        phase = i32(1 - phase)
        if rank == 0 and cuda.threadIdx.x == 0:
            products = xhat_sum(x, saved, c, C, linear, products)
            sums[c] = linear
            sums[i64(C) + c] = products
            write_parameter_gradients(dweight, dbias, given, c, linear, products)
        c = i32(c + block_groups)


@kernel(cooperative=False)
def masked_gradient_channels_first(
    dy: Data, x: Data, mask: Mask, saved: Doubles, sums: Doubles, count: float, frozen: int, dx: Data,
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
        masked_gradient(
            dy, x, mask, c, N, C, S, Q, first, i32(blocks * threads), channel_gradient_params(x, params), frozen, dx,
            smem, after,
        )  # fmt: skip
        cuda.syncthreads()
        c = i32(c + block_groups)
