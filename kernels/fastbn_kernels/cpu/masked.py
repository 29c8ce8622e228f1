"""Batch normalization of the positions that a mask chooses, channels first.

The kernels of `moments`, `normalize` and `backward` for x (N, C, S), of which a position (n, s) counts in every channel
or in none.

What does not count is not read, neither for sums nor for what they are taken around, and the result is 0 there. Tiles
are those of `tiles`; one knows how many of its values count (`masks`), and one without any is left out. All kernels
take `words` and `tiles` of the mask, made by `pack_mask`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastbn_kernels.build.decorators import (
    Array,
    ReadNCS,
    Saved,
    Sums,
    Tail,
    TileCounts,
    Words,
    WriteNCS,
    kernel,
    prange,
    scalar,
)
from fastbn_kernels.cpu.columns import all_params
from fastbn_kernels.cpu.loops.masked_segments import EACH, masked_sums, write_masked
from fastbn_kernels.cpu.masks import COUNT, FIRST
from fastbn_kernels.cpu.moments import AGAIN, AGAIN_SINGLE, sum_again, unit_again
from fastbn_kernels.cpu.params import (
    ForwardParams,
    GradientParams,
    as_pair,
    batch_params,
    gradient_params,
    normalized_with,
    xhat_sum,
)
from fastbn_kernels.cpu.simd.masks import WORD, flags, ones
from fastbn_kernels.cpu.simd.ops import add, fence, load, rounded, single, splat, total, value, widen
from fastbn_kernels.cpu.simd.tails import FROZEN
from fastbn_kernels.cpu.simd.types import LANES
from fastbn_kernels.cpu.tiles import group_bounds, stretch_shape, stretch_tasks, tile_bounds
from fastbn_kernels.formulas import finite_or_zero, group, merge
from fastbn_kernels.saved import M2, MEAN, MEAN_LO

VECTOR = np.uint64(0xFFFF)  # the first vector of a word

# ---------------------------------------------------------------- one tile


@scalar
def value_at(x: Array, c: int, position: int) -> float:
    """Return the value of channel c at a position n * S + s, if that is finite, else 0."""
    C, S = x.shape[1], x.shape[2]
    return finite_or_zero(value(x, (position // S * C + c) * S + position % S))


@scalar
def masked_origin(x: Array, c: int, tiles: Array) -> float:
    """Return what the offsets of channel c are measured from: its first value that counts, if there is one."""
    first = tiles[tiles.shape[0] - 1, FIRST]
    return value_at(x, c, first) if first >= 0 else 0.0


@scalar
def first_masked_mean(x: Array, c: int, tile: int, words: Array, first: int) -> float:
    """Return the mean of the first values of a tile that count: those of vectors that hold LANES of them together."""
    N, C, S = x.shape
    _, n1, s0, s1 = tile_bounds(tile, N, S)
    n = first // S
    s = first % S // LANES * LANES
    found = widen(splat(x, 0.0))
    count = 0
    while count < LANES and n < n1:
        word = words[n, s // WORD] & (VECTOR << np.uint64(s % WORD))
        found = add(found, widen(load(x, (n * C + c) * S + s, flags(word, s // LANES % EACH))))
        count += ones(word)
        s += LANES
        if s >= s1:
            s = s0
            n += 1
    return finite_or_zero(rounded(x, total(found) / count))


@scalar
def sum_masked_tile(
    dy: Array | None, x: Array, c: int, tile: int, words: Array, shift: tuple[float, ...], tail: Any
) -> tuple[float, float]:
    """Return the two sums over what counts of one tile of channel c."""
    N, C, S = x.shape
    n0, n1, s0, s1 = tile_bounds(tile, N, S)
    t, p = masked_sums(dy, x, words, n0, s0 // WORD, (n0 * C + c) * S + s0, C * S, n1 - n0, s1 - s0, shift, tail)
    return t, p


@scalar
def masked_tile_moments(x: Array, c: int, tile: int, words: Array, tiles: Array) -> tuple[float, float, float]:
    """Return (count, mean - origin, m2) of what counts of one tile of channel c; see `moments.tile_group`."""
    if tiles[tile, COUNT] == 0:
        return 0.0, 0.0, 0.0
    count, first = np.float64(tiles[tile, COUNT]), tiles[tile, FIRST]
    k = first_masked_mean(x, c, tile, words, first) if single(x) else value_at(x, c, first)
    share = 1.0 / count
    unit = 1.0
    t, squares = sum_masked_tile(None, x, c, tile, words, (-k, 1.0), None)
    for _ in range(AGAIN_SINGLE if single(x) else AGAIN):
        wanted = unit_again(x, share, squares, k) if unit == 1.0 else unit
        if wanted == unit and not sum_again(x, share, t, squares):
            break
        if math.isfinite(t):
            k = rounded(x, k + t / count / unit)
        unit = wanted
        t, squares = sum_masked_tile(None, x, c, tile, words, (-k * unit, unit), None)
    offset, m2 = group(share, k - masked_origin(x, c, tiles), t / unit, squares / (unit * unit))
    return count, offset, m2


@scalar
def write_masked_tile(
    dy: Array | None, x: Array | None, c: int, tile: int, words: Array, params: tuple[float, ...], out: Array,
    past_cache: bool, tail: Any,
) -> None:  # fmt: skip
    """Write the results of one tile of channel c."""
    N, C, S = out.shape
    n0, n1, s0, s1 = tile_bounds(tile, N, S)
    start = (n0 * C + c) * S + s0
    write_masked(dy, x, words, n0, s0 // WORD, start, C * S, n1 - n0, s1 - s0, params, out, past_cache, tail)
    if past_cache:
        fence()


# ---------------------------------------------------------------- moments and the forward pass


@scalar
def merged_tiles(x: Array, c: int, tiles: Array, slots: Array, at: int) -> tuple[float, float, float]:
    """Return (mean, low, m2) of channel c from the moments of its tiles, slots (..., 3) from row `at` on."""
    count = 0.0
    offset = 0.0
    m2 = 0.0
    for tile in range(tiles.shape[0] - 1):
        own = slots[at + tile]
        if own[0] > 0.0:
            offset, m2 = merge(count, offset, m2, own[0], own[1], own[2])
            count += own[0]
    mean, low = as_pair(x, masked_origin(x, c, tiles), offset)
    return mean, low, m2


@kernel
def masked_moments_channels_first(x: ReadNCS, words: Words, tiles: TileCounts, saved: Saved) -> None:
    """Fill MEAN, MEAN_LO and M2, tiles of channels spread over the threads."""
    C = x.shape[1]
    each = tiles.shape[0] - 1
    slots = np.empty((C * each, 3))
    for task in prange(0, C * each):
        found = masked_tile_moments(x, task // each, task % each, words, tiles)
        slots[task, 0], slots[task, 1], slots[task, 2] = found
    for c in range(C):
        saved[MEAN, c], saved[MEAN_LO, c], saved[M2, c] = merged_tiles(x, c, tiles, slots, c * each)


@kernel
def masked_forward_channels_first(
    x: ReadNCS, words: Words, tiles: TileCounts, saved: Saved, eps: float, count: float, past_cache: bool, y: WriteNCS,
    tail: Tail,
) -> None:  # fmt: skip
    """Normalise with the batch's own statistics, of `count` values, to y, which may be x; whole channels a thread."""
    C = x.shape[1]
    each = tiles.shape[0] - 1
    slots = np.empty((C * each, 3))
    for c in prange(0, C):
        for tile in range(each):
            found = masked_tile_moments(x, c, tile, words, tiles)
            slots[c * each + tile, 0], slots[c * each + tile, 1], slots[c * each + tile, 2] = found
        saved[MEAN, c], saved[MEAN_LO, c], saved[M2, c] = merged_tiles(x, c, tiles, slots, c * each)
        params = batch_params(x, saved, c, count, eps)
        for tile in range(each):
            write_masked_tile(None, x, c, each - 1 - tile, words, params, y, past_cache, tail)


