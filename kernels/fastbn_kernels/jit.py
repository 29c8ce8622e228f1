"""How kernels are compiled: the fastmath sets, the signatures, the cache and the threading layer.

Three decorators, from the inside out:

- `reduction`  a small loop over 1-D slices that may be reassociated, so that LLVM vectorises its sums. It has to be a
  function of its own: nested in a parallel kernel, the same loop with a blocked bound runs at 8 GB/s instead of 60.
- `elementwise` a loop with no sum carried across it; only multiply-add contraction is allowed.
- `scalar`     strict IEEE arithmetic. Everything that decides the bits of a statistic is either strict or stands in
  a `reduction` that is compiled once, so a serial and a parallel kernel that call it agree to the last bit.

`kernel` compiles one source twice on demand, serial and parallel, for the dtypes that are really used.
"""

from __future__ import annotations

import logging
import threading
import time
import types as python_types
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numba import config, njit, prange, types

from fastbn_kernels import cache, threads

__all__ = ["FLOAT64", "Array", "Kernel", "elementwise", "kernel", "prange", "read", "reduction", "scalar", "write"]

log = logging.getLogger("fastbn")

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Function = TypeVar("Function", bound=Callable[..., Any])
NumbaType: TypeAlias = Any
Argument: TypeAlias = Callable[[NumbaType], NumbaType]

# Never True: that would let LLVM assume that there are no NaN and no infinity, which must stay in their channel.
REDUCTION_MATH = {"reassoc", "contract", "arcp", "nsz"}
ELEMENTWISE_MATH = {"contract"}


def reduction(function: Function) -> Function:
    """Compile an inner loop whose sums may be taken in any (fixed) order."""
    compiled: Function = njit(fastmath=REDUCTION_MATH, nogil=True, error_model="numpy")(function)
    return compiled


def elementwise(function: Function) -> Function:
    """Compile an inner loop in which every element stands for itself."""
    compiled: Function = njit(fastmath=ELEMENTWISE_MATH, nogil=True, error_model="numpy")(function)
    return compiled


def scalar(function: Function) -> Function:
    """Compile strict IEEE arithmetic, or control flow around the loops above."""
    compiled: Function = njit(nogil=True, error_model="numpy")(function)
    return compiled


def read(ndim: int) -> Argument:
    """Type an input: a C-contiguous array of the data's dtype.

    Declared read-only, because Numba passes a writable array where a read-only one is expected but not the other way:
    one specialisation then serves both.
    """
    return lambda data: types.Array(data, ndim, "C", readonly=True)


def write(ndim: int) -> Argument:
    """Type an output: a writable C-contiguous array of the data's dtype."""
    return lambda data: types.Array(data, ndim, "C")


class Float64:
    """Types of per-channel arrays and scalars: float64 whatever the data, so that they add no specialisations."""

    read: Argument = staticmethod(lambda _: types.Array(types.float64, 1, "C", readonly=True))
    write: Argument = staticmethod(lambda _: types.Array(types.float64, 1, "C"))
    value: Argument = staticmethod(lambda _: types.float64)
    flag: Argument = staticmethod(lambda _: types.boolean)


FLOAT64 = Float64


class Kernel:
    """One source, compiled on first use for each dtype, once serial and once with its `prange` loops parallel.

    Parameters
    ----------
    source : function
        Plain Python in Numba's subset. It may call decorated functions of this package.
    signature : tuple of callables
        One an argument: from the Numba type of the data to the Numba type of the argument.
    """

    def __init__(self, source: Callable[..., None], signature: tuple[Argument, ...]) -> None:
        self.name = source.__name__
        self.__doc__ = source.__doc__
        self._source = source
        self._signature = signature
        self._compiled: dict[tuple[str, bool], Callable[..., None]] = {}
        self._lock = threading.RLock()

    def get(self, dtype: np.dtype[Any], parallel: bool) -> Callable[..., None]:
        """Return the function compiled for data of `dtype`, compiling it or loading it from the cache if need be."""
        try:
            return self._compiled[dtype.char, parallel]
        except KeyError:
            with self._lock:
                return self._compiled.setdefault((dtype.char, parallel), self._compile(dtype, parallel))

    def _compile(self, dtype: np.dtype[Any], parallel: bool) -> Callable[..., None]:
        if (dtype.char, parallel) in self._compiled:  # another thread was first
            return self._compiled[dtype.char, parallel]
        if config.DISABLE_JIT:
            return self._source
        if parallel:
            threads.make_tbb_loadable()
        started = time.perf_counter()
        dispatcher = njit(parallel=parallel, nogil=True, error_model="numpy")(self._twin(parallel))
        cache.enable(dispatcher)
        data = types.float32 if dtype.char == "f" else types.float64
        dispatcher.compile(tuple(argument(data) for argument in self._signature))
        dispatcher.disable_compile()  # an argument of any other type is a mistake of ours, not a new specialisation
        hit = bool(dispatcher.stats.cache_hits)
        log.info(
            "fastbn: %s %s for %s (%s) in %.2f s",
            "loaded" if hit else "compiled",
            self.name,
            dtype,
            "parallel" if parallel else "serial",
            time.perf_counter() - started,
        )
        function: Callable[..., None] = dispatcher
        return function

    def _twin(self, parallel: bool) -> Callable[..., None]:
        """Copy the source under a name of its own: Numba's cache files are told apart by `__qualname__`."""
        source = self._source
        assert isinstance(source, python_types.FunctionType)
        name = f"{source.__name__}_{'parallel' if parallel else 'serial'}"
        twin = python_types.FunctionType(source.__code__, source.__globals__, name)
        twin.__qualname__ = name
        twin.__module__ = source.__module__
        return twin


def kernel(*signature: Argument) -> Callable[[Callable[..., None]], Kernel]:
    """Make a `Kernel` of a function; see there."""
    return lambda source: Kernel(source, signature)
