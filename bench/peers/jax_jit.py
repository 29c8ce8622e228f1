"""JAX, jitted: the formulas of Flax forward, the closed form backward, the memory of one result donated to the next.

The variance is E[x^2] - E[x]^2 as in Flax, which is the faster way; README.md has what that costs in accuracy.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from problem import EPS, MOMENTUM, Problem, Run, Unavailable

NAME = "JAX jit"


@functools.cache
def _module() -> Any:
    try:
        import jax
    except ImportError as error:
        raise Unavailable("JAX is not installed") from error
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_x64", True)
    return jax


def build(problem: Problem, operation: str) -> Run:
    jax = _module()
    jnp = jax.numpy
    p, axes, lined_up = problem, problem.axes, problem.broadcast
    own, count = p.weight.dtype, p.x.size // p.case.channels

    def normalise(x: Any, mean: Any, invstd: Any, weight: Any, bias: Any) -> Any:
        y = (x - mean.reshape(lined_up)) * (invstd * weight).reshape(lined_up) + bias.reshape(lined_up)
        return y.astype(p.x.dtype)

    @functools.partial(jax.jit, donate_argnums=0, keep_unused=True)
    def train(y: Any, x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any) -> Any:
        x = x.astype(own)
        mean = jnp.mean(x, axes)
        var = jnp.maximum(jnp.mean(x * x, axes) - mean * mean, 0)
        invstd = jax.lax.rsqrt(var + EPS)
        running_mean = (1 - MOMENTUM) * running_mean + MOMENTUM * mean
        running_var = (1 - MOMENTUM) * running_var + MOMENTUM * var * (count / (count - 1))
        return normalise(x, mean, invstd, weight, bias), mean, invstd, running_mean, running_var

    @functools.partial(jax.jit, donate_argnums=0, keep_unused=True)
    def infer(y: Any, x: Any, weight: Any, bias: Any, mean: Any, var: Any) -> Any:
        return (normalise(x.astype(own), mean, jax.lax.rsqrt(var + EPS), weight, bias),)

    @functools.partial(jax.jit, donate_argnums=0, keep_unused=True)
    def differentiate(dx: Any, dy: Any, x: Any, weight: Any, mean: Any, invstd: Any) -> Any:
        dy, xhat = dy.astype(own), (x.astype(own) - mean.reshape(lined_up)) * invstd.reshape(lined_up)
        dbias, dweight = jnp.sum(dy, axes), jnp.sum(dy * xhat, axes)
        inner = dy - (dbias / count).reshape(lined_up) - xhat * (dweight / count).reshape(lined_up)
        return ((weight * invstd).reshape(lined_up) * inner).astype(p.x.dtype), dweight, dbias

    x = jnp.asarray(p.x)
    given = [jnp.asarray(a) for a in (p.weight, p.bias, p.running_mean, p.running_var)]
    outputs = {"backward": ["dx"], "both": ["y", "dx"]}.get(operation, ["y"])
    memory = {name: jnp.zeros(p.x.shape, p.x.dtype) for name in outputs}

    def forward() -> Any:
        results = jax.block_until_ready(train(memory["y"], x, *given))
        memory["y"], *given[2:] = results[0], *results[3:]
        return results

    def inference() -> Any:
        results = jax.block_until_ready(infer(memory["y"], x, *given))
        memory["y"] = results[0]
        return results

    if operation == "forward":
        return Run(forward, _normalised)
    if operation == "inference":
        return Run(inference, _normalised)
    dy = jnp.asarray(p.dy)
    mean = p.x.mean(axes, dtype=own)
    saved = jnp.asarray(mean), jnp.asarray(1 / np.sqrt(p.x.var(axes, dtype=own) + EPS).astype(own))

    def backward() -> Any:
        results = jax.block_until_ready(differentiate(memory["dx"], dy, x, given[0], *saved))
        memory["dx"] = results[0]
        return results

    if operation == "backward":
        return Run(backward, _gradients)
    return Run(lambda: (forward(), backward()), lambda r: _normalised(r[0]) | _gradients(r[1]))


def _normalised(result: Any) -> dict[str, np.ndarray]:
    return {"y": np.asarray(result[0])}


def _gradients(result: Any) -> dict[str, np.ndarray]:
    return dict(zip(("dx", "dweight", "dbias"), map(np.asarray, result), strict=True))
