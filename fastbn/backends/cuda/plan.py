"""How a call is launched on a GPU: a pure function of shape, dtype and the model of GPU.

A group of `blocks` blocks takes a channel (channels first) or some columns (channels last) at a time; `block_groups` of
them work side by side, on the next channels as soon as they are done. Every thread keeps its first `smem_vectors`
vectors of 16 bytes in shared memory. One block a channel, several, or all of them on a few channels at a time are one
plan with other numbers.

Costs are counted in steps: all threads that are on the GPU at once move one vector of 16 bytes each, 1 MB on an H200,
some 0.25 us at 4.3 TB/s.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

THREADS = 256  # a block
WARP = 32
VECTOR = 16  # bytes

# Blocks on a multiprocessor at once, of cooperative kernels and of the others. Where it must have registers for three
# blocks, a thread has 80: enough for the others, while the cooperative kernels, which sum and normalise, spill 8 to 152
# bytes. Where it must for two, a thread has 128 and nothing is spilled; `make gpu-static` looks.
BLOCKS_PER_SM = {True: 2, False: 3}

# Shared memory that a block has beside what it keeps, in bytes, and what the driver takes of every block.
STATIC = {"channels_first": 256, "channels_last": 12288}
RESERVED = 1024

# Columns that a block takes at a time at most, `COLUMNS` in `fastbn_kernels/cuda/moments.py`, and no more than threads.
COLUMNS = 64

# Where channels are small, blocks of a half or a quarter of the threads, and as many more of them, hide each other's
# waiting: 32 x 2048 x 7 x 7 is two vectors a thread of 256, in 8 turns, or seven of 64 in two.
SMALLER = (1, 2, 4)

# Where no block meets another: so many times the blocks that are on the GPU at once, but at least so many vectors a
# thread. A block begins with a division and a root, some 1 us in which it loads nothing.
WAVES = 2
STREAMED = 4

# Steps that it takes a block to add up its sums, and a group of blocks to meet at a barrier (some 1.5 us).
SUMMED = 2
MET = 6

# Of the second-level cache, what a group of blocks can count on finding again.
L2_SHARE = 0.5

# Beyond so many blocks in a group, columns are merged in two steps: `DIRECT` in `fastbn_kernels/cuda/reduce.py`.
DIRECT = 16

# Words from one barrier to the next: `BARRIER` in `fastbn_kernels/cuda/barrier.py`.
BARRIER = 32

LARGEST = 2**31 - 2**20


@dataclass(frozen=True, slots=True)
class Device:
    """What a plan needs to know of a GPU."""

    multiprocessors: int
    shared_per_block: int  # bytes that a block may have at most
    shared_per_multiprocessor: int
    l2_bytes: int  # of the second-level cache
    threads: int = THREADS


H200 = Device(132, 232448, 233472, 50 << 20)


@dataclass(frozen=True, slots=True)
class Plan:
    """A launch.

    Attributes
    ----------
    family : str
        "channels_first" for (N, C, S), "channels_last" for rows (R, C).
    scalars : bool
        Whether data is taken a value at a time, because vectors of it are not aligned.
    geometry : tuple of int
        What the kernels take for the shape: (N, C, S, Q) with Q vectors a segment, or (R, C, together, row_threads)
        with R wide rows of `together` rows each, whose vectors `row_threads` neighbouring threads take.
    blocks, block_groups : int
        Blocks a group, groups.
    smem_vectors : int
        Vectors of each operand that a thread keeps in shared memory.
    threads, shared : int
        Threads a block, bytes of dynamic shared memory of each.
    blocks_per_sm : int
        Blocks of `THREADS` threads that the kernel is compiled to have on a multiprocessor at once; smaller ones are
        as many more.
    slots : int
        float64 of workspace.
    """

    family: str
    scalars: bool
    geometry: tuple[int, int, int, int]
    blocks: int
    block_groups: int
    smem_vectors: int
    threads: int
    shared: int
    blocks_per_sm: int
    slots: int

    @property
    def grid(self) -> int:
        """Blocks of the launch."""
        return self.blocks * self.block_groups


def capacity(device: Device, family: str, blocks_per_sm: int, operands: int, smaller: int = 1) -> int:
    """Return how many vectors of each operand a thread can keep, in blocks that are so many times smaller."""
    share = min(device.shared_per_multiprocessor // (blocks_per_sm * smaller) - RESERVED, device.shared_per_block)
    return max(0, share - STATIC[family]) // (device.threads // smaller * VECTOR * operands)


def _streamed(device: Device, blocks_per_sm: int, channels: int, items: int, per_block: int) -> int:
    """Return how many blocks share the items of a channel where none waits for another."""
    wanted = -(-WAVES * device.multiprocessors * blocks_per_sm // channels)
    return max(1, min(wanted, -(-items // (STREAMED * per_block))))


def workspace(device: Device) -> tuple[int, int]:
    """Return how many slots (float64) and barrier words (uint32) the largest launch takes."""
    most = device.multiprocessors * BLOCKS_PER_SM[True]
    return 8 * COLUMNS * most, BARRIER * most * SMALLER[-1]


def _cost(steps: int, smem_vectors: int, operands: int, rounds: int, moved: int, device: Device, meeting: int) -> float:
    """Return the steps that a launch takes; `moved` bytes are on their way in one step."""
    missing = max(0, steps - smem_vectors)
    again = 0.5 if missing * moved * operands <= L2_SHARE * device.l2_bytes else 1.0
    return rounds * (steps * (operands + 1) + missing * operands * again + SUMMED + meeting)


def _split(
    device: Device, blocks_per_sm: int, smem_vectors: int, operands: int, channels: int, items: int, per_block: int,
    columns: bool, smaller: int = 1,
) -> tuple[float, int, int]:  # fmt: skip
    """Return (cost, blocks, block_groups) of the cheapest way to share out `items` of each of some channels."""
    most = device.multiprocessors * blocks_per_sm * smaller
    best = math.inf, 1, 1
    for blocks in range(1, min(most, max(1, -(-items // per_block))) + 1):
        block_groups = min(channels, most // blocks)
        steps = -(-items // (blocks * per_block))
        meeting = 0 if blocks == 1 else MET * (2 if columns and blocks > DIRECT else 1)
        moved = blocks * block_groups * device.threads // smaller * VECTOR
        cost = _cost(steps, smem_vectors, operands, -(-channels // block_groups), moved, device, meeting)
        if cost < best[0]:
            best = cost, blocks, block_groups
    return best


@functools.lru_cache(maxsize=4096)
def make(
    N: int, C: int, S: int, itemsize: int, aligned: bool, operands: int, cooperative: bool, device: Device
) -> Plan:
    """Return how (N, C, S) is launched.

    Parameters
    ----------
    N, C, S : int
        Outer, channels, inner; none is 0.
    itemsize : int
        Bytes a value.
    aligned : bool
        Whether all data begins at a multiple of 16 bytes.
    operands : int
        Tensors that are read: 1 forward, 2 backward.
    cooperative : bool
        Whether statistics are taken, so that blocks wait for each other.
    device : Device
        What runs it.

    Raises
    ------
    ValueError
        If a channel has more vectors than 32 bits count.
    """
    if C == 1:
        N, S = 1, N * S
    if S == 1:
        return _channels_last(N, C, itemsize, aligned, operands, cooperative, device)
    return _channels_first(N, C, S, itemsize, aligned, operands, cooperative, device)


def _refuse(count: int) -> None:
    if count > LARGEST:
        raise ValueError(f"x: expected at most {LARGEST} vectors of 16 bytes a channel on a GPU, got {count}")


def _channels_first(
    N: int, C: int, S: int, itemsize: int, aligned: bool, operands: int, cooperative: bool, device: Device
) -> Plan:
    blocks_per_sm = BLOCKS_PER_SM[cooperative]
    vector = VECTOR // itemsize if aligned else 1
    Q = S // vector if S % vector == 0 else (S + 2 * vector - 2) // vector
    items = N * Q
    _refuse(items)
    threads, smem_vectors = device.threads, 0
    if cooperative:
        best = math.inf
        for smaller in SMALLER:
            of_block = device.threads // smaller
            if of_block % WARP:
                continue
            space = capacity(device, "channels_first", blocks_per_sm, operands, smaller)
            cost, *split = _split(device, blocks_per_sm, space, operands, C, items, of_block, False, smaller)
            if cost < best:
                best, threads, smem_vectors = cost, of_block, space
                blocks, block_groups = split
    else:
        blocks, block_groups = _streamed(device, blocks_per_sm, C, items, threads), C
    smem_vectors = min(smem_vectors, -(-items // (blocks * threads)))
    shared = smem_vectors * operands * threads * VECTOR
    slots = 4 * blocks * block_groups
    return Plan(
        "channels_first", not aligned, (N, C, S, Q), blocks, block_groups, smem_vectors, threads, shared, blocks_per_sm,
        slots,
    )  # fmt: skip


def _channels_last(
    R: int, C: int, itemsize: int, aligned: bool, operands: int, cooperative: bool, device: Device
) -> Plan:
    blocks_per_sm = BLOCKS_PER_SM[cooperative]
    vector = VECTOR // itemsize
    together = vector // math.gcd(C, vector)
    if not aligned or (together > 1 and (together * C > min(COLUMNS, device.threads) or R % together)):
        vector, together = 1, 1
    rows, wide = R // together, C * together
    _refuse(rows)
    _refuse(wide)
    smem_vectors = capacity(device, "channels_last", blocks_per_sm, operands) if cooperative else 0
    best: tuple[float, int, int, int] = (math.inf, 1, 1, 1)
    row_threads = 1
    while together > 1 and row_threads * vector < wide:  # the channels of a wide row are added up in one group
        row_threads *= 2
    while (
        row_threads <= 32
        and row_threads * vector <= min(COLUMNS, device.threads)
        and (row_threads == 1 or together > 1 or row_threads // 2 * vector < wide)
    ):
        columns = row_threads * vector
        groups = -(-wide // columns)
        # A row's part should be whole lines of 128 bytes, or two sectors at least; narrower rows follow each other.
        line = min(columns, wide) * itemsize
        waste = 1.0 if line >= 128 or columns >= wide else 1.1 if line >= 64 else 1.5
        waste *= groups * columns / wide
        per_block = device.threads // row_threads
        if cooperative:
            cost, blocks, block_groups = _split(
                device, blocks_per_sm, smem_vectors, operands, groups, rows, per_block, True
            )
        else:
            blocks, block_groups = _streamed(device, blocks_per_sm, groups, rows, per_block), groups
            cost = 1.0
        if cost * waste < best[0]:
            best = cost * waste, row_threads, blocks, block_groups
        row_threads *= 2
    _, row_threads, blocks, block_groups = best
    smem_vectors = min(smem_vectors, -(-rows // (blocks * (device.threads // row_threads))))
    slots = 2 * row_threads * vector * (2 * blocks * block_groups + 2 * block_groups)
    return Plan(
        "channels_last", vector == 1, (rows, C, together, row_threads), blocks, block_groups, smem_vectors,
        device.threads, smem_vectors * operands * device.threads * VECTOR, blocks_per_sm, slots,
    )  # fmt: skip
