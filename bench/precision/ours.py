"""fastbn in every layout, by every plan and in both precisions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

import fastbn
from plans import force  # of the tests

from .data import LAYOUTS, Problem, axis, restore

BOTH = (False, True)

# Channels and split (N, H, W) of the shapes that reach every family of kernels; see fastbn/backends/cpu/plan.py.
# What is computed in float64 has no kernels for "columns".
SHAPES = {
    "call": (8, (10, 10, 10)),  # below PARALLEL_FROM: one kernel does the whole call
    "rows": (24, (16, 10, 10)),
    "columns": (256, (2, 8, 8)),  # few rows of many channels
    "short": (24, (64, 5, 5)),  # groups of channels with short runs
    "runs": (3, (2, 95, 95)),  # two tiles a run
}
FAMILY_LAYOUTS = {
    "call": LAYOUTS,
    "rows": ("NC", "NHWC", "channels_last"),
    "columns": ("NC", "NHWC"),
    "short": ("NCL", "NCHW"),
    "runs": ("NCL", "NCHW"),
}


def plans(family: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the name of every plan of a family, and what makes a call take it."""
    if family == "call":
        yield "call", {}
        return
    for parallel in BOTH:
        for past in BOTH if family != "columns" else (False,):  # which never writes past the cache
            name = f"{family}, {'parallel' if parallel else 'serial'}, {'past' if past else 'through'} the cache"
            ways = {"parallel": parallel, "past_cache": (past, past)}
            if family != "runs":
                yield name, ways
                continue
            yield f"{name}, whole", ways | {"family": "channels_first"}
            yield f"{name}, tiles", ways | {"family": "tiles"}
            if parallel and past:
                yield f"{name}, overlapped", ways | {"family": "overlapped", "groups": 2}


def takes(family: str, dtype: str, precision: str) -> bool:
    """Return whether there are kernels of a family for data of a dtype."""
    return family != "columns" or not (dtype == "float64" or precision == "exact")


def run(
    problem: Problem, layout: str, precision: str = "fast", changes: dict[str, Any] | None = None
) -> dict[str, np.ndarray]:
    """Return what a forward and a backward pass give, by the plan of fastbn's own choice or by another."""
    case, channel_axis = problem.case, axis(layout)
    x, dy = problem.arrange(problem.x, layout), problem.arrange(problem.dy, layout)
    with pytest.MonkeyPatch.context() as patch:
        if changes:
            force(patch, **changes)
        y, ctx = fastbn.batch_norm(
            x, problem.weight, problem.bias, eps=case.eps, axis=channel_axis, precision=precision,
            out=np.full_like(x, np.nan),
        )  # fmt: skip
        grads = fastbn.batch_norm_backward(dy, ctx, out=np.full_like(x, np.nan))
    found = {"mean": ctx.moments.mean, "var": ctx.moments.var()}
    found |= {"y": restore(y, channel_axis), "dx": restore(grads.dx, channel_axis)}
    if problem.weight is not None:
        found |= {"dweight": grads.dweight, "dbias": grads.dbias}
    return found


def inference(problem: Problem, mean: np.ndarray, var: np.ndarray, precision: str = "fast") -> dict[str, np.ndarray]:
    """Return the y of given statistics."""
    x = problem.arrange(problem.x, "NCHW")
    y = fastbn.batch_norm_inference(
        x, mean, var, problem.weight, problem.bias, eps=problem.case.eps, precision=precision
    )
    return {"y": restore(y, 1)}
