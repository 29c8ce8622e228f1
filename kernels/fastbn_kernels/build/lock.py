"""Parallel regions that leave Python's lock alone.

Around every parallel region Numba takes the lock and gives it away, in case that the caller holds it. Callers of
kernels never do (`nogil=True`), so that is two waits for nothing, each as long as another thread may keep the lock,
5 ms: beside a thread that computes in Python, a call of 0.4 ms took 17. And a thread that is not Python's, one of
XLA's say, never comes back from such a wait once Python ends.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from typing import Any

from numba.np.ufunc import parallel

NAME = "build_gufunc_kernel"  # what writes the wrapper of a region, Numba 0.61 to 0.68


class _NoLock:
    """What the wrapper asks of Python."""

    def gil_ensure(self) -> None:
        pass

    def save_thread(self) -> None:
        pass

    def restore_thread(self, state: None) -> None:
        pass

    def gil_release(self, state: None) -> None:
        pass


class _Context:
    """Numba's context, but for the lock."""

    def __init__(self, own: Any) -> None:
        self._own = own

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)

    def get_python_api(self, builder: Any) -> _NoLock:
        return _NoLock()


def known() -> bool:
    """Return whether this Numba writes parallel regions as those that this was made for."""
    function = getattr(parallel, NAME, None)
    return function is not None and list(inspect.signature(function).parameters)[:2] == ["library", "ctx"]


@contextlib.contextmanager
def left_alone() -> Iterator[None]:
    """Compile parallel functions without the lock; for whoever holds Numba's compiler lock, which keeps others out."""
    original = getattr(parallel, NAME, None)
    if original is None or not known():
        yield
        return

    def build(library: Any, ctx: Any, *more: Any, **named: Any) -> Any:
        return original(library, _Context(ctx), *more, **named)

    setattr(parallel, NAME, build)
    try:
        yield
    finally:
        setattr(parallel, NAME, original)
