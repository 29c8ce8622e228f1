"""Copies between arrays of any strides, for those that the other kernels cannot take as they are."""

from __future__ import annotations

from fastbn_kernels.cuda.build.decorators import Data, Long, Params, kernel
from fastbn_kernels.cuda.build.numba_cuda import cuda, i32, i64
from fastbn_kernels.cuda.simd.ops import decoded, get, load, store


@kernel(cooperative=False)
def copy_strided(
    source: Data, target: Data, source_start: Long, target_start: Long,
    n0: Long, n1: Long, n2: Long, n3: Long, s0: Long, s1: Long, s2: Long, s3: Long,
    t0: Long, t1: Long, t2: Long, t3: Long,
) -> None:  # fmt: skip
    """Copy n0 x n1 x n2 x n3 values; strides are counted in values, n3 is the fastest axis of the target."""
    size = n0 * n1 * n2 * n3
    i = i64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
    while i < size:
        rest, i3 = i // n3, i % n3
        rest, i2 = rest // n2, rest % n2
        i0, i1 = rest // n1, rest % n1
        there = source_start + i0 * s0 + i1 * s1 + i2 * s2 + i3 * s3
        here = target_start + i0 * t0 + i1 * t1 + i2 * t2 + i3 * t3
        store(target, here, decoded(source, load(source, there)))
        i += i64(cuda.gridDim.x) * cuda.blockDim.x


@kernel(cooperative=False)
def convert_strided(
    source: Data, target: Params, size: Long, source_start: Long, target_start: Long, source_step: Long,
    target_step: Long,
) -> None:  # fmt: skip
    """Copy numbers into another dtype."""
    i = i64(cuda.blockIdx.x) * cuda.blockDim.x + cuda.threadIdx.x
    while i < size:
        raw = load(source, source_start + i * source_step)
        target[target_start + i * target_step] = get(decoded(source, raw), i32(0))
        i += i64(cuda.gridDim.x) * cuda.blockDim.x
