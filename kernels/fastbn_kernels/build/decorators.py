"""How kernels are compiled: the decorators and the signatures.

`scalar` compiles a function of kernels: arithmetic of a channel, control flow, and the inner loops, whose vectors are
explicit (`cpu/simd`). No fastmath flag is set anywhere: LLVM may not reorder a sum nor assume that there are no NaN.

`kernel` compiles a source on demand, for the dtypes that are really used.
"""

from __future__ import annotations

import logging
import time
import types as python_types
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numba import config, njit, prange, typeof, types
from numba.core.compiler_lock import global_compiler_lock

from fastbn_kernels.build import cache, interrupts, regions, spread, threads, whole
from fastbn_kernels.build import forks as forks  # for what is done around a fork

__all__ = [
    "RESIDUAL",
    "Array",
    "Kernel",
    "Mask",
    "ReadC",
    "ReadNCS",
    "ReadP",
    "ReadRC",
    "Rows",
    "Saved",
    "Sums",
    "Tail",
    "TileCounts",
    "Words",
    "WriteC",
    "WriteNCS",
    "WriteP",
    "WriteRC",
    "in_rows",
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


# What a kernel's annotations may say of an argument: whether it is read or written, and its axes. The Numba type that
# each stands for is in `ARGUMENTS`. Per-channel arrays (C) are float64 whatever the dtype of the data, so that they add
# no specialisations. Parameters (P) have the dtype that the caller keeps weight, bias and running statistics in.
# Inputs are declared read-only: Numba passes a writable array for a read-only one, so that one specialisation serves
# both, but not the other way.
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
Mask: TypeAlias = Array
Words: TypeAlias = Array
TileCounts: TypeAlias = Array
Rows: TypeAlias = Array
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
    "Mask": lambda _: types.Array(types.boolean, 2, "C", readonly=True),
    "Words": lambda _: types.Array(types.uint64, 2, "C"),
    "TileCounts": lambda _: types.Array(types.int64, 2, "C"),
    "Rows": lambda _: types.Array(types.int64, 1, "C"),
    "float": lambda _: types.float64,
    "int": lambda _: types.intp,
    "bool": lambda _: types.boolean,
}


# The last argument of kernels, what is done after the normalization, decides by its type what is compiled. It is None,
# an activation, or a tuple of those, of marks and of arrays of the dtype and axes of x: see `cpu/element.py`. Functions
# are kept under the key of a tail: the tail itself, but RESIDUAL in the place of an array.
RESIDUAL = "residual"


def tail_key(tail: Any) -> Any:
    """Return the key of a tail."""
    if not isinstance(tail, tuple):
        return tail
    return tuple(RESIDUAL if isinstance(item, np.ndarray) else item for item in tail)


def tail_type(key: Any, data: NumbaType) -> NumbaType:
    """Return the Numba type of the tails of a key; `data` is that of x, read-only, as which others are passed too."""
    if not isinstance(key, tuple):
        return typeof(key)
    return types.Tuple([data if item == RESIDUAL else typeof(item) for item in key])


# float16 and bfloat16 travel as their bits, told apart by the sign of the integer. float32 travels as it is, to be
# computed in float32, or as its bits, to be computed in float64: that is all there is to `precision`.
DTYPES = {"f": types.float32, "i": types.int32, "d": types.float64, "h": types.int16, "H": types.uint16}


