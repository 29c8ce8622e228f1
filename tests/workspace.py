"""What a call allocates besides its results, in bytes, derived from what the kernels allocate."""

import numpy as np

from fastbn.backends.cpu import plan
from fastbn.backends.cpu.launch import as_bits
from fastbn_kernels.build import threads
from fastbn_kernels.cpu import tiles
from fastbn_kernels.cpu.simd.ops import LANES

PYTHON = 8192  # views, tuples, a context


def shape_and_plan(x, axis):
    """Return (N, C, S) of a contiguous array and the plan that it gets."""
    shape = int(np.prod(x.shape[:axis])), x.shape[axis], int(np.prod(x.shape[axis + 1 :]))
    count = threads.count() if x.size >= plan.PARALLEL_FROM else 1
    return shape, plan.make(*shape, as_bits(x).dtype.char, count), count


def bound(what, x, axis):
    """Return the most that a call with `out` may allocate: moments, forward, inference or backward of contiguous x."""
    (N, C, S), own, count = shape_and_plan(x, axis)
    numbers = {"moments": 32, "forward": 48 + 16 + 8, "inference": 48 + 16, "backward": 16 + 16}[what] * C
    if own.family == "channels_last":
        blocks, wide = tiles.block_tasks(N, C)[0], tiles.rows_together(C) * C
        # Sums of the backward pass are as wide as a row of numbers, which has LANES more.
        a_block = {"moments": 24, "forward": 24, "inference": 0, "backward": 16}[what] * blocks * (wide + LANES)
        a_row = {"moments": 0, "forward": 24, "inference": 24, "backward": 32}[what] * (wide + LANES)
        return numbers + a_block + a_row + 24 * C + PYTHON
    tiled = 24 * C * tiles.tile_count(N, S)
    if what == "moments":
        return numbers + tiled + PYTHON
    if own.family == "short_segments":
        channels = -(-C // own.groups)
        # Mean, scale and shift a column; backward slope, offset and two sums besides.
        columns = {"forward": 24, "inference": 24, "backward": 56}[what] * (channels * S + LANES)
        return numbers + (columns + 32 * channels) * count + PYTHON
    return numbers + (0 if own.family != "tiles" or what == "inference" else tiled) + PYTHON
