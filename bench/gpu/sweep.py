"""Turn the knobs of the launch plans one at a time, or all combinations of the values given, and time each."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

from fastbn.backends.cuda import launch as cuda

from . import arrays, knobs, peers, rows, timing
from .timing import Contender

BASE = "as planned"


def usual(plan: dict[str, Any], most: int) -> list[dict[str, int]]:
    """Return what is tried where nobody says: one knob at a time, from the plan's own settings."""
    blocks, smem_vectors = plan["blocks"], plan["smem_vectors"]
    tried: list[dict[str, int]] = []
    for value in sorted({1, 2, 4, 8, 16, 33, 66, 132, 264, max(1, blocks // 2), 2 * blocks, blocks + 1}):
        tried += [{"blocks": value}] * (value != blocks and value <= most)
    tried += [
        {"smem_vectors": value} for value in sorted({0, smem_vectors // 4, smem_vectors // 2}) if value < smem_vectors
    ]
    tried += [{"per_sm": value} for value in (1, 2, 3, 4) if value != plan["blocks_per_sm"]]
    tried += [{"threads": plan["threads"] // 2}] * (plan["threads"] >= 64)
    tried += [{"threads": plan["threads"] // 2, "per_sm": 2}] * (plan["threads"] >= 64)
    if plan["family"] == "channels_last" and plan["geometry"][2] == 1:
        row_threads = plan["geometry"][3]
        tried += [{"row_threads": value} for value in (row_threads // 2, row_threads * 2) if 1 <= value <= 16]
    return tried


def variants(plan: dict[str, Any], given: dict[str, list[int]]) -> list[dict[str, int]]:
    """Return the settings to try, after the plan's own."""
    if not given:
        return [{}, *usual(plan, cuda.device().multiprocessors * plan["blocks_per_sm"])]
    return [{}, *(dict(zip(given, values, strict=True)) for values in itertools.product(*given.values()))]


def run(given: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Time one input forward and backward with many plans."""
    own = arrays.house()
    shape, layout, dtype = tuple(given["shape"]), given["layout"], given["dtype"]
    sets = rows.sets_of(own, shape, layout, dtype)
    for operation in ("forward", "backward"):
        row = rows.shape_of(sets[0], operation, dtype, layout)
        try:
            with knobs.roomy_workspace():
                _one(own, operation, sets, row, given, tell)
        except Exception as error:
            tell(row | {"ok": False, "error": f"{type(error).__name__}: {error}"[:600]})


def _one(
    own: Any, operation: str, sets: list[peers.Inputs], row: dict[str, Any], given: dict[str, Any],
    tell: Callable[[dict[str, Any]], None],
) -> None:  # fmt: skip
    ours = peers.ours(operation, sets, row["dtype"])
    base = rows.recorded(ours)
    tried = variants(base, given["knobs"])[: 4 if given["tiny"] else None]
    contenders, plans = [], {}
    for setting in tried:
        name = " ".join(f"{knob}={value}" for knob, value in setting.items()) or BASE
        if name not in plans:
            plans[name] = {}
            contenders.append(Contender(name, ours.calls, functools.partial(knobs.turned, **setting)))
    found = timing.measure(own, contenders, rows.SECONDS[given["tiny"]])
    for contender in contenders:
        if "error" in found[contender.name]:
            continue
        with contender.around() as seen:
            contender.next(1)[0]()
        plans[contender.name] = rows.simple(seen[-1])
    for name, times in found.items():
        # A plan that cannot be launched, for it does not fit the chip, is an answer and not a failure.
        tell(row | {"knobs": name, "plan": plans[name], "times": times, "ok": name != BASE or "error" not in times})
