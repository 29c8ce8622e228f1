"""Two ways forward and back, called in turn: medians of the ratios of their times, and of what one takes beyond."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

SMALL, LARGE = (32, 64), (32, 64, 28, 28)
REST = 0.01  # worker threads spin on for some milliseconds after a call, and would take the next one's core


@dataclass(frozen=True)
class Pass:
    """A forward pass, and a backward pass of what that returned."""

    forward: Callable[[], Any]
    backward: Callable[[Any], Any]

    def seconds(self, calls: int = 1) -> tuple[float, float]:
        """Return the medians of some calls, forward and backward."""
        times = []
        for _ in range(calls):
            started = time.perf_counter()
            state = self.forward()
            between = time.perf_counter()
            self.backward(state)
            times.append((between - started, time.perf_counter() - between))
        forward, backward = zip(*times, strict=True)
        return statistics.median(forward), statistics.median(backward)


def _rounds(ours: Pass, theirs: Pass, rounds: int, calls: int) -> list[tuple[tuple[float, float], ...]]:
    results = []
    for i in range(rounds + 1):
        pair = {}
        for each in (ours, theirs) if i % 2 else (theirs, ours):
            time.sleep(REST)
            each.seconds()
            pair[each] = each.seconds(calls)
        results.append((pair[ours], pair[theirs]))
    return results[1:]  # the first compiles


def speedups(ours: Pass, theirs: Pass, rounds: int = 21, calls: int = 3) -> dict[str, float]:
    """Return how many times our time theirs take."""
    results = _rounds(ours, theirs, rounds, calls)
    forward = statistics.median(their[0] / our[0] for our, their in results)
    backward = statistics.median(their[1] / our[1] for our, their in results)
    return {"speedup_forward": round(forward, 2), "speedup_backward": round(backward, 2)}


def microseconds(adapter: Pass, functions: Pass, rounds: int = 41, calls: int = 200) -> float:
    """Return the microseconds that a forward and a backward call take beyond fastbn's functions."""
    results = _rounds(adapter, functions, rounds, calls)
    return round(statistics.median(sum(a) - sum(f) for a, f in results) * 1e6, 1)


def data(shape: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """Return x, weight, bias, dy of float32."""
    rng = np.random.default_rng(0)
    shapes = shape, shape[1], shape[1], shape
    x, weight, bias, dy = (rng.normal(size=each).astype(np.float32) for each in shapes)
    return x, weight, bias, dy
