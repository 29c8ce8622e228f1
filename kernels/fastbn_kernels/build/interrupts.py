"""Ctrl-C waits while Numba is imported and while it compiles.

Either Numba does not survive a KeyboardInterrupt there, or the interrupt does not survive Numba. Raised in its import,
it leaves modules half set up for the rest of the process (``module 'numba' has no attribute 'core'``). Raised where
LLVM calls back into Python, it is printed and lost. So it is noted and raised afterwards: half a second for the import,
the time of one kernel else, which the cache then has.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Let whoever handles Ctrl-C in Python wait until the end of the block."""
    previous = signal.getsignal(signal.SIGINT)
    arrived: list[tuple[int, FrameType | None]] = []
    try:
        if callable(previous):
            signal.signal(signal.SIGINT, lambda *interrupt: arrived.append(interrupt))
    except ValueError:  # not in the main thread, which alone is ever interrupted
        previous = None
    try:
        yield
    finally:
        if callable(previous):
            signal.signal(signal.SIGINT, previous)
            if arrived:
                previous(*arrived[0])
