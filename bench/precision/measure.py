"""Run over the cases: fastbn beside the frameworks, and fastbn by every plan in every layout."""

from __future__ import annotations

import functools
import gc
import importlib.metadata
import importlib.util
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import product
from typing import Any

import numpy as np
from problem import Unavailable

import fastbn

from . import ours, peers
from .data import AFFINE, Case, Problem, draw
from .exact import errors, expected

# Values a channel, and channels: enough values that the worst of them means something.
SHAPES = {
    2: (64, (2, 1, 1)), 3: (64, (3, 1, 1)), 10: (64, (2, 1, 5)), 1000: (64, (10, 10, 10)), 10**5: (8, (10, 100, 100)),
    10**6: (2, (16, 250, 250)), 10**7: (1, (10, 1000, 1000)), 10**8: (1, (100, 1000, 1000)),
}  # fmt: skip
OFFSETS = (0.0, 1.0, 100.0, 1e4, 1e6)
SCALES = (1e-20, 1e18, 1e30)
# As far as the format holds the data: 100 standard deviations from zero, bfloat16 has half a one between two numbers.
HALF_OFFSETS = (0.0, 1.0, 100.0)
DTYPES = ("float32", "float64", "float16", "bfloat16")
LARGE = 10**7
STORABLE = 1e18  # the standard deviation up to which float32 holds a variance

Way = tuple[str, str, str, float]  # precision, layout, plan, std

TRAINING: dict[str, Callable[[Problem], peers.Found]] = {
    "fastbn NCHW": lambda problem: ours.run(problem, "NCHW"),
    "fastbn NHWC": lambda problem: ours.run(problem, "NHWC"),
    "fastbn exact": lambda problem: ours.run(problem, "NCHW", "exact"),
    **peers.TRAINING,
    "ONNX Runtime": peers.onnx_training,
}
INFERENCE = {
    "fastbn inference": ours.inference,
    "fastbn exact inference": functools.partial(ours.inference, precision="exact"),
    "ONNX Runtime inference": peers.onnx_runtime,
}


def compared(size: str) -> Iterator[Case]:
    """Yield the cases that the frameworks take part in; of one shape in a row, which JAX compiles once."""
    counts = {"quick": (2, 1000), "default": (2, 3, 10, 1000, 10**5, 10**6), "full": tuple(SHAPES)}[size]
    for count in counts:
        offsets = (
            (0.0, 1e4)[: 2 if count < 10**8 else 1] if count > 10**6 else (0.0, 1e6) if size == "quick" else OFFSETS
        )
        for offset in offsets:
            yield Case("float32", *SHAPES[count], offset)
    for std in SCALES:
        yield Case("float32", *SHAPES[1000 if size == "quick" else 10**5], std=std)
    for count in (1000,) if size == "quick" else (1000, 10**5):
        for dtype in DTYPES[1:]:
            for offset in OFFSETS if dtype == "float64" else (0.0, 100.0):
                yield Case(dtype, *SHAPES[count], offset)


def own(dtype: str, size: str) -> Iterator[tuple[float, float]]:
    """Yield the (offset, std) that fastbn is measured at by every plan."""
    offsets = HALF_OFFSETS if dtype in ("float16", "bfloat16") else OFFSETS
    yield from ((offset, 1.0) for offset in ((0.0, offsets[-1]) if size == "quick" else offsets))
    if size != "quick" and dtype != "float16":
        yield from ((0.0, std) for std in SCALES)


def precisions(dtype: str) -> tuple[str, ...]:
    """Return the precisions that differ on data of a dtype; of dtypes with one arithmetic, fast."""
    return ("fast", "exact") if dtype == "float32" else ("fast",)


def _is_another(name: str, dtype: str) -> bool:
    """Whether a column is not one that another already is."""
    return "exact" not in name or "exact" in precisions(dtype)


