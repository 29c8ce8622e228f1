"""How much of the processor other programs took while something was measured.

Ratios of calls made in turn survive a slow machine, but not a busy one: OpenMP's threads wait for each other by
spinning, so a neighbour of higher priority on one of two cores made a call of PyTorch's of 12 us take 8 to 47 ms, in
every turn, and fastbn a thousand times as fast. Rows that were disturbed are measured again, and said to be if it did
not help.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

# Share of the time of our processors. The system's own housekeeping is below 2 %.
DISTURBED = 0.05
STAT = Path("/proc/stat")
# Its columns user, nice, system, irq, softirq, steal; those of waiting and of guests, counted in user, are not work.
WORK = (0, 1, 2, 5, 6, 7)


class Watch:
    """Started when made; `share` is what others used since, of the processors we may run on. None if unknown.

    `used` returns the seconds of the processor that were our own.
    """

    def __init__(self, used: Callable[[], float] = time.process_time) -> None:
        self.used = used
        self.started = time.perf_counter(), self._busy(), used()

    @staticmethod
    def _busy() -> float | None:
        """Return the seconds that our processors have worked, for whomever."""
        try:
            lines = STAT.read_text().splitlines()
            ours = {f"cpu{number}" for number in os.sched_getaffinity(0)}
        except (OSError, AttributeError):
            return None
        columns = [line.split() for line in lines]
        ticks = sum(int(line[1 + i]) for line in columns if line[0] in ours for i in WORK)
        return ticks / os.sysconf("SC_CLK_TCK")

    def share(self) -> float | None:
        """Return the share until now, from 0 to 1."""
        started, before, own = self.started
        now, busy, used = time.perf_counter(), self._busy(), self.used()
        if before is None or busy is None:
            return None
        # Ticks are counted in steps of 10 ms, so that a short time of nothing may come out below 0.
        return max(0.0, ((busy - before) - (used - own)) / ((now - started) * len(os.sched_getaffinity(0))))
