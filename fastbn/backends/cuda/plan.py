"""How a call is launched on a GPU: a pure function of shape, dtype and the model of GPU.

A team of `blocks` blocks takes a channel (channels apart) or a group of columns (channels adjacent) at a time; `teams`
work side by side, on the next channels as soon as they are done. Every thread keeps its first `room` vectors of 16
bytes on the chip. One block a channel, several, or all of them on a few channels at a time are one plan with other
numbers.

Costs are counted in steps: every resident thread moves one vector, 1 MB on an H200, some 0.25 us at 4.3 TB/s.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

THREADS = 256  # a block
WARP = 32
VECTOR = 16  # bytes

# Blocks on a multiprocessor at once. Those that wait for each other hold both sums and what they normalise with: with
# three of them, 80 registers a thread, 8 to 152 bytes are spilled, with two, 128, none; `make gpu-static` looks. The
# others take 80.
RESIDENT = {True: 2, False: 3}

# Shared memory that a block has beside what it keeps, in bytes, and what the driver takes of every block.
STATIC = {"apart": 256, "adjacent": 12288}
RESERVED = 1024

# Columns in a group at most, `COLUMNS` in `fastbn_kernels/cuda/moments.py`; a thread of the block each, besides.
COLUMNS = 64

# Where channels are small, blocks of a half or a quarter of the threads, and as many more of them, hide each other's
# waiting: 32 x 2048 x 7 x 7 is two vectors a thread of 256, in 8 turns, or seven of 64 in two.
SMALLER = (1, 2, 4)

# Where nobody waits: so many times the blocks that are on the chip at once, but at least so many vectors a thread. A
# block begins with a division and a root, some 1 us in which it loads nothing.
WAVES = 2
STREAMED = 4

# Steps that it takes a block to add up its sums, and a team to meet at a barrier (some 1.5 us).
SUMMED = 2
MET = 6

# Of the second-level cache, what a team can count on finding again.
SECOND_LEVEL = 0.5

# Beyond so many blocks in a team, columns are merged in two steps: `DIRECT` in `fastbn_kernels/cuda/reduce.py`.
DIRECT = 16

LARGEST = 2**31 - 2**20


@dataclass(frozen=True, slots=True)
class Device:
    """What a plan needs to know of a GPU."""

    multiprocessors: int
    shared_per_block: int  # bytes that a block may have at most
    shared_per_multiprocessor: int
    second_level: int  # bytes of cache
    threads: int = THREADS


H200 = Device(132, 232448, 233472, 50 << 20)


@dataclass(frozen=True, slots=True)
class Plan:
    """A launch.

    Attributes
    ----------
    family : str
        "apart" for (N, C, S) with S values of a channel side by side, "adjacent" for rows (R, C).
    scalars : bool
        Whether data is taken a value at a time, because vectors of it are not aligned.
    geometry : tuple of int
        What the kernels take for the shape: (N, C, S, Q) with Q chunks a run, or (R, C, together, lanes) with R wide
        rows of `together` rows each.
    blocks, teams : int
        Blocks a team, teams.
    room : int
        Vectors of each operand that a thread keeps.
    threads, shared : int
        Threads a block, bytes of dynamic shared memory of each.
    resident : int
        Blocks of `THREADS` threads that the kernel is compiled to have on a multiprocessor at once; smaller ones are
        as many more.
    slots : int
        float64 of workspace.
    """

    family: str
    scalars: bool
    geometry: tuple[int, int, int, int]
    blocks: int
    teams: int
    room: int
    threads: int
    shared: int
    resident: int
    slots: int

    @property
    def grid(self) -> int:
        """Blocks of the launch."""
        return self.blocks * self.teams


def capacity(device: Device, family: str, resident: int, operands: int, smaller: int = 1) -> int:
    """Return how many vectors of each operand a thread can keep, in blocks that are so many times smaller."""
    share = min(device.shared_per_multiprocessor // (resident * smaller) - RESERVED, device.shared_per_block)
    return max(0, share - STATIC[family]) // (device.threads // smaller * VECTOR * operands)


def _streamed(device: Device, resident: int, channels: int, items: int, per_block: int) -> int:
    """Return how many blocks share the items of a channel where nobody waits."""
    wanted = -(-WAVES * device.multiprocessors * resident // channels)
    return max(1, min(wanted, -(-items // (STREAMED * per_block))))


def workspace(device: Device) -> tuple[int, int]:
    """Return how many slots (float64) and barrier words (uint32) the largest launch takes."""
    most = device.multiprocessors * RESIDENT[True]
    return 8 * COLUMNS * most, 32 * most * SMALLER[-1]


def _cost(steps: int, room: int, operands: int, rounds: int, moved: int, device: Device, meeting: int) -> float:
    """Return the steps that a launch takes; `moved` bytes are on their way in one step."""
    missing = max(0, steps - room)
    again = 0.5 if missing * moved * operands <= SECOND_LEVEL * device.second_level else 1.0
    return rounds * (steps * (operands + 1) + missing * operands * again + SUMMED + meeting)


def _split(
    device: Device, resident: int, room: int, operands: int, channels: int, items: int, per_block: int, columns: bool,
    smaller: int = 1,
) -> tuple[float, int, int]:  # fmt: skip
    """Return (cost, blocks, teams) of the cheapest way to share `items` of each of some channels out to blocks."""
    most = device.multiprocessors * resident * smaller
    best = math.inf, 1, 1
    for blocks in range(1, min(most, max(1, -(-items // per_block))) + 1):
        teams = min(channels, most // blocks)
        steps = -(-items // (blocks * per_block))
        meeting = 0 if blocks == 1 else MET * (2 if columns and blocks > DIRECT else 1)
        moved = blocks * teams * device.threads // smaller * VECTOR
        cost = _cost(steps, room, operands, -(-channels // teams), moved, device, meeting)
        if cost < best[0]:
            best = cost, blocks, teams
    return best


@functools.lru_cache(maxsize=4096)
def make(N: int, C: int, S: int, itemsize: int, aligned: bool, operands: int, waits: bool, device: Device) -> Plan:
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
    waits : bool
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
    resident = RESIDENT[waits]
    if S == 1:
        return _adjacent(N, C, itemsize, aligned, operands, waits, resident, device)
    return _apart(N, C, S, itemsize, aligned, operands, waits, resident, device)


def _refuse(count: int) -> None:
    if count > LARGEST:
        raise ValueError(f"x: expected at most {LARGEST} vectors of 16 bytes a channel on a GPU, got {count}")


def _apart(
    N: int, C: int, S: int, itemsize: int, aligned: bool, operands: int, waits: bool, resident: int, device: Device
) -> Plan:
    vector = VECTOR // itemsize if aligned else 1
    Q = S // vector if S % vector == 0 else (S + 2 * vector - 2) // vector
    items = N * Q
    _refuse(items)
    threads, room = device.threads, 0
    if waits:
        best = math.inf
        for smaller in SMALLER:
            own = device.threads // smaller
            if own % WARP:
                continue
            space = capacity(device, "apart", resident, operands, smaller)
            cost, *split = _split(device, resident, space, operands, C, items, own, False, smaller)
            if cost < best:
                best, threads, room = cost, own, space
                blocks, teams = split
    else:
        blocks, teams = _streamed(device, resident, C, items, threads), C
    room = min(room, -(-items // (blocks * threads)))
    shared = room * operands * threads * VECTOR
    slots = 4 * blocks * teams
    return Plan("apart", not aligned, (N, C, S, Q), blocks, teams, room, threads, shared, resident, slots)


def _adjacent(
    R: int, C: int, itemsize: int, aligned: bool, operands: int, waits: bool, resident: int, device: Device
) -> Plan:
    vector = VECTOR // itemsize
    together = vector // math.gcd(C, vector)
    if not aligned or (together > 1 and (together * C > min(COLUMNS, device.threads) or R % together)):
        vector, together = 1, 1
    rows, wide = R // together, C * together
    _refuse(rows)
    _refuse(wide)
    room = capacity(device, "adjacent", resident, operands) if waits else 0
    best: tuple[float, int, int, int] = (math.inf, 1, 1, 1)
    lanes = 1
    while together > 1 and lanes * vector < wide:  # the channels of a wide row are added up in one group
        lanes *= 2
    while (
        lanes <= 32
        and lanes * vector <= min(COLUMNS, device.threads)
        and (lanes == 1 or together > 1 or lanes // 2 * vector < wide)
    ):
        columns = lanes * vector
        groups = -(-wide // columns)
        # A row's part should be whole lines of 128 bytes, or two sectors at least; narrower rows follow each other.
        line = min(columns, wide) * itemsize
        waste = 1.0 if line >= 128 or columns >= wide else 1.1 if line >= 64 else 1.5
        waste *= groups * columns / wide
        per_block = device.threads // lanes
        if waits:
            cost, blocks, teams = _split(device, resident, room, operands, groups, rows, per_block, True)
        else:
            blocks, teams = _streamed(device, resident, groups, rows, per_block), groups
            cost = 1.0
        if cost * waste < best[0]:
            best = cost * waste, lanes, blocks, teams
        lanes *= 2
    _, lanes, blocks, teams = best
    room = min(room, -(-rows // (blocks * (device.threads // lanes))))
    slots = 2 * lanes * vector * (2 * blocks * teams + 2 * teams)
    return Plan(
        "adjacent", vector == 1, (rows, C, together, lanes), blocks, teams, room, device.threads,
        room * operands * device.threads * VECTOR, resident, slots,
    )  # fmt: skip