class Kernel:
    """One source, compiled on first use for each dtype; its `prange` loops run where `spread` says, a call at a time.

    Parameters
    ----------
    source : function
        Plain Python in Numba's subset, every argument annotated with a name from `ARGUMENTS`. It may call decorated
        functions of this package.

    Notes
    -----
    With ``NUMBA_DISABLE_JIT=1`` the source itself runs. With ``NUMBA_BOUNDSCHECK=1`` loops are compiled serial, because
    an exception does not leave a parallel one.
    """

    def __init__(self, source: Callable[..., Any]) -> None:
        self.name = source.__name__
        self.__doc__ = source.__doc__
        self.source = source
        self.has_loops = "prange" in source.__code__.co_names
        self.kinds = [kind for name, kind in source.__annotations__.items() if name != "return"]
        self._compiled: dict[tuple[str, bool, Any], Callable[..., Any]] = {}

    def is_ready(self, dtype: np.dtype[Any], parallel: bool = True) -> bool:
        """Return whether this process has compiled or loaded the function for data of `dtype`."""
        return (dtype.char, parallel, None) in self._compiled

    def get(self, dtype: np.dtype[Any], parallel: bool = True, tail: Any = None) -> Callable[..., Any]:
        """Return the function compiled for data of `dtype`, compiling it or loading it from the cache if need be.

        It is the same for either value of `parallel`, unless `spread` does not work with this Numba. `tail` is the key
        of what is done after the normalization: None, ``SILU``, ``(None, RESIDUAL)``, ...
        """
        key = dtype.char, parallel, tail
        try:
            return self._compiled[key]
        except KeyError:
            with global_compiler_lock:  # Numba's own: two locks could wait for each other, and a fork holds this one
                if key not in self._compiled:  # another thread may have been first
                    with interrupts.held_back():
                        self._add(dtype, parallel, tail)
                return self._compiled[key]

    def launch(self, dtype: np.dtype[Any], parallel: bool, *arguments: Any) -> None:
        """Call the function for data of `dtype`; unless `parallel`, the calling thread does everything."""
        function = self.get(dtype, parallel, tail_key(arguments[-1]) if self.kinds[-1] == "Tail" else None)
        if not self.has_loops:
            function(*arguments)
        else:
            spread.launch(function, parallel, *arguments)

    def _add(self, dtype: np.dtype[Any], parallel: bool, tail: Any) -> None:
        key = dtype.char, parallel, tail
        if config.DISABLE_JIT:
            self._compiled[key] = self.source
        elif not self.has_loops or config.BOUNDSCHECK or spread.works():
            how = "parallel" if self.has_loops and not config.BOUNDSCHECK else "serial"
            compiled = self._compile(dtype, how, tail)
            self._compiled[dtype.char, True, tail] = self._compiled[dtype.char, False, tail] = compiled
        else:
            # Numba's own loops run on its layer, which may have broken, or take one thread at a time.
            stands = parallel and not threads.is_single() and threads.layer() != "workqueue"
            self._compiled[key] = self._compile(dtype, "parallel by Numba" if stands else "serial", tail)

    def _compile(self, dtype: np.dtype[Any], how: str, tail: Any) -> Callable[..., Any]:
        started = time.perf_counter()
        dispatcher = njit(parallel=how != "serial", nogil=True, error_model="numpy")(self._named(how))
        cache.enable(dispatcher)
        data = DTYPES[dtype.char]
        ours = regions.ours(regions.OURS if how == "parallel" else regions.NUMBAS)
        with ours, whole.whole(dispatcher.py_func.__qualname__):
            given = [ARGUMENTS[kind](data) for kind in self.kinds if kind != "Tail"]
            if self.kinds[-1] == "Tail":
                given.append(tail_type(tail, given[0]))
            dispatcher.compile(tuple(given))
        dispatcher.disable_compile()  # an argument of any other type is a mistake of ours, not a new specialisation
        hit = bool(dispatcher.stats.cache_hits)
        log.info(
            "fastbn: %s %s for %s (%s) in %.2f s",
            "loaded" if hit else "compiled",
            self.name,
            dtype,
            how,
            time.perf_counter() - started,
        )
        function: Callable[..., Any] = dispatcher
        return function

    def _named(self, how: str) -> Callable[..., Any]:
        """Copy the source under a name that says how it is compiled: the cache goes by `__qualname__`."""
        source = self.source
        assert isinstance(source, python_types.FunctionType)
        name = f"{source.__name__}_{how.replace(' ', '_')}"
        named = python_types.FunctionType(source.__code__, source.__globals__, name)
        named.__qualname__ = name
        named.__module__ = source.__module__
        return named


def kernel(source: Callable[..., Any]) -> Kernel:
    """Make a `Kernel` of a function; see there."""
    return Kernel(source)


def in_rows(kernel: Kernel) -> Kernel:
    """Copy a kernel ``..._channels_first`` for data in rows, (R, C): the same code under other annotations."""
    source = kernel.source
    assert isinstance(source, python_types.FunctionType)
    name = source.__name__.replace("channels_first", "channels_last")
    twin = python_types.FunctionType(source.__code__, source.__globals__, name)
    twin.__annotations__ = {name: kind.replace("NCS", "RC") for name, kind in source.__annotations__.items()}
    twin.__doc__, twin.__module__, twin.__qualname__ = source.__doc__, source.__module__, name
    return Kernel(twin)
