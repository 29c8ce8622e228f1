"""Plain NumPy, as one writes it: vectorised, one pass an operation, into preallocated arrays."""

from __future__ import annotations

import numpy as np
from problem import EPS, MOMENTUM, Problem, Run

NAME = "NumPy"


def build(problem: Problem, operation: str) -> Run:
    p, axes = problem, problem.axes
    count = p.x.size // p.case.channels
    own = p.weight.dtype
    weight, bias, mean, var = (
        a.reshape(p.broadcast) for a in (p.weight, p.bias, p.running_mean.copy(), p.running_var.copy())
    )
    xhat = np.empty(p.x.shape, own)
    scratch = np.empty_like(xhat)
    # 16 bits are converted on the way in and out, since NumPy computes with them element by element.
    y = scratch if p.x.dtype == own else np.empty_like(p.x)

    def batch_statistics() -> tuple[np.ndarray, np.ndarray]:
        x = p.x.astype(own, copy=False)
        batch_mean = x.mean(axes, keepdims=True)
        np.subtract(x, batch_mean, out=xhat)
        return batch_mean, np.multiply(xhat, xhat, out=scratch).mean(axes, keepdims=True)

    def forward() -> dict[str, np.ndarray]:
        batch_mean, batch_var = batch_statistics()
        mean[...] = (1 - MOMENTUM) * mean + MOMENTUM * batch_mean
        var[...] = (1 - MOMENTUM) * var + MOMENTUM * batch_var * (count / (count - 1))
        np.multiply(xhat, weight / np.sqrt(batch_var + EPS), out=scratch)
        return {"y": store(np.add(scratch, bias, out=scratch), y)}

    def inference() -> dict[str, np.ndarray]:
        np.subtract(p.x.astype(own, copy=False), mean, out=scratch)
        np.multiply(scratch, weight / np.sqrt(var + EPS), out=scratch)
        return {"y": store(np.add(scratch, bias, out=scratch), y)}

    def store(values: np.ndarray, out: np.ndarray) -> np.ndarray:
        if out is not values:
            np.copyto(out, values, casting="unsafe")
        return out

    if operation == "inference":
        return Run(inference, dict)
    if operation == "forward":
        return Run(forward, dict)

    batch_mean, batch_var = batch_statistics()
    invstd = 1 / np.sqrt(batch_var + EPS)
    products = np.empty_like(xhat)
    dx = products if p.x.dtype == own else np.empty_like(p.x)

    def backward() -> dict[str, np.ndarray]:
        dy = p.dy.astype(own, copy=False)
        np.subtract(p.x.astype(own, copy=False), batch_mean, out=xhat)
        np.multiply(xhat, invstd, out=xhat)
        dbias = dy.sum(axes, keepdims=True)
        dweight = np.multiply(dy, xhat, out=products).sum(axes, keepdims=True)
        np.multiply(xhat, dweight / count, out=xhat)
        np.subtract(dy, dbias / count, out=products)
        np.subtract(products, xhat, out=products)
        np.multiply(products, weight * invstd, out=products)
        return {"dx": store(products, dx), "dweight": dweight.ravel(), "dbias": dbias.ravel()}

    if operation == "backward":
        return Run(backward, dict)
    return Run(lambda: forward() | backward(), dict)
