"""Sweeps over what counts of one channel of (N, C, S); see `segments`.

A mask is (N, S), a byte a position, the same for all channels, which find it in a cache. A chunk of which no place
counts is not loaded; of others, what does not count is left out as it is centred. Two chunks are loaded before the
first is used. Nothing is kept on the chip: these kernels sum, or write what was summed before.
"""

from __future__ import annotations

from typing import Any

from fastbn_kernels.cuda.build.decorators import device
from fastbn_kernels.cuda.build.numba_cuda import i32, i64
from fastbn_kernels.cuda.element import centred, frozen_gradient, gradient, gradient_terms, keep, normalized
from fastbn_kernels.cuda.loops.segments import chunk, fetch, fetch_beside, forth, steps
from fastbn_kernels.cuda.simd.masks import choose
from fastbn_kernels.cuda.simd.ops import decoded, dot, get, nothing, store, store_part, total, width


@device
def masked_chunk(
    x: Any, mask: Any, n: int, j: int, c: int, C: int, S: int, there: bool
) -> tuple[int, int, int, int]:  # fmt: skip
    """Return where chunk j of segment n begins, which values of it are the segment's, and the bits of those that count.

    Of a chunk that is not `there`, no values are.
    """
    at, lo, hi = chunk(x, n, j, c, C, S)
    position = i64(n) * S + (at - (i64(n) * C + c) * S)
    bits = i32(0)
    if not there:
        hi = i32(0)
    for i in range(width(x)):
        if lo <= i and i < hi and mask[position + i] != 0:
            bits = i32(bits | (1 << i))
    return at, lo, hi, bits


@device
def fetch_chosen(x: Any, at: int, hi: int, size: int, bits: int) -> Any:
    """Load a chunk of which some values count."""
    raw = nothing(x)
    if bits != 0:
        raw = fetch(x, at, hi, size)
    return raw


@device
def beside_chosen(x: Any, at: int, hi: int, size: int, bits: int, after: Any) -> Any:
    """Load what is added to a chunk of which some values count."""
    raw = nothing(x)
    if bits != 0:
        raw = fetch_beside(x, at, hi, size, after)
    return raw


@device
def store_chosen(y: Any, at: int, lo: int, hi: int, values: Any, bits: int) -> None:
    """Store what counts of a chunk, and zeros."""
    if lo == 0 and hi >= width(y):
        store(y, at, choose(values, bits))
    elif hi > 0:
        store_part(y, at, choose(values, bits), lo, hi)


