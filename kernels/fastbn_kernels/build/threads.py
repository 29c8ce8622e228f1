"""The threading layer under parallel kernels, and what each one stands.

Numba prefers `tbb`, which survives both several Python threads and a fork. But the wheel of tbb puts its library where
the loader does not look. Loading it by hand, before Numba's first launch, is all that is missing. A layer that the user
chose, or one that already runs, is left alone. What they cannot do, tried with Numba 0.68:

- `workqueue` aborts the process when two threads launch at once: launches take turns (`turn`).
- GNU `omp` kills the child of a fork at its first launch, if the parent had launched before: such a child takes the
  serial twins. They give the same bits.
- `tbb` is made ready for a fork by Numba only in the thread of the first launch, and if nobody else launches at that
  moment. Other forks may leave it broken in the child: serial twins again.
- Any layer: a fork while another thread compiles, or frees what was compiled, leaves the child a lock that nobody will
  release, so a fork waits for them.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib.metadata
import logging
import os
import sys
import threading

from llvmlite.binding import ffi
from numba import config, get_num_threads, threading_layer
from numba.core.compiler_lock import global_compiler_lock
from numba.np.ufunc import parallel

log = logging.getLogger("fastbn")

LIBRARIES = {"linux": "libtbb.so.12", "win32": "tbb12.dll"}
OTHERS = ("omp", "workqueue")  # what a user can choose that is not tbb, nor "default", "safe" and their like


@functools.cache
def make_tbb_loadable() -> bool:
    """Load the tbb library of the `tbb` package so that Numba finds it; return whether that was done."""
    library = LIBRARIES.get(sys.platform)
    if library is None or config.THREADING_LAYER in OTHERS or parallel._is_initialized:
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
    """Return the name of the layer that runs, None before the first launch of whatever uses Numba."""
    try:
        name: str = threading_layer()
    except ValueError:
        return None
    return name


# Whether this process came from a fork that its layer does not stand, and the thread that started the layer.
_serial = False
_starter: int | None = None


def count() -> int:
    """Return the number of threads that a parallel kernel would use now (`numba.set_num_threads`)."""
    global _starter
    if _serial:
        return 1
    if layer() is None:
        make_tbb_loadable()
        with global_compiler_lock:  # asking for the number starts the layer, and no fork may come between
            if layer() is None:
                get_num_threads()
                _starter = threading.get_ident()
    own: int = get_num_threads()
    return own


# C code, so that an interrupt cannot come between taking it and the block that gives it back.
_turn = threading.RLock()
_no_turn = contextlib.nullcontext()


def turn() -> contextlib.AbstractContextManager[object]:
    """Return what a launch must hold: under `workqueue` a lock, otherwise nothing."""
    return _turn if layer() == "workqueue" else _no_turn


class _Fork:
    """What happens around `os.fork`: nobody launches or compiles that must not, and the child knows what it may do."""

    def __init__(self) -> None:
        self._held = contextlib.ExitStack()
        self._breaks = False

    def before(self) -> None:
        """Wait for what must end first; see what the child will not be able to do."""
        # llvmlite's own is private; where it has another name, a fork goes without.
        for lock in (global_compiler_lock, getattr(ffi.lib, "_lock", None), _turn):
            if lock is not None:
                self._held.enter_context(lock)
        alone = threading.get_ident() == _starter and threading.active_count() == 1
        self._breaks = layer() == "omp" or (layer() == "tbb" and not alone)

    def after(self) -> None:
        """Let the others go on."""
        self._held.close()

    def after_in_child(self) -> None:
        """Keep to one thread where the layer broke."""
        global _serial
        self.after()
        if self._breaks and not _serial:
            _serial = True
            log.info("fastbn: one thread in this process: it was forked under %s from a process with threads", layer())


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    _fork = _Fork()
    os.register_at_fork(before=_fork.before, after_in_parent=_fork.after, after_in_child=_fork.after_in_child)
