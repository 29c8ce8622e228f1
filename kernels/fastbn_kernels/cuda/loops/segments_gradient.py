"""Sweeps over one channel of dy and x, (N, C, S), cut and kept as in `segments`, with two loads of each at a time."""

from __future__ import annotations

from typing import Any

from fastbn_kernels.cuda.build.decorators import device
from fastbn_kernels.cuda.build.numba_cuda import cuda, i32, i64
from fastbn_kernels.cuda.element import beside, frozen_gradient, gradient, gradient_terms, keep
from fastbn_kernels.cuda.loops.segments import back, chunk, fetch, fetch_beside, forth, steps
from fastbn_kernels.cuda.simd.ops import (
    dot,
    inside,
    load,
    load_once,
    rounded,
    smem_load,
    smem_store,
    store,
    store_part,
    total,
    width,
)


@device
def segments_gradient_sums(
    dy: Any, x: Any, c: int, N: int, C: int, S: int, Q: int, first: int, step: int, params: Any, smem: Any,
    smem_vectors: int, after: Any,
) -> tuple[float, float]:  # fmt: skip
    """Return this thread's sums of g and of g * (x - mean), and keep its first chunks of both."""
    V = width(x)
    zero = rounded(x, 0.0)
    thread, threads = i32(cuda.threadIdx.x), i32(cuda.blockDim.x)
    count = steps(first, step, N * Q)
    n, j = i32(first // Q), i32(first % Q)
    dn, dj = i32(step // Q), i32(step % Q)
    stride = i64(C) * S
    base = i64(c) * S
    linear = 0.0
    products = 0.0
    m = i32(0)
    if Q * V == S:
        while m + 1 < count:
            at0 = base + n * stride + j * V
            n, j = forth(n, j, dn, dj, Q)
            at1 = base + n * stride + j * V
            n, j = forth(n, j, dn, dj, Q)
            slot = i32(2 * m * threads + thread)
            if m + 1 < smem_vectors:
                g0, raw0, g1, raw1 = load_once(dy, at0), load_once(x, at0), load_once(dy, at1), load_once(x, at1)
                smem_store(smem, slot, g0)
                smem_store(smem, i32(slot + threads), raw0)
                smem_store(smem, i32(slot + 2 * threads), g1)
                smem_store(smem, i32(slot + 3 * threads), raw1)
            else:
                g0, raw0, g1, raw1 = load(dy, at0), load(x, at0), load(dy, at1), load(x, at1)
                if m < smem_vectors:
                    smem_store(smem, slot, g0)
                    smem_store(smem, i32(slot + threads), raw0)
            extra0, extra1 = beside(x, at0, after), beside(x, at1, after)
            grad0, off0 = gradient_terms(dy, g0, x, raw0, params, after, extra0)
            grad1, off1 = gradient_terms(dy, g1, x, raw1, params, after, extra1)
            keep(dy, at0, 0, V, grad0, after, smem, slot, m < smem_vectors)
            keep(dy, at1, 0, V, grad1, after, smem, i32(slot + 2 * threads), m + 1 < smem_vectors)
            linear += total(grad0) + total(grad1)
            products += dot(grad0, off0) + dot(grad1, off1)
            m = i32(m + 2)
        while m < count:
            at0 = base + n * stride + j * V
            n, j = forth(n, j, dn, dj, Q)
            g0, raw0 = load(dy, at0), load(x, at0)
            slot = i32(2 * m * threads + thread)
            if m < smem_vectors:
                smem_store(smem, slot, g0)
                smem_store(smem, i32(slot + threads), raw0)
            grad0, off0 = gradient_terms(dy, g0, x, raw0, params, after, beside(x, at0, after))
            keep(dy, at0, 0, V, grad0, after, smem, slot, m < smem_vectors)
            linear += total(grad0)
            products += dot(grad0, off0)
            m = i32(m + 1)
    else:
        size = i64(N) * stride
        while m < count:
            at, lo, hi = chunk(x, n, j, c, C, S)
            n, j = forth(n, j, dn, dj, Q)
            if hi > 0:
                g0, raw0 = fetch(dy, at, hi, size), fetch(x, at, hi, size)
                slot = i32(2 * m * threads + thread)
                if m < smem_vectors:
                    smem_store(smem, slot, g0)
                    smem_store(smem, i32(slot + threads), raw0)
                extra0 = fetch_beside(x, at, hi, size, after)
                grad0, off0 = gradient_terms(dy, g0, x, raw0, params, after, extra0)
                keep(dy, at, lo, hi, grad0, after, smem, slot, m < smem_vectors)
                grad0, off0 = inside(grad0, lo, hi, zero), inside(off0, lo, hi, zero)
                linear += total(grad0)
                products += dot(grad0, off0)
            m = i32(m + 1)
    return linear, products


@device
def segments_gradient(
    dy: Any, x: Any, c: int, N: int, C: int, S: int, Q: int, first: int, step: int, params: Any, frozen: int, dx: Any,
    smem: Any, smem_vectors: int, after: Any,
) -> None:  # fmt: skip
    """Write dx of a channel, last chunk first."""
    V = width(x)
    thread, threads = i32(cuda.threadIdx.x), i32(cuda.blockDim.x)
    m = i32(steps(first, step, N * Q) - 1)
    last = i32(first + m * step)
    n, j = i32(last // Q), i32(last % Q)
    dn, dj = i32(step // Q), i32(step % Q)
    stride = i64(C) * S
    base = i64(c) * S
    exact = Q * V == S
    size = i64(N) * stride
    while exact and frozen == 0 and m - 1 >= smem_vectors:
        at0 = base + n * stride + j * V
        n, j = back(n, j, dn, dj, Q)
        at1 = base + n * stride + j * V
        n, j = back(n, j, dn, dj, Q)
        g0, raw0, g1, raw1 = load_once(dy, at0), load_once(x, at0), load_once(dy, at1), load_once(x, at1)
        extra0, extra1 = beside(x, at0, after), beside(x, at1, after)
        grad0, off0 = gradient_terms(dy, g0, x, raw0, params, after, extra0)
        grad1, off1 = gradient_terms(dy, g1, x, raw1, params, after, extra1)
        keep(dy, at0, 0, V, grad0, after, smem, i32(0), False)
        keep(dy, at1, 0, V, grad1, after, smem, i32(0), False)
        store(dx, at0, gradient(grad0, off0, params))
        store(dx, at1, gradient(grad1, off1, params))
        m = i32(m - 2)
    while m >= 0:
        at, lo, hi = chunk(x, n, j, c, C, S)
        n, j = back(n, j, dn, dj, Q)
        if hi > 0:
            slot = i32(2 * m * threads + thread)
            if m < smem_vectors:
                g0, raw0 = smem_load(smem, slot), smem_load(smem, i32(slot + threads))
            else:
                g0, raw0 = fetch(dy, at, hi, size), fetch(x, at, hi, size)
            extra0 = fetch_beside(x, at, hi, size, after)
            grad0, off0 = gradient_terms(dy, g0, x, raw0, params, after, extra0)
            keep(dy, at, lo, hi, grad0, after, smem, i32(0), False)
            values = frozen_gradient(grad0, params) if frozen != 0 else gradient(grad0, off0, params)
            if lo == 0 and hi >= V:
                store(dx, at, values)
            else:
                store_part(dx, at, values, lo, hi)
        m = i32(m - 1)
