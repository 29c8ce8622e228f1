"""No kernel reads or writes behind an array: each ends where a page does, and the next page may not be touched.

Nor what a mask leaves out: values from there on lie on that page.
"""

import sys

import pytest

from processes import run

PAGES = """
import ctypes, mmap, sys
import numpy as np, fastbn

PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
kept = []

def at_the_end(array, before=None):
    # Of an array, or of its first values alone, the rest lying on pages that may not be touched.
    taken = array.nbytes if before is None else before * array.itemsize
    size, behind = (-(-count // PAGE) * PAGE for count in (taken, array.nbytes - taken + 1))
    memory = mmap.mmap(-1, size + behind)
    kept.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    placed = np.frombuffer(memory, array.dtype, array.size, size - taken).reshape(array.shape)
    placed[...] = array
    assert libc.mprotect(ctypes.c_void_p(start + size), behind, 0) == 0
    return placed

rng = np.random.default_rng()
"""

PROGRAM = """
for shape, axis in [
    ((6, 8, 60, 60), 1), ((6, 3, 90, 90), 1), ((3, 5, 7, 7), 1), ((20, 40, 5, 5), 1), ((16, 20, 7, 7), 1),
    ((40, 30), 1), ((70, 1000), 1), ((2000, 40), 1), ((1100, 300), 1), ((33, 9), 1),
]:
    for dtype, precision in (("f4", "fast"), ("f4", "exact"), ("f2", "fast"), ("f8", "fast")):
        x, dy = (at_the_end(rng.standard_normal(shape).astype(dtype)) for _ in range(2))
        own = "f8" if dtype == "f8" else "f4"
        weight, bias, mean, var = (at_the_end(np.ones(shape[axis], own)) for _ in range(4))
        y = at_the_end(np.zeros_like(x))
        given = {"axis": axis, "precision": precision, "out": y}
        _, ctx = fastbn.batch_norm(x, weight, bias, running_mean=mean, running_var=var, **given)
        fastbn.batch_norm_backward(dy, ctx, out=y)
        fastbn.batch_norm_inference(x, mean, var, weight, bias, **given)
        fastbn.batch_moments(x, axis=axis)
        fastbn.backward_sums(dy, ctx)
print("untouched")
"""

# Kernels with a residual, of every kind of loop: forward, backward, and from given sums.
TAILS = """
from fastbn.backends.cpu import launch
from fastbn_kernels.cpu import kernel
from fastbn_kernels.cpu.simd.tails import SILU, WRITE, WithResidual
from fastbn_kernels.saved import ROWS

for shape in (6, 8, 3600), (3, 5, 49), (16, 20, 49), (70, 1000, 1), (2000, 40, 1), (33, 9, 1):
    x, dy, residual, dresidual, out = (at_the_end(rng.standard_normal(shape).astype("f4")) for _ in range(5))
    own = launch.plan_of(x)
    data, dy, residual, dresidual, out = (launch.data_of(a, own) for a in (x, dy, residual, dresidual, out))
    saved, sums = np.ones((ROWS, shape[1])), np.empty((2, shape[1]))

    def call(operation, *given):
        kernel(getattr(own, operation)).launch(x.dtype, own.parallel, *given)

    pair, whole = WithResidual((SILU, residual)), WithResidual((SILU, residual, dresidual))
    call("forward", data, saved, 1e-5, own.past_cache[0], own.groups, out, pair)
    call("backward", dy, data, saved, False, own.past_cache[1], own.groups, out, sums, whole)
    call("sums", dy, data, saved, sums, pair)
    options = 100.0, False, own.past_cache[1], own.groups
    call("gradient", dy, data, saved, sums, *options, out, WithResidual((*whole, WRITE)))
print("untouched")
"""


LINUX = pytest.mark.skipif(sys.platform != "linux", reason="protects pages as Linux does")


@LINUX
def test_nothing_behind_an_array_is_touched():
    assert run(PAGES + PROGRAM) == "untouched\n"


MASKED = """
from fastbn.backends.cpu import masked
from fastbn_kernels.saved import ROWS

for shape, left_out in [
    ((1, 1, 700), 5), ((1, 1, 700), 200), ((2, 1, 9), 3), ((1, 1, 9000), 4000), ((5, 3, 70), 3 * 70),  # channels first
    ((300, 20, 1), 20), ((300, 20, 1), 200 * 20), ((90, 300, 1), 300),  # rows
]:
    before = int(np.prod(shape)) - left_out
    x, dy = (at_the_end(rng.standard_normal(shape).astype(sys.argv[1]), before) for _ in range(2))
    mask, saved = np.ones((shape[0], shape[2]), bool), np.ones((ROWS, shape[1]))
    mask.reshape(-1)[-(left_out // shape[1]):] = False
    y = at_the_end(np.full(shape, np.nan, sys.argv[1]))
    masked.moments(x, mask, saved)
    masked.forward(x, mask, saved, 1e-5, y)
    assert np.isfinite(saved).all() and np.isfinite(y).all()
    masked.normalize(x, mask, saved, 1e-5, y)
    sums = masked.backward(dy, x, mask, saved, False, y)
    masked.gradient(dy, x, mask, saved, sums, 1.0, True, y)
    masked.sums(dy, x, mask, saved)
    assert np.isfinite(sums).all() and np.isfinite(y).all()
print("untouched")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="protects pages as Linux does")
@pytest.mark.parametrize("dtype", ["f4", *(pytest.param(each, marks=pytest.mark.slow) for each in ("f2", "f8"))])
def test_what_a_mask_leaves_out_is_not_touched(dtype):
    assert run(PAGES + MASKED, dtype) == "untouched\n"


@LINUX
@pytest.mark.slow
def test_nothing_behind_a_residual_is_touched():
    assert run(PAGES + TAILS) == "untouched\n"
