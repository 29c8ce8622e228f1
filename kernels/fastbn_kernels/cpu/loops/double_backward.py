"""Inner loops of `double_backward`, over runs and bands: three tensors are read, and two written.

v is the gradient that comes in by dx, g is dy. The sums are those of v, v * (x - mean), v * g, g and g * (x - mean).
Arrays, accumulators and results as in `runs` and `bands`; the outputs share no memory with anything else.
"""

from __future__ import annotations

from fastbn_kernels.build.decorators import Array, scalar
from fastbn_kernels.cpu.loops.segments import AHEAD
from fastbn_kernels.cpu.simd.ops import (
    add,
    fma,
    keep,
    load,
    load_part,
    mul,
    numbers,
    numbers_part,
    prefetch,
    splat,
    store,
    store_part,
    sub,
    total,
    widen,
)
from fastbn_kernels.cpu.simd.types import LANES


@scalar
def runs_double_sums(
    v: Array, g: Array, x: Array, start: int, step: int, runs: int, length: int, mean: float
) -> tuple[float, float, float, float, float]:
    """Return the sums over runs of `length` values, `step` apart."""
    m = splat(x, mean)
    t0 = widen(splat(x, 0.0))
    t1, t2, t3, t4 = t0, t0, t0, t0
    for run in range(runs):
        i = start + run * step
        end = i + length
        while i + 8 * LANES <= end:
            prefetch(v, i + AHEAD)
            prefetch(g, i + AHEAD)
            prefetch(x, i + AHEAD)
            vi, gi, d = load(v, i), load(g, i), sub(load(x, i), m)
            s0, s1, s2, s3, s4 = vi, mul(vi, d), mul(vi, gi), gi, mul(gi, d)
            for j in range(1, 8):
                at = i + j * LANES
                prefetch(v, at + AHEAD)
                prefetch(g, at + AHEAD)
                prefetch(x, at + AHEAD)
                vi, gi, d = load(v, at), load(g, at), sub(load(x, at), m)
                s0, s1, s2, s3, s4 = add(s0, vi), fma(vi, d, s1), fma(vi, gi, s2), add(s3, gi), fma(gi, d, s4)
            t0, t1, t2 = add(t0, widen(s0)), add(t1, widen(s1)), add(t2, widen(s2))
            t3, t4 = add(t3, widen(s3)), add(t4, widen(s4))
            i += 8 * LANES
        while i + LANES <= end:
            vi, gi, d = load(v, i), load(g, i), sub(load(x, i), m)
            t0, t1, t2 = add(t0, widen(vi)), add(t1, widen(mul(vi, d))), add(t2, widen(mul(vi, gi)))
            t3, t4 = add(t3, widen(gi)), add(t4, widen(mul(gi, d)))
            i += LANES
        n = end - i
        vi, gi, d = load_part(v, i, n), load_part(g, i, n), keep(sub(load_part(x, i, n), m), n)
        t0, t1, t2 = add(t0, widen(vi)), add(t1, widen(mul(vi, d))), add(t2, widen(mul(vi, gi)))
        t3, t4 = add(t3, widen(gi)), add(t4, widen(mul(gi, d)))
    return total(t0), total(t1), total(t2), total(t3), total(t4)


@scalar
def run_double_gradient(
    v: Array, g: Array, x: Array, start: int, length: int, mean: float,
    coefficients: tuple[float, float, float, float, float, float], ddy: Array, dx: Array,
) -> None:  # fmt: skip
    """Write ddy and dx of a run."""
    a, b, c, e, h, o = coefficients
    m, av, bv, cv = splat(x, mean), splat(x, a), splat(x, b), splat(x, c)
    ev, hv, ov = splat(x, e), splat(x, h), splat(x, o)
    i = start
    end = start + length
    while i + LANES <= end:
        vi, gi, d = load(v, i), load(g, i), sub(load(x, i), m)
        store(ddy, i, fma(vi, av, fma(d, bv, cv)))
        store(dx, i, fma(vi, ev, fma(gi, bv, fma(d, hv, ov))))
        i += LANES
    n = end - i
    vi, gi, d = load_part(v, i, n), load_part(g, i, n), sub(load_part(x, i, n), m)
    store_part(ddy, i, n, fma(vi, av, fma(d, bv, cv)))
    store_part(dx, i, n, fma(vi, ev, fma(gi, bv, fma(d, hv, ov))))


