"""Sweeps over one channel of dy and x, (N, C, S), cut and kept as in `runs`, with two loads of each at a time."""

from __future__ import annotations

from typing import Any

from fastbn_kernels.cuda.loops.segments import back, chunk, fetch, forth, steps
from fastbn_kernels.cuda.simd.ops import (
    dot,
    fma,
    inside,
    keep,
    kept,
    load,
    load_once,
    mul,
    number,
    numbers,
    splat,
    store,
    store_part,
    sub,
    total,
    width,
)
from fastbn_kernels.cuda.toolkit import cuda, device, i32, i64


@device
def runs_gradient_sums(
    dy: Any, x: Any, c: int, N: int, C: int, S: int, Q: int, first: int, step: int, mean: float, held: Any, room: int
) -> tuple[float, float]:
    """Return this thread's sums of dy and of dy * (x - mean), and keep its first chunks of both."""
    V = width(x)
    means = splat(x, mean)
    one, zero = number(x, mean), number(x, 0.0)
    thread, threads = i32(cuda.threadIdx.x), i32(cuda.blockDim.x)
    count = steps(first, step, N * Q)
    n, j = i32(first // Q), i32(first % Q)
    dn, dj = i32(step // Q), i32(step % Q)
    apart = i64(C) * S
    base = i64(c) * S
    linear = 0.0
    products = 0.0
    m = i32(0)
    if Q * V == S:
        while m + 1 < count:
            at0 = base + n * apart + j * V
            n, j = forth(n, j, dn, dj, Q)
            at1 = base + n * apart + j * V
            n, j = forth(n, j, dn, dj, Q)
            if m + 1 < room:
                g0, raw0, g1, raw1 = load_once(dy, at0), load_once(x, at0), load_once(dy, at1), load_once(x, at1)
                slot = i32(2 * m * threads + thread)
                keep(held, slot, g0)
                keep(held, i32(slot + threads), raw0)
                keep(held, i32(slot + 2 * threads), g1)
                keep(held, i32(slot + 3 * threads), raw1)
            else:
                g0, raw0, g1, raw1 = load(dy, at0), load(x, at0), load(dy, at1), load(x, at1)
                if m < room:
                    slot = i32(2 * m * threads + thread)
                    keep(held, slot, g0)
                    keep(held, i32(slot + threads), raw0)
            grad0, grad1 = numbers(dy, g0), numbers(dy, g1)
            linear += total(grad0) + total(grad1)
            products += dot(grad0, sub(numbers(x, raw0), means)) + dot(grad1, sub(numbers(x, raw1), means))
            m = i32(m + 2)
        while m < count:
            at0 = base + n * apart + j * V
            n, j = forth(n, j, dn, dj, Q)
            g0, raw0 = load(dy, at0), load(x, at0)
            if m < room:
                slot = i32(2 * m * threads + thread)
                keep(held, slot, g0)
                keep(held, i32(slot + threads), raw0)
            grad0 = numbers(dy, g0)
            linear += total(grad0)
            products += dot(grad0, sub(numbers(x, raw0), means))
            m = i32(m + 1)
    else:
        size = i64(N) * apart
        while m < count:
            at, lo, hi = chunk(x, n, j, c, C, S)
            n, j = forth(n, j, dn, dj, Q)
            if hi > 0:
                g0, raw0 = fetch(dy, at, hi, size), fetch(x, at, hi, size)
                if m < room:
                    slot = i32(2 * m * threads + thread)
                    keep(held, slot, g0)
                    keep(held, i32(slot + threads), raw0)
                grad0 = inside(numbers(dy, g0), lo, hi, zero)
                linear += total(grad0)
                products += dot(grad0, sub(inside(numbers(x, raw0), lo, hi, one), means))
            m = i32(m + 1)
    return linear, products


@device
def runs_gradient(
    dy: Any, x: Any, c: int, N: int, C: int, S: int, Q: int, first: int, step: int,
    mean: float, a: float, b: float, shift: float, frozen: int, dx: Any, held: Any, room: int,
) -> None:  # fmt: skip
    """Write a * dy + b * (x - mean) + shift to dx, or a * dy if frozen, last chunk first."""
    V = width(x)
    means, slopes, weights, shifts = splat(x, mean), splat(x, a), splat(x, b), splat(x, shift)
    thread, threads = i32(cuda.threadIdx.x), i32(cuda.blockDim.x)
    m = i32(steps(first, step, N * Q) - 1)
    last = i32(first + m * step)
    n, j = i32(last // Q), i32(last % Q)
    dn, dj = i32(step // Q), i32(step % Q)
    apart = i64(C) * S
    base = i64(c) * S
    exact = Q * V == S
    size = i64(N) * apart
    while exact and frozen == 0 and m - 1 >= room:
        at0 = base + n * apart + j * V
        n, j = back(n, j, dn, dj, Q)
        at1 = base + n * apart + j * V
        n, j = back(n, j, dn, dj, Q)
        g0, raw0, g1, raw1 = load_once(dy, at0), load_once(x, at0), load_once(dy, at1), load_once(x, at1)
        store(dx, at0, fma(numbers(dy, g0), slopes, fma(sub(numbers(x, raw0), means), weights, shifts)))
        store(dx, at1, fma(numbers(dy, g1), slopes, fma(sub(numbers(x, raw1), means), weights, shifts)))
        m = i32(m - 2)
    while m >= 0:
        at, lo, hi = chunk(x, n, j, c, C, S)
        n, j = back(n, j, dn, dj, Q)
        if hi > 0:
            slot = i32(2 * m * threads + thread)
            if m < room:
                g0, raw0 = kept(held, slot), kept(held, i32(slot + threads))
            else:
                g0, raw0 = fetch(dy, at, hi, size), fetch(x, at, hi, size)
            if frozen != 0:
                values = mul(numbers(dy, g0), slopes)
            else:
                values = fma(numbers(dy, g0), slopes, fma(sub(numbers(x, raw0), means), weights, shifts))
            if lo == 0 and hi >= V:
                store(dx, at, values)
            else:
                store_part(dx, at, values, lo, hi)
        m = i32(m - 1)
