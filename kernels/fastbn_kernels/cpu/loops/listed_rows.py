"""Inner loops over rows of channels of which not all count: of those in a list; see `row_streams`.

A list holds the index of each row's first element, in order. Rows that are taken at once lie far apart in it, and so
in memory: of padded sequences, every stream is unbroken rows for as long as a sequence lasts.
"""

from __future__ import annotations

from typing import Any

from fastbn_kernels.build.decorators import Array, scalar
from fastbn_kernels.cpu.element import (
    both_chains,
    column_params,
    column_shift,
    first_sums,
    more_sums,
    result,
    second_chain,
)
from fastbn_kernels.cpu.loops.row_streams import STREAMS, add_to, sum_row, write_two
from fastbn_kernels.cpu.loops.segments import to_line
from fastbn_kernels.cpu.simd.ops import splat, store, stream
from fastbn_kernels.cpu.simd.traced import traced
from fastbn_kernels.cpu.simd.types import LANES


@traced
def rows_sums(
    dy: Array | None, x: Array, at: tuple[int, ...], n: int | None, shift: tuple[Any, ...], tail: Any
) -> tuple[Any, Any]:
    """Return the sums over one vector of every row; `at` says where in x they are, STREAMS of them or half as many."""
    half = len(at) // 2
    first = first_sums(dy, x, at[0], n, shift, tail)
    for i in at[1:half]:
        first = more_sums(first, dy, x, i, n, shift, tail)
    second = second_chain(first, dy, x, at[half], n, shift, tail)
    for i in at[half + 1 :]:
        second = more_sums(second, dy, x, i, n, shift, tail)
    return both_chains(x, first, second)


@scalar
def sum_listed_streams(
    dy: Array | None, x: Array, rows: Array, k: int, gap: int, c0: int, width: int, params: Array, sums: Array,
    tail: Any,
) -> None:  # fmt: skip
    """Add the sums over STREAMS listed rows, or with a dy half as many, `gap` apart in the list, of columns from c0 on.

    Parameters and sums are arrays of columns too, which begin at c0 there. Where rows begin is kept in registers: sums
    that are stored might be the list, as far as LLVM knows.
    """
    i0, i1, i2, i3 = rows[k], rows[k + gap], rows[k + 2 * gap], rows[k + 3 * gap]
    c = c0
    end = c0 + width
    if dy is None:
        k += 4 * gap
        i4, i5, i6, i7 = rows[k], rows[k + gap], rows[k + 2 * gap], rows[k + 3 * gap]
        while c + LANES <= end:
            at = i0 + c, i1 + c, i2 + c, i3 + c, i4 + c, i5 + c, i6 + c, i7 + c
            found = rows_sums(dy, x, at, None, column_shift(params, c, None, tail), tail)
            add_to(sums, 0, c, None, found[0])
            add_to(sums, 1, c, None, found[1])
            c += LANES
        while c < end:  # once at most; `if` would cost, see `segments`
            at = i0 + c, i1 + c, i2 + c, i3 + c, i4 + c, i5 + c, i6 + c, i7 + c
            found = rows_sums(dy, x, at, end - c, column_shift(params, c, end - c, tail), tail)
            add_to(sums, 0, c, end - c, found[0])
            add_to(sums, 1, c, end - c, found[1])
            c += LANES
    else:
        while c + LANES <= end:
            four = i0 + c, i1 + c, i2 + c, i3 + c
            found = rows_sums(dy, x, four, None, column_shift(params, c, None, tail), tail)
            add_to(sums, 0, c, None, found[0])
            add_to(sums, 1, c, None, found[1])
            c += LANES
        while c < end:
            four = i0 + c, i1 + c, i2 + c, i3 + c
            found = rows_sums(dy, x, four, end - c, column_shift(params, c, end - c, tail), tail)
            add_to(sums, 0, c, end - c, found[0])
            add_to(sums, 1, c, end - c, found[1])
            c += LANES


@scalar
def sum_listed(
    dy: Array | None, x: Array, rows: Array, k0: int, k1: int, c0: int, width: int, params: Array, sums: Array,
    tail: Any,
) -> None:  # fmt: skip
    """Add the sums over rows k0 to k1 of the list, of `width` columns from c0 on, to rows 0 and 1 of `sums`."""
    streams = STREAMS if dy is None else STREAMS // 2
    each = (k1 - k0) // streams
    for k in range(each):
        sum_listed_streams(dy, x, rows, k0 + k, each, c0, width, params, sums, tail)
    for k in range(k0 + each * streams, k1):
        sum_row(dy, x, rows[k] + c0, width, params, c0, sums, tail)


@scalar
def write_part(
    dy: Array | None, x: Array | None, at: int, column: int, n: int, params: Array, out: Array, tail: Any
) -> None:
    """Write the results of fewer columns than a vector has."""
    store(out, at, n, result(dy, x, at, n, column_params(dy, x, params, column, n, tail), tail))


@scalar
def write_edges(
    dy: Array | None, x: Array | None, start: int, width: int, head: int, follows: bool, goes_on: bool, params: Array,
    out: Array, tail: Any,
) -> None:  # fmt: skip
    """Write what of a row shares lines with its neighbours; if the next row goes on, the line's part of that too.

    The line before belongs to a row that this one follows.
    """
    last = width - LANES + head
    if not follows:
        write_part(dy, x, start, 0, head, params, out, tail)
    if goes_on:
        i = start + last
        stream(out, i, result(dy, x, i, None, column_params(dy, x, params, last, None, tail), tail))
    else:
        write_part(dy, x, start + last, last, LANES - head, params, out, tail)


@scalar
def write_listed(
    dy: Array | None, x: Array | None, rows: Array, k0: int, k1: int, c0: int, width: int, params: Array, out: Array,
    past_cache: bool, tail: Any,
) -> None:  # fmt: skip
    """Write the results of rows k0 to k1 of the list, of `width` columns from c0 on, two at once.

    `past_cache` needs whole rows of whole vectors, and parameters that go on behind them for LANES columns with the
    first ones again: a line that two rows share, which both count, is written once.
    """
    half = (k1 - k0) // 2
    for k in range(k0, k1 - half):  # of an odd number, the last row by itself
        first = k if k < k0 + half else k1 - 1
        other = k + half if k < k0 + half else k1 - 1
        start = rows[first] + c0
        gap = rows[other] - rows[first]
        head = to_line(out, start, width) if past_cache else 0
        whole = width - LANES if head > 0 else width
        write_two(dy, x, start + head, gap, whole, params, c0 + head, out, past_cache, tail)
        if head > 0:
            for row in range(first, other + 1, max(other - first, 1)):
                follows = row > k0 and rows[row] - rows[row - 1] == width
                goes_on = row + 1 < k1 and rows[row + 1] - rows[row] == width
                write_edges(dy, x, rows[row], width, head, follows, goes_on, params, out, tail)


@scalar
def write_zeros(out: Array, start: int, length: int, past_cache: bool) -> None:
    """Write zeros to some elements."""
    zero = splat(out, 0.0)
    i = start
    end = start + length
    if past_cache:
        head = to_line(out, i, length)
        store(out, i, head, zero)
        i += head
        while i + LANES <= end:
            stream(out, i, zero)
            i += LANES
    while i + LANES <= end:
        store(out, i, None, zero)
        i += LANES
    store(out, i, end - i, zero)