@kernel
def masked_normalize_channels_first(
    x: ReadNCS, words: Words, tiles: TileCounts, saved: Saved, eps: float, past_cache: bool, y: WriteNCS, tail: Tail
) -> None:
    """Normalise with given statistics to y, which may be x, stretches of memory spread over the threads."""
    _, C, S = x.shape
    params = all_params(x, saved, eps)
    groups, pieces, length = stretch_shape(C, S)
    tasks = stretch_tasks(x)
    for i in prange(0, tasks):
        task = tasks - 1 - i
        n = task // (groups * pieces)
        s0 = task % pieces * length
        c0, c1 = group_bounds(task // pieces % groups, groups, C)
        for c in range(c0, c1):
            given = params[0, c], params[1, c], params[2, c], params[3, c]
            start = (n * C + c) * S + s0
            write_masked(None, x, words, n, s0 // WORD, start, 0, 1, min(length, S - s0), given, y, past_cache, tail)
        if past_cache:
            fence()


# ---------------------------------------------------------------- the backward pass


@scalar
def masked_tile_sums(
    dy: Array, x: Array, c: int, tile: int, words: Array, tiles: Array, params: ForwardParams, tail: Any
) -> tuple[float, float]:
    """Return the sums of dy and dy * (x - mean) * unit over what counts of one tile."""
    t = 0.0
    p = 0.0
    if tiles[tile, COUNT] > 0:
        t, p = sum_masked_tile(dy, x, c, tile, words, params, tail)
    return t, p


@scalar
def write_masked_gradient(
    dy: Array, x: Array, c: int, tile: int, words: Array, params: GradientParams, frozen: bool, dx: Array,
    past_cache: bool, tail: Any,
) -> None:  # fmt: skip
    """Write dx of one tile of channel c."""
    if not frozen:
        write_masked_tile(dy, x, c, tile, words, params, dx, past_cache, tail)
    elif tail is None:
        write_masked_tile(dy, None, c, tile, words, (params[6],), dx, past_cache, None)
    else:
        write_masked_tile(dy, x, c, tile, words, params, dx, past_cache, (tail, FROZEN))


@kernel
def masked_sums_channels_first(
    dy: ReadNCS, x: ReadNCS, words: Words, tiles: TileCounts, saved: Saved, sums: Sums, tail: Tail
) -> None:
    """Fill the sums of dy and dy * xhat, tiles of channels spread over the threads."""
    C = x.shape[1]
    each = tiles.shape[0] - 1
    slots = np.empty((C * each, 2))
    for task in prange(0, C * each):
        c = task // each
        given = normalized_with(x, saved, c)
        slots[task, 0], slots[task, 1] = masked_tile_sums(dy, x, c, task % each, words, tiles, given, tail)
    for c in range(C):
        t = 0.0
        p = 0.0
        for task in range(c * each, (c + 1) * each):
            t += slots[task, 0]
            p += slots[task, 1]
        sums[0, c] = t
        sums[1, c] = xhat_sum(x, saved, c, t, p)


@kernel
def masked_gradient_channels_first(
    dy: ReadNCS, x: ReadNCS, words: Words, tiles: TileCounts, saved: Saved, sums: Sums, count: float, frozen: bool,
    past_cache: bool, dx: WriteNCS, tail: Tail,
) -> None:  # fmt: skip
    """Write dx, which may be dy or x, from sums over `count` values, tiles of channels spread over the threads."""
    C = x.shape[1]
    each = tiles.shape[0] - 1
    for i in prange(0, C * each):
        task = C * each - 1 - i
        c = task // each
        params = gradient_params(x, count, saved, c, sums[0, c], sums[1, c])
        write_masked_gradient(dy, x, c, task % each, words, params, frozen, dx, past_cache, tail)


@kernel
def masked_backward_channels_first(
    dy: ReadNCS, x: ReadNCS, words: Words, tiles: TileCounts, saved: Saved, count: float, frozen: bool,
    past_cache: bool, dx: WriteNCS, sums: Sums, tail: Tail,
) -> None:  # fmt: skip
    """Write dx, which may be dy or x, and the sums, whole channels spread over the threads: each is read once."""
    each = tiles.shape[0] - 1
    for c in prange(0, x.shape[1]):
        given = normalized_with(x, saved, c)
        t = 0.0
        p = 0.0
        for tile in range(each):
            tile_t, tile_p = masked_tile_sums(dy, x, c, tile, words, tiles, given, tail)
            t += tile_t
            p += tile_p
        sums[0, c] = t
        sums[1, c] = xhat_sum(x, saved, c, t, p)
        params = gradient_params(x, count, saved, c, t, sums[1, c])
        for tile in range(each):
            write_masked_gradient(dy, x, c, each - 1 - tile, words, params, frozen, dx, past_cache, tail)
