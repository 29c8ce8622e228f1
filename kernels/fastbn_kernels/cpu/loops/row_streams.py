"""Inner loops over bands: a few rows, a stretch of adjacent columns each, with arrays of numbers a column.

The rows of a band lie far apart: the block that they belong to is cut into so many parts, one row of each. Reading the
block band after band is then reading so many unbroken streams, which the hardware's prefetcher follows; neighbouring
rows, read column by column, are a pattern that it does not see. From memory (134 MB of float32, 2 cores, rows of 64 to
512 channels), sums reach 50 to 61 GB/s with 4 or 8 streams, and 20 to 34 with as many neighbouring rows. Numbers of a
column are loaded once a band.

Accumulators and results as in `runs`; columns need not be channels (see `short`).
"""

from __future__ import annotations

from fastbn_kernels.build.decorators import Array, scalar
from fastbn_kernels.cpu.simd.ops import (
    add,
    fma,
    load,
    load_part,
    mul,
    numbers,
    numbers_part,
    store,
    store_part,
    stream,
    sub,
    widen,
)
from fastbn_kernels.cpu.simd.types import LANES

# Streams that are summed at once. 8 are as good as 4 up to 512 channels and better beyond (2048: 41 against 27 GB/s),
# where accumulators leave the first-level cache. Of two tensors half as many: 36 against 32 GB/s for 8 (64 channels).
STREAMS = 8

# Two streams are read and written at once: past the cache (134 MB, 128 channels) they reach 55 GB/s, as a copy does; 4
# and 8 reach 51 and 48. In the cache (15 MB, 64 channels) 2 reach 99, 4 and 8 77 and 67, one row after the other 80.
# But from so many columns on, whose numbers fill the first-level cache, 4 are better: 4096 x 1024 67 against 46 GB/s,
# 1536 x 2048 80 against 53, and 53 against 42 past the cache (4096 x 2048).
WIDE_BAND = 1024


@scalar
def band_sums(x: Array, start: int, step: int, width: int, k: Array, t: Array, q: Array) -> None:
    """Add the sums of (x - k) and (x - k)^2 over STREAMS rows of `width` columns, `step` apart, to t and q."""
    c = 0
    while c + LANES <= width:
        shift = numbers(k, c)
        i = start + c
        d = sub(load(x, i), shift)
        t8, q8 = d, mul(d, d)
        for _ in range(1, STREAMS):
            i += step
            d = sub(load(x, i), shift)
            t8, q8 = add(t8, d), fma(d, d, q8)
        store(t, c, add(load(t, c), widen(t8)))
        store(q, c, add(load(q, c), widen(q8)))
        c += LANES
    while c < width:  # once at most; `if` would cost, see `runs`
        n = width - c
        shift = numbers_part(k, c, n)
        i = start + c
        d = sub(load_part(x, i, n), shift)
        t8, q8 = d, mul(d, d)
        for _ in range(1, STREAMS):
            i += step
            d = sub(load_part(x, i, n), shift)
            t8, q8 = add(t8, d), fma(d, d, q8)
        store_part(t, c, n, add(load_part(t, c, n), widen(t8)))
        store_part(q, c, n, add(load_part(q, c, n), widen(q8)))
        c += LANES


@scalar
def row_sums(x: Array, start: int, width: int, k: Array, t: Array, q: Array) -> None:
    """Add (x - k) and (x - k)^2 over one row to t and q."""
    c = 0
    while c + LANES <= width:
        d = sub(load(x, start + c), numbers(k, c))
        store(t, c, add(load(t, c), widen(d)))
        store(q, c, add(load(q, c), widen(mul(d, d))))
        c += LANES
    rest = width - c
    d = sub(load_part(x, start + c, rest), numbers_part(k, c, rest))
    store_part(t, c, rest, add(load_part(t, c, rest), widen(d)))
    store_part(q, c, rest, add(load_part(q, c, rest), widen(mul(d, d))))


@scalar
def rows_sums(x: Array, start: int, step: int, rows: int, width: int, k: Array, t: Array, q: Array) -> None:
    """Add the sums of (x - k) and (x - k)^2 over `rows` rows of `width` columns, `step` apart, to t and q."""
    each = rows // STREAMS
    for row in range(each):
        band_sums(x, start + row * step, each * step, width, k, t, q)
    for row in range(each * STREAMS, rows):
        row_sums(x, start + row * step, width, k, t, q)


