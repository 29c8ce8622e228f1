"""The parallel regions of kernels are fastbn's own, and nobody else's are changed."""

from __future__ import annotations  # as kernels have them

import numba
import numpy as np
import pytest
from numba.np.ufunc import parallel

from fastbn_kernels.build import cache, decorators, regions, spread
from fastbn_kernels.build.decorators import ReadC, WriteC, prange

FLOAT64 = np.dtype(np.float64)


def double(x: ReadC, y: WriteC) -> None:
    for i in prange(x.size):
        y[i] = 2.0 * x[i]


def total(x: ReadC, y: WriteC) -> None:
    found = 0.0
    for i in prange(x.size):
        found += x[i]
    y[0] = found


@pytest.fixture
def compiled_anew(monkeypatch):
    """What comes from the cache has no LLVM code to look at."""
    monkeypatch.setattr(cache, "enable", lambda dispatcher: None)


def test_kernels_call_our_symbol_without_pythons_lock_and_others_do_not(compiled_anew):
    write, cgutils = parallel.build_gufunc_kernel, parallel.cgutils
    own = decorators.kernel(double).get(FLOAT64)
    assert parallel.build_gufunc_kernel is write
    assert parallel.cgutils is cgutils
    x = np.random.default_rng().normal(size=1000)
    found, theirs = np.empty(1000), np.empty(1000)
    own(x, found)
    np.testing.assert_array_equal(found, 2 * x)
    others = numba.njit(parallel=True, nogil=True, error_model="numpy")(double)
    others(x, theirs)
    np.testing.assert_array_equal(theirs, 2 * x)
    for function, symbol, takes in ((own, "fastbn_parallel_for", False), (others, "numba_parallel_for", True)):
        (code,) = function.inspect_llvm().values()
        written = [part for part in code.split("\ndefine ") if f"call void @{symbol}(" in part]
        assert written
        assert ("fastbn_parallel_for" in code) is not takes
        for region in written:
            assert ("@PyEval_SaveThread(" in region) is takes
            assert ("@PyEval_RestoreThread(" in region) is takes


def test_a_reduction_over_threads_is_no_kernel(compiled_anew):
    with pytest.raises(numba.core.errors.NumbaError, match="a kernel has a reduction over threads"):
        decorators.kernel(total).get(FLOAT64)
    x, y = np.ones(1000), np.empty(1)
    numba.njit(parallel=True)(total)(x, y)
    assert y[0] == 1000


@pytest.fixture
def asked_again():
    regions.known.cache_clear()
    yield
    regions.known.cache_clear()


@pytest.mark.parametrize("stranger", [None, lambda context, library: None, double])
def test_a_numba_that_is_not_known_is_left_as_it_is(asked_again, monkeypatch, stranger):
    with monkeypatch.context() as changed:
        changed.setattr(parallel, regions.WRITER, stranger)
        assert not regions.known()
        with regions.ours():
            assert parallel.build_gufunc_kernel is stranger


def test_a_numba_without_it_is_left_as_it_is(asked_again, monkeypatch):
    with monkeypatch.context() as changed:
        changed.delattr(parallel, regions.WRITER)
        assert not regions.known()
        with regions.ours():
            assert not hasattr(parallel, regions.WRITER)


def test_an_error_while_compiling_gives_numbas_own_back():
    write = parallel.build_gufunc_kernel
    with pytest.raises(ValueError), regions.ours():  # noqa: PT011, PT012
        assert parallel.build_gufunc_kernel is not write
        raise ValueError
    assert parallel.build_gufunc_kernel is write


def test_without_our_symbol_regions_are_numbas_and_one_thread_has_kernels_of_its_own(compiled_anew, monkeypatch):
    monkeypatch.setattr(spread, "works", lambda: False)
    kernel = decorators.kernel(double)
    x, y = np.random.default_rng().normal(size=(2, 1000))
    for parallel_wanted, symbols in ((True, 1), (False, 0)):
        y[:] = np.nan
        kernel.launch(FLOAT64, parallel_wanted, x, y)
        np.testing.assert_array_equal(y, 2 * x)
        (code,) = kernel.get(FLOAT64, parallel_wanted).inspect_llvm().values()
        assert code.count("call void @numba_parallel_for(") == symbols
        assert "fastbn_parallel_for" not in code
    monkeypatch.setattr("fastbn_kernels.build.threads.layer", lambda: "workqueue")  # one thread at a time
    one = decorators.kernel(double)
    (code,) = one.get(FLOAT64).inspect_llvm().values()
    assert "parallel_for" not in code
