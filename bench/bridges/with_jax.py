"""What fastbn.adapters.jax costs, and what it gains over Flax's batch norm, both under jit."""

import json
import sys
from pathlib import Path

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np

import fastbn
from fastbn.adapters.jax import batch_norm

sys.path.insert(0, str(Path(__file__).parents[1]))
from paired import compare

jax.config.update("jax_platforms", "cpu")


def _passes(function, *arguments):
    """Return a forward and a backward pass, each jitted and waited for."""
    forward = jax.jit(lambda *a: jax.vjp(function, *a))
    backward = jax.jit(lambda back, dy: back(dy))
    y, back = forward(*arguments)
    dy = jnp.asarray(np.random.default_rng(1).normal(size=y[0].shape), y[0].dtype)
    cotangent = (dy, *(jnp.zeros_like(s) for s in y[1:]))
    wait = jax.block_until_ready
    return lambda: wait(forward(*arguments)), lambda: wait(backward(back, cotangent)), np.asarray(dy)


def _ours(x, weight, bias, mean, var):
    return batch_norm(x, weight, bias, mean, var)


def _flax(x, weight, bias, mean, var):
    layer = flax.linen.BatchNorm(use_running_average=False, momentum=0.9, epsilon=1e-5)
    variables = {"params": {"scale": weight, "bias": bias}, "batch_stats": {"mean": mean, "var": var}}
    y, new = layer.apply(variables, x, mutable=["batch_stats"])
    return y, new["batch_stats"]["mean"], new["batch_stats"]["var"]


def _data(shape):
    c = shape[-1]
    values = np.random.default_rng(0).normal(size=shape), np.ones(c), np.zeros(c), np.zeros(c), np.ones(c)
    return [np.array(v, np.float32) for v in values]


def measure() -> dict:
    x, weight, bias, mean, var = small = _data((32, 64))
    on_jax = [jnp.asarray(a) for a in small]
    forward, backward, dy = _passes(_ours, *on_jax)

    def own():
        y, ctx = fastbn.batch_norm(x, weight, bias, running_mean=mean, running_var=var)
        return y, fastbn.batch_norm_backward(dy, ctx)

    bridge = compare({"own": own, "adapter": lambda: (forward(), backward()), "forward": forward})
    big = [jnp.asarray(a) for a in _data((32, 28, 28, 64))]
    ours, theirs = _passes(_ours, *big)[:2], _passes(_flax, *big)[:2]
    speedup = [compare({"ours": a, "theirs": b}, seconds=1).ratios["theirs"] for a, b in zip(ours, theirs, strict=True)]
    return {
        "host": "JAX",
        "lines": 2,
        "bridge_us": round((bridge.seconds["adapter"] - bridge.seconds["own"]) * 1e6, 1),
        "bridge": "two jitted calls",
        "forward_us": round(bridge.seconds["forward"] * 1e6, 1),
        "speedup_forward": round(speedup[0], 2),
        "speedup_backward": round(speedup[1], 2),
        "shape": "32 x 28 x 28 x 64, channels last",
        "own": "flax.linen.BatchNorm under jit",
    }


if __name__ == "__main__":
    print(json.dumps(measure()))
