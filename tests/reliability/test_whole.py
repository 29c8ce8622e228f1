"""A kernel is compiled as a whole; what it is made of still serves others, and nobody else's functions change."""

from __future__ import annotations  # as kernels have them

import math

import numba
import numpy as np
import pytest
from numba.core import codegen
from numba.core.registry import cpu_target

from fastbn_kernels.build import cache, decorators, whole
from fastbn_kernels.build.decorators import ReadC, WriteC, prange, scalar

FLOAT64 = np.dtype(np.float64)


@scalar
def root(value):
    return math.sqrt(value) if value > 0.0 else -1.0


@scalar
def inverse(value):
    if value == 3.0:
        raise ValueError("three")
    return 1.0 / root(value)


def serial(x: ReadC, y: WriteC) -> None:
    for i in range(x.size):
        y[i] = inverse(x[i])


def parallel(x: ReadC, y: WriteC) -> None:
    for i in prange(x.size):
        y[i] = inverse(x[i]) + root(y[i])


@pytest.fixture(autouse=True)
def compiled_anew(monkeypatch):
    monkeypatch.setattr(cache, "enable", lambda dispatcher: None)


def library_of(function):
    (compiled,) = function.overloads.values()
    return compiled.library


def results(x):
    """What each kernel writes, compiled now."""
    found = []
    for source in (serial, parallel):
        y = x.copy()
        decorators.kernel(source).get(FLOAT64)(x, y)
        found.append(y)
    return found


def test_a_kernel_is_compiled_once_and_its_functions_serve_others():
    x = np.random.default_rng().random(1000)
    one, other = results(x)
    np.testing.assert_array_equal(one, 1 / np.sqrt(x))
    np.testing.assert_array_equal(other, 1 / np.sqrt(x) + np.sqrt(x))
    assert library_of(root).raw
    assert library_of(inverse).raw
    assert "sqrt" in next(iter(inverse.inspect_asm().values()))

    @numba.njit
    def own(value):
        return inverse(value) + 1.0

    assert own(4.0) == 1.5
    assert inverse(4.0) == 0.5
    assert root(-4.0) == -1.0
    with pytest.raises(ValueError, match="three"):
        inverse(3.0)
    with pytest.raises(ValueError, match="three"):
        own(3.0)
    np.testing.assert_array_equal(results(x), [one, other])  # of parts that others have used meanwhile
    assert not isinstance(library_of(own), whole._Part)


def test_nothing_of_numbas_stays_changed():
    replaced = whole.Context.get_executable, whole.Context.create_cfunc_wrapper, whole.Dispatcher.add_overload
    results(np.ones(3) * 2)
    with pytest.raises(ZeroDivisionError), whole.whole("nothing"):
        raise ZeroDivisionError
    assert replaced == (
        whole.Context.get_executable, whole.Context.create_cfunc_wrapper, whole.Dispatcher.add_overload,
    )  # fmt: skip
    assert type(cpu_target.target_context.codegen().create_library("mine")) is codegen.JITCodeLibrary


def test_a_numba_that_is_not_known_gives_the_same_bits(monkeypatch):
    x = np.random.default_rng().random(1000)
    expected = results(x)
    monkeypatch.setattr(whole, "known", lambda: False)
    np.testing.assert_array_equal(results(x), expected)
