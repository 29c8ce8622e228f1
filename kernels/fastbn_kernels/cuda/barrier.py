"""How the blocks of a group wait for each other and see what the others wrote.

A group's barrier is two words: how many blocks have arrived, and how many times all have. The last to arrive sets the
first back before it raises the second, so the words need no care between launches, whatever the size of the next
launch's groups. Arriving is a release and leaving an acquire at the scope of the device; a block's other threads are
tied in by the barriers of the block around it (PTX ISA, "Memory Consistency Model": causality is transitive over both).
"""

from __future__ import annotations

from typing import Any

from fastbn_kernels.cuda.atomics import arrive, clear, look, pause
from fastbn_kernels.cuda.build.decorators import device
from fastbn_kernels.cuda.build.numba_cuda import cuda, i32

# From one barrier to the next, in words: a line of the second-level cache, so that groups do not wait for each other's.
BARRIER = 32


@device
def block_group_barrier(barriers: Any, block_group: int, blocks: int) -> None:
    """Wait until all blocks of this group are here; everything that they wrote before can then be read."""
    cuda.syncthreads()
    if cuda.threadIdx.x == 0:
        here = i32(block_group * BARRIER)
        passed = i32(here + 1)
        before = look(barriers, passed)
        if arrive(barriers, here) == blocks - 1:
            clear(barriers, here)
            arrive(barriers, passed)
        else:
            while look(barriers, passed) == before:
                pause()
    cuda.syncthreads()
