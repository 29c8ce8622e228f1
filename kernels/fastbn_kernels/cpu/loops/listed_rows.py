"""Inner loops over rows of channels of which not all count: of those in a list; see `row_streams`.

A list holds the index of each row's first element, in order. Rows that are taken at once lie far apart in it, and so
in memory: of padded sequences, every stream is unbroken rows for as long as a sequence lasts.
"""

from __future__ import annotations

from typing import Any

from fastbn_kernels.build.decorators import Array, scalar
from fastbn_kernels.cpu.element import both_chains, column_shift, first_sums, more_sums, second_chain
from fastbn_kernels.cpu.loops.row_streams import STREAMS, add_to, sum_row, write_two
from fastbn_kernels.cpu.simd.ops import splat, store
from fastbn_kernels.cpu.simd.types import LANES


@scalar
def sum_listed_streams(
    dy: Array | None, x: Array, rows: Array, at: int, gap: int, c0: int, width: int, params: Array, sums: Array,
    tail: Any,
) -> None:  # fmt: skip
    """Add the sums over STREAMS listed rows, or with a dy half as many, `gap` apart in the list, of columns from c0 on.

    Parameters and sums are arrays of columns too, which begin at c0 there.
    """
    half = (STREAMS if dy is None else STREAMS // 2) // 2
    c = c0
    end = c0 + width
    while c + LANES <= end:
        shift = column_shift(params, c, None, tail)
        k = at
        first = first_sums(dy, x, rows[k] + c, None, shift, tail)
        for _ in range(1, half):
            k += gap
            first = more_sums(first, dy, x, rows[k] + c, None, shift, tail)
        k += gap
        second = second_chain(first, dy, x, rows[k] + c, None, shift, tail)
        for _ in range(1, half):
            k += gap
            second = more_sums(second, dy, x, rows[k] + c, None, shift, tail)
        found = both_chains(x, first, second)
        add_to(sums, 0, c, None, found[0])
        add_to(sums, 1, c, None, found[1])
        c += LANES
    while c < end:  # once at most; `if` would cost, see `segments`
        n = end - c
        shift = column_shift(params, c, n, tail)
        k = at
        first = first_sums(dy, x, rows[k] + c, n, shift, tail)
        for _ in range(1, half):
            k += gap
            first = more_sums(first, dy, x, rows[k] + c, n, shift, tail)
        k += gap
        second = second_chain(first, dy, x, rows[k] + c, n, shift, tail)
        for _ in range(1, half):
            k += gap
            second = more_sums(second, dy, x, rows[k] + c, n, shift, tail)
        found = both_chains(x, first, second)
        add_to(sums, 0, c, n, found[0])
        add_to(sums, 1, c, n, found[1])
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
def write_listed(
    dy: Array | None, x: Array | None, rows: Array, k0: int, k1: int, c0: int, width: int, params: Array, out: Array,
    tail: Any,
) -> None:  # fmt: skip
    """Write the results of rows k0 to k1 of the list, of `width` columns from c0 on, two at once."""
    half = (k1 - k0) // 2
    for k in range(k0, k1 - half):  # of an odd number, the last row by itself
        first = k if k < k0 + half else k1 - 1
        other = k + half if k < k0 + half else k1 - 1
        write_two(dy, x, rows[first] + c0, rows[other] - rows[first], width, params, c0, out, False, tail)


@scalar
def write_zeros(out: Array, start: int, length: int) -> None:
    """Write zeros to some elements."""
    zero = splat(out, 0.0)
    i = start
    end = start + length
    while i + LANES <= end:
        store(out, i, None, zero)
        i += LANES
    store(out, i, end - i, zero)
