"""How kernels are compiled: the decorators, the signatures, the cache and the threading layer.

`scalar` compiles a function of kernels: arithmetic of a channel, control flow, and the inner loops, whose vectors are
explicit (`cpu/vector.py`). No fastmath flag is set anywhere: LLVM may not reorder a sum nor assume that there are no
NaN, so a serial and a parallel kernel that call the same function agree to the last bit.

`kernel` compiles one source twice on demand, serial and parallel, for the dtypes that are really used.
"""

from __future__ import annotations

import logging
import time
import types as python_types
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import numpy as np

from fastbn_kernels.build import cache
from fastbn_kernels.build import interrupts
from fastbn_kernels.build import lock
from fastbn_kernels.build import threads

with interrupts.held_back():  # all that there is of Numba
    from numba import config, njit, prange, types
    from numba.core.compiler_lock import global_compiler_lock

    from fastbn_kernels.build import cache, lock, threads

__all__ = [
    "Array",
    "Kernel",
    "ReadC",
    "ReadNCS",
    "ReadP",
    "ReadRC",
    "Saved",
    "Sums",
    "Tail",
    "WriteC",
    "WriteNCS",
    "WriteP",
    "WriteRC",
    "kernel",
    "prange",
    "scalar",
]

log = logging.getLogger("fastbn")

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Function = TypeVar("Function", bound=Callable[..., Any])
NumbaType: TypeAlias = Any


def scalar(function: Function) -> Function:
    """Compile a function that kernels call, in strict IEEE arithmetic."""
    compiled: Function = njit(nogil=True, error_model="numpy")(function)
    return compiled


# What a kernel's annotations may say of an argument, and the Numba type that it stands for. Per-channel arrays (C) are
# float64 whatever the data, so that they add no specialisations: saved ones (see `saved`) and sums (2, C) come in one array;
# parameters (P) are as the caller holds them. Inputs are declared read-only, because Numba passes a writable array where a
# read-only one is expected but not the other way: one specialisation then serves both.
ReadNCS: TypeAlias = Array
ReadRC: TypeAlias = Array
ReadC: TypeAlias = Array
WriteNCS: TypeAlias = Array
WriteRC: TypeAlias = Array
WriteC: TypeAlias = Array
ReadP: TypeAlias = Array
WriteP: TypeAlias = Array
Saved: TypeAlias = Array
Sums: TypeAlias = Array
Tail: TypeAlias = Any


def _parameter(data: NumbaType) -> NumbaType:
    """Return the dtype of the parameters that belong to data: float32 but for float64."""
    return types.float64 if data == types.float64 else types.float32


ARGUMENTS: dict[str, Callable[[NumbaType], NumbaType]] = {
    "ReadNCS": lambda data: types.Array(data, 3, "C", readonly=True),
    "ReadRC": lambda data: types.Array(data, 2, "C", readonly=True),
    "ReadC": lambda _: types.Array(types.float64, 1, "C", readonly=True),
    "WriteNCS": lambda data: types.Array(data, 3, "C"),
    "WriteRC": lambda data: types.Array(data, 2, "C"),
    "WriteC": lambda _: types.Array(types.float64, 1, "C"),
    "ReadP": lambda data: types.Array(_parameter(data), 1, "C", readonly=True),
    "WriteP": lambda data: types.Array(_parameter(data), 1, "C"),
    "Saved": lambda _: types.Array(types.float64, 2, "C"),
    "Sums": lambda _: types.Array(types.float64, 2, "C"),
    "Tail": lambda _: types.none,
    "float": lambda _: types.float64,
    "int": lambda _: types.intp,
    "bool": lambda _: types.boolean,
}


# float16 and bfloat16 travel as their bits, told apart by the sign of the integer.
DTYPES = {"f": types.float32, "d": types.float64, "h": types.int16, "H": types.uint16}


class Kernel:
    """One source, compiled on first use for each dtype, once serial and once with its `prange` loops parallel.

    Parameters
    ----------
    source : function
        Plain Python in Numba's subset, every argument annotated with a name from `ARGUMENTS`. It may call decorated
        functions of this package.
    """

    def __init__(self, source: Callable[..., Any]) -> None:
        self.name = source.__name__
        self.__doc__ = source.__doc__
        self.source = source
        self._signature = [ARGUMENTS[kind] for name, kind in source.__annotations__.items() if name != "return"]
        self._compiled: dict[tuple[str, bool], Callable[..., Any]] = {}

    def is_ready(self, dtype: np.dtype[Any], parallel: bool) -> bool:
        """Return whether this process has compiled or loaded the function for data of `dtype`."""
        return (dtype.char, parallel) in self._compiled

    def get(self, dtype: np.dtype[Any], parallel: bool) -> Callable[..., Any]:
        """Return the function compiled for data of `dtype`, compiling it or loading it from the cache if need be."""
        key = dtype.char, parallel
        try:
            return self._compiled[key]
        except KeyError:
            with global_compiler_lock:  # Numba's own: two locks could wait for each other, and a fork holds this one
                if key not in self._compiled:  # another thread may have been first
                    with interrupts.held_back():
                        self._compiled[key] = self._compile(dtype, parallel)
                return self._compiled[key]

    def launch(self, dtype: np.dtype[Any], parallel: bool, *arguments: Any) -> None:
        """Call the function for data of `dtype` as the threading layer stands it; see `threads`."""
        function = self.get(dtype, parallel)
        if parallel:
            with threads.turn():
                function(*arguments)
        else:
            function(*arguments)

    def _compile(self, dtype: np.dtype[Any], parallel: bool) -> Callable[..., Any]:
        if config.DISABLE_JIT:
            return self.source
        if parallel:
            threads.make_tbb_loadable()
        started = time.perf_counter()
        dispatcher = njit(parallel=parallel, nogil=True, error_model="numpy")(self._twin(parallel))
        cache.enable(dispatcher)
        data = DTYPES[dtype.char]
        with lock.left_alone():
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
        function: Callable[..., Any] = dispatcher
        return function

    def _twin(self, parallel: bool) -> Callable[..., Any]:
        """Copy the source under a name of its own: Numba's cache files are told apart by `__qualname__`."""
        source = self.source
        assert isinstance(source, python_types.FunctionType)
        name = f"{source.__name__}_{'parallel' if parallel else 'serial'}"
        twin = python_types.FunctionType(source.__code__, source.__globals__, name)
        twin.__qualname__ = name
        twin.__module__ = source.__module__
        return twin


def kernel(source: Callable[..., Any]) -> Kernel:
    """Make a `Kernel` of a function; see there."""
    return Kernel(source)