def compare(case: Case, rng: np.random.Generator, missing: dict[str, str]) -> dict[str, dict[str, float]]:
    """Return the errors of everyone who can take part in a case; note why others cannot."""
    problem = draw(case, rng)
    exact = expected(problem)
    found = {}
    for name, run in TRAINING.items():
        if not _is_another(name, case.dtype):
            continue
        try:
            found[name] = errors(run(problem), exact, problem)
        except Unavailable as reason:
            missing[f"{name}, {case.dtype}"] = str(reason)
        if problem.x.size > LARGE:
            gc.collect()  # of gigabytes; it takes half a second with the frameworks loaded
    if problem.x.size > LARGE:
        return found  # more values of a channel are nothing new to inference
    if case.std > STORABLE:
        return found
    given = exact.mean.astype(np.float32), exact.var.astype(np.float32)
    del exact
    exact = expected(problem, given)
    for name, infer in INFERENCE.items():
        if not _is_another(name, case.dtype):
            continue
        try:
            found[name] = errors(infer(problem, *given), exact, problem)
        except Unavailable as reason:
            missing[f"{name}, {case.dtype}"] = str(reason)
    return found


def every_plan(dtype: str, size: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Return fastbn's largest errors over the offsets, for every layout, plan, precision, parameters and scale."""
    rows = []
    for family, (channels, split) in ours.SHAPES.items():
        for affine in AFFINE:
            worst: dict[Way, dict[str, Any]] = {}
            for offset, std in own(dtype, size) if ours.takes(family, dtype, "fast") else ():
                problem = draw(Case(dtype, channels, split, offset, std, affine), rng)
                exact = expected(problem)
                told: dict[bytes, dict[str, float]] = {}  # most plans give the same bits
                ways = product(precisions(dtype), ours.FAMILY_LAYOUTS[family], ours.plans(family))
                for precision, layout, (plan, changes) in ways:
                    if not ours.takes(family, dtype, precision):
                        continue
                    results = ours.run(problem, layout, precision, changes)
                    bits = b"".join(array.tobytes() for array in results.values())
                    if bits not in told:
                        told[bits] = errors(results, exact, problem)
                    row = worst.setdefault((precision, layout, plan, std), {"errors": {}, "at": {}})
                    for name, value in told[bits].items():
                        if value > row["errors"].get(name, -1.0):
                            row["errors"][name], row["at"][name] = value, offset
            rows += [{"dtype": dtype, "affine": affine} | row for row in _together(worst)]
    return rows


def _together(worst: dict[Way, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a row for all layouts and plans that gave the same errors, which as a rule is a family."""
    by_plan: dict[str, dict[str, Any]] = {}
    for (precision, layout, plan, std), row in worst.items():
        about = {"precision": precision, "std": std, "plans": [plan], "layouts": []} | row
        by_plan.setdefault(repr((precision, std, plan, row)), about)["layouts"].append(layout)
    rows: dict[str, dict[str, Any]] = {}
    for row in by_plan.values():
        key = repr({name: value for name, value in row.items() if name != "plans"})
        if key in rows:
            rows[key]["plans"] += row["plans"]
        else:
            rows[key] = row
    return list(rows.values())


def versions() -> dict[str, str]:
    names = {"numpy", "numba", "torch", "jax", "flax", "keras", "onnx", "onnxruntime", "ml_dtypes"}
    found = {name: importlib.metadata.version(name) for name in sorted(names) if importlib.util.find_spec(name)}
    return found | {"fastbn": fastbn.__version__}


def record(size: str, seed: int, dtypes: Iterable[str] = DTYPES, say: Callable[[str], Any] = print) -> dict[str, Any]:
    """Measure everything; every case and dtype draws from a generator of its own, so that one can be repeated alone."""
    cases, rows, missing = [], [], {}
    began = time.monotonic()
    for i, case in enumerate(compared(size)):
        if case.dtype not in dtypes:
            continue
        say(f"{time.monotonic() - began:6.0f} s  {case.dtype}, {case.count} values a channel, {case.label}")
        found = compare(case, np.random.default_rng([seed, i]), missing)
        about = {"dtype": case.dtype, "count": case.count, "channels": case.channels, "eps": case.eps}
        cases.append(about | {"offset": case.offset, "std": case.std, "label": case.label, "errors": found})
    for i, dtype in enumerate(dtypes):
        say(f"{time.monotonic() - began:6.0f} s  fastbn by every plan, {dtype}")
        rows += every_plan(dtype, size, np.random.default_rng([seed, 1000 + i]))
    about = {"size": size, "seed": seed, "date": time.strftime("%Y-%m-%d"), "machine": platform.machine()}
    digits = np.finfo(np.longdouble).nmant + 1
    about |= {"oracle_digits": digits, "versions": versions()}
    return about | {"unavailable": missing, "cases": cases, "plans": rows}
