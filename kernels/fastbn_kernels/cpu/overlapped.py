"""Channels first, in tensors past the cache: one channel is written while the next one is summed.

Memory takes reads and writes at once: 27 GB/s of each at times, where 2 cores write no faster alone (Zen 4, a shared
machine). A thread that sums a channel, then normalises it, does one after the other. Here the two go through one loop,
for neighbouring channels, whose segments lie at the same places; a thread takes a group of channels. Tiles and sums are
those of `moments` and `backward`, hence the bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastbn_kernels.build.decorators import Array, ReadNCS, Saved, Sums, Tail, WriteNCS, kernel, prange, scalar
from fastbn_kernels.cpu.backward import channel_gradient, channel_sums
from fastbn_kernels.cpu.element import (
    another,
    both_chains,
    first_sums,
    long_sums,
    more_sums,
    result,
    second_chain,
    short_sums,
)
from fastbn_kernels.cpu.loops.segments import AHEAD, to_line
from fastbn_kernels.cpu.moments import channel_moments, channel_origin, tile_group, tile_shift
from fastbn_kernels.cpu.params import (
    ForwardParams,
    GradientParams,
    as_pair,
    batch_params,
    gradient_params,
    normalized_with,
    xhat_sum,
)
from fastbn_kernels.cpu.simd.ops import add, fence, prefetch, splat, store, stream, total, widen
from fastbn_kernels.cpu.simd.types import LANES
from fastbn_kernels.cpu.sweeps import write_tile
from fastbn_kernels.cpu.tiles import group_bounds, tile_bounds, tile_count
from fastbn_kernels.formulas import merge
from fastbn_kernels.saved import M2, MEAN, MEAN_LO


@scalar
def write_and_sum_segments(
    dy: Array | None, x: Array, start: int, step: int, segments: int, length: int, numbers: tuple[float, ...],
    out: Array, next_channel: int, next_shift: tuple[float, ...], tail: Any,
) -> tuple[float, float]:  # fmt: skip
    """Write the results of segments of a channel; return the two sums over those `next_channel` behind."""
    params, shift = splat(x, numbers), splat(x, next_shift)
    t = widen(splat(x, 0.0))
    p = t
    for segment in range(segments):
        i = start + segment * step
        end = i + length
        s = i + next_channel
        stop = s + length
        head = to_line(out, i, length)
        store(out, i, head, result(dy, x, i, head, params, tail))
        i += head
        while i + 8 * LANES <= end:
            first = first_sums(dy, x, s, None, shift, tail)
            prefetch(x, s + AHEAD)
            prefetch(dy, s + AHEAD)
            stream(out, i, result(dy, x, i, None, params, tail))
            for j in range(1, 4):
                first = more_sums(first, dy, x, s + j * LANES, None, shift, tail)
                prefetch(x, s + j * LANES + AHEAD)
                prefetch(dy, s + j * LANES + AHEAD)
                stream(out, i + j * LANES, result(dy, x, i + j * LANES, None, params, tail))
            second = second_chain(first, dy, x, s + 4 * LANES, None, shift, tail)
            prefetch(x, s + 4 * LANES + AHEAD)
            prefetch(dy, s + 4 * LANES + AHEAD)
            stream(out, i + 4 * LANES, result(dy, x, i + 4 * LANES, None, params, tail))
            for j in range(5, 8):
                second = more_sums(second, dy, x, s + j * LANES, None, shift, tail)
                prefetch(x, s + j * LANES + AHEAD)
                prefetch(dy, s + j * LANES + AHEAD)
                stream(out, i + j * LANES, result(dy, x, i + j * LANES, None, params, tail))
            eight = both_chains(x, first, second)
            t, p = add(t, widen(eight[0])), add(p, widen(eight[1]))
            i += 8 * LANES
            s += 8 * LANES
        while i + LANES <= end:
            stream(out, i, result(dy, x, i, None, params, tail))
            i += LANES
        store(out, i, end - i, result(dy, x, i, end - i, params, tail))
        while s + 8 * LANES <= stop:  # once more at most, if the segment did not start a cache line; as `segments_sums`
            first = first_sums(dy, x, s, None, shift, tail)
            for j in range(1, 4):
                first = more_sums(first, dy, x, s + j * LANES, None, shift, tail)
            second = second_chain(first, dy, x, s + 4 * LANES, None, shift, tail)
            for j in range(5, 8):
                second = more_sums(second, dy, x, s + j * LANES, None, shift, tail)
            eight = both_chains(x, first, second)
            t, p = add(t, widen(eight[0])), add(p, widen(eight[1]))
            s += 8 * LANES
        while s + 4 * LANES <= stop:
            short = short_sums(x, (t, p))
            for j in range(4):
                short = another(short, dy, x, s + j * LANES, None, shift, tail)
            t, p = long_sums(x, (t, p), short)
            s += 4 * LANES
        short = short_sums(x, (t, p))
        while s + LANES <= stop:
            short = another(short, dy, x, s, None, shift, tail)
            s += LANES
        short = another(short, dy, x, s, stop - s, shift, tail)
        t, p = long_sums(x, (t, p), short)
    fence()
    return total(t), total(p)


@scalar
def normalize_and_moments(x: Array, c: int, params: ForwardParams, y: Array, tail: Any) -> tuple[float, float, float]:
    """Normalise channel c; return (mean, low, m2) of channel c + 1."""
    N, C, S = x.shape
    count = 0.0
    offset = 0.0
    m2 = 0.0
    for tile in range(tile_count(N, S)):
        n0, n1, s0, s1 = tile_bounds(tile, N, S)
        k = tile_shift(x, c + 1, tile)
        start = (n0 * C + c) * S + s0
        sums, squares = write_and_sum_segments(None, x, start, C * S, n1 - n0, s1 - s0, params, y, S, (-k, 1.0), tail)
        tile_n, tile_offset, tile_m2 = tile_group(x, c + 1, tile, k, sums, squares)
        offset, m2 = merge(count, offset, m2, tile_n, tile_offset, tile_m2)
        count += tile_n
    next_mean, low = as_pair(x, channel_origin(x, c + 1), offset)
    return next_mean, low, m2


@kernel
def forward_overlapped(
    x: ReadNCS, saved: Saved, eps: float, past_cache: bool, groups: int, y: WriteNCS, tail: Tail
) -> None:
    """Normalise with the batch's own statistics to y, which may be x, past the cache whatever `past_cache` says.

    `groups` of channels are spread over the threads.
    """
    N, C, S = x.shape
    tiles = tile_count(N, S)
    for task in prange(0, groups):
        c0, c1 = group_bounds(task, groups, C)
        saved[MEAN, c0], saved[MEAN_LO, c0], saved[M2, c0] = channel_moments(x, c0)
        for c in range(c0, c1):
            params = batch_params(x, saved, c, np.float64(N * S), eps)
            if c + 1 < c1:
                moments = normalize_and_moments(x, c, params, y, tail)
                saved[MEAN, c + 1], saved[MEAN_LO, c + 1], saved[M2, c + 1] = moments
            else:
                for tile in range(tiles):
                    write_tile(None, x, c, tile, params, y, True, tail)


@scalar
def gradient_and_sums(
    dy: Array, x: Array, c: int, params: GradientParams, dx: Array, next_params: ForwardParams, tail: Any
) -> tuple[float, float]:  # fmt: skip
    """Write dx of channel c; return the sums of dy and dy * (x - mean) * unit of the next one."""
    N, C, S = x.shape
    sums = 0.0
    products = 0.0
    for tile in range(tile_count(N, S)):
        n0, n1, s0, s1 = tile_bounds(tile, N, S)
        start = (n0 * C + c) * S + s0
        t, p = write_and_sum_segments(dy, x, start, C * S, n1 - n0, s1 - s0, params, dx, S, next_params, tail)
        sums += t
        products += p
    return sums, products


@kernel
def backward_overlapped(
    dy: ReadNCS, x: ReadNCS, saved: Saved, frozen: bool, past_cache: bool, groups: int, dx: WriteNCS, sums: Sums,
    tail: Tail,
) -> None:  # fmt: skip
    """Write dx, which may be dy or x, and the sums, past the cache whatever `past_cache` says.

    `groups` of channels are spread over the threads. With frozen statistics x is not read for dx, and each channel is
    taken by itself.
    """
    N, C, S = x.shape
    tiles = tile_count(N, S)
    for task in prange(0, groups):
        c0, c1 = group_bounds(task, groups, C)
        if frozen:
            for c in range(c0, c1):
                sums[0, c], sums[1, c] = channel_gradient(dy, x, c, saved, c, True, dx, True, tail)
            continue
        total, product = channel_sums(dy, x, c0, normalized_with(x, saved, c0), tail)
        for c in range(c0, c1):
            sums[0, c] = total
            sums[1, c] = xhat_sum(x, saved, c, total, product)
            params = gradient_params(x, np.float64(N * S), saved, c, sums[0, c], sums[1, c])
            if c + 1 < c1:
                total, product = gradient_and_sums(dy, x, c, params, dx, normalized_with(x, saved, c + 1), tail)
            else:
                for tile in range(tiles):
                    write_tile(dy, x, c, tile, params, dx, True, tail)
