"""What Numba writes around the body of a `prange` loop, and what is different in our kernels.

A `prange` loop becomes a function of its own, and in its place stands a call of a C function that runs the pieces of
the loop: `numba_parallel_for`, which Numba's threading layer offers. Of the regions of our kernels, and of nobody
else's:

- They call `fastbn_parallel_for`, so that `spread` says who runs the pieces.
- They leave Python's lock (the GIL) alone. Around a region Numba takes it and gives it away, in case that the caller
  holds it. Callers of kernels never do (`nogil=True`), so that is two waits for nothing, each as long as another thread
  may keep the lock, 5 ms: beside a thread that computes in Python, a call of 0.4 ms took 17. And a thread that is not
  Python's, one of XLA's say, never comes back from such a wait once Python ends.
- They have no reduction (``total += x[i]``), which Numba would add up a thread at a time: other numbers of threads, or
  another pool, other bits.

Both changes are made while one of our kernels compiles, by replacing two names of the module of Numba that writes
regions. That is private to Numba: where it is not what this was made for, `known` says so and regions stay Numba's.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator
from typing import Any

from numba.core.errors import CompilerError

try:
    from numba.np.ufunc import parallel
except ImportError:  # it has moved, so it is not known
    parallel = None

WRITER = "build_gufunc_kernel"  # of numba.np.ufunc.parallel: what writes the call
WRITERS_PARAMETERS = ["library", "ctx", "info", "sig", "inner_ndim"]
NUMBAS, OURS = "numba_parallel_for", "fastbn_parallel_for"


class _NoLock:
    """What the writer asks of Python, without its lock."""

    def gil_ensure(self) -> None:
        pass

    def save_thread(self) -> None:
        pass

    def restore_thread(self, state: None) -> None:
        pass

    def gil_release(self, state: None) -> None:
        pass


class _Changed:
    """An object of Numba's with something else in some places."""

    def __init__(self, numbas: Any, **others: Any) -> None:
        self._numbas = numbas
        self.__dict__.update(others)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._numbas, name)


@functools.cache
def known() -> bool:
    """Return whether this Numba writes regions as those do that this was made for."""
    writer: Any = getattr(parallel, WRITER, None)
    code = getattr(writer, "__code__", None)
    return (
        code is not None
        and hasattr(parallel, "cgutils")
        and list(inspect.signature(writer).parameters) == WRITERS_PARAMETERS
        and {"get_python_api", "cgutils", "get_or_insert_function"} <= set(code.co_names)
        and NUMBAS in code.co_consts
    )


@contextlib.contextmanager
def ours(symbol: str = OURS) -> Iterator[None]:
    """Compile regions as ours, which call `symbol`; for whoever holds Numba's compiler lock, which keeps others out."""
    if not known():
        yield
        return
    writer, cgutils = getattr(parallel, WRITER), parallel.cgutils

    def write(library: Any, ctx: Any, *more: Any, **named: Any) -> Any:
        return writer(library, _Changed(ctx, get_python_api=lambda builder: _NoLock()), *more, **named)

    def declare(module: Any, function_type: Any, name: str) -> Any:
        if name == "get_thread_id":
            raise CompilerError("a kernel has a reduction over threads, whose bits depend on their number")
        return cgutils.get_or_insert_function(module, function_type, symbol if name == NUMBAS else name)

    setattr(parallel, WRITER, write)
    parallel.cgutils = _Changed(cgutils, get_or_insert_function=declare)
    try:
        yield
    finally:
        setattr(parallel, WRITER, writer)
        parallel.cgutils = cgutils
