"""Numba's threading layer, which is where parallel loops run unless `spread` says otherwise.

Numba prefers `tbb`, which survives both several Python threads and a fork. But the wheel of tbb puts its library where
the loader does not look. Loading it by hand, before the layer starts, is all that is missing. A layer that the user
chose, or one that already runs, is left alone.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import logging
import os
import sys
import threading
from collections.abc import Callable

from numba import config, get_num_threads, threading_layer
from numba.core.compiler_lock import global_compiler_lock
from numba.np.ufunc import parallel

log = logging.getLogger("fastbn")

LIBRARIES = {"linux": "libtbb.so.12", "win32": "tbb12.dll"}
OTHERS = ("omp", "workqueue")  # what a user can choose that is not tbb, nor "default", "safe" and their like

starter: int | None = None  # the thread that started the layer, if it was started here
_single = False

# The C function that `get_num_threads` calls once it has taken two locks to see that the layer runs: 0.08 us for 0.54.
# It is private to Numba and there once the layer runs; None before.
C_COUNT = "_get_num_threads"
_count: Callable[[], int] | None = None


@functools.cache
def make_tbb_loadable() -> bool:
    """Load the tbb library of the `tbb` package so that Numba finds it; return whether that was done."""
    library = LIBRARIES.get(sys.platform)
    if library is None or config.THREADING_LAYER in OTHERS or layer() is not None:
        return False
    try:
        files = importlib.metadata.files("tbb") or []
    except importlib.metadata.PackageNotFoundError:
        return False
    for file in files:
        if file.name == library:
            try:
                # RTLD_GLOBAL, so that Numba's extension finds the symbols; Windows ignores the mode.
                ctypes.CDLL(os.fspath(file.locate()), ctypes.RTLD_GLOBAL)
            except OSError as error:
                log.warning(
                    "fastbn: cannot load %s of the tbb package, Numba chooses another layer: %s", library, error
                )
                return False
            return True
    return False


def layer() -> str | None:
    """Return the name of the layer that runs, None before whatever uses Numba has started one."""
    try:
        name: str = threading_layer()
    except ValueError:
        return None
    return name


def start() -> None:
    """Start the layer if none runs yet."""
    global starter
    if layer() is None:
        make_tbb_loadable()
        with global_compiler_lock:  # so that no fork comes between
            if layer() is None:
                get_num_threads()
                starter = threading.get_ident()


def count() -> int:
    """Return the number of threads that a parallel loop would use now (`numba.set_num_threads`)."""
    global _count
    if _single:
        return 1
    if _count is None:
        start()
        _count = getattr(parallel, C_COUNT, None) or get_num_threads
    return _count()


def keep_to_one() -> None:
    """Let `count` be 1 from now on."""
    global _single
    _single = True


def is_single() -> bool:
    """Return whether this process is to keep to one thread."""
    return _single
