"""Steps taken in turn: how many times the plain one's time each takes, and how much of batch norm's time comes back."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

from others import DISTURBED, Watch

PLAIN, WITHOUT = "plain", "without batch norm"
# How often a row is measured before it is kept as it is, disturbed, and left out of every mean.
ATTEMPTS = 3
# A step that waits for a core takes ten times as long: rounds end here, after the fewest that make a median.
SECONDS, FEWEST = 15.0, 7


def disturbed(row: dict[str, Any]) -> bool:
    """Return whether other programs ran during a row, of the last attempt.

    Threads of OpenMP spin when they wait for each other, so that a neighbour on one of two cores makes a call of
    PyTorch's a hundred times as long and leaves fastbn's as they are: no ratio survives that.
    """
    return (row["others"] or 0) > DISTURBED


def attempts(measure: Callable[[], dict[str, Any]], most: int = ATTEMPTS) -> dict[str, Any]:
    """Measure a row until it is not disturbed, but not for ever."""
    row = measure()
    for _ in range(1, most):
        if not disturbed(row):
            break
        row = measure()
    return row


def share(ratio: float, without: float) -> float:
    """Return (plain - variant) / (plain - without batch norm), from plain / variant and plain / without."""
    return (1 - 1 / ratio) / (1 - 1 / without)


def measure(timed: Mapping[str, Callable[[], float]], rounds: int, warm: int) -> dict[str, Any]:
    """Let everyone take a step in every round, in random order, and return the figures of the row.

    Those are medians of seconds, and of the ratios plain / variant of the same round. `timed` takes a step and returns
    its seconds; warm rounds are not counted, and without any it is a test of the harness.
    """
    return attempts(lambda: _attempt(timed, rounds, warm), ATTEMPTS if warm else 1)


def _attempt(timed: Mapping[str, Callable[[], float]], rounds: int, warm: int) -> dict[str, Any]:
    order = list(timed)
    for _ in range(warm):
        for name in order:
            timed[name]()
    times: list[dict[str, float]] = []
    watch, started = Watch(), time.perf_counter()
    while len(times) < min(rounds, FEWEST) or (len(times) < rounds and time.perf_counter() - started < SECONDS):
        random.shuffle(order)
        times.append({name: timed[name]() for name in order})
    others = watch.share()
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
