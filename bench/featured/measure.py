"""Measure a group: plain batch norm, the features, what they replace and the copies, in turn, checked before."""

from __future__ import annotations

import gc
import random
import statistics
from collections.abc import Iterator
from typing import Any

import limit
import paired
from company import quiet

from .work import Group

ROUNDS = 9
# What a round takes is a matter of the group; so many seconds are waited for quiet rounds of one, at most.
SECONDS = 20.0
Row = dict[str, Any]


def rows(group: Group, rounds: int = ROUNDS, seconds: float = SECONDS) -> Iterator[Row]:
    """Yield a row for every feature and operation.

    `cost` is fastbn's time over that of plain batch norm; `beyond` the same over plain batch norm and the time in which
    the fastest copy moves what the feature has to move besides; `speedup` how many times fastbn's the others take.
    """
    for feature in group.features:
        feature.agree()
    nbytes = 4 * group.case.size
    for way, operation in enumerate(group.operations):
        functions = {"plain": group.plain.timed(operation)} | limit.copies(nbytes)
        copies = [name for name in functions if name != "plain"]
        for feature in group.features:
            functions[feature.name] = feature.own.timed(operation)
            functions |= {f"{feature.name}: {name}": w.timed(operation) for name, w in feature.replaced.items()}
        times, others = _in_turn(functions, rounds, seconds)

        def over(name: str, first: str, times: list[dict[str, float]] = times) -> float:
            return statistics.median(t[name] / t[first] for t in times)

        copy = min(over(name, "plain") for name in copies)
        for feature in group.features:
            cost, tensors = over(feature.name, "plain"), feature.tensors[way]
            named = {"plain": "plain", "fastbn": feature.name} | {n: f"{feature.name}: {n}" for n in feature.replaced}
            yield {
                "kind": group.name,
                "feature": feature.name,
                "shape": list(group.case.shape),
                "layout": group.case.layout,
                "operation": operation,
                "bytes": nbytes,
                "rounds": len(times),
                "others": None if others is None else round(others, 3),
                "seconds": {n: _three(statistics.median(t[key] for t in times)) for n, key in named.items()},
                "tensors": tensors,
                "cost": _three(cost),
                "beyond": _three(cost / (1 + tensors / 2 * copy)),
                "speedup": {n: _three(over(f"{feature.name}: {n}", feature.name)) for n in feature.replaced},
                "unavailable": feature.unavailable,
            }
        del functions
        gc.collect()


def _in_turn(functions: dict[str, Any], rounds: int, seconds: float) -> tuple[list[dict[str, float]], float | None]:
    """Return the seconds of everyone, round after round, in random order; of quiet rounds, if there were enough.

    Without seconds it is a test of the harness, which calls everyone once.
    """
    about = {}
    for name, function in functions.items():
        function()  # compiles, allocates, faults pages in
        about[name] = paired.timed(function)
    order = list(functions)
    burst = paired.burst if seconds else lambda function, _: paired.timed(function)

    def take() -> dict[str, float]:
        random.shuffle(order)
        return {name: burst(functions[name], about[name]) for name in order}

    return quiet.rounds(take, rounds, seconds=seconds)


def _three(value: float) -> float:
    return float(f"{value:.3g}")
