"""Compare two functions on a machine that other programs share: in turn, in one run, by the median of ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

# Rounds are taken until the pair has used this long, between these bounds.
SECONDS = 1.0
ROUNDS = 15, 400


def once(function: Callable[[], object]) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def speedup(ours: Callable[[], object], theirs: Callable[[], object]) -> float:
    """Return how many times faster `ours` is than `theirs`: the median over rounds of one call each, in turn."""
    for function in (ours, theirs, ours, theirs):
        function()
    ratios: list[float] = []
    started = time.perf_counter()
    while len(ratios) < ROUNDS[0] or (len(ratios) < ROUNDS[1] and time.perf_counter() - started < SECONDS):
        if len(ratios) % 2:
            slow = once(theirs)
            ratios.append(slow / once(ours))
        else:
            fast = once(ours)
            ratios.append(once(theirs) / fast)
    return statistics.median(ratios)
