"""Sums over a warp, a block and a group of blocks, always in the same order.

Every result reaches all threads. The order depends on the launch plan, which depends on the shape, the dtype and the
model of GPU alone; no float is ever added atomically.
"""

from __future__ import annotations

from typing import Any

from fastbn_kernels.cuda.atomics import publish, receive
from fastbn_kernels.cuda.barrier import block_group_barrier
from fastbn_kernels.cuda.build.decorators import device
from fastbn_kernels.cuda.build.numba_cuda import SIMULATED, cuda, i32, stand_ins

WARP = 32

# Up to so many blocks in a group, each adds up all columns of all blocks itself; beyond, each adds up its share of the
# columns and a second barrier follows. A barrier is some 1.5 us; what it saves is a read of blocks x columns numbers.
DIRECT = 16


@device
def warp_sum(value: Any, least: int) -> Any:
    """Add the values of the lanes that are equal modulo `least`, a power of two."""
    for step in (16, 8, 4, 2, 1):
        if step >= least:
            value += cuda.shfl_xor_sync(0xFFFFFFFF, value, step)
    return value


if SIMULATED:  # one exchange in the place of five
    globals().update(stand_ins("gpu", "warp_sum"))


@device
def block_sums(a: float, b: float, scratch: Any) -> tuple[float, float]:
    """Return the sums of a and of b over the block; scratch holds two numbers a warp."""
    a = warp_sum(a, 1)
    b = warp_sum(b, 1)
    thread = i32(cuda.threadIdx.x)
    warps = i32(cuda.blockDim.x // WARP)
    cuda.syncthreads()  # the last sums have been read
    if thread % WARP == 0:
        scratch[2 * (thread // WARP)] = a
        scratch[2 * (thread // WARP) + 1] = b
    cuda.syncthreads()
    a = 0.0
    b = 0.0
    for warp in range(warps):
        a += scratch[2 * warp]
        b += scratch[2 * warp + 1]
    return a, b


@device
def block_group_sums(
    a: float, b: float, scratch: Any, block_group: int, rank: int, blocks: int, block_groups: int, phase: int,
    slots: Any, barriers: Any,
) -> tuple[float, float]:  # fmt: skip
    """Return the sums of a and of b over all threads of a group of blocks.

    `phase` must differ from that of the call before: a block may be in this call while another still reads the slots
    of the last.
    """
    a, b = block_sums(a, b, scratch)
    if blocks > 1:
        first = (phase * block_groups + block_group) * blocks
        if cuda.threadIdx.x == 0:
            publish(slots, 2 * (first + rank), a)
            publish(slots, 2 * (first + rank) + 1, b)
        block_group_barrier(barriers, block_group, blocks)
        a = 0.0
        b = 0.0
        other = i32(cuda.threadIdx.x)
        while other < blocks:
            a += receive(slots, 2 * (first + other))
            b += receive(slots, 2 * (first + other) + 1)
            other = i32(other + cuda.blockDim.x)
        a, b = block_sums(a, b, scratch)
    return a, b


@device
def block_group_columns(
    sums: Any, columns: int, block_group: int, rank: int, blocks: int, block_groups: int, phase: int, slots: Any,
    barriers: Any,
) -> None:  # fmt: skip
    """Replace sums[:columns], in shared memory, by their sums over the blocks of a group; see `block_group_sums`."""
    thread = i32(cuda.threadIdx.x)
    threads = i32(cuda.blockDim.x)
    if blocks > 1:
        first = (phase * block_groups + block_group) * blocks * columns
        i = thread
        while i < columns:
            publish(slots, first + rank * columns + i, sums[i])
            i = i32(i + threads)
        block_group_barrier(barriers, block_group, blocks)
        if blocks > DIRECT:
            done = (2 * block_groups * blocks + phase * block_groups + block_group) * columns  # behind all slots
            _share_of_columns(columns, rank, blocks, first, done, slots)
            block_group_barrier(barriers, block_group, blocks)
            first = done
        i = thread
        while i < columns:
            total = receive(slots, first + i)
            if blocks <= DIRECT:
                for other in range(1, blocks):
                    total += receive(slots, first + other * columns + i)
            sums[i] = total
            i = i32(i + threads)
    cuda.syncthreads()


@device
def _share_of_columns(columns: int, rank: int, blocks: int, first: int, done: int, slots: Any) -> None:
    """Publish the sums over all blocks of this block's share of the columns, a warp each."""
    thread = i32(cuda.threadIdx.x)
    warps = i32(cuda.blockDim.x // WARP)
    start = i32(rank * warps)
    while start < columns:  # the same for the whole block
        i = i32(start + thread // WARP)
        total = 0.0
        if i < columns:
            other = i32(thread % WARP)
            while other < blocks:
                total += receive(slots, first + other * columns + i)
                other = i32(other + WARP)
        total = warp_sum(total, 1)
        if i < columns and thread % WARP == 0:
            publish(slots, done + i, total)
        start = i32(start + blocks * warps)
