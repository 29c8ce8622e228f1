"""The inner loops, in explicit vectors: sums over values, and one value out for one or two values in.

Two shapes of loop. A run is a stretch of one channel, with that channel's numbers in registers. A band is a few rows, a
stretch of adjacent channels each, with arrays of numbers, of which those of 16 channels are loaded once for some rows.
Arrays are contiguous and indexed flat, whatever their axes. After the whole vectors of a run, part of one is loaded
even if it is empty: a branch around it would cost more (10 ns a run), because Numba then counts references in its arms.
"""

from __future__ import annotations

from fastbn_kernels.cpu.vector import (
    LANES,
    add,
    fma,
    keep,
    load,
    load_part,
    mul,
    offset_from_line,
    prefetch,
    splat,
    store,
    store_part,
    stream,
    sub,
    total,
)
from fastbn_kernels.jit import Array, scalar

# Rows in a band that is summed: its accumulators are then loaded and stored once in eight rows. One row at a time
# reaches half the speed (0.33 against 0.16 ns a value at 64 to 2048 channels). The prefetcher does not follow eight
# rows at once, so the next band is asked for by hand (100352 x 64: 0.34 against 0.47 ns). For sums over two tensors,
# half as many rows of each.
ROWS = 8


@scalar
def to_line(y: Array, start: int, length: int) -> int:
    """Return how many of `length` elements come before the first that starts a cache line."""
    line = 64 // y.itemsize
    head: int = (line - offset_from_line(y, start)) % line
    return min(length, head)


# ---------------------------------------------------------------- sums


@scalar
def runs_sums(x: Array, start: int, step: int, runs: int, length: int, k: float) -> tuple[float, float]:
    """Return the sums of (x - k) and (x - k)^2 over runs of `length` values, `step` apart."""
    shift = splat(k)
    t = splat(0.0)
    q = splat(0.0)
    for run in range(runs):
        i = start + run * step
        end = i + length
        while i + LANES <= end:
            d = sub(load(x, i), shift)
            t = add(t, d)
            q = fma(d, d, q)
            i += LANES
        d = keep(sub(load_part(x, i, end - i), shift), end - i)
        t = add(t, d)
        q = fma(d, d, q)
    return total(t), total(q)


@scalar
def runs_gradient_sums(
    dy: Array, x: Array, start: int, step: int, runs: int, length: int, mean: float
) -> tuple[float, float]:
    """Return the sums of dy and dy * (x - mean) over runs of `length` values, `step` apart."""
    m = splat(mean)
    t = splat(0.0)
    p = splat(0.0)
    for run in range(runs):
        i = start + run * step
        end = i + length
        while i + LANES <= end:
            g = load(dy, i)
            t = add(t, g)
            p = fma(g, sub(load(x, i), m), p)
            i += LANES
        g = load_part(dy, i, end - i)
        t = add(t, g)
        p = fma(g, keep(sub(load_part(x, i, end - i), m), end - i), p)
    return total(t), total(p)


@scalar
def band_sums(x: Array, start: int, step: int, rows: int, width: int, k: Array, t: Array, q: Array) -> None:
    """Add the sums of (x - k) and (x - k)^2 over `rows` rows of `width` channels, `step` apart, to t and q."""
    c = 0
    while c + LANES <= width:
        shift, tc, qc = load(k, c), load(t, c), load(q, c)
        for row in range(rows):
            prefetch(x, start + (row + rows) * step + c)
            d = sub(load(x, start + row * step + c), shift)
            tc = add(tc, d)
            qc = fma(d, d, qc)
        store(t, c, tc)
        store(q, c, qc)
        c += LANES
    rest = width - c
    shift, tc, qc = load_part(k, c, rest), load_part(t, c, rest), load_part(q, c, rest)
    for row in range(rows):
        d = sub(load_part(x, start + row * step + c, rest), shift)
        tc = add(tc, d)
        qc = fma(d, d, qc)
    store_part(t, c, rest, tc)
    store_part(q, c, rest, qc)


@scalar
def band_gradient_sums(
    dy: Array, x: Array, start: int, step: int, rows: int, width: int, mean: Array, t: Array, p: Array
) -> None:
    """Add the sums of dy and dy * (x - mean) over `rows` rows of `width` channels, `step` apart, to t and p."""
    c = 0
    while c + LANES <= width:
        m, tc, pc = load(mean, c), load(t, c), load(p, c)
        for row in range(rows):
            i = start + row * step + c
            prefetch(x, i + rows * step)
            prefetch(dy, i + rows * step)
            g = load(dy, i)
            tc = add(tc, g)
            pc = fma(g, sub(load(x, i), m), pc)
        store(t, c, tc)
        store(p, c, pc)
        c += LANES
    rest = width - c
    m, tc, pc = load_part(mean, c, rest), load_part(t, c, rest), load_part(p, c, rest)
    for row in range(rows):
        i = start + row * step + c
        g = load_part(dy, i, rest)
        tc = add(tc, g)
        pc = fma(g, sub(load_part(x, i, rest), m), pc)
    store_part(t, c, rest, tc)
    store_part(p, c, rest, pc)


# ---------------------------------------------------------------- one value out