@scalar
def band_gradient_sums(dy: Array, x: Array, start: int, step: int, width: int, mean: Array, t: Array, p: Array) -> None:
    """Add the sums of dy and dy * (x - mean) over STREAMS // 2 rows of `width` columns, `step` apart, to t and p."""
    c = 0
    while c + LANES <= width:
        m = numbers(mean, c)
        i = start + c
        g = load(dy, i)
        t4, p4 = g, mul(g, sub(load(x, i), m))
        for _ in range(1, STREAMS // 2):
            i += step
            g = load(dy, i)
            t4, p4 = add(t4, g), fma(g, sub(load(x, i), m), p4)
        store(t, c, add(load(t, c), widen(t4)))
        store(p, c, add(load(p, c), widen(p4)))
        c += LANES
    while c < width:  # once at most; `if` would cost, see `runs`
        n = width - c
        m = numbers_part(mean, c, n)
        i = start + c
        g = load_part(dy, i, n)
        t4, p4 = g, mul(g, sub(load_part(x, i, n), m))
        for _ in range(1, STREAMS // 2):
            i += step
            g = load_part(dy, i, n)
            t4, p4 = add(t4, g), fma(g, sub(load_part(x, i, n), m), p4)
        store_part(t, c, n, add(load_part(t, c, n), widen(t4)))
        store_part(p, c, n, add(load_part(p, c, n), widen(p4)))
        c += LANES


@scalar
def row_gradient_sums(dy: Array, x: Array, start: int, width: int, mean: Array, t: Array, p: Array) -> None:
    """Add dy and dy * (x - mean) over one row to t and p."""
    c = 0
    while c + LANES <= width:
        g = load(dy, start + c)
        store(t, c, add(load(t, c), widen(g)))
        store(p, c, add(load(p, c), widen(mul(g, sub(load(x, start + c), numbers(mean, c))))))
        c += LANES
    rest = width - c
    g = load_part(dy, start + c, rest)
    product = mul(g, sub(load_part(x, start + c, rest), numbers_part(mean, c, rest)))
    store_part(t, c, rest, add(load_part(t, c, rest), widen(g)))
    store_part(p, c, rest, add(load_part(p, c, rest), widen(product)))


@scalar
def rows_gradient_sums(
    dy: Array, x: Array, start: int, step: int, rows: int, width: int, mean: Array, t: Array, p: Array
) -> None:
    """Add the sums of dy and dy * (x - mean) over `rows` rows of `width` columns, `step` apart, to t and p."""
    each = rows // (STREAMS // 2)
    for row in range(each):
        band_gradient_sums(dy, x, start + row * step, each * step, width, mean, t, p)
    for row in range(each * (STREAMS // 2), rows):
        row_gradient_sums(dy, x, start + row * step, width, mean, t, p)


@scalar
def band_normalize(
    x: Array, start: int, step: int, width: int, mean: Array, scale: Array, shift: Array, y: Array, past_cache: bool
) -> None:
    """Write y = (x - mean) * scale + shift over two rows of `width` columns, `step` apart.

    With step 0 over one row. `past_cache` needs both rows of y to start a cache line.
    """
    c = 0
    if past_cache:
        while c + LANES <= width:
            m, a, b = numbers(mean, c), numbers(scale, c), numbers(shift, c)
            i = start + c
            first, second = fma(sub(load(x, i), m), a, b), fma(sub(load(x, i + step), m), a, b)
            stream(y, i, first)
            stream(y, i + step, second)
            c += LANES
    while c + LANES <= width:
        m, a, b = numbers(mean, c), numbers(scale, c), numbers(shift, c)
        i = start + c
        first, second = fma(sub(load(x, i), m), a, b), fma(sub(load(x, i + step), m), a, b)
        store(y, i, first)
        store(y, i + step, second)
        c += LANES
    while c < width:  # once at most; `if` would cost, see `runs`
        n = width - c
        m, a, b = numbers_part(mean, c, n), numbers_part(scale, c, n), numbers_part(shift, c, n)
        i = start + c
        first, second = fma(sub(load_part(x, i, n), m), a, b), fma(sub(load_part(x, i + step, n), m), a, b)
        store_part(y, i, n, first)
        store_part(y, i + step, n, second)
        c += LANES


@scalar
def wide_band_normalize(
    x: Array, start: int, step: int, width: int, mean: Array, scale: Array, shift: Array, y: Array, past_cache: bool
) -> None:
    """Write y = (x - mean) * scale + shift over four rows of `width` columns, `step` apart; see `band_normalize`."""
    whole = width // LANES * LANES
    for c in range(0, whole, LANES):
        m, a, b = numbers(mean, c), numbers(scale, c), numbers(shift, c)
        i = start + c
        first, second = fma(sub(load(x, i), m), a, b), fma(sub(load(x, i + step), m), a, b)
        i += 2 * step
        third, fourth = fma(sub(load(x, i), m), a, b), fma(sub(load(x, i + step), m), a, b)
        i -= 2 * step
        if past_cache:
            stream(y, i, first)
            stream(y, i + step, second)
            stream(y, i + 2 * step, third)
            stream(y, i + 3 * step, fourth)
        else:
            store(y, i, first)
            store(y, i + step, second)
            store(y, i + 2 * step, third)
            store(y, i + 3 * step, fourth)
    for row in range(0, 4, 2):
        i = start + whole + row * step
        band_normalize(x, i, step, width - whole, mean[whole:], scale[whole:], shift[whole:], y, False)


@scalar
def rows_normalize(
    x: Array, start: int, step: int, rows: int, width: int, mean: Array, scale: Array, shift: Array, y: Array,
    past_cache: bool,
) -> None:  # fmt: skip
    """Write y = (x - mean) * scale + shift over `rows` rows of `width` columns, `step` apart."""
    each = rows // 4 if width >= WIDE_BAND else 0
    for row in range(each):
        wide_band_normalize(x, start + row * step, each * step, width, mean, scale, shift, y, past_cache)
    start += 4 * each * step
    rows -= 4 * each
    half = rows // 2
    for row in range(half):
        band_normalize(x, start + row * step, half * step, width, mean, scale, shift, y, past_cache)
    if rows % 2:
        band_normalize(x, start + (rows - 1) * step, 0, width, mean, scale, shift, y, past_cache)


@scalar
def band_gradient(
    dy: Array, x: Array, start: int, step: int, width: int,
    mean: Array, a: Array, b: Array, c: Array, dx: Array, past_cache: bool,
) -> None:  # fmt: skip
    """Write dx = a * dy + (b * (x - mean) + c) over two rows of `width` columns, `step` apart; see `band_normalize`."""
    k = 0
    if past_cache:
        while k + LANES <= width:
            m, av, bv, cv = numbers(mean, k), numbers(a, k), numbers(b, k), numbers(c, k)
            i = start + k
            j = i + step
            first = fma(load(dy, i), av, fma(sub(load(x, i), m), bv, cv))
            second = fma(load(dy, j), av, fma(sub(load(x, j), m), bv, cv))
            stream(dx, i, first)
            stream(dx, j, second)
            k += LANES
    while k + LANES <= width:
        m, av, bv, cv = numbers(mean, k), numbers(a, k), numbers(b, k), numbers(c, k)
        i = start + k
        j = i + step
        first = fma(load(dy, i), av, fma(sub(load(x, i), m), bv, cv))
        second = fma(load(dy, j), av, fma(sub(load(x, j), m), bv, cv))
        store(dx, i, first)
        store(dx, j, second)
        k += LANES
    while k < width:
        n = width - k
        m, av = numbers_part(mean, k, n), numbers_part(a, k, n)
        bv, cv = numbers_part(b, k, n), numbers_part(c, k, n)
        i = start + k
        j = i + step
        first = fma(load_part(dy, i, n), av, fma(sub(load_part(x, i, n), m), bv, cv))
        second = fma(load_part(dy, j, n), av, fma(sub(load_part(x, j, n), m), bv, cv))
        store_part(dx, i, n, first)
        store_part(dx, j, n, second)
        k += LANES


@scalar
def rows_gradient(
    dy: Array, x: Array, start: int, step: int, rows: int, width: int,
    mean: Array, a: Array, b: Array, c: Array, dx: Array, past_cache: bool,
) -> None:  # fmt: skip
    """Write dx = a * dy + (b * (x - mean) + c) over `rows` rows of `width` columns, `step` apart."""
    half = rows // 2
    for row in range(half):
        band_gradient(dy, x, start + row * step, half * step, width, mean, a, b, c, dx, past_cache)
    if rows % 2:
        band_gradient(dy, x, start + (rows - 1) * step, 0, width, mean, a, b, c, dx, past_cache)


@scalar
def rows_scale(dy: Array, start: int, step: int, rows: int, width: int, a: Array, dx: Array) -> None:
    """Write dx = a * dy over `rows` rows of `width` columns, `step` apart."""
    for row in range(rows):
        i = start + row * step
        k = 0
        while k + LANES <= width:
            store(dx, i + k, mul(load(dy, i + k), numbers(a, k)))
            k += LANES
        n = width - k
        store_part(dx, i + k, n, mul(load_part(dy, i + k, n), numbers_part(a, k, n)))
