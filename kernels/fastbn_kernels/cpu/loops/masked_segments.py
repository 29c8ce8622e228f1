"""Inner loops over segments of which not all positions count; see `segments`, and `masks` for the bits.

Of two words, 128 positions, all count, none does, or some do. Of all, eight vectors are summed as `segments` does; of
none, nothing is read; of some, eight vectors are, through masks, whether one lane counts or most: a branch a vector
would be guessed wrong every other time where positions are drawn at random. So a mask costs a comparison in 128
positions where it is made of runs, as that of padded sequences is. What does not count is not loaded by any lane.

The outer loops are `while` where they could be `if`, for the reason that `segments` has.
"""

from __future__ import annotations

from typing import Any

import numpy as np

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
from fastbn_kernels.cpu.loops.segments import AHEAD, to_line
from fastbn_kernels.cpu.simd.masks import WORD, flags, shifted
from fastbn_kernels.cpu.simd.ops import add, keep, prefetch, splat, store, stream, total, widen
from fastbn_kernels.cpu.simd.types import LANES

ALL = np.uint64(2**64 - 1)
NONE = np.uint64(0)
EACH = WORD // LANES  # vectors of a word


@scalar
def masked_sums(
    dy: Array | None, x: Array, words: Array, n0: int, w0: int, start: int, step: int, segments: int, length: int,
    shift: tuple[float, ...], tail: Any,
) -> tuple[float, float]:  # fmt: skip
    """Return the two sums over what counts of segments of `length` values, `step` apart.

    The bits of segment k are those of words[n0 + k] from word w0 on.
    """
    params = splat(x, shift)
    t = widen(splat(x, 0.0))
    p = t
    for segment in range(segments):
        n = n0 + segment
        w = w0
        i = start + segment * step
        end = i + length
        while i + WORD < end:
            while i + 2 * WORD <= end and words[n, w] & words[n, w + 1] == ALL:
                for j in range(8):
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
                i += 2 * WORD
                w += 2
            while i + WORD < end and words[n, w] | words[n, w + 1] == NONE:
                i += 2 * WORD
                w += 2
            while i + WORD < end and words[n, w] & words[n, w + 1] != ALL and words[n, w] | words[n, w + 1] != NONE:
                for j in range(8):
                    prefetch(x, i + j * LANES + AHEAD)
                    prefetch(dy, i + j * LANES + AHEAD)
                word = words[n, w]
                first = first_sums(dy, x, i, flags(word, 0), params, tail)
                for j in range(1, EACH):
                    first = more_sums(first, dy, x, i + j * LANES, flags(word, j), params, tail)
                word = words[n, w + 1]
                second = second_chain(first, dy, x, i + WORD, flags(word, 0), params, tail)
                for j in range(1, EACH):
                    second = more_sums(second, dy, x, i + WORD + j * LANES, flags(word, j), params, tail)
                eight = both_chains(x, first, second)
                t, p = add(t, widen(eight[0])), add(p, widen(eight[1]))
                i += 2 * WORD
                w += 2
        while i < end:  # once at most
            short = short_sums(x, (t, p))
            for j in range((end - i + LANES - 1) // LANES):
                prefetch(x, i + j * LANES + AHEAD)
                prefetch(dy, i + j * LANES + AHEAD)
                short = another(short, dy, x, i + j * LANES, flags(words[n, w], j), params, tail)
            t, p = long_sums(x, (t, p), short)
            i += WORD
    return total(t), total(p)


@scalar
def write_masked(
    dy: Array | None, x: Array | None, words: Array, n0: int, w0: int, start: int, step: int, segments: int,
    length: int, numbers: tuple[float, ...], out: Array, past_cache: bool, tail: Any,
) -> None:  # fmt: skip
    """Write the results of what counts of segments of `length` values, `step` apart, and zeros; the last one first.

    The bits of segment k are those of words[n0 + k] from word w0 on. Past the cache, values are taken from the first
    line on that `out` starts, and bits as many places on; then call `fence` before others read them.
    """
    params = splat(out, numbers)
    zero = splat(out, 0.0)
    for k in range(segments):
        n = n0 + segments - 1 - k
        w = w0
        i = start + (segments - 1 - k) * step
        end = i + length
        by = to_line(out, i, length) if past_cache else 0
        if past_cache:
            chosen = flags(words[n, w], 0)
            store(out, i, by, keep(result(dy, x, i, chosen, params, tail), chosen))
            i += by
            while i + WORD <= end:
                word = shifted(words[n, w], words[n, w + 1], by)
                if word == NONE:
                    for j in range(EACH):
                        stream(out, i + j * LANES, zero)
                else:
                    for j in range(EACH):
                        at = i + j * LANES
                        prefetch(x, at + length)  # the next channel, as `write_segment`; its mask is the same
                        prefetch(dy, at + length)
                        chosen = flags(word, j)
                        stream(out, at, keep(result(dy, x, at, chosen, params, tail), chosen))
                i += WORD
                w += 1
        while i + WORD <= end:
            while i + WORD <= end and words[n, w] == ALL:
                for j in range(EACH):
                    store(out, i + j * LANES, None, result(dy, x, i + j * LANES, None, params, tail))
                i += WORD
                w += 1
            while i + WORD <= end and words[n, w] == NONE:
                for j in range(EACH):
                    store(out, i + j * LANES, None, zero)
                i += WORD
                w += 1
            while i + WORD <= end and words[n, w] != NONE and words[n, w] != ALL:
                word = words[n, w]
                for j in range(EACH):
                    chosen = flags(word, j)
                    at = i + j * LANES
                    store(out, at, None, keep(result(dy, x, at, chosen, params, tail), chosen))
                i += WORD
                w += 1
        j = 0
        while past_cache and i + LANES <= end:
            chosen = flags(shifted(words[n, w], words[n, w + 1], by), j)
            stream(out, i, keep(result(dy, x, i, chosen, params, tail), chosen))
            i += LANES
            j += 1
        while i < end:
            chosen = flags(shifted(words[n, w], words[n, w + 1], by), j)
            store(out, i, min(LANES, end - i), keep(result(dy, x, i, chosen, params, tail), chosen))
            i += LANES
            j += 1