@device
def masked_sample(
    x: Any, mask: Any, c: int, N: int, C: int, S: int, Q: int, i: int, count: int
) -> tuple[float, float]:  # fmt: skip
    """Return the i-th of at most `count` values from all over a channel that count, and 1; twice zero if it does not.

    It is the first of its chunk that does.
    """
    items = i32(N * Q)
    item = i32(i * i32(max(items // count, 1)))
    one = 0.0
    taken = 0.0
    if i < count and item < items:
        at, _, hi, bits = masked_chunk(x, mask, i32(item // Q), i32(item % Q), c, C, S, True)
        if bits != 0:
            first = i32(0)
            while bits & (1 << first) == 0:
                first = i32(first + 1)
            one = get(decoded(x, fetch(x, at, hi, i64(N) * C * S)), first)
            taken = 1.0
    return one, taken


@device
def masked_segments_sums(
    x: Any, mask: Any, c: int, N: int, C: int, S: int, Q: int, first: int, step: int, around: Any
) -> tuple[float, float]:
    """Return this thread's sums of d and of d^2; `around` is a shift, and a unit."""
    count = steps(first, step, N * Q)
    n, j = i32(first // Q), i32(first % Q)
    dn, dj = i32(step // Q), i32(step % Q)
    size = i64(N) * C * S
    linear = 0.0
    squares = 0.0
    m = i32(0)
    while m < count:
        at0, _, hi0, bits0 = masked_chunk(x, mask, n, j, c, C, S, True)
        n, j = forth(n, j, dn, dj, Q)
        at1, _, hi1, bits1 = masked_chunk(x, mask, n, j, c, C, S, m + 1 < count)
        n, j = forth(n, j, dn, dj, Q)
        raw0, raw1 = fetch_chosen(x, at0, hi0, size, bits0), fetch_chosen(x, at1, hi1, size, bits1)
        off0, off1 = choose(centred(x, raw0, around), bits0), choose(centred(x, raw1, around), bits1)
        linear += total(off0) + total(off1)
        squares += dot(off0, off0) + dot(off1, off1)
        m = i32(m + 2)
    return linear, squares


@device
def masked_segments_normalize(
    x: Any, mask: Any, c: int, N: int, C: int, S: int, Q: int, first: int, step: int, params: Any, y: Any,
    after: Any,
) -> None:  # fmt: skip
    """Write the normalised channel to y."""
    count = steps(first, step, N * Q)
    n, j = i32(first // Q), i32(first % Q)
    dn, dj = i32(step // Q), i32(step % Q)
    size = i64(N) * C * S
    m = i32(0)
    while m < count:
        at0, lo0, hi0, bits0 = masked_chunk(x, mask, n, j, c, C, S, True)
        n, j = forth(n, j, dn, dj, Q)
        at1, lo1, hi1, bits1 = masked_chunk(x, mask, n, j, c, C, S, m + 1 < count)
        n, j = forth(n, j, dn, dj, Q)
        raw0, raw1 = fetch_chosen(x, at0, hi0, size, bits0), fetch_chosen(x, at1, hi1, size, bits1)
        extra0 = beside_chosen(x, at0, hi0, size, bits0, after)
        extra1 = beside_chosen(x, at1, hi1, size, bits1, after)
        store_chosen(y, at0, lo0, hi0, normalized(x, raw0, params, after, extra0), bits0)
        store_chosen(y, at1, lo1, hi1, normalized(x, raw1, params, after, extra1), bits1)
        m = i32(m + 2)


@device
def masked_gradient_sums(
    dy: Any, x: Any, mask: Any, c: int, N: int, C: int, S: int, Q: int, first: int, step: int, params: Any,
    after: Any,
) -> tuple[float, float]:  # fmt: skip
    """Return this thread's sums of g and of g * (x - mean)."""
    count = steps(first, step, N * Q)
    n, j = i32(first // Q), i32(first % Q)
    dn, dj = i32(step // Q), i32(step % Q)
    size = i64(N) * C * S
    linear = 0.0
    products = 0.0
    m = i32(0)
    while m < count:
        at, _, hi, bits = masked_chunk(x, mask, n, j, c, C, S, True)
        n, j = forth(n, j, dn, dj, Q)
        g, raw = fetch_chosen(dy, at, hi, size, bits), fetch_chosen(x, at, hi, size, bits)
        grad, off = gradient_terms(dy, g, x, raw, params, after, beside_chosen(x, at, hi, size, bits, after))
        grad, off = choose(grad, bits), choose(off, bits)
        linear += total(grad)
        products += dot(grad, off)
        m = i32(m + 1)
    return linear, products


@device
def masked_gradient(
    dy: Any, x: Any, mask: Any, c: int, N: int, C: int, S: int, Q: int, first: int, step: int, params: Any,
    frozen: int, dx: Any, smem: Any, after: Any,
) -> None:  # fmt: skip
    """Write dx of a channel, and the gradient of what was added, zeros where nothing counts."""
    count = steps(first, step, N * Q)
    n, j = i32(first // Q), i32(first % Q)
    dn, dj = i32(step // Q), i32(step % Q)
    size = i64(N) * C * S
    m = i32(0)
    while m < count:
        at, lo, hi, bits = masked_chunk(x, mask, n, j, c, C, S, True)
        n, j = forth(n, j, dn, dj, Q)
        g, raw = fetch_chosen(dy, at, hi, size, bits), fetch_chosen(x, at, hi, size, bits)
        grad, off = gradient_terms(dy, g, x, raw, params, after, beside_chosen(x, at, hi, size, bits, after))
        if hi > 0:
            keep(dy, at, lo, hi, choose(grad, bits), after, smem, i32(0), False)
        values = frozen_gradient(grad, params) if frozen != 0 else gradient(grad, off, params)
        store_chosen(dx, at, lo, hi, values, bits)
        m = i32(m + 1)
