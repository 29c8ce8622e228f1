"""Channels first, in tensors past the cache: one channel is written while the next one is summed.

Memory takes reads and writes at once: 27 GB/s of each at times, where 2 cores write no faster alone (Zen 4, a shared
machine). A thread that sums a channel, then normalises it, does one after the other. Here the two go through one loop,
for neighbouring channels, whose runs lie at the same places; a thread takes a stretch of channels. Tiles and sums are
those of `moments` and `backward`, hence the bits.
"""

from __future__ import annotations

import numpy as np

from fastbn_kernels.build.decorators import Array, ReadNCS, Saved, Sums, WriteNCS, kernel, prange, scalar
from fastbn_kernels.cpu.backward import channel_gradient, channel_sums, tile_gradient
from fastbn_kernels.cpu.loops.segments import AHEAD, to_line
from fastbn_kernels.cpu.moments import as_pair, channel_moments, channel_origin, tile_group, tile_shift
from fastbn_kernels.cpu.normalize import channel_coefficients, normalize_tile
from fastbn_kernels.cpu.simd.ops import (
    add,
    fence,
    fma,
    keep,
    load,
    load_part,
    mul,
    prefetch,
    splat,
    store_part,
    stream,
    sub,
    total,
    widen,
)
from fastbn_kernels.cpu.simd.types import LANES
from fastbn_kernels.cpu.tiles import group_bounds, tile_bounds, tile_count
from fastbn_kernels.formulas import gradient_coefficients, merge, sum_with_xhat
from fastbn_kernels.saved import INVSTD, M2, MEAN, MEAN_LO, WEIGHT


@scalar
def runs_normalize_and_sums(
    x: Array, start: int, step: int, runs: int, length: int, mean: float, scale: float, shift: float, y: Array,
    next_channel: int, k: float,
) -> tuple[float, float]:  # fmt: skip
    """Write y over runs of a channel; return the sums of (x - k) and (x - k)^2 over those `next_channel` behind."""
    m, a, b, kv = splat(x, mean), splat(x, scale), splat(x, shift), splat(x, k)
    t = widen(splat(x, 0.0))
    q = t
    for run in range(runs):
        i = start + run * step
        end = i + length
        s = i + next_channel
        stop = s + length
        head = to_line(y, i, length)
        store_part(y, i, head, fma(sub(load_part(x, i, head), m), a, b))
        i += head
        while i + 8 * LANES <= end:
            d = sub(load(x, s), kv)
            t8, q8 = d, mul(d, d)
            prefetch(x, s + AHEAD)
            stream(y, i, fma(sub(load(x, i), m), a, b))
            for j in range(1, 8):
                d = sub(load(x, s + j * LANES), kv)
                t8, q8 = add(t8, d), fma(d, d, q8)
                prefetch(x, s + j * LANES + AHEAD)
                stream(y, i + j * LANES, fma(sub(load(x, i + j * LANES), m), a, b))
            t, q = add(t, widen(t8)), add(q, widen(q8))
            i += 8 * LANES
            s += 8 * LANES
        while i + LANES <= end:
            stream(y, i, fma(sub(load(x, i), m), a, b))
            i += LANES
        store_part(y, i, end - i, fma(sub(load_part(x, i, end - i), m), a, b))
        while s + 8 * LANES <= stop:  # once more at most, if the run did not start a cache line
            d = sub(load(x, s), kv)
            t8, q8 = d, mul(d, d)
            for j in range(1, 8):
                d = sub(load(x, s + j * LANES), kv)
                t8, q8 = add(t8, d), fma(d, d, q8)
            t, q = add(t, widen(t8)), add(q, widen(q8))
            s += 8 * LANES
        while s + LANES <= stop:
            d = sub(load(x, s), kv)
            t, q = add(t, widen(d)), add(q, widen(mul(d, d)))
            s += LANES
        d = keep(sub(load_part(x, s, stop - s), kv), stop - s)
        t, q = add(t, widen(d)), add(q, widen(mul(d, d)))
    fence()
    return total(t), total(q)


@scalar
def normalize_and_moments(
    x: Array, c: int, mean: float, scale: float, shift: float, y: Array
) -> tuple[float, float, float]:
    """Normalise channel c; return (mean, low, m2) of channel c + 1."""
    N, C, S = x.shape
    count = 0.0
    offset = 0.0
    m2 = 0.0
    for tile in range(tile_count(N, S)):
        n0, n1, s0, s1 = tile_bounds(tile, N, S)
        k = tile_shift(x, c + 1, tile)
        sums, squares = runs_normalize_and_sums(
            x, (n0 * C + c) * S + s0, C * S, n1 - n0, s1 - s0, mean, scale, shift, y, S, k
        )
        tile_n, tile_offset, tile_m2 = tile_group(x, c + 1, tile, k, sums, squares)
        offset, m2 = merge(count, offset, m2, tile_n, tile_offset, tile_m2)
        count += tile_n
    next_mean, low = as_pair(x, channel_origin(x, c + 1), offset)
    return next_mean, low, m2


@kernel
def forward_overlapped(x: ReadNCS, saved: Saved, eps: float, past_cache: bool, groups: int, y: WriteNCS) -> None:
    """Normalise with the batch's own statistics to y, which may be x, past the cache whatever `past_cache` says.

    `groups` of channels are spread over the threads.
    """
    N, C, S = x.shape
    tiles = tile_count(N, S)
    for task in prange(groups):
        c0, c1 = group_bounds(task, groups, C)
        saved[MEAN, c0], saved[MEAN_LO, c0], saved[M2, c0] = channel_moments(x, c0)
        for c in range(c0, c1):
            mean = saved[MEAN, c]
            scale, shift = channel_coefficients(saved, c, np.float64(N * S), eps)
            if c + 1 < c1:
                moments = normalize_and_moments(x, c, mean, scale, shift, y)
                saved[MEAN, c + 1], saved[MEAN_LO, c + 1], saved[M2, c + 1] = moments
            else:
                for tile in range(tiles):
                    normalize_tile(x, c, tile, mean, scale, shift, y, True)


