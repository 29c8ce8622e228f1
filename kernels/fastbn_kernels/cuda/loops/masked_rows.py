"""Sweeps over what counts of a group of columns of rows (R, C); see `rows`.

A mask has a byte a row. A row that does not count is not loaded. Where narrow rows are taken together as a wide one,
places of a vector belong to rows of their own.
"""

from __future__ import annotations

from typing import Any

from fastbn_kernels.cuda.build.decorators import device
from fastbn_kernels.cuda.build.numba_cuda import i32, i64
from fastbn_kernels.cuda.element import beside, centred, frozen_gradient, gradient, gradient_terms, keep, normalized
from fastbn_kernels.cuda.simd.masks import choose
from fastbn_kernels.cuda.simd.ops import add, fma, load, mul, nothing, splat, store, widen, width


@device
def row_bits(x: Any, mask: Any, row: int, column: int, C: int, together: int, R: int) -> int:
    """Return the bits of a vector that begins at a column of a wide row; none of a row that is not there."""
    bits: int = i32(0)
    if row < R:
        if together == 1:
            if mask[row] != 0:
                bits = i32(-1)
        else:
            for i in range(width(x)):
                if mask[i64(row) * together + i32(column + i) // C] != 0:
                    bits = i32(bits | (1 << i))
    return bits


@device
def load_chosen(x: Any, at: int, bits: int) -> Any:
    """Load a vector of which something counts."""
    raw = nothing(x)
    if bits != 0:
        raw = load(x, at)
    return raw


@device
def beside_chosen(x: Any, at: int, bits: int, after: Any) -> Any:
    """Load what is added to a vector of which something counts."""
    raw = nothing(x)
    if bits != 0:
        raw = beside(x, at, after)
    return raw


@device
def masked_rows_sums(
    x: Any, mask: Any, column: int, first: int, step: int, R: int, C: int, together: int, around: Any
) -> tuple[Any, Any]:
    """Return this thread's sums of d and of d^2, a column each, over rows first, first + step, ... that count.

    R and `column` are those of wide rows, `together` rows of C channels each.
    """
    linear, squares = widen(splat(x, 0.0)), widen(splat(x, 0.0))
    wide = i64(C) * together
    row = first
    while row < R:
        other = i32(min(i64(row) + step, i64(R)))
        bits0 = row_bits(x, mask, row, column, C, together, R)
        bits1 = row_bits(x, mask, other, column, C, together, R)
        raw0 = load_chosen(x, i64(row) * wide + column, bits0)
        raw1 = load_chosen(x, i64(other) * wide + column, bits1)
        off0, off1 = choose(centred(x, raw0, around), bits0), choose(centred(x, raw1, around), bits1)
        linear = add(linear, widen(add(off0, off1)))
        squares = add(squares, widen(fma(off1, off1, mul(off0, off0))))
        row = i32(min(i64(other) + step, i64(R)))
    return linear, squares


@device
def masked_rows_normalize(
    x: Any, mask: Any, column: int, first: int, step: int, R: int, C: int, together: int, params: Any, y: Any,
    after: Any,
) -> None:  # fmt: skip
    """Write the normalised columns to y."""
    wide = i64(C) * together
    row = first
    while row < R:
        other = i32(min(i64(row) + step, i64(R)))
        bits0 = row_bits(x, mask, row, column, C, together, R)
        bits1 = row_bits(x, mask, other, column, C, together, R)
        at0, at1 = i64(row) * wide + column, i64(other) * wide + column
        raw0, raw1 = load_chosen(x, at0, bits0), load_chosen(x, at1, bits1)
        extra0, extra1 = beside_chosen(x, at0, bits0, after), beside_chosen(x, at1, bits1, after)
        store(y, at0, choose(normalized(x, raw0, params, after, extra0), bits0))
        if other < R:
            store(y, at1, choose(normalized(x, raw1, params, after, extra1), bits1))
        row = i32(min(i64(other) + step, i64(R)))


@device
def masked_rows_gradient_sums(
    dy: Any, x: Any, mask: Any, column: int, first: int, step: int, R: int, C: int, together: int, params: Any,
    after: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """Return this thread's sums of g and of g * (x - mean), a column each."""
    linear, products = widen(splat(x, 0.0)), widen(splat(x, 0.0))
    wide = i64(C) * together
    row = first
    while row < R:
        bits = row_bits(x, mask, row, column, C, together, R)
        at = i64(row) * wide + column
        g, raw = load_chosen(dy, at, bits), load_chosen(x, at, bits)
        grad, off = gradient_terms(dy, g, x, raw, params, after, beside_chosen(x, at, bits, after))
        grad, off = choose(grad, bits), choose(off, bits)
        linear = add(linear, widen(grad))
        products = add(products, widen(mul(grad, off)))
        row = i32(min(i64(row) + step, i64(R)))
    return linear, products


@device
def masked_rows_gradient(
    dy: Any, x: Any, mask: Any, column: int, first: int, step: int, R: int, C: int, together: int, params: Any,
    frozen: int, dx: Any, smem: Any, after: Any,
) -> None:  # fmt: skip
    """Write dx of the columns, and the gradient of what was added, zeros where nothing counts."""
    wide = i64(C) * together
    row = first
    while row < R:
        bits = row_bits(x, mask, row, column, C, together, R)
        at = i64(row) * wide + column
        g, raw = load_chosen(dy, at, bits), load_chosen(x, at, bits)
        grad, off = gradient_terms(dy, g, x, raw, params, after, beside_chosen(x, at, bits, after))
        keep(dy, at, 0, width(x), choose(grad, bits), after, smem, i32(0), False)
        values = frozen_gradient(grad, params) if frozen != 0 else gradient(grad, off, params)
        store(dx, at, choose(values, bits))
        row = i32(min(i64(row) + step, i64(R)))