@scalar
def band_double_sums(
    v: Array, g: Array, x: Array, start: int, step: int, rows: int, width: int, mean: Array,
    t0: Array, t1: Array, t2: Array, t3: Array, t4: Array,
) -> None:  # fmt: skip
    """Add the sums over at most 8 rows of `width` columns, `step` apart, to those of the columns."""
    c = 0
    while c + LANES <= width:
        m = numbers(mean, c)
        i = start + c
        vi, gi, d = load(v, i), load(g, i), sub(load(x, i), m)
        s0, s1, s2, s3, s4 = vi, mul(vi, d), mul(vi, gi), gi, mul(gi, d)
        for _ in range(1, rows):
            i += step
            vi, gi, d = load(v, i), load(g, i), sub(load(x, i), m)
            s0, s1, s2, s3, s4 = add(s0, vi), fma(vi, d, s1), fma(vi, gi, s2), add(s3, gi), fma(gi, d, s4)
        store(t0, c, add(load(t0, c), widen(s0)))
        store(t1, c, add(load(t1, c), widen(s1)))
        store(t2, c, add(load(t2, c), widen(s2)))
        store(t3, c, add(load(t3, c), widen(s3)))
        store(t4, c, add(load(t4, c), widen(s4)))
        c += LANES
    while c < width:  # once at most; `if` would cost, see `runs`
        n = width - c
        m = numbers_part(mean, c, n)
        i = start + c
        for _ in range(rows):
            vi, gi, d = load_part(v, i, n), load_part(g, i, n), sub(load_part(x, i, n), m)
            store_part(t0, c, n, add(load_part(t0, c, n), widen(vi)))
            store_part(t1, c, n, add(load_part(t1, c, n), widen(mul(vi, d))))
            store_part(t2, c, n, add(load_part(t2, c, n), widen(mul(vi, gi))))
            store_part(t3, c, n, add(load_part(t3, c, n), widen(gi)))
            store_part(t4, c, n, add(load_part(t4, c, n), widen(mul(gi, d))))
            i += step
        c += LANES


@scalar
def band_double_gradient(
    v: Array, g: Array, x: Array, start: int, step: int, rows: int, width: int, mean: Array,
    a: Array, b: Array, c: Array, e: Array, h: Array, o: Array, ddy: Array, dx: Array,
) -> None:  # fmt: skip
    """Write ddy and dx of some rows of `width` columns, `step` apart."""
    k = 0
    while k + LANES <= width:
        m, av, bv, cv = numbers(mean, k), numbers(a, k), numbers(b, k), numbers(c, k)
        ev, hv, ov = numbers(e, k), numbers(h, k), numbers(o, k)
        i = start + k
        for _ in range(rows):
            vi, gi, d = load(v, i), load(g, i), sub(load(x, i), m)
            store(ddy, i, fma(vi, av, fma(d, bv, cv)))
            store(dx, i, fma(vi, ev, fma(gi, bv, fma(d, hv, ov))))
            i += step
        k += LANES
    while k < width:
        n = width - k
        m, av, bv, cv = numbers_part(mean, k, n), numbers_part(a, k, n), numbers_part(b, k, n), numbers_part(c, k, n)
        ev, hv, ov = numbers_part(e, k, n), numbers_part(h, k, n), numbers_part(o, k, n)
        i = start + k
        for _ in range(rows):
            vi, gi, d = load_part(v, i, n), load_part(g, i, n), sub(load_part(x, i, n), m)
            store_part(ddy, i, n, fma(vi, av, fma(d, bv, cv)))
            store_part(dx, i, n, fma(vi, ev, fma(gi, bv, fma(d, hv, ov))))
            i += step
        k += LANES