@scalar
def runs_gradient_and_sums(
    dy: Array, x: Array, start: int, step: int, runs: int, length: int, mean: float, a: float, b: float, c: float,
    dx: Array, next_channel: int, next_mean: float,
) -> tuple[float, float]:  # fmt: skip
    """Write dx over runs of a channel; return the sums of dy and dy * (x - mean) over those `next_channel` behind."""
    m, av, bv, cv, mv = splat(x, mean), splat(x, a), splat(x, b), splat(x, c), splat(x, next_mean)
    t = widen(splat(x, 0.0))
    p = t
    for run in range(runs):
        i = start + run * step
        end = i + length
        s = i + next_channel
        stop = s + length
        head = to_line(dx, i, length)
        store_part(dx, i, head, fma(load_part(dy, i, head), av, fma(sub(load_part(x, i, head), m), bv, cv)))
        i += head
        while i + 8 * LANES <= end:
            g = load(dy, s)
            t8, p8 = g, mul(g, sub(load(x, s), mv))
            prefetch(x, s + AHEAD)
            prefetch(dy, s + AHEAD)
            stream(dx, i, fma(load(dy, i), av, fma(sub(load(x, i), m), bv, cv)))
            for j in range(1, 8):
                g = load(dy, s + j * LANES)
                t8, p8 = add(t8, g), fma(g, sub(load(x, s + j * LANES), mv), p8)
                prefetch(x, s + j * LANES + AHEAD)
                prefetch(dy, s + j * LANES + AHEAD)
                o = i + j * LANES
                stream(dx, o, fma(load(dy, o), av, fma(sub(load(x, o), m), bv, cv)))
            t, p = add(t, widen(t8)), add(p, widen(p8))
            i += 8 * LANES
            s += 8 * LANES
        while i + LANES <= end:
            stream(dx, i, fma(load(dy, i), av, fma(sub(load(x, i), m), bv, cv)))
            i += LANES
        rest = end - i
        store_part(dx, i, rest, fma(load_part(dy, i, rest), av, fma(sub(load_part(x, i, rest), m), bv, cv)))
        while s + 8 * LANES <= stop:
            g = load(dy, s)
            t8, p8 = g, mul(g, sub(load(x, s), mv))
            for j in range(1, 8):
                g = load(dy, s + j * LANES)
                t8, p8 = add(t8, g), fma(g, sub(load(x, s + j * LANES), mv), p8)
            t, p = add(t, widen(t8)), add(p, widen(p8))
            s += 8 * LANES
        while s + LANES <= stop:
            g = load(dy, s)
            t, p = add(t, widen(g)), add(p, widen(mul(g, sub(load(x, s), mv))))
            s += LANES
        g = load_part(dy, s, stop - s)
        product = mul(g, keep(sub(load_part(x, s, stop - s), mv), stop - s))
        t, p = add(t, widen(g)), add(p, widen(product))
    fence()
    return total(t), total(p)


@scalar
def gradient_and_sums(
    dy: Array, x: Array, channel: int, mean: float, a: float, b: float, c: float, dx: Array, next_mean: float
) -> tuple[float, float]:
    """Write dx of a channel; return the sums of dy and dy * (x - mean) of the next one."""
    N, C, S = x.shape
    sums = 0.0
    products = 0.0
    for tile in range(tile_count(N, S)):
        n0, n1, s0, s1 = tile_bounds(tile, N, S)
        start = (n0 * C + channel) * S + s0
        t, p = runs_gradient_and_sums(dy, x, start, C * S, n1 - n0, s1 - s0, mean, a, b, c, dx, S, next_mean)
        sums += t
        products += p
    return sums, products


@kernel
def backward_overlapped(
    dy: ReadNCS, x: ReadNCS, saved: Saved, frozen: bool, past_cache: bool, groups: int, dx: WriteNCS, sums: Sums
) -> None:
    """Write dx, which may be dy or x, and the sums, past the cache whatever `past_cache` says.

    `groups` of channels are spread over the threads. With frozen statistics x is not read for dx, and each channel is
    taken by itself.
    """
    N, C, S = x.shape
    count = np.float64(N * S)
    tiles = tile_count(N, S)
    for task in prange(groups):
        c0, c1 = group_bounds(task, groups, C)
        if frozen:
            for k in range(c0, c1):
                sums[0, k], sums[1, k] = channel_gradient(
                    dy, x, k, saved[MEAN, k], saved[MEAN_LO, k], saved[INVSTD, k], saved[WEIGHT, k], True, dx, True
                )
            continue
        total, product = channel_sums(dy, x, c0, saved[MEAN, c0])
        for k in range(c0, c1):
            mean, low, invstd = saved[MEAN, k], saved[MEAN_LO, k], saved[INVSTD, k]
            sums[0, k] = total
            sums[1, k] = sum_with_xhat(total, product, low, invstd)
            a, b, c = gradient_coefficients(count, low, invstd, saved[WEIGHT, k], sums[0, k], sums[1, k])
            if k + 1 < c1:
                total, product = gradient_and_sums(dy, x, k, mean, a, b, c, dx, saved[MEAN, k + 1])
            else:
                for tile in range(tiles):
                    tile_gradient(dy, x, k, tile, mean, a, b, c, False, dx, True)
