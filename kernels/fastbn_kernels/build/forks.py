"""What is done around `os.fork`, so that the child can call kernels.

Tried with Numba 0.68:

- GNU `omp` kills the child of a fork at its first parallel loop, if the parent had run one before.
- `tbb` is made ready for a fork by Numba only in the thread that started it, and if no other thread uses it at that
  moment. Otherwise it may be broken in the child. In both cases all pieces of a loop run in the thread that calls.
- Any layer: a fork while another thread compiles, frees what was compiled, or uses `workqueue`, leaves the child a lock
  that nobody will release, so a fork waits for them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from contextlib import AbstractContextManager

import llvmlite.binding
from numba.core.compiler_lock import global_compiler_lock

from fastbn_kernels.build import spread, threads

log = logging.getLogger("fastbn")


def llvm_lock() -> AbstractContextManager[object] | None:
    """Return llvmlite's own lock, which is private; None, and one warning, if it is not where it was."""
    lock: AbstractContextManager[object] | None
    lock = getattr(getattr(getattr(llvmlite.binding, "ffi", None), "lib", None), "_lock", None)
    if lock is None:
        log.warning("fastbn: a fork while another thread frees compiled code may hang: llvmlite's lock has moved")
    return lock


class _Fork:
    """What this process does before it forks, and it and its child do afterwards."""

    def __init__(self) -> None:
        self._held = contextlib.ExitStack()
        self._llvm = llvm_lock()
        self._breaks = False

    def before(self) -> None:
        """Wait for what must end first; see what the child will not be able to do."""
        for held in (global_compiler_lock, self._llvm, spread.paused()):
            if held is not None:
                self._held.enter_context(held)
        alone = threading.get_ident() == threads.starter and threading.active_count() == 1
        self._breaks = threads.layer() == "omp" or (threads.layer() == "tbb" and not alone)

    def after(self) -> None:
        """Let the others go on."""
        self._held.close()

    def after_in_child(self) -> None:
        """Keep to one thread where the layer broke."""
        self.after()
        if self._breaks and not threads.is_single():
            threads.keep_to_one()
            spread.by_default(spread.CALLING_THREAD)
            log.info(
                "fastbn: one thread in this process: it was forked under %s from a process with threads",
                threads.layer(),
            )


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    _fork = _Fork()
    os.register_at_fork(before=_fork.before, after_in_parent=_fork.after, after_in_child=_fork.after_in_child)
