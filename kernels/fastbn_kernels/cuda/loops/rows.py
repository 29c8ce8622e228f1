"""Sweeps over a group of columns of rows (R, C): every thread takes the same 16 bytes of a row, every `step` rows.

`row_threads` neighbouring threads take neighbouring vectors of a row, the next `row_threads` those of the next row. As
in `segments`, a thread's first `smem_vectors` vectors are kept on the chip, later sweeps go backwards, and several are
loaded before the first is used.
"""

from __future__ import annotations

from typing import Any

from fastbn_kernels.cuda.build.decorators import device
from fastbn_kernels.cuda.build.numba_cuda import cuda, i32, i64
from fastbn_kernels.cuda.element import beside, centred, frozen_gradient, gradient, gradient_terms, keep, normalized
from fastbn_kernels.cuda.reduce import WARP, warp_sum
from fastbn_kernels.cuda.simd.ops import (
    add,
    decoded,
    fma,
    get,
    load,
    load_once,
    mul,
    smem_load,
    smem_store,
    splat,
    store,
    widen,
    width,
)

# Rows whose mean is what columns are summed around at first, in float32: as many as scratch holds of 64 columns.
SAMPLE = 16


@device
def seat(x: Any, base: int, rank: int, row_threads: int, blocks: int, R: int, wide: int) -> tuple[int, int, int]:
    """Return where in a group of columns this thread's vector begins, its first row, and how far it is to its next.

    The first row is R, so that there is none, if the group that begins at column `base` has no such vector.
    """
    thread = i32(cuda.threadIdx.x)
    column = i32(thread % row_threads * width(x))
    rows = i32(cuda.blockDim.x // row_threads)
    first = i32(rank * rows + thread // row_threads) if base + column < wide else R
    return column, first, i32(blocks * rows)


@device
def sample_rows(x: Any, base: int, R: int, wide: int, row_threads: int, columns: int, scratch: Any) -> int:
    """Fill scratch with columns of rows from all over R; return how many rows these are."""
    thread = i32(cuda.threadIdx.x)
    row, column = i32(thread // row_threads), i32(thread % row_threads * width(x))
    rows: int = i32(min(i32(cuda.blockDim.x // row_threads), SAMPLE, R))
    if row < rows and base + column < wide:
        values = decoded(x, load(x, i64(row) * i32(R // rows) * wide + base + column))
        for i in range(width(x)):
            scratch[row * columns + column + i] = get(values, i32(i))
    return rows


@device
def columns_sums(linear: Any, squares: Any, row_threads: int, columns: int, V: int, scratch: Any, sums: Any) -> None:
    """Fill sums[:columns] and sums[columns : 2 * columns] with the block's sums of two vectors a thread."""
    thread = i32(cuda.threadIdx.x)
    warps = i32(cuda.blockDim.x // WARP)
    lane = i32(thread % WARP)
    at = i32(thread // WARP * 2 * columns + lane * V)
    for i in range(V):
        a = warp_sum(get(linear, i32(i)), row_threads)
        b = warp_sum(get(squares, i32(i)), row_threads)
        if lane < row_threads:
            scratch[at + i] = a
            scratch[at + columns + i] = b
    cuda.syncthreads()
    i = thread
    while i < 2 * columns:
        value = 0.0
        for warp in range(warps):
            value += scratch[warp * 2 * columns + i]
        sums[i] = value
        i = i32(i + cuda.blockDim.x)
    cuda.syncthreads()


@device
def rows_sums(
    x: Any, column: int, first: int, step: int, R: int, C: int, around: Any, smem: Any, smem_vectors: int
) -> tuple[Any, Any]:
    """Return this thread's sums of d and of d^2, a column each, over rows first, first + step, ...

    `around` is what values are centred with: a shift, and a unit.
    """
    thread, threads = i32(cuda.threadIdx.x), i32(cuda.blockDim.x)
    linear, squares = widen(splat(x, 0.0)), widen(splat(x, 0.0))
    stride = i64(step) * C
    at = i64(first) * C + column
    m = i32(0)
    row = first
    while row + 3 * i64(step) < R:
        at1, at2, at3 = at + stride, at + 2 * stride, at + 3 * stride
        slot = i32(m * threads + thread)
        if m + 3 < smem_vectors:
            raw0, raw1, raw2, raw3 = load_once(x, at), load_once(x, at1), load_once(x, at2), load_once(x, at3)
            smem_store(smem, slot, raw0)
            smem_store(smem, i32(slot + threads), raw1)
            smem_store(smem, i32(slot + 2 * threads), raw2)
            smem_store(smem, i32(slot + 3 * threads), raw3)
        else:
            raw0, raw1, raw2, raw3 = load(x, at), load(x, at1), load(x, at2), load(x, at3)
            if m < smem_vectors:
                smem_store(smem, slot, raw0)
            if m + 1 < smem_vectors:
                smem_store(smem, i32(slot + threads), raw1)
            if m + 2 < smem_vectors:
                smem_store(smem, i32(slot + 2 * threads), raw2)
        off0, off1 = centred(x, raw0, around), centred(x, raw1, around)
        off2, off3 = centred(x, raw2, around), centred(x, raw3, around)
        linear = add(linear, widen(add(add(off0, off1), add(off2, off3))))
        squares = add(squares, widen(fma(off3, off3, fma(off2, off2, fma(off1, off1, mul(off0, off0))))))
        at += 4 * stride
        row = i32(row + 4 * step)
        m = i32(m + 4)
    while row < R:
        raw0 = load(x, at)
        if m < smem_vectors:
            smem_store(smem, i32(m * threads + thread), raw0)
        off0 = centred(x, raw0, around)
        linear = add(linear, widen(off0))
        squares = add(squares, widen(mul(off0, off0)))
        at += stride
        row = i32(row + step)
        m = i32(m + 1)
    return linear, squares


@device
def last_row(first: int, step: int, R: int) -> tuple[int, int]:
    """Return how many rows a thread has, less one, and the last of them."""
    m = i32((R - first + step - 1) // step - 1) if first < R else i32(-1)
    return m, i32(first + m * step)


@device
def rows_normalize(
    x: Any, column: int, first: int, step: int, R: int, C: int, params: Any, y: Any, smem: Any, smem_vectors: int,
    after: Any,
) -> None:  # fmt: skip
    """Write the normalised columns to y, last row first."""
    thread, threads = i32(cuda.threadIdx.x), i32(cuda.blockDim.x)
    m, row = last_row(first, step, R)
    stride = i64(step) * C
    at = i64(row) * C + column
    while m - 3 >= smem_vectors:
        at1, at2, at3 = at - stride, at - 2 * stride, at - 3 * stride
        raw0, raw1, raw2, raw3 = load_once(x, at), load_once(x, at1), load_once(x, at2), load_once(x, at3)
        extra0, extra1 = beside(x, at, after), beside(x, at1, after)
        extra2, extra3 = beside(x, at2, after), beside(x, at3, after)
        store(y, at, normalized(x, raw0, params, after, extra0))
        store(y, at1, normalized(x, raw1, params, after, extra1))
        store(y, at2, normalized(x, raw2, params, after, extra2))
        store(y, at3, normalized(x, raw3, params, after, extra3))
        at -= 4 * stride
        m = i32(m - 4)
    while m >= 0:
        raw0 = smem_load(smem, i32(m * threads + thread)) if m < smem_vectors else load_once(x, at)
        store(y, at, normalized(x, raw0, params, after, beside(x, at, after)))
        at -= stride
        m = i32(m - 1)


@device
def rows_gradient_sums(
    dy: Any, x: Any, column: int, first: int, step: int, R: int, C: int, params: Any, smem: Any, smem_vectors: int,
    after: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """Return this thread's sums of g and of g * (x - mean), a column each."""
    thread, threads = i32(cuda.threadIdx.x), i32(cuda.blockDim.x)
    linear, products = widen(splat(x, 0.0)), widen(splat(x, 0.0))
    stride = i64(step) * C
    at = i64(first) * C + column
    m = i32(0)
    row = first
    while row + i64(step) < R:
        at1 = at + stride
        slot = i32(2 * m * threads + thread)
        if m + 1 < smem_vectors:
            g0, raw0, g1, raw1 = load_once(dy, at), load_once(x, at), load_once(dy, at1), load_once(x, at1)
            smem_store(smem, slot, g0)
            smem_store(smem, i32(slot + threads), raw0)
            smem_store(smem, i32(slot + 2 * threads), g1)
            smem_store(smem, i32(slot + 3 * threads), raw1)
        else:
            g0, raw0, g1, raw1 = load(dy, at), load(x, at), load(dy, at1), load(x, at1)
            if m < smem_vectors:
                smem_store(smem, slot, g0)
                smem_store(smem, i32(slot + threads), raw0)
        extra0, extra1 = beside(x, at, after), beside(x, at1, after)
        grad0, off0 = gradient_terms(dy, g0, x, raw0, params, after, extra0)
        grad1, off1 = gradient_terms(dy, g1, x, raw1, params, after, extra1)
        keep(dy, at, 0, width(x), grad0, after, smem, slot, m < smem_vectors)
        keep(dy, at1, 0, width(x), grad1, after, smem, i32(slot + 2 * threads), m + 1 < smem_vectors)
        linear = add(linear, widen(add(grad0, grad1)))
        products = add(products, widen(fma(grad1, off1, mul(grad0, off0))))
        at += 2 * stride
        row = i32(row + 2 * step)
        m = i32(m + 2)
    if row < R:
        g0, raw0 = load(dy, at), load(x, at)
        slot = i32(2 * m * threads + thread)
        if m < smem_vectors:
            smem_store(smem, slot, g0)
            smem_store(smem, i32(slot + threads), raw0)
        grad0, off0 = gradient_terms(dy, g0, x, raw0, params, after, beside(x, at, after))
        keep(dy, at, 0, width(x), grad0, after, smem, slot, m < smem_vectors)
        linear = add(linear, widen(grad0))
        products = add(products, widen(mul(grad0, off0)))
    return linear, products


@device
def rows_gradient(
    dy: Any, x: Any, column: int, first: int, step: int, R: int, C: int, params: Any, frozen: int, dx: Any, smem: Any,
    smem_vectors: int, after: Any,
) -> None:  # fmt: skip
    """Write dx of the columns, last row first."""
    thread, threads = i32(cuda.threadIdx.x), i32(cuda.blockDim.x)
    m, row = last_row(first, step, R)
    stride = i64(step) * C
    at = i64(row) * C + column
    while frozen == 0 and m - 1 >= smem_vectors:
        at1 = at - stride
        g0, raw0, g1, raw1 = load_once(dy, at), load_once(x, at), load_once(dy, at1), load_once(x, at1)
        extra0, extra1 = beside(x, at, after), beside(x, at1, after)
        grad0, off0 = gradient_terms(dy, g0, x, raw0, params, after, extra0)
        grad1, off1 = gradient_terms(dy, g1, x, raw1, params, after, extra1)
        keep(dy, at, 0, width(x), grad0, after, smem, i32(0), False)
        keep(dy, at1, 0, width(x), grad1, after, smem, i32(0), False)
        store(dx, at, gradient(grad0, off0, params))
        store(dx, at1, gradient(grad1, off1, params))
        at -= 2 * stride
        m = i32(m - 2)
    while m >= 0:
        slot = i32(2 * m * threads + thread)
        if m < smem_vectors:
            g0, raw0 = smem_load(smem, slot), smem_load(smem, i32(slot + threads))
        else:
            g0, raw0 = load_once(dy, at), load_once(x, at)
        grad0, off0 = gradient_terms(dy, g0, x, raw0, params, after, beside(x, at, after))
        keep(dy, at, 0, width(x), grad0, after, smem, i32(0), False)
        store(dx, at, frozen_gradient(grad0, params) if frozen != 0 else gradient(grad0, off0, params))
        at -= stride
        m = i32(m - 1)
