"""Sweeps over one channel of (N, C, S): N segments of S values each, C * S apart in memory.

A segment is cut into `Q` vectors of 16 bytes, its chunks. Chunk `first + m * step` of a channel is this thread's m-th.
A thread keeps its first `smem_vectors` chunks in slots of shared memory that it alone uses; later sweeps take them from
there and go backwards, so that of the others they meet first what the second-level cache still holds.

Four chunks are loaded before the first is used: with 1024 threads a multiprocessor that is 64 KB in flight, where some
26 KB hide the latency of memory at 4.3 TB/s.

Where S is no whole number of chunks, a segment starts and ends inside a chunk that it shares with its neighbours. The
chunk is then loaded whole and what is not the segment's own is left out; it is stored a value at a time.
"""

from __future__ import annotations

from typing import Any

from fastbn_kernels.cuda.build.decorators import device
from fastbn_kernels.cuda.build.numba_cuda import cuda, i32, i64
from fastbn_kernels.cuda.element import beside, centred, normalized
from fastbn_kernels.cuda.simd.ops import (
    adds,
    decoded,
    dot,
    get,
    inside,
    load,
    load_once,
    load_part,
    nothing,
    rounded,
    smem_load,
    smem_store,
    store,
    store_part,
    total,
    width,
)


@device
def forth(n: int, j: int, dn: int, dj: int, Q: int) -> tuple[int, int]:
    """Return the segment and chunk after a step of dn segments and dj chunks."""
    n = i32(n + dn)
    j = i32(j + dj)
    if j >= Q:
        j = i32(j - Q)
        n = i32(n + 1)
    return n, j


@device
def back(n: int, j: int, dn: int, dj: int, Q: int) -> tuple[int, int]:
    """Return the segment and chunk before a step of dn segments and dj chunks."""
    n = i32(n - dn)
    j = i32(j - dj)
    if j < 0:
        j = i32(j + Q)
        n = i32(n - 1)
    return n, j


@device
def chunk(x: Any, n: int, j: int, c: int, C: int, S: int) -> tuple[int, int, int]:
    """Return where chunk j of segment n begins, and from where to where in it the values are the segment's."""
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
def fetch_beside(x: Any, at: int, hi: int, size: int, after: Any) -> Any:
    """Load a chunk of what is added, if there is anything."""
    if adds(after):
        return fetch(after[1], at, hi, size)
    return nothing(x)


@device
def value(x: Any, at: int, size: int) -> Any:
    """Return one value of x as float64."""
    head = i32(at & (width(x) - 1))
    return get(decoded(x, fetch(x, at - head, i32(head + 1), size)), head)


