"""How a tensor is cut into tiles.

Tiles depend on the shape alone. Every partial result has a slot of its own and slots are merged in a fixed order,
so the bits of a result do not depend on the number of threads, nor on which of them did what.

Channels first, (N, C, S): a tile holds values of one channel, several short runs or a piece of a long one.
Channels last, (R, C): a tile is a block of rows by a group of columns. Narrow rows are taken several together, as
one wide row whose columns are the channels over and over, so that it is made of whole vectors.
"""

from __future__ import annotations

import math

from fastbn_kernels.build.decorators import Array, scalar
from fastbn_kernels.cpu.loops.row_streams import STREAMS
from fastbn_kernels.cpu.simd.types import LANES

# Values in a tile of one channel. 8192 float32 are 32 KB, a first-level cache; a tile also amortises the merge after
# it (some 5 ns) over at least half a microsecond of sums.
TILE = 8192

# Values in a stretch of memory that one thread takes where nothing is summed.
STRETCH = 16384

# The width that narrow rows are brought to.
WIDE = 128

# Columns in a tile of rows. Narrow tiles keep the accumulators in the first-level cache but break the rows up, and the
# prefetcher does not follow from one row's piece to the next: at 4096 x 1024, tiles of 512 channels take 0.78 ns a
# value to normalise, tiles of 1024 and more 0.29.
COLUMNS = 4096

# Values in a block of rows, and the most blocks that a tensor is cut into: enough for 16 threads to share evenly, few
# enough that the merge, one step a block and channel, stays small beside the sums. Wide rows are cut into fewer blocks,
# of at least so many rows as long as 16 threads have one each: a block costs some 10 operations a channel, as much as
# the sums of several rows.
BLOCK = 65536
MOST_BLOCKS = 128
TALL = 256
FEW_BLOCKS = 16

# Channels that one thread merges the blocks of: whole cache lines, so that threads do not share them.
MERGED = 256


@scalar
def tile_shape(N: int, S: int) -> tuple[int, int, int, int]:
    """Cut the N runs of S values of one channel: (runs a tile, values of a run in it, tiles over N, tiles over S)."""
    if N * S <= TILE:  # told apart because divisions cost more than the sums of a small channel
        return N, S, 1, 1
    if S < TILE:
        runs = TILE // S
        return runs, S, (N + runs - 1) // runs, 1
    pieces = (S + TILE - 1) // TILE
    length = (S + pieces - 1) // pieces
    length = (length + 63) // 64 * 64  # whole vectors but in the last piece
    return 1, length, N, (S + length - 1) // length


@scalar
def tile_count(N: int, S: int) -> int:
    """Return the number of tiles of one channel."""
    _, _, over_n, over_s = tile_shape(N, S)
    return over_n * over_s


@scalar
def tile_bounds(tile: int, N: int, S: int) -> tuple[int, int, int, int]:
    """Return (n0, n1, s0, s1) of a tile of one channel."""
    if N * S <= TILE:
        return 0, N, 0, S
    runs, length, _, over_s = tile_shape(N, S)
    i = tile // over_s
    j = tile % over_s
    return i * runs, min(N, (i + 1) * runs), j * length, min(S, (j + 1) * length)


@scalar
def stretch_shape(C: int, S: int) -> tuple[int, int, int]:
    """Cut the C runs of S values of one sample: (groups of runs, pieces of a run, values of a run in a piece)."""
    pieces = (S + STRETCH - 1) // STRETCH
    length = ((S + pieces - 1) // pieces + 63) // 64 * 64  # whole vectors but in the last piece
    return max(1, min(C, C * S // STRETCH)), (S + length - 1) // length, length


@scalar
def stretch_tasks(x: Array) -> int:
    """Return how many stretches x (N, C, S) is cut into."""
    groups, pieces, _ = stretch_shape(x.shape[1], x.shape[2])
    tasks: int = x.shape[0] * groups * pieces
    return tasks


@scalar
def group_bounds(task: int, tasks: int, C: int) -> tuple[int, int]:
    """Return (c0, c1) of a group of channels."""
    return task * C // tasks, (task + 1) * C // tasks


@scalar
def rows_together(C: int) -> int:
    """Return how many rows of C channels are taken as one wide row: the fewest that make whole vectors, and WIDE."""
    unit = LANES // math.gcd(C, LANES)
    if unit * C > COLUMNS:
        return 1
    return unit * ((WIDE + unit * C - 1) // (unit * C))


@scalar
def block_shape(R: int, C: int) -> tuple[int, int, int]:
    """Cut R rows of C adjacent channels: (rows a block, blocks, groups of columns)."""
    together = rows_together(C)
    tall = min(TALL, (R + FEW_BLOCKS - 1) // FEW_BLOCKS)
    height = max(BLOCK // C, tall, (R + MOST_BLOCKS - 1) // MOST_BLOCKS, 1)
    height = (height + together * STREAMS - 1) // (together * STREAMS) * (together * STREAMS)
    return height, (R + height - 1) // height, (together * C + COLUMNS - 1) // COLUMNS


@scalar
def block_tasks(R: int, C: int) -> tuple[int, int]:
    """Return (blocks of rows, tiles: blocks times groups of columns)."""
    _, blocks, columns = block_shape(R, C)
    return blocks, blocks * columns


@scalar
def block_bounds(task: int, R: int, C: int) -> tuple[int, int, int, int, int]:
    """Return (block, r0, r1, c0, c1) of a tile of rows and columns, the columns those of a wide row."""
    height, _, columns = block_shape(R, C)
    block = task // columns
    c0 = task % columns * COLUMNS
    return block, block * height, min(R, (block + 1) * height), c0, min(rows_together(C) * C, c0 + COLUMNS)


@scalar
def merge_tasks(C: int) -> int:
    """Return how many groups of channels are merged."""
    return (C + MERGED - 1) // MERGED


@scalar
def merge_bounds(task: int, C: int) -> tuple[int, int]:
    """Return (c0, c1) of a group of channels that is merged."""
    return task * MERGED, min(C, (task + 1) * MERGED)
