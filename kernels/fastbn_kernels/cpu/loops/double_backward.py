"""Inner loops of `double_backward`, over segments and streams of rows: three tensors are read, and two written.

Arrays, parameters and sums as in `segments` and `row_streams`; the outputs share no memory with anything else.
"""

from __future__ import annotations

from fastbn_kernels.build.decorators import Array, scalar
from fastbn_kernels.cpu.element import first_second_sums, more_second_sums, second_results
from fastbn_kernels.cpu.loops.row_streams import add_to
from fastbn_kernels.cpu.loops.segments import AHEAD
from fastbn_kernels.cpu.simd.ops import add, param, prefetch, splat, store, total, widen
from fastbn_kernels.cpu.simd.types import LANES


@scalar
def segments_second_sums(
    v: Array, g: Array, x: Array, start: int, step: int, segments: int, length: int, mean: float
) -> tuple[float, float, float, float, float]:
    """Return the sums over segments of `length` values, `step` apart."""
    m = splat(x, mean)
    t0 = widen(splat(x, 0.0))
    t1, t2, t3, t4 = t0, t0, t0, t0
    for segment in range(segments):
        i = start + segment * step
        end = i + length
        while i + 8 * LANES <= end:
            prefetch(v, i + AHEAD)
            prefetch(g, i + AHEAD)
            prefetch(x, i + AHEAD)
            s = first_second_sums(v, g, x, i, None, m)
            for j in range(1, 8):
                at = i + j * LANES
                prefetch(v, at + AHEAD)
                prefetch(g, at + AHEAD)
                prefetch(x, at + AHEAD)
                s = more_second_sums(s, v, g, x, at, None, m)
            t0, t1, t2 = add(t0, widen(s[0])), add(t1, widen(s[1])), add(t2, widen(s[2]))
            t3, t4 = add(t3, widen(s[3])), add(t4, widen(s[4]))
            i += 8 * LANES
        while i + LANES <= end:
            s = first_second_sums(v, g, x, i, None, m)
            t0, t1, t2 = add(t0, widen(s[0])), add(t1, widen(s[1])), add(t2, widen(s[2]))
            t3, t4 = add(t3, widen(s[3])), add(t4, widen(s[4]))
            i += LANES
        s = first_second_sums(v, g, x, i, end - i, m)
        t0, t1, t2 = add(t0, widen(s[0])), add(t1, widen(s[1])), add(t2, widen(s[2]))
        t3, t4 = add(t3, widen(s[3])), add(t4, widen(s[4]))
    return total(t0), total(t1), total(t2), total(t3), total(t4)


@scalar
def write_second_segment(
    v: Array, g: Array, x: Array, start: int, length: int,
    numbers: tuple[float, float, float, float, float, float, float], ddy: Array, dx: Array,
) -> None:  # fmt: skip
    """Write ddy and dx of a segment."""
    params = splat(x, numbers)
    i = start
    end = start + length
    while i + LANES <= end:
        first, second = second_results(v, g, x, i, None, params)
        store(ddy, i, None, first)
        store(dx, i, None, second)
        i += LANES
    n = end - i
    first, second = second_results(v, g, x, i, n, params)
    store(ddy, i, n, first)
    store(dx, i, n, second)


@scalar
def sum_second_streams(
    v: Array, g: Array, x: Array, start: int, step: int, rows: int, width: int, params: Array, column: int, sums: Array
) -> None:
    """Add the sums over at most 8 rows of `width` columns, `step` apart; of a part of a vector, row after row."""
    c = 0
    while c + LANES <= width:
        m = param(params, 0, column + c, None)
        i = start + c
        s = first_second_sums(v, g, x, i, None, m)
        for _ in range(1, rows):
            i += step
            s = more_second_sums(s, v, g, x, i, None, m)
        add_to(sums, 0, column + c, None, s[0])
        add_to(sums, 1, column + c, None, s[1])
        add_to(sums, 2, column + c, None, s[2])
        add_to(sums, 3, column + c, None, s[3])
        add_to(sums, 4, column + c, None, s[4])
        c += LANES
    while c < width:  # once at most; `if` would cost, see `segments`
        n = width - c
        m = param(params, 0, column + c, n)
        i = start + c
        for _ in range(rows):
            s = first_second_sums(v, g, x, i, n, m)
            add_to(sums, 0, column + c, n, s[0])
            add_to(sums, 1, column + c, n, s[1])
            add_to(sums, 2, column + c, n, s[2])
            add_to(sums, 3, column + c, n, s[3])
            add_to(sums, 4, column + c, n, s[4])
            i += step
        c += LANES


@scalar
def second_column_params(params: Array, at: int, n: int | None) -> tuple[object, ...]:
    """Return what `second_results` takes of columns."""
    return (
        param(params, 0, at, n), param(params, 1, at, n), param(params, 2, at, n), param(params, 3, at, n),
        param(params, 4, at, n), param(params, 5, at, n), param(params, 6, at, n),
    )  # fmt: skip


@scalar
def write_second_streams(
    v: Array, g: Array, x: Array, start: int, step: int, rows: int, width: int, params: Array, column: int,
    ddy: Array, dx: Array,
) -> None:  # fmt: skip
    """Write ddy and dx of some rows of `width` columns, `step` apart."""
    c = 0
    while c + LANES <= width:
        given = second_column_params(params, column + c, None)
        i = start + c
        for _ in range(rows):
            first, second = second_results(v, g, x, i, None, given)
            store(ddy, i, None, first)
            store(dx, i, None, second)
            i += step
        c += LANES
    while c < width:
        n = width - c
        part = second_column_params(params, column + c, n)
        i = start + c
        for _ in range(rows):
            first, second = second_results(v, g, x, i, n, part)
            store(ddy, i, n, first)
            store(dx, i, n, second)
            i += step
        c += LANES
