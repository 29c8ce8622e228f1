"""What autograd's tape adds to a call, and the formula in its NumPy beside it: `python bench/bridges/with_autograd.py`.

autograd has no batch norm of its own; its users write the formula.
"""

from __future__ import annotations

import importlib.metadata
import json

import autograd.numpy as anp
from autograd.core import make_vjp
from autograd.extend import defvjp_argnums, primitive
from in_turn import LARGE, SMALL, Pass, data, microseconds, speedups

import fastbn
from fastbn.adapters.autograd import batch_norm


def formula(x, weight, bias):
    others = tuple(i for i in range(x.ndim) if i != 1)
    column = tuple(x.shape[1] if i == 1 else 1 for i in range(x.ndim))
    centred = x - anp.mean(x, others, keepdims=True)
    var = anp.mean(centred**2, others, keepdims=True)
    return centred / anp.sqrt(var + 1e-5) * anp.reshape(weight, column) + anp.reshape(bias, column)


nothing = primitive(lambda x, weight, bias: x)  # what remains is autograd's own time for a primitive of three inputs
defvjp_argnums(nothing, lambda argnums, y, args, kwargs: lambda dy: [(dy, *args[1:])[i] for i in argnums])


def measure() -> dict:
    x, weight, bias, dy = data(SMALL)
    adapter = Pass(
        lambda: make_vjp(lambda inputs: batch_norm(*inputs), (x, weight, bias)), lambda result: result[0](dy)
    )
    functions = Pass(
        lambda: fastbn.batch_norm(x, weight, bias), lambda result: fastbn.batch_norm_backward(dy, result[1])
    )
    tracing = Pass(lambda: make_vjp(lambda inputs: nothing(*inputs), (x, weight, bias)), lambda result: result[0](dy))
    bridge = microseconds(adapter, functions)
    floor = round(sum(tracing.seconds(2000)) * 1e6, 1)

    large = data(LARGE)
    ours, theirs = (
        Pass(
            lambda function=function: make_vjp(lambda inputs: function(*inputs), large[:3]),
            lambda result: result[0](large[3]),
        )
        for function in (batch_norm, formula)
    )
    return {
        "host": f"autograd {importlib.metadata.version('autograd')}", "lines": 2, "bridge_us": bridge,
        "tracing_us": floor, **speedups(ours, theirs, rounds=11, calls=1), "own": "none",
        "compared": "the formula in autograd.numpy", "shape": LARGE,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(measure()))
