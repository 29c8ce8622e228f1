"""Which kernel takes a tensor, and how: a pure function of its shape, its dtype, the threads and the caches.

Every plan of a tensor gives the same bits, so the number of threads may decide.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass

# Values from which a parallel kernel is launched. One thread takes about 0.25 ns a value; waking the others takes
# 2 to 10 us.
PARALLEL_FROM = 32768

# Channels apart are taken in groups, as rows of their values (`short.py`), if a run has at most so many values and
# there are at least so many rows, channels and columns. Fewer rows do not pay for the numbers that are made for every
# column (8 x 256 x 14 x 14: 30 against 35 GB/s); longer runs are as fast by themselves (32 x 128 x 28 x 28: 27 against
# 32); fewer channels do not keep 16 threads busy. The threads must not decide: sums are added up in another order.
SHORT_RUN = 256
SHORT_ROWS = 16
SHORT_CHANNELS = 16
SHORT_COLUMNS = 512

# Values of a run from which, past the cache, a channel is written while the next one is summed (`overlap.py`):
# 32 x 64 x 112 x 112 45 against 37 GB/s, 8 x 256 x 56 x 56 backward 54 against 47; runs of 784 lose, 35 against 38.
OVERLAPPED_RUN = 2048

# Columns in a group: its numbers stay in the first-level cache, or the second-level one (1024 to 4096 are alike).
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


@dataclass(frozen=True, slots=True)
class Plan:
    """How one tensor (N, C, S) is worked on.

    Attributes
    ----------
    family : {"adjacent", "apart", "short"}
        Rows of adjacent channels (S is 1), runs of one channel, or groups of channels with short runs.
    parallel : bool
        Whether threads are woken; serial otherwise.
    whole : bool
        Whether a thread takes whole channels, sums and normalises them from its cache. Otherwise tiles of channels are
        spread over all threads, and x is read from memory once more.
    groups : int
        Groups of channels, of the family "short".
    past_cache : tuple of 2 bool
        Whether results are written past the cache: forward, backward.
    stretches : int
        In how many stretches threads take the channels, if what goes past the cache is written while the next channel
        is summed; else 0.
    """

    family: str
    parallel: bool
    whole: bool
    groups: int
    past_cache: tuple[bool, bool]
    stretches: int = 0


# How much larger than the last-level cache all tensors together must be for the result to go past it: stored through
# it, every line of the result is first read from memory, but the next layer finds it there. Forward, 4096 x 1024 (twice
# 17 MB, 32 MB of cache) takes 0.87 ms through it and 0.89 past it, 32 x 64 x 56 x 56 (twice 26 MB) 1.7 and 1.3.
# Backward, where three tensors compete, 6272 x 512 (three times 13 MB) takes 1.1 and 0.86.
PAST_CACHE = 1.5, 1.0


@functools.lru_cache(maxsize=4096)
def make(N: int, C: int, S: int, itemsize: int, threads: int) -> Plan:
    """Return the plan of a tensor (N, C, S) for so many threads."""
    size = N * C * S
    parallel = size >= PARALLEL_FROM and threads > 1
    forward, backward = (times * LAST_LEVEL_CACHE for times in PAST_CACHE)
    past = 2 * size * itemsize > forward, 3 * size * itemsize > backward
    if S == 1:
        return Plan("adjacent", parallel, True, 0, past)
    short = S <= SHORT_RUN and N >= SHORT_ROWS and C >= SHORT_CHANNELS and C * S >= SHORT_COLUMNS
    if short and size >= PARALLEL_FROM:  # below, one kernel does everything, by runs
        groups = max(1, C * S // GROUP_COLUMNS)
        if parallel:
            groups = -(-groups // threads) * threads
        return Plan("short", parallel, True, min(groups, C), past)
    whole = not parallel or BUSY * -(-C // threads) * threads <= C
    overlapped = parallel and whole and S >= OVERLAPPED_RUN
    return Plan("apart", parallel, whole, 0, past, min(threads, C) if overlapped else 0)
