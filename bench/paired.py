"""Compare functions on a machine that other programs share: in turn, in one run, by the medians of ratios."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# Rounds are taken until the participants have used this many seconds each, between these bounds.
SECONDS = 0.2
ROUNDS = 7, 100
# Whoever has used so many seconds, plain NumPy on 400 MB for one, sits out the rounds that follow, after the third.
PATIENCE = 3.0, 3

# Worker threads of OpenMP and TBB go on spinning after a call, for some milliseconds, and take a core away from whoever
# is called next; for some more, the scheduler leaves the next one's workers beside their caller. So a burst begins with
# a rest and with calls that are not counted, until both have passed: 8 x 128 x 28 x 28 takes fastbn 0.18 ms then, and
# 0.30 ms after a rest of 5 ms and one call; PyTorch, whose workers spin, takes 0.74 ms either way.
REST = 0.02
WARM = 0.015

# How long the calls that are counted take together, in seconds, and how many they are.
BURST = 5e-3
CALLS = 3, 30
# From here on, a function is called once a burst: it finds none of its data in a cache anyway.
LONG = 0.025

Function = Callable[[], object]


@dataclass(frozen=True)
class Comparison:
    """What was measured: seconds a call, and how many times the first participant's time each one took.

    Medians, and the quartiles of the ratios, which tell a steady row from one that other programs disturbed.
    """

    seconds: dict[str, float]
    ratios: dict[str, float]
    quartiles: dict[str, tuple[float, float]]
    rounds: int


def timed(function: Function) -> float:
    started = time.perf_counter()
    function()
    return time.perf_counter() - started


def burst(function: Function, about: float) -> float:
    """Return the median seconds of some calls, after a rest and calls that are not counted.

    `about` is how long a call takes, which decides how many there are.
    """
    time.sleep(REST)
    if about >= LONG:
        return timed(function)
    started = time.perf_counter()
    while time.perf_counter() - started < WARM:
        function()
    calls = min(max(int(BURST / about), CALLS[0]), CALLS[1])
    return statistics.median(timed(function) for _ in range(calls))


def compare(
    functions: Mapping[str, Function], seconds: float = SECONDS, rounds: tuple[int, int] = ROUNDS
) -> Comparison:
    """Call all functions in turn, round after round. The ratios are of times of one round, to the first function's."""
    names = list(functions)
    about = {}
    for name, function in functions.items():
        function()  # compiles, allocates, faults pages in
        about[name] = timed(function)
    times: list[dict[str, float]] = []
    started = time.perf_counter()
    while len(times) < rounds[0] or (
        len(times) < rounds[1] and time.perf_counter() - started < seconds * len(functions)
    ):
        # Everyone comes first, and after everyone else: by turns from another one on, forwards and backwards.
        turn = len(times) % len(names)
        order = names[turn:] + names[:turn]
        if len(times) // len(names) % 2:
            order.reverse()
        left_out = {n for n in names[1:] if len(times) >= PATIENCE[1] and about[n] * len(times) > PATIENCE[0]}
        times.append({name: burst(functions[name], about[name]) for name in order if name not in left_out})
    ratios = {name: [t[name] / t[names[0]] for t in times if name in t] for name in names}
    return Comparison(
        {name: statistics.median(t[name] for t in times if name in t) for name in names},
        {name: statistics.median(values) for name, values in ratios.items()},
        {name: _quartiles(values) for name, values in ratios.items()},
        len(times),
    )


def _quartiles(values: list[float]) -> tuple[float, float]:
    if len(values) < 2:
        return values[0], values[0]
    first, _, third = statistics.quantiles(values, n=4, method="inclusive")
    return first, third
