"""What keeps parallel kernels and the end of Python apart.

Numba takes Python's lock around a parallel region for a moment. Once Python ends, a thread that asks for the lock is
never heard of again, and XLA would wait for its result for ever. So the end waits for the parallel kernels that are
under way, and those that come later are taken by their serial twins, which ask for nothing.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import time
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastbn_kernels.jit import scalar

# How many parallel kernels are under way, and whether the end has begun.
_words = (ctypes.c_int64 * 2)()
INSIDE = ctypes.addressof(_words)
CLOSED = INSIDE + ctypes.sizeof(ctypes.c_int64)


@intrinsic
def _add(_: Any, address: Any, change: Any) -> Any:
    """Add to the word at an address in one indivisible step, in one order for all threads; return what it was."""

    def generate(_: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = builder.inttoptr(arguments[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", word, arguments[1], "seq_cst")

    return types.int64(types.int64, types.int64), generate


@scalar
def enter() -> bool:
    """Return whether a parallel kernel may run; if so, `leave` afterwards."""
    _add(INSIDE, 1)
    if _add(CLOSED, 0) == 0:
        return True
    _add(INSIDE, -1)
    return False


@scalar
def leave() -> None:
    """Tell that a parallel kernel is done."""
    _add(INSIDE, -1)


@scalar
def close() -> None:
    """Let no parallel kernel begin any more."""
    _add(CLOSED, 1)


@scalar
def inside() -> Any:
    """Return how many are under way."""
    return _add(INSIDE, 0)


def _end() -> None:
    close()
    while inside() > 0:
        time.sleep(0.001)


def _forget() -> None:
    _words[0] = 0  # the threads of the parent are not here


@functools.cache
def prepare() -> None:
    """Have the end of Python wait; compile what it calls, since a compiler may be gone by then."""
    functions: tuple[Any, ...] = close, inside
    for function in functions:
        function.compile(())
    atexit.register(_end)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_forget)
