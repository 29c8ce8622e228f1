"""Inside a caller's own `@njit` code, beside the loop that one would write there: two passes, sums in float64."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

sys.path.insert(0, str(Path(__file__).parents[1]))

from paired import compare

import fastbn
from fastbn_kernels.cpu import batch_norm_backward, batch_norm_forward

EPS = 1e-5


@njit
def forward(x, weight, bias, y, mean, invstd):
    batch_norm_forward(x, weight, bias, EPS, y, mean, invstd)


@njit
def backward(dy, x, weight, mean, invstd, dx, dweight, dbias):
    batch_norm_backward(dy, x, weight, mean, invstd, dx, dweight, dbias)


@njit
def step(x, dy, weight, bias, y, mean, invstd, dx, dweight, dbias):
    batch_norm_forward(x, weight, bias, EPS, y, mean, invstd)
    batch_norm_backward(dy, x, weight, mean, invstd, dx, dweight, dbias)


@njit(fastmath=True)
def loop_forward(x, weight, bias, y, mean, invstd):
    N, C, S = x.shape
    for c in range(C):
        total = 0.0
        for n in range(N):
            for s in range(S):
                total += x[n, c, s]
        m = total / (N * S)
        squares = 0.0
        for n in range(N):
            for s in range(S):
                squares += (x[n, c, s] - m) ** 2
        invstd[c] = 1 / math.sqrt(squares / (N * S) + EPS)
        mean[0, c] = m
        for n in range(N):
            for s in range(S):
                y[n, c, s] = (x[n, c, s] - m) * invstd[c] * weight[c] + bias[c]


@njit(fastmath=True)
def loop_backward(dy, x, weight, mean, invstd, dx, dweight, dbias):
    N, C, S = x.shape
    for c in range(C):
        total = 0.0
        product = 0.0
        for n in range(N):
            for s in range(S):
                total += dy[n, c, s]
                product += dy[n, c, s] * (x[n, c, s] - mean[0, c]) * invstd[c]
        dbias[c] = total
        dweight[c] = product
        count = N * S
        for n in range(N):
            for s in range(S):
                xhat = (x[n, c, s] - mean[0, c]) * invstd[c]
                dx[n, c, s] = weight[c] * invstd[c] * (dy[n, c, s] - total / count - xhat * product / count)


def arrays(shape: tuple[int, ...]) -> dict[str, Any]:
    rng = np.random.default_rng()
    C = shape[1]
    own: dict[str, Any] = {name: rng.normal(size=shape).astype(np.float32) for name in ("x", "dy", "y", "dx")}
    own |= {name: rng.normal(1, 0.1, C).astype(np.float32) for name in ("weight", "bias", "dweight", "dbias")}
    return own | {"mean": np.empty((2, C)), "invstd": np.empty(C)}


def measure() -> dict[str, Any]:
    """Return the figures of this host; for loops that run in one thread, as functions of Numba do."""
    a = arrays((32, 64))
    all_of = [a[k] for k in ("x", "dy", "weight", "bias", "y", "mean", "invstd", "dx", "dweight", "dbias")]

    def of_fastbn() -> None:
        _, ctx = fastbn.batch_norm(a["x"], a["weight"], a["bias"], out=a["y"])
        fastbn.batch_norm_backward(a["dy"], ctx, out=a["dx"])

    small = compare({"fastbn": of_fastbn, "njit": lambda: step(*all_of)}).seconds
    a = arrays((32, 64, 28 * 28))
    onwards = [a[k] for k in ("x", "weight", "bias", "y", "mean", "invstd")]
    back = [a[k] for k in ("dy", "x", "weight", "mean", "invstd", "dx", "dweight", "dbias")]
    there = compare({"ours": lambda: forward(*onwards), "loop": lambda: loop_forward(*onwards)})
    and_back = compare({"ours": lambda: backward(*back), "loop": lambda: loop_backward(*back)})
    return {
        "host": "Numba, own @njit code",
        "lines": 2,
        "bridge_us": (small["njit"] - small["fastbn"]) * 1e6,
        "speedup_forward": there.ratios["loop"],
        "speedup_backward": and_back.ratios["loop"],
        "own": "none; a two-pass loop in @njit(fastmath=True)",
        "on": "32 x 64 x 28 x 28, one thread",
    }


if __name__ == "__main__":
    print(json.dumps(measure()))