@scalar
def run_normalize(
    x: Array, start: int, length: int, mean: float, scale: float, shift: float, y: Array, past_cache: bool
) -> None:
    """Write y = (x - mean) * scale + shift over a run, in float64, rounded once."""
    m, a, b = splat(mean), splat(scale), splat(shift)
    i = start
    end = start + length
    if past_cache:
        head = to_line(y, i, length)
        store_part(y, i, head, fma(sub(load_part(x, i, head), m), a, b))
        i += head
        while i + LANES <= end:
            stream(y, i, fma(sub(load(x, i), m), a, b))
            i += LANES
    while i + LANES <= end:
        store(y, i, fma(sub(load(x, i), m), a, b))
        i += LANES
    store_part(y, i, end - i, fma(sub(load_part(x, i, end - i), m), a, b))


@scalar
def run_gradient(
    dy: Array, x: Array, start: int, length: int, mean: float, a: float, b: float, c: float, dx: Array,
    past_cache: bool,
) -> None:  # fmt: skip
    """Write dx = a * dy + (b * (x - mean) + c) over a run."""
    m, av, bv, cv = splat(mean), splat(a), splat(b), splat(c)
    i = start
    end = start + length
    if past_cache:
        head = to_line(dx, i, length)
        store_part(dx, i, head, fma(load_part(dy, i, head), av, fma(sub(load_part(x, i, head), m), bv, cv)))
        i += head
        while i + LANES <= end:
            stream(dx, i, fma(load(dy, i), av, fma(sub(load(x, i), m), bv, cv)))
            i += LANES
    while i + LANES <= end:
        store(dx, i, fma(load(dy, i), av, fma(sub(load(x, i), m), bv, cv)))
        i += LANES
    rest = end - i
    store_part(dx, i, rest, fma(load_part(dy, i, rest), av, fma(sub(load_part(x, i, rest), m), bv, cv)))


@scalar
def run_scale(dy: Array, start: int, length: int, a: float, dx: Array) -> None:
    """Write dx = a * dy over a run."""
    av = splat(a)
    i = start
    end = start + length
    while i + LANES <= end:
        store(dx, i, mul(load(dy, i), av))
        i += LANES
    store_part(dx, i, end - i, mul(load_part(dy, i, end - i), av))


@scalar
def band_normalize(
    x: Array, start: int, step: int, rows: int, width: int, mean: Array, scale: Array, shift: Array, y: Array,
    at_once: int, past_cache: bool,
) -> None:  # fmt: skip
    """Write y = (x - mean) * scale + shift over `rows` rows of `width` channels, `step` apart, `at_once` together.

    `past_cache` needs every row of y to start a cache line.
    """
    whole = width // LANES * LANES
    rest = width - whole
    for row in range(0, rows, at_once):
        first = start + row * step
        last = first + min(at_once, rows - row) * step
        for c in range(0, whole, LANES):
            m, a, b = load(mean, c), load(scale, c), load(shift, c)
            if past_cache:
                for i in range(first + c, last, step):
                    stream(y, i, fma(sub(load(x, i), m), a, b))
            else:
                for i in range(first + c, last, step):
                    store(y, i, fma(sub(load(x, i), m), a, b))
        if rest > 0:
            m, a, b = load_part(mean, whole, rest), load_part(scale, whole, rest), load_part(shift, whole, rest)
            for i in range(first + whole, last, step):
                store_part(y, i, rest, fma(sub(load_part(x, i, rest), m), a, b))


@scalar
def band_gradient(
    dy: Array, x: Array, start: int, step: int, rows: int, width: int,
    mean: Array, a: Array, b: Array, c: Array, dx: Array, at_once: int,
) -> None:  # fmt: skip
    """Write dx = a * dy + (b * (x - mean) + c) over `rows` rows, `width` channels, `step` apart, `at_once` together."""
    whole = width // LANES * LANES
    rest = width - whole
    for row in range(0, rows, at_once):
        first = start + row * step
        last = first + min(at_once, rows - row) * step
        for k in range(0, whole, LANES):
            m, av, bv, cv = load(mean, k), load(a, k), load(b, k), load(c, k)
            for i in range(first + k, last, step):
                store(dx, i, fma(load(dy, i), av, fma(sub(load(x, i), m), bv, cv)))
        if rest > 0:
            m, av = load_part(mean, whole, rest), load_part(a, whole, rest)
            bv, cv = load_part(b, whole, rest), load_part(c, whole, rest)
            for i in range(first + whole, last, step):
                value = fma(load_part(dy, i, rest), av, fma(sub(load_part(x, i, rest), m), bv, cv))
                store_part(dx, i, rest, value)


@scalar
def band_scale(dy: Array, start: int, step: int, rows: int, width: int, a: Array, dx: Array) -> None:
    """Write dx = a * dy over `rows` rows of `width` channels, `step` apart."""
    k = 0
    while k + LANES <= width:
        av = load(a, k)
        for row in range(rows):
            i = start + row * step + k
            store(dx, i, mul(load(dy, i), av))
        k += LANES
    rest = width - k
    av = load_part(a, k, rest)
    for row in range(rows):
        i = start + row * step + k
        store_part(dx, i, rest, mul(load_part(dy, i, rest), av))
