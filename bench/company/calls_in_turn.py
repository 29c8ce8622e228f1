"""Calls right after a product, measured over the processes of all hosts in turn: a row a shape and operation."""

from __future__ import annotations

import random
import statistics
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

from suites import Case

from company import quiet
from company.calls import NAMES, PAIRS, PRODUCT, REST
from company.hosts import HOSTS, Host, Missing

# Of different kinds: rows and images, in the cache and beyond, few and many channels, small enough for one thread.
CASES = [
    Case("company", shape, axis)
    for shape, axis in [
        ((32, 64), 1), ((256, 1024), 1), ((64, 4096), 1), ((16, 1024, 7, 7), 1), ((16, 64, 28, 28), 1),
        ((64, 40, 500), 1), ((32, 64, 56, 56), 1), ((16, 17, 17, 768), 3), ((8, 147, 147, 64), 3),
    ]
]  # fmt: skip
OPERATIONS = ("forward", "backward")
# A round is a burst in every process; 42 calls each in all.
ROUNDS, IN_A_BURST = 7, 6


def rows(quick: bool = False) -> Iterator[dict[str, Any]]:
    """Yield a row after the other; `quick` is a test of the harness, on shapes and products that take no time."""
    product, rounds, pairs, rest = (32, 1, 1, 0.0) if quick else (PRODUCT, ROUNDS, IN_A_BURST, REST)
    with ExitStack() as stack:
        hosts = [stack.enter_context(Host(name)) for name in HOSTS]
        for case in (CASES[0].shrunk(), CASES[-1].shrunk()) if quick else CASES:
            for operation in OPERATIONS:
                for host in list(hosts):
                    try:
                        host.ask("prepare", shape=case.shape, axis=case.axis, operation=operation, product=product)
                    except Missing:
                        hosts.remove(host)
                yield _row(case, operation, hosts, rounds, pairs, rest)


def _row(case: Case, operation: str, hosts: list[Host], rounds: int, pairs: int, rest: float) -> dict[str, Any]:
    order = hosts.copy()

    def take() -> dict[str, float]:
        random.shuffle(order)
        times: dict[str, float] = {}
        for host in order:
            times |= host.ask("burst", pairs=pairs, rest=rest)
        return times

    def used() -> float:
        for host in hosts:
            host.ask("used")
        return sum(host.used for host in hosts)

    found, others = quiet.rounds(take, rounds, used, quiet.SECONDS if rounds > 1 else 0)
    ratios = {
        f"{ours}, {theirs}": statistics.median(times[theirs] / times[ours] for times in found)
        for ours, theirs in PAIRS
        if theirs in found[0] and ours in found[0]
    }
    names = [name for host in HOSTS for name in NAMES[host] if name in found[0]]
    return {
        "shape": list(case.shape), "layout": case.layout, "operation": operation, "bytes": 4 * case.size,
        "calls": len(found) * pairs, "others": None if others is None else round(others, 3),
        "seconds": {name: float(f"{statistics.median(t[name] for t in found):.3g}") for name in names},
        "ratios": {name: round(ratio, 3) for name, ratio in ratios.items()},
    }  # fmt: skip
