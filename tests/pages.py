"""Arrays at the end of a page, behind which nothing may be touched: how a program that is run by itself begins."""

PAGES = """
import ctypes, mmap, sys
import numpy as np, fastbn

PAGE = mmap.PAGESIZE
libc = ctypes.CDLL(None, use_errno=True)
kept = []

def at_the_end(array, before=None):
    # Of an array, or of its first values alone, the rest lying on pages that may not be touched.
    taken = array.nbytes if before is None else before * array.itemsize
    size, behind = (-(-count // PAGE) * PAGE for count in (taken, array.nbytes - taken + 1))
    memory = mmap.mmap(-1, size + behind)
    kept.append(memory)
    start = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    placed = np.frombuffer(memory, array.dtype, array.size, size - taken).reshape(array.shape)
    placed[...] = array
    assert libc.mprotect(ctypes.c_void_p(start + size), behind, 0) == 0
    return placed

rng = np.random.default_rng()
"""
