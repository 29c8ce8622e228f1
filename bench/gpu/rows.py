"""Rows of the table of times: one input, forward, inference and backward, fastbn and whoever is timed beside it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastbn.backends.cuda import launch as cuda

from . import arrays, knobs, peers, timing
from .peers import OPERATIONS, OURS
from .timing import Contender

Tell = Callable[[dict[str, Any]], None]

# Seconds of samples of each contender in a row.
SECONDS = {True: 0.005, False: 0.04}
# Below so many bytes of x a launch is a large part of a call, and graphs are timed as well.
SMALL = 64 << 20
# Results of 16 bits may be rounded to either neighbour; sums of others are good to some 1e-5 in float32.
APART = {"float32": 1e-3, "exact": 1e-3, "float64": 1e-9, "float16": 4e-3, "bfloat16": 2e-2}
# (read, written) tensors, where everything is kept on the chip and where it is not.
TENSORS = {"forward": (2, 3), "inference": (2, 2), "backward": (3, 5)}


def sets_of(own: Any, shape: tuple[int, ...], layout: str, dtype: str) -> list[peers.Inputs]:
    """Return as many sets of inputs as exceed the second-level cache twice, at least two."""
    nbytes = math.prod(shape) * arrays.dtype(dtype).itemsize
    count = 2 if timing.clock(own).events is False else 1 + math.ceil(2 * cuda.device().l2_bytes / (2 * nbytes))
    return [peers.inputs(own, shape, layout, dtype) for _ in range(min(max(count, 2), 64))]


def simple(plan: dict[str, Any]) -> dict[str, Any]:
    return {k: list(v) if isinstance(v, tuple) else v for k, v in plan.items()}


def recorded(contender: Contender) -> dict[str, Any]:
    """Return the plan of a call of fastbn's."""
    with knobs.turned() as plans:
        contender.next(1)[0]()
    return simple(plans[-1])


def shape_of(s: peers.Inputs, operation: str, dtype: str, layout: str) -> dict[str, Any]:
    """Return what names a row."""
    shape = list(map(int, s.x.shape))
    nbytes = math.prod(shape) * arrays.dtype(dtype).itemsize
    return {"shape": shape, "layout": layout, "dtype": dtype, "operation": operation, "nbytes": nbytes}


def apart(own: Any, s: peers.Inputs, operation: str, dtype: str) -> float:
    """Return how far fastbn is off PyTorch, relative to the largest value: a wrong kernel must not win."""
    torch = own.torch
    peers.ours(operation, [s], dtype).calls[0]()
    got = s.dx if operation == "backward" else s.y
    theirs = peers.eager(own, operation, [s], False)
    want = theirs.calls[0]()
    want = (want[0] if operation == "backward" else want).float()
    off = float((got.float() - want).abs().max() / want.abs().max())
    assert not torch.isnan(got).any(), "fastbn wrote NaN"
    assert off <= APART[dtype], f"fastbn is off PyTorch by {off:.3g} of the largest value"
    return off


def contenders_of(own: Any, operation: str, sets: list[peers.Inputs], dtype: str) -> list[Contender]:
    made = [peers.ours(operation, sets, dtype), peers.copy(own, sets)]
    if own.name == "torch":
        made += [peers.eager(own, operation, sets, cudnn) for cudnn in (True, False)]
    return made


def timed(own: Any, row: dict[str, Any], contenders: list[Contender], graphs: bool, tiny: bool) -> dict[str, Any]:
    """Return the row with its times; what a contender could not do is in `unavailable`, and fastbn's in `errors`."""
    found = timing.measure(own, contenders, SECONDS[tiny])
    row["times"] = {name: values for name, values in found.items() if "error" not in values}
    failed = {name: values["error"] for name, values in found.items() if "error" in values}
    if graphs and own.name == "torch":
        for contender in contenders:
            if contender.graph and contender.name in row["times"]:
                try:
                    row["times"][contender.name]["graph_us"] = timing.graph(own, contender)
                except Exception as error:
                    failed[f"{contender.name} in a graph"] = f"{type(error).__name__}: {error}"[:400]
    if own.name != "torch":
        failed |= dict.fromkeys(("PyTorch", "cuDNN", "graphs"), "no PyTorch on a GPU here")
    errors = {name: error for name, error in failed.items() if name.startswith(OURS)}
    row |= {"unavailable": {k: v for k, v in failed.items() if k not in errors}, "ok": not errors}
    return row | ({"error": "; ".join(f"{k}: {v}" for k, v in errors.items())} if errors else {})


def run(given: dict[str, Any], tell: Tell) -> None:
    """Time one input in all operations."""
    own = arrays.house()
    tiny = given["tiny"]
    sets = sets_of(own, tuple(given["shape"]), given["layout"], given["dtype"])
    for operation in OPERATIONS:
        row = shape_of(sets[0], operation, given["dtype"], given["layout"]) | {"sets": len(sets)}
        try:
            contenders = contenders_of(own, operation, sets, given["dtype"])
            row["plan"] = recorded(contenders[0])
            row["tensors"] = TENSORS[operation][not row["plan"]["kept"]]
            if own.name == "torch":
                row["apart"] = apart(own, sets[0], operation, given["dtype"])
            tell(timed(own, row, contenders, row["nbytes"] < SMALL, tiny))
        except Exception as error:
            tell(row | {"ok": False, "error": f"{type(error).__name__}: {error}"[:600]})


def run_slow(given: dict[str, Any], tell: Tell) -> None:
    """Time one operation beside torch.compile, which takes seconds to compile, and CuPy."""
    own = arrays.house()
    if own.name != "torch":
        tell({"skipped": "no PyTorch on a GPU here"})
        return
    operation = given["operation"]
    sets = sets_of(own, tuple(given["shape"]), given["layout"], given["dtype"])
    contenders = [peers.ours(operation, sets, given["dtype"])]
    unavailable = {}
    for name, make in (
        ("torch.compile", lambda: peers.compiled(own, operation, sets)),
        ("CuPy", lambda: peers.cupy(operation, sets)),
    ):
        try:
            contenders.append(make())
        except Exception as error:
            unavailable[name] = f"{type(error).__name__}: {error}"[:400]
    row = shape_of(sets[0], operation, given["dtype"], given["layout"]) | {"plan": recorded(contenders[0])}
    row = timed(own, row, contenders, False, given["tiny"])
    row["unavailable"] |= unavailable
    tell(row)


def run_launches(given: dict[str, Any], tell: Tell) -> None:
    """Time what a call costs the host, on tensors that cost the GPU next to nothing."""
    own = arrays.house()
    for shape, layout in (((32, 64), "NC"), ((8, 64, 7, 7), "NCHW")):
        sets = [peers.inputs(own, (*shape[:1], 3, *shape[2:]) if given["tiny"] else shape, layout, "float32")]
        for operation in OPERATIONS:
            for contender in contenders_of(own, operation, sets, "float32"):
                row = shape_of(sets[0], operation, "float32", layout) | {"who": contender.name}
                try:
                    tell(row | {"us": _launch(own, contender, given["tiny"])})
                except Exception as error:
                    tell(row | {"ok": contender.name != OURS, "error": f"{type(error).__name__}: {error}"[:400]})


def _launch(own: Any, contender: Contender, tiny: bool) -> float:
    count = 3 if tiny else 200  # the queue holds some 1000
    with contender.around():
        timing.launching(contender.next(2), own)
        return float(np.median([timing.launching(contender.next(count), own) for _ in range(2 if tiny else 7)])) * 1e6
