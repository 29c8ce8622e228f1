"""Channels in groups of d: sums of products of every two of a group, and every one a combination of all.

    found[i, j] = sum over values of (a_i - mean_i) * (b_j - mean_j)          `products`
    out_i       = bias_i + sum over j of matrix[i, j] * (x_j - mean_j)        `combine`

The rows of a group, some hundred values of every channel, are brought into a buffer (`gather`): float64, centred, one
channel after the other whatever the layout of x is, and whole vectors. All arithmetic is on that buffer, a few rows by
a few at a time, so that a value which was loaded is multiplied several times. Both are float64 for data of any dtype:
the matrix that whitens has entries up to 1 / sqrt(eps), which multiply whatever float32 would round off before.

These are matrix products, which NumPy has. But its sums add up in an order that depends on the processor, and may on
the number of threads; and x would have to be centred, widened and, for some layouts, transposed first. With that, of
float32 and (N, C, S, d) on one thread, products took so much of the processor's time beside NumPy, and combinations:

    64, 64, 784, 16     0.21  0.36        16384, 256, 1, 256   0.13  1.01
    16384, 64, 1, 16    0.19  0.52        8192, 512, 1, 512    0.39  1.35
    16, 512, 784, 512   0.33  0.32

Parts of x that are summed depend on the shape alone, have slots of their own and are merged in order.
"""

from __future__ import annotations

import numpy as np

from fastbn_kernels.build.decorators import Array, ReadC, ReadNCS, Sums, WriteNCS, kernel, prange, scalar
from fastbn_kernels.cpu.simd.elements import fitted, put_value
from fastbn_kernels.cpu.simd.ops import add, fma, load, splat, store, sub, total, value, widen
from fastbn_kernels.cpu.simd.types import LANES

# Rows of one factor and of the other that are multiplied at a time: 8 sums of 16 lanes are half of AVX-512's registers.
ROWS, COLUMNS = 4, 2

# Values in a buffer of float64, of about 512 KB, which second-level caches hold, and how many it has of a channel at
# most, and at least where sums are taken: those are brought from 16 lanes to one, some 7 instructions each, after
# length / 16 multiplications.
BUFFER, LONGEST, SHORTEST = 65536, 1024, 128

# Values of a buffer that are multiplied with all others while they are in the first-level cache, 32 KB: products of
# 784 channels take 0.73 of the time that they take otherwise.
NEAR = 4096

# Tasks that there are about, one for each of 16 threads, and the least values of a channel in one: also as many as a
# group has channels, so that slots, d values a channel, are no more than x. A task has a buffer of its own, whose pages
# the system has to find first: of 64 tasks, 64 channels took twice as long.
TASKS, LEAST = 16, 512


@scalar
def padded(count: int, unit: int) -> int:
    """Return the next multiple of a unit."""
    return (count + unit - 1) // unit * unit


