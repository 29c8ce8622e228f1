"""Every vector operation means what `simd_python` says, at every part of a vector and every alignment."""

import numpy as np
import pytest
from numba import njit

from fastbn_kernels.cpu.simd import ops as vector
from fastbn_kernels.cpu.simd.masks import flags, lowest, ones, packed
from fastbn_kernels.cpu.simd.ops import (
    add,
    fence,
    fma,
    keep,
    load,
    mul,
    offset_from_line,
    prefetch,
    splat,
    store,
    stream,
    sub,
    total,
)
from simulated import simd_python as simd_python

LANES = vector.LANES
COUNTS = range(LANES)


@njit
def copy(x, i, y, j):
    store(y, j, None, load(x, i, None))


@njit
def copy_part(x, i, count, y, j):
    prefetch(x, i + 1000)
    store(y, j, count, load(x, i, count))


@njit
def copy_whole_part(x, i, count, y, j):
    store(y, j, None, load(x, i, count))


@njit
def copy_past_the_cache(x, i, y, j):
    stream(y, j, load(x, i, None))
    fence()


@njit
def line(x, i):
    return offset_from_line(x, i)


@njit
def arithmetic(a, b, c, count, out):
    va, vb, vc = load(a, 0, None), load(b, 0, None), load(c, 0, None)
    store(out, 0, None, add(va, vb))
    store(out, 16, None, sub(va, vb))
    store(out, 32, None, mul(va, vb))
    store(out, 48, None, fma(va, vb, vc))
    store(out, 64, None, keep(va, count))
    store(out, 80, None, splat(a, 3.5))
    return total(va)


def python_arithmetic(a, b, c, count):
    p = simd_python
    values = [p.add(a, b), p.sub(a, b), p.mul(a, b), a * b + c, p.keep(a, count), p.splat(a, 3.5)]
    return np.concatenate(values), p.total(a)


def same(function, python, source, dtype, *arguments):
    """Run both on poisoned outputs with room around them and compare all of it."""
    outputs = []
    for run in (function, python):
        y = np.full(80, np.nan, dtype)
        run(source, *arguments[:-1], y, arguments[-1])
        outputs.append(y)
    np.testing.assert_array_equal(*outputs)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_load_and_store(rng, dtype):
    x = rng.standard_normal((5, 16)).astype(dtype)
    p = simd_python
    for i in (0, 1, 7, 64):
        for j in (0, 3, 64):
            same(copy, lambda x, i, y, j: p.store(y, j, None, p.load(x, i, None)), x, dtype, i, j)
    for count in COUNTS:
        for i in (0, 5, 80 - count):  # the last part ends with the array
            same(copy_part, lambda x, i, n, y, j: p.store(y, j, n, p.load(x, i, n)), x, dtype, i, count, 40)
            same(copy_whole_part, lambda x, i, n, y, j: p.store(y, j, None, p.load(x, i, n)), x, dtype, i, count, 40)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_past_the_cache(rng, dtype):
    x = rng.standard_normal(80).astype(dtype)
    y = np.full(96, np.nan, dtype)
    first = next(i for i in range(32) if simd_python.offset_from_line(y, i) == 0)
    copy_past_the_cache(x, 3, y, first)
    np.testing.assert_array_equal(y[first : first + 16], x[3:19])
    assert np.isnan(np.delete(y, slice(first, first + 16))).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_offset_from_line(dtype):
    x = np.empty(64, dtype)
    assert [line(x, i) for i in range(64)] == [simd_python.offset_from_line(x, i) for i in range(64)]


@pytest.mark.parametrize("count", COUNTS)
def test_arithmetic(rng, count):
    a, b, c = rng.standard_normal((3, 16))
    out = np.full(96, np.nan)
    expected, expected_total = python_arithmetic(a, b, c, count)
    assert arithmetic(a, b, c, count, out) == expected_total
    fused = slice(48, 64)  # rounded once where the processor can: at most half an ulp of the product apart
    np.testing.assert_array_equal(np.delete(out, fused), np.delete(expected, fused))
    assert np.all(
        np.abs(out[fused] - expected[fused]) <= np.spacing(np.abs(a * b)) + np.spacing(np.abs(expected[fused]))
    )


def test_keep_replaces_nan():
    a = np.full(16, np.nan)
    out = np.empty(96)
    arithmetic(a, a, a, 0, out)
    np.testing.assert_array_equal(out[64:80], 0)


def test_stores_past_the_cache_are_vectors():
    """LLVM splits a non-temporal store that is not aligned into scalars; on x86 the wide one is vmovnt or movnt."""
    import platform

    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("looks at x86 assembly")
    x = np.zeros(80, np.float32)
    y = np.zeros(96, np.float32)
    first = next(i for i in range(32) if simd_python.offset_from_line(y, i) == 0)
    copy_past_the_cache(x, 0, y, first)
    assembly = "\n".join(copy_past_the_cache.inspect_asm().values())
    assert "movntps" in assembly
    assert "movnti" not in assembly


@njit
def copy_chosen(x, i, word, vector, y, j):
    store(y, j, None, load(x, i, flags(word, vector)))


@njit
def write_chosen(x, i, word, vector, y, j):
    store(y, j, flags(word, vector), keep(load(x, i, None), flags(word, vector + 1)))


@njit
def bits(mask, i, count, vector):
    word = packed(mask, i, count, vector)
    return word, ones(word), lowest(word) if ones(word) else -1


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_flags(rng, dtype):
    """Of a mask's bytes, a word of bits; of that, the lanes that are loaded, kept and stored, whatever lies beside."""
    p, mask = simd_python, rng.random(80) < 0.5
    word = np.uint64(0)
    for k in range(4):
        for count in (*COUNTS, LANES):
            found = bits(mask, 13 * k, count, k)
            part = p.packed(mask, 13 * k, count, k)
            assert found == (part, p.ones(part), p.lowest(part) if part else -1)
        word |= part
    x = rng.standard_normal(80).astype(dtype)
    for k in range(3):
        for i in (0, 5, 64):
            read, written = (
                lambda x, i, w, k, y, j: p.store(y, j, None, p.load(x, i, p.flags(w, k))),
                lambda x, i, w, k, y, j: p.store(y, j, p.flags(w, k), p.keep(p.load(x, i, None), p.flags(w, k + 1))),
            )
            same(copy_chosen, read, x, dtype, i, word, k, 40)
            same(write_chosen, written, x, dtype, i, word, k, 3)
    copy_chosen(x, 10**6, np.uint64(0), 0, y := np.full(80, np.nan, dtype), 0)  # no lane: the index may be anywhere
    np.testing.assert_array_equal(y[:16], 0)
