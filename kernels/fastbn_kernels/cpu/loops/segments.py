"""Inner loops over runs: a run is a stretch of one channel, with that channel's numbers in registers.

Arrays are contiguous and indexed flat, whatever their axes. Sums go through eight vectors at a time, added up among
themselves before they enter the long, float64 sum: for 16-bit data, whose arithmetic is float32, no chain of float32
additions is longer than that.

After the whole vectors of a run, part of one is loaded even if it is empty: a branch around it would cost more (10 ns a
run), because Numba then counts references in its arms.
"""

from __future__ import annotations

from fastbn_kernels.build.decorators import Array, scalar
from fastbn_kernels.cpu.simd.ops import (
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
    widen,
)
from fastbn_kernels.cpu.simd.types import LANES

# Elements that are asked for ahead of a sum. The hardware's prefetcher starts anew with every run and every page: sums
# of 32 x 64 x 56 x 56 reach 67 GB/s with this and 42 without, of 32 x 1024 x 14 x 14 64 and 45 (2 cores, float32). Past
# the end of a run this is the next channel, which the same thread takes next.
AHEAD = 1024


@scalar
def to_line(y: Array, start: int, length: int) -> int:
    """Return how many of `length` elements come before the first that can be streamed."""
    line = min(64 // y.itemsize, LANES)
    head: int = (line - offset_from_line(y, start)) % line
    return min(length, head)


@scalar
def runs_sums(x: Array, start: int, step: int, runs: int, length: int, k: float) -> tuple[float, float]:
    """Return the sums of (x - k) and (x - k)^2 over runs of `length` values, `step` apart."""
    shift = splat(x, k)
    t = widen(splat(x, 0.0))
    q = t
    for run in range(runs):
        i = start + run * step
        end = i + length
        while i + 8 * LANES <= end:
            prefetch(x, i + AHEAD)
            d = sub(load(x, i), shift)
            t8, q8 = d, mul(d, d)
            for j in range(1, 8):
                prefetch(x, i + j * LANES + AHEAD)
                d = sub(load(x, i + j * LANES), shift)
                t8, q8 = add(t8, d), fma(d, d, q8)
            t, q = add(t, widen(t8)), add(q, widen(q8))
            i += 8 * LANES
        while i + LANES <= end:
            d = sub(load(x, i), shift)
            t, q = add(t, widen(d)), add(q, widen(mul(d, d)))
            i += LANES
        d = keep(sub(load_part(x, i, end - i), shift), end - i)
        t, q = add(t, widen(d)), add(q, widen(mul(d, d)))
    return total(t), total(q)


@scalar
def runs_gradient_sums(
    dy: Array, x: Array, start: int, step: int, runs: int, length: int, mean: float
) -> tuple[float, float]:
    """Return the sums of dy and dy * (x - mean) over runs of `length` values, `step` apart."""
    m = splat(x, mean)
    t = widen(splat(x, 0.0))
    p = t
    for run in range(runs):
        i = start + run * step
        end = i + length
        while i + 8 * LANES <= end:
            prefetch(x, i + AHEAD)
            prefetch(dy, i + AHEAD)
            g = load(dy, i)
            t8, p8 = g, mul(g, sub(load(x, i), m))
            for j in range(1, 8):
                prefetch(x, i + j * LANES + AHEAD)
                prefetch(dy, i + j * LANES + AHEAD)
                g = load(dy, i + j * LANES)
                t8, p8 = add(t8, g), fma(g, sub(load(x, i + j * LANES), m), p8)
            t, p = add(t, widen(t8)), add(p, widen(p8))
            i += 8 * LANES
        while i + LANES <= end:
            g = load(dy, i)
            t, p = add(t, widen(g)), add(p, widen(mul(g, sub(load(x, i), m))))
            i += LANES
        g = load_part(dy, i, end - i)
        product = mul(g, keep(sub(load_part(x, i, end - i), m), end - i))
        t, p = add(t, widen(g)), add(p, widen(product))
    return total(t), total(p)


@scalar
def column_total(values: Array, start: int, length: int) -> float:
    """Return the sum of `length` float64 numbers."""
    t = splat(values, 0.0)
    i = start
    end = start + length
    while i + LANES <= end:
        t = add(t, load(values, i))
        i += LANES
    result: float = total(add(t, load_part(values, i, end - i)))
    return result


@scalar
def run_normalize(
    x: Array, start: int, length: int, mean: float, scale: float, shift: float, y: Array, past_cache: bool
) -> None:
    """Write y = (x - mean) * scale + shift over a run, rounded once to the dtype of y."""
    m, a, b = splat(x, mean), splat(x, scale), splat(x, shift)
    i = start
    end = start + length
    if past_cache:
        head = to_line(y, i, length)
        store_part(y, i, head, fma(sub(load_part(x, i, head), m), a, b))
        i += head
        while i + LANES <= end:
            prefetch(x, i + length)  # the next channel, which is summed next: 33 against 25 GB/s (103 MB, S 3136)
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
    m, av, bv, cv = splat(x, mean), splat(x, a), splat(x, b), splat(x, c)
    i = start
    end = start + length
    if past_cache:
        head = to_line(dx, i, length)
        store_part(dx, i, head, fma(load_part(dy, i, head), av, fma(sub(load_part(x, i, head), m), bv, cv)))
        i += head
        while i + LANES <= end:
            prefetch(x, i + length)
            prefetch(dy, i + length)
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
    av = splat(dy, a)
    i = start
    end = start + length
    while i + LANES <= end:
        store(dx, i, mul(load(dy, i), av))
        i += LANES
    store_part(dx, i, end - i, mul(load_part(dy, i, end - i), av))
