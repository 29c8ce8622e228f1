"""What a thinc model adds to a call, and the same layer in NumPy beside it: `python bench/bridges/with_thinc.py`.

thinc has no batch norm; the layer in NumPy is written as thinc's LayerNorm is, over the batch instead of the features.
"""

from __future__ import annotations

import importlib.metadata
import json

from in_turn import LARGE, SMALL, Pass, data, microseconds, speedups
from thinc.api import Model

import fastbn
from fastbn.adapters.thinc import BatchNorm


def forward(model, X, is_train):
    others = tuple(i for i in range(X.ndim) if i != 1)
    column = tuple(X.shape[1] if i == 1 else 1 for i in range(X.ndim))
    N = X.size // X.shape[1]
    G, b = model.get_param("G").reshape(column), model.get_param("b").reshape(column)
    mu, var = X.mean(others, keepdims=True), X.var(others, keepdims=True) + 1e-5
    Xhat = (X - mu) * var ** (-1.0 / 2.0)
    Y = Xhat * G
    Y += b

    def backprop(dY):
        model.inc_grad("b", dY.sum(others))
        model.inc_grad("G", (dY * Xhat).sum(others))
        dY = dY * G
        dist = X - mu
        d_xhat = N * dY - dY.sum(others, keepdims=True)
        d_xhat -= dist * var ** (-1.0) * (dY * dist).sum(others, keepdims=True)
        d_xhat *= var ** (-1.0 / 2)
        d_xhat /= N
        return d_xhat

    return Y, backprop


def measure() -> dict:
    x, weight, bias, dy = data(SMALL)
    model = BatchNorm().initialize(x)
    running = {"running_mean": model.attrs["running_mean"].copy(), "running_var": model.attrs["running_var"].copy()}
    adapter = Pass(lambda: model.begin_update(x), lambda result: result[1](dy))
    functions = Pass(
        lambda: fastbn.batch_norm(x, weight, bias, **running), lambda result: fastbn.batch_norm_backward(dy, result[1])
    )
    bridge = microseconds(adapter, functions)

    X, G, b, dY = data(LARGE)
    ours, theirs = BatchNorm().initialize(X), Model("numpy", forward, params={"G": G, "b": b})
    passes = [Pass(lambda model=model: model.begin_update(X), lambda result: result[1](dY)) for model in (ours, theirs)]
    return {
        "host": f"thinc {importlib.metadata.version('thinc')}", "lines": 2, "bridge_us": bridge, **speedups(*passes),
        "own": "none", "compared": "the layer in NumPy, as thinc's LayerNorm is written", "shape": LARGE,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(measure()))
