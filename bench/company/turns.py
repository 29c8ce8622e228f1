"""Steps taken in turn: how many times the plain one's time each takes, and how much of batch norm's time comes back."""

from __future__ import annotations

import random
import statistics
from collections.abc import Callable, Mapping
from typing import Any

from . import quiet

PLAIN, WITHOUT = "plain", "without batch norm"


def share(ratio: float, without: float) -> float:
    """Return (plain - variant) / (plain - without batch norm), from plain / variant and plain / without."""
    return (1 - 1 / ratio) / (1 - 1 / without)


def measure(timed: Mapping[str, Callable[[], float]], rounds: int, warm: int) -> dict[str, Any]:
    """Let everyone take a step in every round, in random order, and return the figures of the row.

    Those are medians of seconds, and of the ratios plain / variant of the same round. `timed` takes a step and returns
    its seconds; warm rounds are not counted; without any, it is a test of the harness, which does not wait for
    quiet cores.
    """
    order = list(timed)

    def take() -> dict[str, float]:
        random.shuffle(order)
        return {name: timed[name]() for name in order}

    for _ in range(warm):
        take()
    times, others = quiet.rounds(take, rounds, seconds=quiet.SECONDS if warm else 0)
    speedup = {name: statistics.median(t[PLAIN] / t[name] for t in times) for name in timed if name != PLAIN}
    without = speedup[WITHOUT]
    shares = {name: share(ratio, without) for name, ratio in speedup.items() if name != WITHOUT and without != 1}
    return {
        "rounds": len(times),
        "others": None if others is None else round(others, 3),
        "seconds": {name: float(f"{statistics.median(t[name] for t in times):.3g}") for name in timed},
        "speedup": {name: round(ratio, 3) for name, ratio in speedup.items()},
        "share": {name: round(value, 2) for name, value in shares.items()},
    }
