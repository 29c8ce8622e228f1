"""Inner loops over streams of rows: a few rows at once, a stretch of columns of each, with parameters a column.

The rows that are taken at once lie far apart: the block that they belong to is cut into so many parts, one row of each.
Reading the block so is reading so many unbroken streams, which the hardware's prefetcher follows; neighbouring rows,
read column by column, are a pattern that it does not see. From memory (134 MB of float32, 2 cores, rows of 64 to 512
channels), sums reach 50 to 61 GB/s with 4 or 8 streams, and 20 to 34 with as many neighbouring rows. Parameters of a
column are loaded once for all streams.

Arrays of data are indexed flat; dy, x and tail as in `element`. Parameters and sums are arrays of columns too, which
begin at `column` there; columns need not be channels (see `short_segments`).
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import overload

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
from fastbn_kernels.cpu.simd.ops import add, load, store, stream, widen
from fastbn_kernels.cpu.simd.types import LANES

# Streams that are summed at once. 8 are as good as 4 up to 512 channels and better beyond (2048: 41 against 27 GB/s),
# where accumulators leave the first-level cache. Of two tensors half as many: 36 against 32 GB/s for 8 (64 channels).
STREAMS = 8

# Two streams are read and written at once: past the cache (134 MB, 128 channels) they reach 55 GB/s, as a copy does; 4
# and 8 reach 51 and 48. In the cache (15 MB, 64 channels) 2 reach 99, 4 and 8 77 and 67, one row after the other 80.
# But from so many columns on, whose parameters fill the first-level cache, 4 are better: 4096 x 1024 67 against 46
# GB/s, 1536 x 2048 80 against 53, and 53 against 42 past the cache (4096 x 2048). With a dy there are 2 whatever the
# width.
WIDE = 1024


@scalar
def add_to(sums: Array, row: int, at: int, n: int | None, vector: Any) -> None:
    """Add a vector to the float64 sums of columns."""
    i = row * sums.shape[1] + at
    store(sums, i, n, add(load(sums, i, n), widen(vector)))


@scalar
def sum_streams(
    dy: Array | None, x: Array, start: int, step: int, width: int, params: Array, column: int, sums: Array, tail: Any
) -> None:
    """Add the sums over STREAMS rows of `width` columns, or with a dy half as many, `step` apart."""
    half = (STREAMS if dy is None else STREAMS // 2) // 2
    c = 0
    while c + LANES <= width:
        shift = column_shift(params, column + c, None, tail)
        i = start + c
        first = first_sums(dy, x, i, None, shift, tail)
        for _ in range(1, half):
            i += step
            first = more_sums(first, dy, x, i, None, shift, tail)
        i += step
        second = second_chain(first, dy, x, i, None, shift, tail)
        for _ in range(1, half):
            i += step
            second = more_sums(second, dy, x, i, None, shift, tail)
        found = both_chains(x, first, second)
        add_to(sums, 0, column + c, None, found[0])
        add_to(sums, 1, column + c, None, found[1])
        c += LANES
    while c < width:  # once at most; `if` would cost, see `segments`
        n = width - c
        shift = column_shift(params, column + c, n, tail)
        i = start + c
        first = first_sums(dy, x, i, n, shift, tail)
        for _ in range(1, half):
            i += step
            first = more_sums(first, dy, x, i, n, shift, tail)
        i += step
        second = second_chain(first, dy, x, i, n, shift, tail)
        for _ in range(1, half):
            i += step
            second = more_sums(second, dy, x, i, n, shift, tail)
        found = both_chains(x, first, second)
        add_to(sums, 0, column + c, n, found[0])
        add_to(sums, 1, column + c, n, found[1])
        c += LANES


@scalar
def sum_row(
    dy: Array | None, x: Array, start: int, width: int, params: Array, column: int, sums: Array, tail: Any
) -> None:
    """Add the sums over one row of `width` columns."""
    c = 0
    while c + LANES <= width:
        found = first_sums(dy, x, start + c, None, column_shift(params, column + c, None, tail), tail)
        add_to(sums, 0, column + c, None, found[0])
        add_to(sums, 1, column + c, None, found[1])
        c += LANES
    n = width - c
    found = first_sums(dy, x, start + c, n, column_shift(params, column + c, n, tail), tail)
    add_to(sums, 0, column + c, n, found[0])
    add_to(sums, 1, column + c, n, found[1])


@scalar
def sum_rows(
    dy: Array | None, x: Array, start: int, step: int, rows: int, width: int, params: Array, column: int, sums: Array,
    tail: Any,
) -> None:  # fmt: skip
    """Add the sums over `rows` rows of `width` columns, `step` apart, to rows 0 and 1 of `sums`."""
    streams = STREAMS if dy is None else STREAMS // 2
    each = rows // streams
    for row in range(each):
        sum_streams(dy, x, start + row * step, each * step, width, params, column, sums, tail)
    for row in range(each * streams, rows):
        sum_row(dy, x, start + row * step, width, params, column, sums, tail)


@scalar
def write_two(
    dy: Array | None, x: Array | None, start: int, step: int, width: int, params: Array, column: int, out: Array,
    past_cache: bool, tail: Any,
) -> None:  # fmt: skip
    """Write the results of two rows of `width` columns, `step` apart; with step 0 of one row.

    `past_cache` needs both rows of `out` to start a cache line.
    """
    c = 0
    if past_cache:
        while c + LANES <= width:
            given = column_params(dy, x, params, column + c, None, tail)
            i = start + c
            j = i + step
            first, second = result(dy, x, i, None, given, tail), result(dy, x, j, None, given, tail)
            stream(out, i, first)
            stream(out, j, second)
            c += LANES
    while c + LANES <= width:
        given = column_params(dy, x, params, column + c, None, tail)
        i = start + c
        j = i + step
        first, second = result(dy, x, i, None, given, tail), result(dy, x, j, None, given, tail)
        store(out, i, None, first)
        store(out, j, None, second)
        c += LANES
    while c < width:  # once at most; `if` would cost, see `segments`
        n = width - c
        part = column_params(dy, x, params, column + c, n, tail)
        i = start + c
        j = i + step
        first, second = result(dy, x, i, n, part, tail), result(dy, x, j, n, part, tail)
        store(out, i, n, first)
        store(out, j, n, second)
        c += LANES


@scalar
def write_four(
    dy: Array | None, x: Array | None, start: int, step: int, width: int, params: Array, column: int, out: Array,
    past_cache: bool, tail: Any,
) -> None:  # fmt: skip
    """Write the results of four rows of `width` columns, `step` apart; see `write_two`."""
    whole = width // LANES * LANES
    for c in range(0, whole, LANES):
        given = column_params(dy, x, params, column + c, None, tail)
        i = start + c
        first, second = result(dy, x, i, None, given, tail), result(dy, x, i + step, None, given, tail)
        i += 2 * step
        third, fourth = result(dy, x, i, None, given, tail), result(dy, x, i + step, None, given, tail)
        i -= 2 * step
        if past_cache:
            stream(out, i, first)
            stream(out, i + step, second)
            stream(out, i + 2 * step, third)
            stream(out, i + 3 * step, fourth)
        else:
            store(out, i, None, first)
            store(out, i + step, None, second)
            store(out, i + 2 * step, None, third)
            store(out, i + 3 * step, None, fourth)
    for row in range(0, 4, 2):
        i = start + whole + row * step
        write_two(dy, x, i, step, width - whole, params, column + whole, out, False, tail)


def write_fours(
    dy: Array | None, x: Array | None, start: int, step: int, rows: int, width: int, params: Array, column: int,
    out: Array, past_cache: bool, tail: Any,
) -> int:  # fmt: skip
    """Write the results of rows, four at once, without a dy and where they are wide; return of how many."""
    each = rows // 4 if dy is None and width >= WIDE else 0
    for row in range(each):
        write_four(dy, x, start + row * step, each * step, width, params, column, out, past_cache, tail)
    return 4 * each


_by_fours = write_fours


@overload(write_fours, strict=False)  # type: ignore[untyped-decorator]
def _write_fours(
    dy: Any, x: Any, start: Any, step: Any, rows: Any, width: Any, params: Any, column: Any, out: Any, past_cache: Any,
    tail: Any,
) -> Any:  # fmt: skip
    """Compile nothing where there is nothing to do."""
    if dy is types.none:
        return _by_fours
    return lambda dy, x, start, step, rows, width, params, column, out, past_cache, tail: 0


@scalar
def write_rows(
    dy: Array | None, x: Array | None, start: int, step: int, rows: int, width: int, params: Array, column: int,
    out: Array, past_cache: bool, tail: Any,
) -> None:  # fmt: skip
    """Write the results of `rows` rows of `width` columns, `step` apart."""
    done = write_fours(dy, x, start, step, rows, width, params, column, out, past_cache, tail)
    start += done * step
    rows -= done
    half = rows // 2
    for row in range(rows - half):  # of an odd number, the last row by itself
        first, gap = (row, half) if row < half else (rows - 1, 0)
        write_two(dy, x, start + first * step, gap * step, width, params, column, out, past_cache, tail)
