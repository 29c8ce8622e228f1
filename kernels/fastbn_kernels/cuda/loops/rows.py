"""Sweeps over a group of columns of rows (R, C): a thread takes 16 bytes of every so manieth row.

`lanes` neighbouring threads take neighbouring vectors of a row, the next `lanes` those of the next row. As in `runs`,
the first `room` of a thread's vectors are kept on the chip, later sweeps go backwards, and several are loaded before
the first is used.
"""

from __future__ import annotations

from typing import Any

from fastbn_kernels.cuda.reduce import WARP, warp_sum
from fastbn_kernels.cuda.simd.ops import (
    add,
    fma,
    get,
    keep,
    kept,
    load,
    load_once,
    mul,
    numbers,
    put,
    splat,
    store,
    sub,
    widen,
    width,
)
from fastbn_kernels.cuda.toolkit import cuda, device, i32, i64


@device
def seat(x: Any, base: int, rank: int, lanes: int, blocks: int, R: int, wide: int) -> tuple[int, int, int]:
    """Return where in a group of columns this thread's vector begins, its first row, and how far it is to its next.

    The first row is R, so that there is none, if the group that begins at column `base` has no such vector.
    """
    thread = i32(cuda.threadIdx.x)
    lane = i32(thread % lanes * width(x))
    rows = i32(cuda.blockDim.x // lanes)
    first = i32(rank * rows + thread // lanes) if base + lane < wide else R
    return lane, first, i32(blocks * rows)


@device
def vector_from(x: Any, shared: Any, at: int) -> Any:
    """Return a vector of x from float64 in shared memory."""
    vector = splat(x, 0.0)
    for i in range(width(x)):
        vector = put(vector, i32(i), shared[at + i])
    return vector


@device
def columns_sums(linear: Any, squares: Any, lanes: int, columns: int, V: int, scratch: Any, sums: Any) -> None:
    """Fill sums[:columns] and sums[columns : 2 * columns] with the block's sums of two vectors a thread."""
    thread = i32(cuda.threadIdx.x)
    warps = i32(cuda.blockDim.x // WARP)
    lane = i32(thread % WARP)
    at = i32(thread // WARP * 2 * columns + lane * V)
    for i in range(V):
        a = warp_sum(get(linear, i32(i)), lanes)
        b = warp_sum(get(squares, i32(i)), lanes)
        if lane < lanes:
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
    x: Any, column: int, first: int, step: int, R: int, C: int, around: Any, held: Any, room: int
) -> tuple[Any, Any]:
    """Return this thread's sums of (x - around) and of its square, a column each, over rows first, first + step, ..."""
    thread, threads = i32(cuda.threadIdx.x), i32(cuda.blockDim.x)
    linear, squares = widen(splat(x, 0.0)), widen(splat(x, 0.0))
    apart = i64(step) * C
    at = i64(first) * C + column
    m = i32(0)
    row = first
    while row + 3 * i64(step) < R:
        at1, at2, at3 = at + apart, at + 2 * apart, at + 3 * apart
        slot = i32(m * threads + thread)
        if m + 3 < room:
            raw0, raw1, raw2, raw3 = load_once(x, at), load_once(x, at1), load_once(x, at2), load_once(x, at3)
            keep(held, slot, raw0)
            keep(held, i32(slot + threads), raw1)
            keep(held, i32(slot + 2 * threads), raw2)
            keep(held, i32(slot + 3 * threads), raw3)
        else:
            raw0, raw1, raw2, raw3 = load(x, at), load(x, at1), load(x, at2), load(x, at3)
            if m < room:
                keep(held, slot, raw0)
            if m + 1 < room:
                keep(held, i32(slot + threads), raw1)
            if m + 2 < room:
                keep(held, i32(slot + 2 * threads), raw2)
        off0, off1 = sub(numbers(x, raw0), around), sub(numbers(x, raw1), around)
        off2, off3 = sub(numbers(x, raw2), around), sub(numbers(x, raw3), around)
        linear = add(linear, widen(add(add(off0, off1), add(off2, off3))))
        squares = add(squares, widen(fma(off3, off3, fma(off2, off2, fma(off1, off1, mul(off0, off0))))))
        at += 4 * apart
        row = i32(row + 4 * step)
        m = i32(m + 4)
    while row < R:
        raw0 = load(x, at)
        if m < room:
            keep(held, i32(m * threads + thread), raw0)
        off0 = sub(numbers(x, raw0), around)
        linear = add(linear, widen(off0))
        squares = add(squares, widen(mul(off0, off0)))
        at += apart
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
    x: Any, column: int, first: int, step: int, R: int, C: int, mean: Any, scale: Any, shift: Any, y: Any, held: Any,
    room: int,
) -> None:  # fmt: skip
    """Write (x - mean) * scale + shift to y, last row first."""
    thread, threads = i32(cuda.threadIdx.x), i32(cuda.blockDim.x)
    m, row = last_row(first, step, R)
    apart = i64(step) * C
    at = i64(row) * C + column
    while m - 3 >= room:
        at1, at2, at3 = at - apart, at - 2 * apart, at - 3 * apart
        raw0, raw1, raw2, raw3 = load_once(x, at), load_once(x, at1), load_once(x, at2), load_once(x, at3)
        store(y, at, fma(sub(numbers(x, raw0), mean), scale, shift))
        store(y, at1, fma(sub(numbers(x, raw1), mean), scale, shift))
        store(y, at2, fma(sub(numbers(x, raw2), mean), scale, shift))
        store(y, at3, fma(sub(numbers(x, raw3), mean), scale, shift))
        at -= 4 * apart
        m = i32(m - 4)
    while m >= 0:
        raw0 = kept(held, i32(m * threads + thread)) if m < room else load_once(x, at)
        store(y, at, fma(sub(numbers(x, raw0), mean), scale, shift))
        at -= apart
        m = i32(m - 1)


@device
def rows_gradient_sums(
    dy: Any, x: Any, column: int, first: int, step: int, R: int, C: int, mean: Any, held: Any, room: int
) -> tuple[Any, Any]:
    """Return this thread's sums of dy and of dy * (x - mean), a column each."""
    thread, threads = i32(cuda.threadIdx.x), i32(cuda.blockDim.x)
    linear, products = widen(splat(x, 0.0)), widen(splat(x, 0.0))
    apart = i64(step) * C
    at = i64(first) * C + column
    m = i32(0)
    row = first
    while row + i64(step) < R:
        at1 = at + apart
        slot = i32(2 * m * threads + thread)
        if m + 1 < room:
            g0, raw0, g1, raw1 = load_once(dy, at), load_once(x, at), load_once(dy, at1), load_once(x, at1)
            keep(held, slot, g0)
            keep(held, i32(slot + threads), raw0)
            keep(held, i32(slot + 2 * threads), g1)
            keep(held, i32(slot + 3 * threads), raw1)
        else:
            g0, raw0, g1, raw1 = load(dy, at), load(x, at), load(dy, at1), load(x, at1)
            if m < room:
                keep(held, slot, g0)
                keep(held, i32(slot + threads), raw0)
        grad0, grad1 = numbers(dy, g0), numbers(dy, g1)
        off0, off1 = sub(numbers(x, raw0), mean), sub(numbers(x, raw1), mean)
        linear = add(linear, widen(add(grad0, grad1)))
        products = add(products, widen(fma(grad1, off1, mul(grad0, off0))))
        at += 2 * apart
        row = i32(row + 2 * step)
        m = i32(m + 2)
    if row < R:
        g0, raw0 = load(dy, at), load(x, at)
        if m < room:
            slot = i32(2 * m * threads + thread)
            keep(held, slot, g0)
            keep(held, i32(slot + threads), raw0)
        grad0 = numbers(dy, g0)
        linear = add(linear, widen(grad0))
        products = add(products, widen(mul(grad0, sub(numbers(x, raw0), mean))))
    return linear, products


@device
def rows_gradient(
    dy: Any, x: Any, column: int, first: int, step: int, R: int, C: int, mean: Any, a: Any, b: Any, shift: Any,
    frozen: int, dx: Any, held: Any, room: int,
) -> None:  # fmt: skip
    """Write a * dy + b * (x - mean) + shift to dx, or a * dy if frozen, last row first."""
    thread, threads = i32(cuda.threadIdx.x), i32(cuda.blockDim.x)
    m, row = last_row(first, step, R)
    apart = i64(step) * C
    at = i64(row) * C + column
    while frozen == 0 and m - 1 >= room:
        at1 = at - apart
        g0, raw0, g1, raw1 = load_once(dy, at), load_once(x, at), load_once(dy, at1), load_once(x, at1)
        store(dx, at, fma(numbers(dy, g0), a, fma(sub(numbers(x, raw0), mean), b, shift)))
        store(dx, at1, fma(numbers(dy, g1), a, fma(sub(numbers(x, raw1), mean), b, shift)))
        at -= 2 * apart
        m = i32(m - 2)
    while m >= 0:
        slot = i32(2 * m * threads + thread)
        if m < room:
            g0, raw0 = kept(held, slot), kept(held, i32(slot + threads))
        else:
            g0, raw0 = load_once(dy, at), load_once(x, at)
        if frozen != 0:
            values = mul(numbers(dy, g0), a)
        else:
            values = fma(numbers(dy, g0), a, fma(sub(numbers(x, raw0), mean), b, shift))
        store(dx, at, values)
        at -= apart
        m = i32(m - 1)