@scalar
def length_of(rows: int, least: int) -> int:
    """Return how many values a channel a buffer of so many rows has: whole vectors."""
    return max(least, min(LONGEST, BUFFER // rows) // LANES * LANES)


@scalar
def part_count(values: int, groups: int, least: int) -> int:
    """Return how many parts the values of a channel are taken in, each of at least so many."""
    return max(1, min(TASKS // groups, values // least))


@scalar
def width_of(length: int) -> int:
    """Return the width of a buffer: rows that lie a power of two apart would share the same places of a cache."""
    return length + LANES


@scalar
def gather(x: Array, c0: int, channels: int, p0: int, p1: int, mean: Array, buffer: Array, row: int) -> None:
    """Fill rows of a buffer with the values p0 to p1 of channels, minus their means; zeros to the end of a vector."""
    _, C, S = x.shape
    width = buffer.shape[1]
    count = p1 - p0
    if S == 1:
        for p in range(p0, p1):
            at = p * C + c0
            for i in range(channels):
                centred = (value(x, at + i) - mean[0, c0 + i]) - mean[1, c0 + i]
                put_value(buffer, (row + i) * width + p - p0, centred)
    else:
        for i in range(channels):
            high, low = splat(buffer, mean[0, c0 + i]), splat(buffer, mean[1, c0 + i])
            to = (row + i) * width
            p = p0
            while p < p1:
                n = p // S
                at = (n * C + c0 + i) * S + p - n * S
                run = min((n + 1) * S, p1) - p
                whole = run // LANES * LANES
                for k in range(0, whole, LANES):
                    store(buffer, to + k, None, sub(sub(widen(load(x, at + k, None)), high), low))
                if run > whole:
                    rest = sub(sub(widen(load(x, at + whole, run - whole)), high), low)
                    store(buffer, to + whole, run - whole, rest)
                to += run
                p += run
    for i in range(row, row + channels):
        for k in range(count, padded(count, LANES)):
            put_value(buffer, i * width + k, 0.0)


@scalar
def scatter(buffer: Array, row: int, out: Array, c0: int, channels: int, p0: int, p1: int) -> None:
    """Write rows of a buffer as values p0 to p1 of channels."""
    _, C, S = out.shape
    width = buffer.shape[1]
    if S == 1:
        for p in range(p0, p1):
            at = p * C + c0
            for i in range(channels):
                put_value(out, at + i, value(buffer, (row + i) * width + p - p0))
    else:
        for i in range(channels):
            come = (row + i) * width
            p = p0
            while p < p1:
                n = p // S
                at = (n * C + c0 + i) * S + p - n * S
                run = min((n + 1) * S, p1) - p
                whole = run // LANES * LANES
                for k in range(0, whole, LANES):
                    store(out, at + k, None, fitted(out, load(buffer, come + k, None)))
                if run > whole:
                    store(out, at + whole, run - whole, fitted(out, load(buffer, come + whole, run - whole)))
                come += run
                p += run


@scalar
def add_products(a: Array, i: int, b: Array, j: int, length: int, slots: Array, row: int, column: int) -> None:
    """Add to ROWS by COLUMNS slots the products of rows of a, from i on, with rows of b, from j on."""
    width = a.shape[1]
    i0, j0 = i * width, j * width
    zero = splat(a, 0.0)
    s00, s01, s10, s11, s20, s21, s30, s31 = zero, zero, zero, zero, zero, zero, zero, zero
    for k in range(0, length, LANES):
        b0, b1 = load(b, j0 + k, None), load(b, j0 + width + k, None)
        a0, a1 = load(a, i0 + k, None), load(a, i0 + width + k, None)
        s00, s01 = fma(a0, b0, s00), fma(a0, b1, s01)
        s10, s11 = fma(a1, b0, s10), fma(a1, b1, s11)
        a2, a3 = load(a, i0 + 2 * width + k, None), load(a, i0 + 3 * width + k, None)
        s20, s21 = fma(a2, b0, s20), fma(a2, b1, s21)
        s30, s31 = fma(a3, b0, s30), fma(a3, b1, s31)
    slots[row, column] += total(s00)
    slots[row, column + 1] += total(s01)
    slots[row + 1, column] += total(s10)
    slots[row + 1, column + 1] += total(s11)
    slots[row + 2, column] += total(s20)
    slots[row + 2, column + 1] += total(s21)
    slots[row + 3, column] += total(s30)
    slots[row + 3, column + 1] += total(s31)


@scalar
def part_products(
    a: Array, a_mean: Array, b: Array, b_mean: Array, symmetric: bool, d: int, task: int, parts: int,
    buffer: Array, slots: Array,
) -> None:  # fmt: skip
    """Fill the slots of a task, (D, D + 1), D being d or some more: products, and in the last column sums of a.

    Of products of a group with itself, those above the diagonal are left out, as far as they come in blocks.
    """
    N, _, S = a.shape
    group, part = task // parts, task % parts
    c0, values, D = group * d, N * S, slots.shape[1] - 1
    begin, end = part * values // parts, (part + 1) * values // parts
    row = D * task
    first = row if symmetric else 2 * row
    second = first if symmetric else first + D
    step = buffer.shape[1] - LANES
    for i in range(row, row + D):
        for j in range(D + 1):
            slots[i, j] = 0.0
    for i in range(first, second + D):
        for k in range(step):
            buffer[i, k] = 0.0
    for p0 in range(begin, end, step):
        p1 = min(end, p0 + step)
        length = padded(p1 - p0, LANES)
        gather(a, c0, d, p0, p1, a_mean, buffer, first)
        if not symmetric:
            gather(b, c0, d, p0, p1, b_mean, buffer, second)
            for i in range(d):
                found = splat(buffer, 0.0)
                for k in range(0, length, LANES):
                    found = add(found, load(buffer, (first + i) * buffer.shape[1] + k, None))
                slots[row + i, D] += total(found)
        near = max(ROWS, NEAR // length // ROWS * ROWS)
        for j0 in range(0, D, near):
            for i in range(j0 if symmetric else 0, D, ROWS):
                for j in range(j0, min(j0 + near, i + ROWS if symmetric else D), COLUMNS):
                    add_products(buffer, first + i, buffer, second + j, length, slots, row + i, j)


@scalar
def merge_products(row: int, d: int, parts: int, symmetric: bool, slots: Array, found: Array) -> None:
    """Add up the slots of the parts of a channel, in order; of products of a group with itself, to the diagonal."""
    D = slots.shape[1] - 1
    group, i = row // d, row % d
    end = i + 1 if symmetric else d
    for j in range(d + 1):
        found[row, j] = 0.0
    for part in range(parts):
        at = D * (group * parts + part) + i
        for j in range(end):
            found[row, j] += slots[at, j]
        found[row, d] += slots[at, D]


@scalar
def mirror(row: int, d: int, found: Array) -> None:
    """Fill the products of a channel that stand behind the diagonal."""
    for j in range(row % d + 1, d):
        found[row, j] = found[row - row % d + j, row % d]


@kernel
def products(a: ReadNCS, a_mean: Sums, b: ReadNCS, b_mean: Sums, symmetric: bool, found: Sums) -> None:
    """Fill `found`, (C, d + 1), with sums of products within groups of d channels, and in the last column sums of a.

    Means are (2, C), a high and a low part, and what is summed are differences from them. `symmetric` says that b is a:
    it is not read, and the sums of a are not made.
    """
    N, C, S = a.shape
    d = found.shape[1] - 1
    groups, D = C // d, padded(d, ROWS)
    rows = D if symmetric else 2 * D
    length = length_of(rows, SHORTEST)
    parts = part_count(N * S, groups, max(LEAST, d))
    buffer = np.empty((rows * groups * parts, width_of(length)))
    slots = np.empty((D * groups * parts, D + 1))
    for task in prange(0, groups * parts):
        part_products(a, a_mean, b, b_mean, symmetric, d, task, parts, buffer, slots)
    for row in prange(0, C):
        merge_products(row, d, parts, symmetric, slots, found)
    for row in prange(0, C if symmetric else 0):
        mirror(row, d, found)


@scalar
def combine_rows(
    matrix: Array, bias: Array, c0: int, d: int, buffer: Array, row: int, result: int, length: int
) -> None:  # fmt: skip
    """Write d rows of the buffer, from `result` on: those from `row` on combined by rows c0 on of the matrix."""
    K, width = matrix.shape[1], buffer.shape[1]
    for k in range(0, length, LANES):
        for i in range(0, d, ROWS):
            # Behind the last row that is taken again: as many products, and the same stored twice.
            i1, i2, i3 = min(i + 1, d - 1), min(i + 2, d - 1), min(i + 3, d - 1)
            m0, m1, m2, m3 = (c0 + i) * K, (c0 + i1) * K, (c0 + i2) * K, (c0 + i3) * K
            s0, s1 = splat(buffer, bias[c0 + i]), splat(buffer, bias[c0 + i1])
            s2, s3 = splat(buffer, bias[c0 + i2]), splat(buffer, bias[c0 + i3])
            for j in range(K):
                x = load(buffer, (row + j) * width + k, None)
                s0 = fma(splat(buffer, value(matrix, m0 + j)), x, s0)
                s1 = fma(splat(buffer, value(matrix, m1 + j)), x, s1)
                s2 = fma(splat(buffer, value(matrix, m2 + j)), x, s2)
                s3 = fma(splat(buffer, value(matrix, m3 + j)), x, s3)
            store(buffer, (result + i) * width + k, None, s0)
            store(buffer, (result + i1) * width + k, None, s1)
            store(buffer, (result + i2) * width + k, None, s2)
            store(buffer, (result + i3) * width + k, None, s3)


@kernel
def combine(
    a: ReadNCS, a_mean: Sums, b: ReadNCS, b_mean: Sums, matrix: Sums, bias: ReadC, d: int, out: WriteNCS
) -> None:
    """Write every channel of a group of d as a combination of them all, with coefficients from a row of `matrix`.

    That is (C, d), of a - a_mean; or (C, 2 d), where those of b - b_mean follow. `out` may be a or b.
    """
    N, C, S = a.shape
    K = matrix.shape[1]
    groups, rows, values = C // d, K + d, N * S
    length = length_of(rows, LANES)
    parts = part_count(values, groups, length)
    buffer = np.empty((rows * groups * parts, width_of(length)))
    for task in prange(0, groups * parts):
        c0, first = task // parts * d, rows * task
        part = task % parts
        end = (part + 1) * values // parts
        for p0 in range(part * values // parts, end, length):
            p1 = min(end, p0 + length)
            gather(a, c0, d, p0, p1, a_mean, buffer, first)
            if d < K:
                gather(b, c0, d, p0, p1, b_mean, buffer, first + d)
            combine_rows(matrix, bias, c0, d, buffer, first, first + K, padded(p1 - p0, LANES))
            scatter(buffer, first + K, out, c0, d, p0, p1)
