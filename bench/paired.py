"""Compare two functions on a machine that other programs share: in turn, in one run, by the median of ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

# Rounds are taken until the pair has used this long, between these bounds.
SECONDS = 1.5
ROUNDS = 11, 200

# Worker threads of OpenMP and TBB go on spinning after a call, for up to some milliseconds, and take a core away from
# whoever is called next: without a rest, PyTorch's workers made fastbn look half as fast (1.9 instead of 3.4 times
# PyTorch at 32 x 64 x 56 x 56), and the other way round.
REST = 0.005


def burst(function: Callable[[], object]) -> float:
    """Return the median seconds of three calls, after a rest and a call that is not counted."""
    time.sleep(REST)
    function()
    seconds = []
    for _ in range(3):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def speedup(ours: Callable[[], object], theirs: Callable[[], object]) -> float:
    """Return how many times faster `ours` is than `theirs`: the median over rounds of a burst each, in turn."""
    ratios: list[float] = []
    started = time.perf_counter()
    while len(ratios) < ROUNDS[0] or (len(ratios) < ROUNDS[1] and time.perf_counter() - started < SECONDS):
        if len(ratios) % 2:
            slow = burst(theirs)
            ratios.append(slow / burst(ours))
        else:
            fast = burst(ours)
            ratios.append(burst(theirs) / fast)
    return statistics.median(ratios)
