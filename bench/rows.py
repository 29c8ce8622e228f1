"""Measure one row of the results: fastbn, its peers and the copies, in turn, each checked before it is timed."""

from __future__ import annotations

import gc
from collections.abc import Iterable
from typing import Any

import limit
import others
import ours
import paired
from peers import PEERS, numpy_plain
from problem import Unavailable, check, draw
from suites import Case

from fastbn.backends.cpu.plan import LAST_LEVEL_CACHE

WIDE = "fastbn, float32"
# How often a row is measured before it is taken as it is, disturbed.
ATTEMPTS = 3


def measure(
    case: Case,
    operation: str,
    dtype: str,
    peers: Iterable[str],
    *,
    seconds: float = paired.SECONDS,
    rounds: tuple[int, int] = paired.ROUNDS,
    with_float32: bool = False,
) -> tuple[ours.Run, dict[str, Any]]:
    """Return fastbn's run and the row. Raises `Unavailable` if NumPy has no such dtype."""
    problem = draw(case, dtype, operation)
    own = ours.build(problem, operation)
    reference = numpy_plain.build(problem, operation)
    expected = {name: array.copy() for name, array in reference.call().items()}
    del reference
    check(ours.NAME, own.arrays(own.call()), expected, dtype)
    functions, unavailable = {ours.NAME: own.call}, {}
    for name in peers:
        try:
            run = PEERS[name].build(problem, operation)
        except Unavailable as reason:
            unavailable[name] = str(reason)
        else:
            try:
                check(name, run.arrays(run.call()), expected, dtype)
            except AssertionError as difference:  # test_peers.py fails for it; here it would cost the other peers
                unavailable[name] = f"another result: {difference}"
            else:
                functions[name] = run.call
    if with_float32:
        functions[WIDE] = ours.build(draw(case, "float32", operation), operation).call
    functions |= limit.copies(problem.x.nbytes)
    del expected
    for _ in range(ATTEMPTS):
        watch = others.Watch()
        found = paired.compare(functions, seconds, rounds)
        disturbance = watch.share()
        if disturbance is None or disturbance <= others.DISTURBED:
            break
    row = {
        "suite": case.suite,
        "shape": list(case.shape),
        "layout": case.layout,
        "operation": operation,
        "dtype": dtype,
        "bytes": problem.x.nbytes,
        "rounds": found.rounds,
        "others": None if disturbance is None else round(disturbance, 3),
        "seconds": _digits(found.seconds),
        "speedup": _digits({name: found.ratios[name] for name in functions if name in PEERS}),
        "quartiles": {name: [_three(q) for q in found.quartiles[name]] for name in functions if name in PEERS},
        "unavailable": unavailable,
    }
    name = min((n for n in functions if n.startswith("copy")), key=found.ratios.__getitem__)
    tensors = limit.useful_tensors(case, problem.x.itemsize, operation, LAST_LEVEL_CACHE)
    row |= {"copy": name, "useful_tensors": tensors, "share_of_copy": _three(tensors / 2 * found.ratios[name])}
    if with_float32:
        row["speedup_over_float32"] = _three(found.ratios[WIDE])
    gc.collect()
    return own, row


def _digits(values: dict[str, float]) -> dict[str, float]:
    return {name: _three(value) for name, value in values.items()}


def _three(value: float) -> float:
    return float(f"{value:.3g}")
