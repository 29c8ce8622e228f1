"""Sweeps over one channel of (N, C, S): N runs of S values each, C * S apart.

A run is cut into `Q` chunks of 16 bytes. Chunk `first + m * step` of a channel is this thread's m-th. The first `room`
of a thread's chunks are kept on the chip, in slots of shared memory that it alone uses; later sweeps take them from
there and go backwards, so that of the others they meet first what the second-level cache still holds.

Four chunks are loaded before the first is used: with 1024 threads a multiprocessor that is 64 KB in flight, where some
26 KB hide the latency of memory at 4.3 TB/s.

Where S is no whole number of chunks, a run starts and ends inside a chunk that it shares with its neighbours. The chunk
is then loaded whole and what is not the run's own is left out; it is stored a value at a time.
"""

from __future__ import annotations

from typing import Any

from fastbn_kernels.cuda.simd.ops import (
    dot,
    fma,
    get,
    inside,
    keep,
    kept,
    load,
    load_once,
    load_part,
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
def forth(n: int, j: int, dn: int, dj: int, Q: int) -> tuple[int, int]:
    """Return the run and chunk after a step of dn runs and dj chunks."""
    n = i32(n + dn)
    j = i32(j + dj)
    if j >= Q:
        j = i32(j - Q)
        n = i32(n + 1)
    return n, j


@device
def back(n: int, j: int, dn: int, dj: int, Q: int) -> tuple[int, int]:
    """Return the run and chunk before a step of dn runs and dj chunks."""
    n = i32(n - dn)
    j = i32(j - dj)
    if j < 0:
        j = i32(j + Q)
        n = i32(n - 1)
    return n, j


@device
def chunk(x: Any, n: int, j: int, c: int, C: int, S: int) -> tuple[int, int, int]:
    """Return where chunk j of run n begins, and from where to where in it the values are the run's."""
    V = width(x)
    start = (i64(n) * C + c) * S
    head = i32(start & (V - 1))
    lo = head if j == 0 else i32(0)
    hi = i32(min(i64(V), head + S - i64(j) * V))
    return start - head + i64(j) * V, lo, hi


@device
def fetch(x: Any, at: int, hi: int, size: int) -> Any:
    """Load a chunk; of the last of all, which may end beyond the tensor, only what is there."""
    return load(x, at) if at + width(x) <= size else load_part(x, at, hi)


@device
def value(x: Any, at: int, size: int) -> Any:
    """Return one value of x as float64."""
    head = i32(at & (width(x) - 1))
    return get(numbers(x, fetch(x, at - head, i32(head + 1), size)), head)


@device
def steps(first: int, step: int, items: int) -> Any:
    """Return how many of `items` chunks are this thread's."""
    return i32((items - first + step - 1) // step) if first < items else i32(0)


@device
def runs_sums(
    x: Any, c: int, N: int, C: int, S: int, Q: int, first: int, step: int, k: float, held: Any, room: int
) -> tuple[float, float]:
    """Return this thread's sums of (x - k) and of (x - k)^2, and keep its first chunks."""
    V = width(x)
    around = splat(x, k)
    one = number(x, k)
    thread, threads = i32(cuda.threadIdx.x), i32(cuda.blockDim.x)
    count = steps(first, step, N * Q)
    n, j = i32(first // Q), i32(first % Q)
    dn, dj = i32(step // Q), i32(step % Q)
    apart = i64(C) * S
    base = i64(c) * S
    linear = 0.0
    squares = 0.0
    m = i32(0)
    if Q * V == S:
        while m + 3 < count:
            at0 = base + n * apart + j * V
            n, j = forth(n, j, dn, dj, Q)
            at1 = base + n * apart + j * V
            n, j = forth(n, j, dn, dj, Q)
            at2 = base + n * apart + j * V
            n, j = forth(n, j, dn, dj, Q)
            at3 = base + n * apart + j * V
            n, j = forth(n, j, dn, dj, Q)
            if m + 3 < room:
                raw0, raw1, raw2, raw3 = load_once(x, at0), load_once(x, at1), load_once(x, at2), load_once(x, at3)
                slot = i32(m * threads + thread)
                keep(held, slot, raw0)
                keep(held, i32(slot + threads), raw1)
                keep(held, i32(slot + 2 * threads), raw2)
                keep(held, i32(slot + 3 * threads), raw3)
            else:
                raw0, raw1, raw2, raw3 = load(x, at0), load(x, at1), load(x, at2), load(x, at3)
                slot = i32(m * threads + thread)
                if m < room:
                    keep(held, slot, raw0)
                if m + 1 < room:
                    keep(held, i32(slot + threads), raw1)
                if m + 2 < room:
                    keep(held, i32(slot + 2 * threads), raw2)
            off0, off1 = sub(numbers(x, raw0), around), sub(numbers(x, raw1), around)
            off2, off3 = sub(numbers(x, raw2), around), sub(numbers(x, raw3), around)
            linear += (total(off0) + total(off1)) + (total(off2) + total(off3))
            squares += (dot(off0, off0) + dot(off1, off1)) + (dot(off2, off2) + dot(off3, off3))
            m = i32(m + 4)
        while m < count:
            raw0 = load(x, base + n * apart + j * V)
            n, j = forth(n, j, dn, dj, Q)
            if m < room:
                keep(held, i32(m * threads + thread), raw0)
            off0 = sub(numbers(x, raw0), around)
            linear += total(off0)
            squares += dot(off0, off0)
            m = i32(m + 1)
    else:
        size = i64(N) * apart
        while m < count:
            at, lo, hi = chunk(x, n, j, c, C, S)
            n, j = forth(n, j, dn, dj, Q)
            if hi > 0:
                raw0 = fetch(x, at, hi, size)
                if m < room:
                    keep(held, i32(m * threads + thread), raw0)
                off0 = sub(inside(numbers(x, raw0), lo, hi, one), around)
                linear += total(off0)
                squares += dot(off0, off0)
            m = i32(m + 1)
    return linear, squares


@device
def runs_normalize(
    x: Any, c: int, N: int, C: int, S: int, Q: int, first: int, step: int, mean: float, scale: float, shift: float,
    y: Any, held: Any, room: int,
) -> None:  # fmt: skip
    """Write (x - mean) * scale + shift to y, last chunk first."""
    V = width(x)
    means, scales, shifts = splat(x, mean), splat(x, scale), splat(x, shift)
    thread, threads = i32(cuda.threadIdx.x), i32(cuda.blockDim.x)
    m = i32(steps(first, step, N * Q) - 1)
    last = i32(first + m * step)
    n, j = i32(last // Q), i32(last % Q)
    dn, dj = i32(step // Q), i32(step % Q)
    apart = i64(C) * S
    base = i64(c) * S
    if Q * V == S:
        while m - 3 >= room:
            at0 = base + n * apart + j * V
            n, j = back(n, j, dn, dj, Q)
            at1 = base + n * apart + j * V
            n, j = back(n, j, dn, dj, Q)
            at2 = base + n * apart + j * V
            n, j = back(n, j, dn, dj, Q)
            at3 = base + n * apart + j * V
            n, j = back(n, j, dn, dj, Q)
            raw0, raw1, raw2, raw3 = load_once(x, at0), load_once(x, at1), load_once(x, at2), load_once(x, at3)
            store(y, at0, fma(sub(numbers(x, raw0), means), scales, shifts))
            store(y, at1, fma(sub(numbers(x, raw1), means), scales, shifts))
            store(y, at2, fma(sub(numbers(x, raw2), means), scales, shifts))
            store(y, at3, fma(sub(numbers(x, raw3), means), scales, shifts))
            m = i32(m - 4)
        while m >= 0:
            at0 = base + n * apart + j * V
            n, j = back(n, j, dn, dj, Q)
            raw0 = kept(held, i32(m * threads + thread)) if m < room else load_once(x, at0)
            store(y, at0, fma(sub(numbers(x, raw0), means), scales, shifts))
            m = i32(m - 1)
    else:
        size = i64(N) * apart
        while m >= 0:
            at, lo, hi = chunk(x, n, j, c, C, S)
            n, j = back(n, j, dn, dj, Q)
            if hi > 0:
                raw0 = kept(held, i32(m * threads + thread)) if m < room else fetch(x, at, hi, size)
                values = fma(sub(numbers(x, raw0), means), scales, shifts)
                if lo == 0 and hi >= V:
                    store(y, at, values)
                else:
                    store_part(y, at, values, lo, hi)
            m = i32(m - 1)
