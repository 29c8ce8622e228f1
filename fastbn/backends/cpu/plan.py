"""Which kernels take a tensor, and how: a pure function of its shape, its dtype, the threads and the caches.

Every plan of a tensor gives the same bits, so the number of threads may decide.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

import numpy as np

# Values from which a parallel kernel is launched. One thread takes about 0.25 ns a value; waking the others takes
# 2 to 10 us.
PARALLEL_FROM = 32768

# Rows of channels are taken a group of columns at a time, from the first row to the last (`column_groups.py`), if there
# are at most so many, and so many channels at least: in float32; in float64 sums stay as they were.
COLUMN_ROWS = 1024
COLUMN_CHANNELS = 256

# Channels are taken in groups, as rows of their values (`short_segments.py`), if a segment, the values of a channel
# side by side, has at most so many and there are at least so many rows, channels and columns. Fewer rows do not pay for
# the parameters that are made for every column (8 x 256 x 14 x 14: 30 against 35 GB/s); longer segments are as fast by
# themselves (32 x 128 x 28 x 28: 27 against 32); fewer channels do not keep 16 threads busy. The threads must not
# decide: sums are added up in another order.
#
# In float32 longer segments are faster by themselves where all of x stays near (32 x 256 x 14 x 14 backward 0.85 of the
# time, 16 x 512 x 14 x 14 0.79; 7 x 7 1.1 to 1.6), but not where samples lie far away, a page each (32 x 1024 x 14 x
# 14: 3.5 times as long in memory of small pages). Nothing is summed to normalise with given statistics: that goes
# through memory in order, whatever the segments (32 x 2048 x 7 x 7 0.71 of the time).
SHORT_SEGMENT = 256
SHORT_SEGMENT_SINGLE = 128
NEAR = 1 << 21
SHORT_ROWS = 16
SHORT_CHANNELS = 16
SHORT_COLUMNS = 512

# Values of a segment from which, past the cache, a channel is written while the next one is summed (`overlapped.py`):
# 32 x 64 x 112 x 112 45 against 37 GB/s, 8 x 256 x 56 x 56 backward 54 against 47; segments of 784 lose, 35 against 38.
OVERLAPPED_SEGMENT = 2048

# Columns in a group: their parameters stay in the first-level cache, or the second-level one (1024 to 4096 are alike).
GROUP_COLUMNS = 2048

# The share of the threads that whole channels must keep busy.
BUSY = 0.8


def _last_level_cache() -> int:
    """Return the size of the last-level cache in bytes, as far as the C library tells, else 32 MB."""
    for name in ("SC_LEVEL3_CACHE_SIZE", "SC_LEVEL2_CACHE_SIZE"):
        try:
            size = os.sysconf(name)
        except (AttributeError, OSError, ValueError):
            continue
        if size > 0:
            return size
    return 32 << 20


LAST_LEVEL_CACHE = _last_level_cache()


OPERATIONS = "moments", "forward", "normalize", "sums", "gradient", "backward", "jvp", "double_backward"

# The families of kernels, and the operations that a family has kernels of its own for; the others it leaves to those of
# `channels_first`, or `channels_last` if its kernels take rows.
FAMILIES = {
    "channels_first": OPERATIONS,
    "channels_last": OPERATIONS,
    "short_segments": ("forward", "backward"),
    "columns": ("forward", "backward"),
    "overlapped": ("forward", "backward"),
    "tiles": ("forward", "backward", "jvp", "double_backward"),
}


IN_ROWS = "channels_last", "columns"


@dataclass(frozen=True, slots=True)
class Plan:
    """How one tensor (N, C, S) is worked on: a kernel for each operation, and what it is given.

    Attributes
    ----------
    family : {"channels_first", "channels_last", "columns", "short_segments", "overlapped", "tiles"}
        How the tensor is cut. Whole channels, each summed and normalised from the cache of one thread; rows of
        all channels, S is 1; columns of few rows; groups of channels with short segments; whole channels, one written
        while the next is summed; tiles of channels, where there are fewer channels than keep the threads busy: x is
        read from memory twice.
    moments, forward, normalize, sums, gradient, backward, jvp, double_backward : str
        The names of the kernels, which `fastbn_kernels.cpu.kernel` knows.
    call_forward, call_backward : str or None
        The kernels that do a whole call, for a tensor that is so small.
    parallel : bool
        Whether threads are woken; serial otherwise.
    past_cache : tuple of 2 bool
        Whether results are written past the cache: forward, backward.
    groups : int
        In how many groups threads take the channels, for "columns", "short_segments" and "overlapped".
    """

    family: str
    moments: str
    forward: str
    normalize: str
    sums: str
    gradient: str
    backward: str
    jvp: str
    double_backward: str
    call_forward: str | None
    call_backward: str | None
    parallel: bool
    past_cache: tuple[bool, bool]
    groups: int

    @property
    def in_rows(self) -> bool:
        """Whether kernels take x as (N, C): S is 1."""
        return self.family in IN_ROWS


def of_family(family: str, small: bool, parallel: bool, past_cache: tuple[bool, bool], groups: int) -> Plan:
    """Return the plan whose kernels are those of a family."""
    names, order = {}, "channels_last" if family in IN_ROWS else "channels_first"
    for operation in OPERATIONS:
        own = operation in FAMILIES[family]
        if family == "overlapped" and own:  # what goes through the cache is not worth overlapping
            own = past_cache[0 if operation == "forward" else 1]
        names[operation] = f"{operation}_{family if own else order}"
    calls = (f"call_forward_{order}", f"call_backward_{order}") if small else (None, None)
    return Plan(family, **names, call_forward=calls[0], call_backward=calls[1], parallel=parallel,
                past_cache=past_cache, groups=groups)  # fmt: skip


# What does a whole call: by itself if the tensor is small, else around the kernel of its plan.
SIZES, WAYS, ORDERS = ("call", "large"), ("forward", "backward"), ("channels_first", "channels_last")


def kernels() -> list[str]:
    """Return the names of all kernels that a call may take."""
    found = [f"{operation}_{family}" for family, operations in FAMILIES.items() for operation in operations]
    return [*found, *(f"{size}_{way}_{order}" for size in SIZES for order in ORDERS for way in WAYS)]


# How much larger than the last-level cache all tensors together must be for the result to go past it: stored through
# it, every line of the result is first read from memory, but the next layer finds it there. Forward, 4096 x 1024 (twice
# 17 MB, 32 MB of cache) takes 0.87 ms through it and 0.89 past it, 32 x 64 x 56 x 56 (twice 26 MB) 1.7 and 1.3.
# Backward, where three tensors compete, 6272 x 512 (three times 13 MB) takes 1.1 and 0.86.
PAST_CACHE = 1.5, 1.0


# Values of a dtype, as kernels see it, that are computed in float64.
WIDE = "di"


@functools.lru_cache(maxsize=4096)
def make(N: int, C: int, S: int, dtype: str, threads: int) -> Plan:
    """Return the plan of a tensor (N, C, S) for so many threads; `dtype` is the `char` of what kernels see."""
    size = N * C * S
    itemsize, single = np.dtype(dtype).itemsize, dtype not in WIDE
    small = size < PARALLEL_FROM
    parallel = not small and threads > 1
    forward, backward = (times * LAST_LEVEL_CACHE for times in PAST_CACHE)
    past_cache = 2 * size * itemsize > forward, 3 * size * itemsize > backward
    short = SHORT_SEGMENT_SINGLE if single and size <= NEAR else SHORT_SEGMENT
    family, groups = "channels_first", 0
    if S == 1:
        family = "channels_last"
        if single and not small and N <= COLUMN_ROWS and C >= COLUMN_CHANNELS:
            family, groups = "columns", _groups(C, C, threads)
    elif small:  # one kernel does everything, a channel at a time
        pass
    elif short >= S and N >= SHORT_ROWS and C >= SHORT_CHANNELS and C * S >= SHORT_COLUMNS:
        family, groups = "short_segments", _groups(C * S, C, threads)
    elif parallel and BUSY * -(-C // threads) * threads > C:
        family = "tiles"
    elif parallel and S >= OVERLAPPED_SEGMENT:
        family, groups = "overlapped", min(threads, C)
    return of_family(family, small, parallel, past_cache, groups)


def _groups(columns: int, C: int, threads: int) -> int:
    """Return in how many groups C channels, which have so many columns, are taken: as many for every thread."""
    groups = max(1, columns // GROUP_COLUMNS)
    return min(-(-groups // threads) * threads, C)
