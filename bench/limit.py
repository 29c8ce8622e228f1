"""The limit of whatever moves the same bytes: the fastest copy there is, through the cache and past it, on all threads.

A share of the limit is ``useful bytes / time / copy rate``. Useful is what an implementation has to read and write:
x and y forward; x, dy and dx backward. Where a channel does not fit the last-level cache (or, with channels last, a
cache line of them), its sums must be complete before its second reading, which is then from memory: two reads and a
write forward, four and one backward.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit, prange
from suites import Case

from fastbn_kernels.build import threads
from fastbn_kernels.cpu.simd import ops as vector

LINE = 64
# A piece of a copy, in float64: small against a thread's part, large against the cost of a turn.
PIECE = 1 << 14
# (read, written) tensors where the second reading is from the cache, and where it is not.
TENSORS = {"forward": (2, 3), "inference": (2, 2), "backward": (3, 5), "both": (5, 8)}


def useful_tensors(case: Case, itemsize: int, operation: str, cache: int) -> int:
    """Return how many tensors of the size of x the operation has to move."""
    return TENSORS[operation][case.channel_bytes(itemsize) > cache]


def _aligned(size: int) -> np.ndarray:
    """Return so many float64 zeros that begin a cache line; streamed stores need that."""
    array = np.zeros(size + LINE // 8)
    return array[-(array.ctypes.data // 8) % (LINE // 8) :][:size]


# Kept out of a decorator's cache: they compile in about a second, once a run.
@njit(parallel=True, nogil=True)
def _copy_plain(source, target):  # pragma: no cover - compiled
    for piece in prange((source.size + PIECE - 1) // PIECE):
        start = piece * PIECE
        end = min(start + PIECE, source.size)
        vectors = start + (end - start) // vector.LANES * vector.LANES
        for i in range(start, vectors, vector.LANES):
            vector.store(target, i, None, vector.load(source, i, None))
        for i in range(vectors, end):
            target[i] = source[i]


@njit(parallel=True, nogil=True)
def _copy_streamed(source, target):  # pragma: no cover - compiled
    for piece in prange((source.size + PIECE - 1) // PIECE):
        start = piece * PIECE
        end = min(start + PIECE, source.size)
        vectors = start + (end - start) // vector.LANES * vector.LANES
        for i in range(start, vectors, vector.LANES):
            vector.stream(target, i, vector.load(source, i, None))
        for i in range(vectors, end):
            target[i] = source[i]
        vector.fence()


def copies(nbytes: int) -> dict[str, Callable[[], object]]:
    """Return calls that copy so many bytes (rounded up to 8), by name; the fastest of them is the limit."""
    threads.make_tbb_loadable()
    size = -(-nbytes // 8)
    source, target = _aligned(size), _aligned(size)
    source[...] = 1.0
    return {
        "copy, NumPy": lambda: np.copyto(target, source),
        "copy, plain": lambda: _copy_plain(source, target),
        "copy, past the cache": lambda: _copy_streamed(source, target),
    }