@device
def sample(x: Any, c: int, N: int, C: int, S: int, Q: int, i: int, count: int) -> tuple[float, float]:
    """Return the i-th of at most `count` values from all over a channel, and 1; twice zero if there is none."""
    items = i32(N * Q)
    item = i32(i * i32(max(items // count, 1)))
    one = 0.0
    taken = 0.0
    if i < count and item < items:
        at, lo, hi = chunk(x, i32(item // Q), i32(item % Q), c, C, S)
        if hi > 0:
            one = get(decoded(x, fetch(x, at, hi, i64(N) * C * S)), lo)
            taken = 1.0
    return one, taken


@device
def steps(first: int, step: int, items: int) -> Any:
    """Return how many of `items` chunks are this thread's."""
    return i32((items - first + step - 1) // step) if first < items else i32(0)


@device
def segments_sums(
    x: Any, c: int, N: int, C: int, S: int, Q: int, first: int, step: int, around: Any, smem: Any,
    smem_vectors: int,
) -> tuple[float, float]:  # fmt: skip
    """Return this thread's sums of d and of d^2, and keep its first chunks; `around` is a shift, and a unit."""
    V = width(x)
    zero = rounded(x, 0.0)
    thread, threads = i32(cuda.threadIdx.x), i32(cuda.blockDim.x)
    count = steps(first, step, N * Q)
    n, j = i32(first // Q), i32(first % Q)
    dn, dj = i32(step // Q), i32(step % Q)
    stride = i64(C) * S
    base = i64(c) * S
    linear = 0.0
    squares = 0.0
    m = i32(0)
    if Q * V == S:
        while m + 3 < count:
            at0 = base + n * stride + j * V
            n, j = forth(n, j, dn, dj, Q)
            at1 = base + n * stride + j * V
            n, j = forth(n, j, dn, dj, Q)
            at2 = base + n * stride + j * V
            n, j = forth(n, j, dn, dj, Q)
            at3 = base + n * stride + j * V
            n, j = forth(n, j, dn, dj, Q)
            if m + 3 < smem_vectors:
                raw0, raw1, raw2, raw3 = load_once(x, at0), load_once(x, at1), load_once(x, at2), load_once(x, at3)
                slot = i32(m * threads + thread)
                smem_store(smem, slot, raw0)
                smem_store(smem, i32(slot + threads), raw1)
                smem_store(smem, i32(slot + 2 * threads), raw2)
                smem_store(smem, i32(slot + 3 * threads), raw3)
            else:
                raw0, raw1, raw2, raw3 = load(x, at0), load(x, at1), load(x, at2), load(x, at3)
                slot = i32(m * threads + thread)
                if m < smem_vectors:
                    smem_store(smem, slot, raw0)
                if m + 1 < smem_vectors:
                    smem_store(smem, i32(slot + threads), raw1)
                if m + 2 < smem_vectors:
                    smem_store(smem, i32(slot + 2 * threads), raw2)
            off0, off1 = centred(x, raw0, around), centred(x, raw1, around)
            off2, off3 = centred(x, raw2, around), centred(x, raw3, around)
            linear += (total(off0) + total(off1)) + (total(off2) + total(off3))
            squares += (dot(off0, off0) + dot(off1, off1)) + (dot(off2, off2) + dot(off3, off3))
            m = i32(m + 4)
        while m < count:
            raw0 = load(x, base + n * stride + j * V)
            n, j = forth(n, j, dn, dj, Q)
            if m < smem_vectors:
                smem_store(smem, i32(m * threads + thread), raw0)
            off0 = centred(x, raw0, around)
            linear += total(off0)
            squares += dot(off0, off0)
            m = i32(m + 1)
    else:
        size = i64(N) * stride
        while m < count:
            at, lo, hi = chunk(x, n, j, c, C, S)
            n, j = forth(n, j, dn, dj, Q)
            if hi > 0:
                raw0 = fetch(x, at, hi, size)
                if m < smem_vectors:
                    smem_store(smem, i32(m * threads + thread), raw0)
                off0 = inside(centred(x, raw0, around), lo, hi, zero)
                linear += total(off0)
                squares += dot(off0, off0)
            m = i32(m + 1)
    return linear, squares


@device
def segments_normalize(
    x: Any, c: int, N: int, C: int, S: int, Q: int, first: int, step: int, params: Any, y: Any, smem: Any,
    smem_vectors: int, after: Any,
) -> None:  # fmt: skip
    """Write the normalised channel to y, last chunk first."""
    V = width(x)
    thread, threads = i32(cuda.threadIdx.x), i32(cuda.blockDim.x)
    m = i32(steps(first, step, N * Q) - 1)
    last = i32(first + m * step)
    n, j = i32(last // Q), i32(last % Q)
    dn, dj = i32(step // Q), i32(step % Q)
    stride = i64(C) * S
    base = i64(c) * S
    if Q * V == S:
        while m - 3 >= smem_vectors:
            at0 = base + n * stride + j * V
            n, j = back(n, j, dn, dj, Q)
            at1 = base + n * stride + j * V
            n, j = back(n, j, dn, dj, Q)
            at2 = base + n * stride + j * V
            n, j = back(n, j, dn, dj, Q)
            at3 = base + n * stride + j * V
            n, j = back(n, j, dn, dj, Q)
            raw0, raw1, raw2, raw3 = load_once(x, at0), load_once(x, at1), load_once(x, at2), load_once(x, at3)
            extra0, extra1 = beside(x, at0, after), beside(x, at1, after)
            extra2, extra3 = beside(x, at2, after), beside(x, at3, after)
            store(y, at0, normalized(x, raw0, params, after, extra0))
            store(y, at1, normalized(x, raw1, params, after, extra1))
            store(y, at2, normalized(x, raw2, params, after, extra2))
            store(y, at3, normalized(x, raw3, params, after, extra3))
            m = i32(m - 4)
        while m >= 0:
            at0 = base + n * stride + j * V
            n, j = back(n, j, dn, dj, Q)
            raw0 = smem_load(smem, i32(m * threads + thread)) if m < smem_vectors else load_once(x, at0)
            store(y, at0, normalized(x, raw0, params, after, beside(x, at0, after)))
            m = i32(m - 1)
    else:
        size = i64(N) * stride
        while m >= 0:
            at, lo, hi = chunk(x, n, j, c, C, S)
            n, j = back(n, j, dn, dj, Q)
            if hi > 0:
                raw0 = smem_load(smem, i32(m * threads + thread)) if m < smem_vectors else fetch(x, at, hi, size)
                values = normalized(x, raw0, params, after, fetch_beside(x, at, hi, size, after))
                if lo == 0 and hi >= V:
                    store(y, at, values)
                else:
                    store_part(y, at, values, lo, hi)
            m = i32(m - 1)
