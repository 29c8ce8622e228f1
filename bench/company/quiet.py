"""Rounds during which nothing else ran are those that count.

Threads of OpenMP spin when they wait for each other, so that a neighbour on one of two cores makes a call of PyTorch's
a hundred times as long and leaves fastbn's as it is: no ratio of the same round survives that.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from others import DISTURBED, Watch

Round = TypeVar("Round")
# So many seconds are spent on a row, at most; what takes a second in all on quiet cores can wait that long for them.
SECONDS = 20.0
# So many quiet rounds make a median. With fewer, all rounds are kept, and the row counts in no mean.
FEWEST = 5


def rounds(
    take: Callable[[], Round], wanted: int, used: Callable[[], float] = time.process_time, seconds: float = SECONDS
) -> tuple[list[Round], float | None]:
    """Take rounds until so many were quiet; return those, and the share of the processors that others took.

    `used` returns the seconds of the processor that were our own. The share is that of the rounds returned.
    """
    found: list[tuple[Round, float | None]] = []
    quiet: list[tuple[Round, float | None]] = []
    started = time.perf_counter()
    while len(quiet) < wanted and (len(found) < min(wanted, FEWEST) or time.perf_counter() - started < seconds):
        watch = Watch(used)
        found.append((take(), None))
        found[-1] = found[-1][0], watch.share()
        quiet = [(each, share) for each, share in found if (share or 0) <= DISTURBED]
    kept = quiet if len(quiet) >= min(wanted, FEWEST) else found
    shares = [share for _, share in kept if share is not None]
    return [each for each, _ in kept], sum(shares) / len(shares) if shares else None


def disturbed(row: dict[str, Any]) -> bool:
    """Return whether other programs ran while a row was measured."""
    return (row["others"] or 0) > DISTURBED
