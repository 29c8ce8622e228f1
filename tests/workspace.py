"""What a call allocates besides its results, in bytes, derived from what the kernels allocate."""

import numba
import numpy as np

from fastbn.backends.cpu import plan
from fastbn.backends.cpu.launch import as_bits
from fastbn_kernels.build import threads
from fastbn_kernels.cpu import tiles
from fastbn_kernels.cpu.simd.types import LANES, STORED, lanes32

PYTHON = 8192  # views, tuples, a context


def shape_and_plan(x, axis):
    """Return (N, C, S) of a contiguous array and the plan that it gets."""
    shape = int(np.prod(x.shape[:axis])), x.shape[axis], int(np.prod(x.shape[axis + 1 :]))
    count = threads.count() if x.size >= plan.PARALLEL_FROM else 1
    return shape, plan.make(*shape, as_bits(x).dtype.char, count), count


def bound(what, x, axis):
    """Return the most that a call with `out` may allocate: moments, forward, inference or backward of contiguous x."""
    if what == "moments" and x.dtype == np.float32:  # which are exact
        x = x.view(np.int32)
    (N, C, S), own, count = shape_and_plan(x, axis)
    numbers = {"moments": 32, "forward": 48 + 16 + 8, "inference": 48 + 16, "backward": 16 + 16}[what] * C
    # The bytes of a number that values are computed with; sums are float64.
    item = 4 if STORED[numba.from_dtype(as_bits(x).dtype)][2] is lanes32 else 8
    if own.family == "columns" and what in ("forward", "backward"):  # of all groups at once
        return numbers + {"forward": 16 + (2 + 4) * item, "backward": 16 + 7 * item}[what] * (C + LANES) + PYTHON
    if own.in_rows:
        blocks, wide = tiles.block_tasks(N, C)[0], tiles.rows_together(C) * C
        # Sums of the backward pass are as wide as a row of numbers, which has LANES more.
        a_block = {"moments": 16 + 2 * item, "forward": 16 + 2 * item, "inference": 0, "backward": 16}[what]
        a_row = {"moments": 0, "forward": 4, "inference": 4, "backward": 4 + 7}[what] * item
        return numbers + (a_block * blocks + a_row) * (wide + LANES) + 24 * C + PYTHON
    tiled = 24 * C * tiles.tile_count(N, S)
    if what == "moments":
        return numbers + tiled + PYTHON
    if own.family == "short_segments":
        channels = -(-C // own.groups)
        columns = {"forward": 16 + (2 + 4) * item, "inference": 4 * item, "backward": 16 + 7 * item}[what]
        return numbers + (columns * (channels * S + LANES) + 32 * channels) * count + PYTHON
    a_channel = 8 * {"forward": 4 + 3, "inference": 4, "backward": 7 + 2}[what] * C
    return numbers + a_channel + (0 if own.family != "tiles" or what == "inference" else tiled) + PYTHON
