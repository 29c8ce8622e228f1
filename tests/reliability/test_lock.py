"""Parallel regions of kernels do not wait for Python's lock, and nobody else's are changed."""

from __future__ import annotations  # as kernels have them

import numba
import numpy as np
from numba.np.ufunc import parallel

from fastbn_kernels.build import cache, lock
from fastbn_kernels.build import decorators as jit
from fastbn_kernels.build.decorators import ReadC, WriteC, prange


def double(x: ReadC, y: WriteC) -> None:
    for i in prange(x.size):
        y[i] = 2.0 * x[i]


def test_kernels_compile_without_the_lock_and_others_with_it(monkeypatch):
    monkeypatch.setattr(cache, "enable", lambda dispatcher: None)  # what comes from there has no LLVM code to look at
    build = parallel.build_gufunc_kernel
    kernel = jit.kernel(double)
    own = kernel.get(np.dtype(np.float64), True)
    assert parallel.build_gufunc_kernel is build
    x = np.random.default_rng().normal(size=1000)
    found, theirs = np.empty(1000), np.empty(1000)
    own(x, found)
    np.testing.assert_array_equal(found, 2 * x)
    others = numba.njit(parallel=True, nogil=True, error_model="numpy")(double)
    others(x, theirs)
    np.testing.assert_array_equal(theirs, 2 * x)
    for function, takes in ((own, False), (others, True)):
        (code,) = function.inspect_llvm().values()
        regions = [part for part in code.split("\ndefine ") if "call void @numba_parallel_for(" in part]
        assert regions
        for region in regions:
            assert ("@PyEval_SaveThread(" in region) is takes
            assert ("@PyEval_RestoreThread(" in region) is takes


def test_a_numba_that_is_not_known_is_left_as_it_is(monkeypatch):
    for stranger in (None, lambda context, library: None):
        monkeypatch.setattr(parallel, lock.NAME, stranger)
        assert not lock.known()
        with lock.left_alone():
            assert parallel.build_gufunc_kernel is stranger
    monkeypatch.delattr(parallel, lock.NAME)
    assert not lock.known()
    with lock.left_alone():
        assert not hasattr(parallel, lock.NAME)


def test_an_error_while_compiling_gives_numbas_own_back():
    build = parallel.build_gufunc_kernel
    try:
        with lock.left_alone():
            assert parallel.build_gufunc_kernel is not build
            raise ValueError
    except ValueError:
        pass
    assert parallel.build_gufunc_kernel is build
