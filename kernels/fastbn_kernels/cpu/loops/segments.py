"""Inner loops over segments: a segment is values of one channel side by side, with that channel's numbers in registers.

Arrays are contiguous and indexed flat, whatever their axes. dy, x and tail as in `element`. Sums go through eight
vectors at a time, added up among themselves before they enter the long, float64 sum. In float32 they are two chains of
four: rounding errors that are alike, of a ramp or of two values over and over, add up along a chain.

After the whole vectors of a segment, part of one is loaded even if it is empty: a branch around it would cost more (10
ns a segment), because Numba then counts references in its arms.
"""

from __future__ import annotations

from typing import Any

from fastbn_kernels.build.decorators import Array, scalar
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
from fastbn_kernels.cpu.simd.ops import add, load, offset_from_line, prefetch, splat, store, stream, total, widen
from fastbn_kernels.cpu.simd.types import LANES

# Elements that are asked for ahead of a sum. The hardware's prefetcher starts anew with every segment and every page:
# sums of 32 x 64 x 56 x 56 reach 67 GB/s with this and 42 without, of 32 x 1024 x 14 x 14 64 and 45 (2 cores, float32).
# Past the end of a segment this is the next channel, which the same thread takes next.
AHEAD = 1024


@scalar
def to_line(y: Array, start: int, length: int) -> int:
    """Return how many of `length` elements come before the first that can be streamed."""
    line = min(64 // y.itemsize, LANES)
    head: int = (line - offset_from_line(y, start)) % line
    return min(length, head)


@scalar
def segments_sums(
    dy: Array | None, x: Array, start: int, step: int, segments: int, length: int, shift: tuple[float, ...], tail: Any
) -> tuple[float, float]:
    """Return the two sums over segments of `length` values, `step` apart."""
    params = splat(x, shift)
    t = widen(splat(x, 0.0))
    p = t
    for segment in range(segments):
        i = start + segment * step
        end = i + length
        while i + 8 * LANES <= end:
            prefetch(x, i + AHEAD)
            prefetch(dy, i + AHEAD)
            for j in range(1, 8):
                prefetch(x, i + j * LANES + AHEAD)
                prefetch(dy, i + j * LANES + AHEAD)
            first = first_sums(dy, x, i, None, params, tail)
            for j in range(1, 4):
                first = more_sums(first, dy, x, i + j * LANES, None, params, tail)
            second = second_chain(first, dy, x, i + 4 * LANES, None, params, tail)
            for j in range(5, 8):
                second = more_sums(second, dy, x, i + j * LANES, None, params, tail)
            eight = both_chains(x, first, second)
            t, p = add(t, widen(eight[0])), add(p, widen(eight[1]))
            i += 8 * LANES
        while i + 4 * LANES <= end:  # once at most
            short = short_sums(x, (t, p))
            for j in range(4):
                prefetch(x, i + j * LANES + AHEAD)
                prefetch(dy, i + j * LANES + AHEAD)
                short = another(short, dy, x, i + j * LANES, None, params, tail)
            t, p = long_sums(x, (t, p), short)
            i += 4 * LANES
        short = short_sums(x, (t, p))
        while i + LANES <= end:
            prefetch(x, i + AHEAD)
            prefetch(dy, i + AHEAD)
            short = another(short, dy, x, i, None, params, tail)
            i += LANES
        short = another(short, dy, x, i, end - i, params, tail)
        t, p = long_sums(x, (t, p), short)
    return total(t), total(p)


@scalar
def column_total(values: Array, start: int, length: int) -> float:
    """Return the sum of `length` float64 numbers."""
    t = splat(values, 0.0)
    i = start
    end = start + length
    while i + LANES <= end:
        t = add(t, load(values, i, None))
        i += LANES
    found: float = total(add(t, load(values, i, end - i)))
    return found


@scalar
def write_segment(
    dy: Array | None, x: Array | None, start: int, length: int, numbers: tuple[float, ...], out: Array,
    past_cache: bool, tail: Any,
) -> None:  # fmt: skip
    """Write the result of a segment, rounded once to the dtype of `out`."""
    params = splat(out, numbers)
    i = start
    end = start + length
    rest = min(length, LANES)
    last = end - rest
    final = result(dy, x, last, rest, params, tail)  # before anything is written, perhaps over what it is made of
    if past_cache:
        head = to_line(out, i, length)
        store(out, i, head, result(dy, x, i, head, params, tail))
        i += head
        while i + LANES <= end:
            prefetch(x, i + length)  # the next channel, which is summed next: 33 against 25 GB/s (103 MB, S 3136)
            prefetch(dy, i + length)
            stream(out, i, result(dy, x, i, None, params, tail))
            i += LANES
        last, rest = i, end - i  # a line that went past the cache would be fetched again
        final = result(dy, x, last, rest, params, tail)
    while i < last:
        store(out, i, None, result(dy, x, i, None, params, tail))
        i += LANES
    store(out, last, rest, final)
