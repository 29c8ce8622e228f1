"""What MyGrad's graph adds to a call, and its own batch norm beside ours: `python bench/bridges/with_mygrad.py`."""

from __future__ import annotations

import json

import mygrad
from in_turn import LARGE, SMALL, Pass, data, microseconds, speedups
from mygrad.nnet.layers import batchnorm

import fastbn
from fastbn.adapters.mygrad import batch_norm


def measure() -> dict:
    x, weight, bias, dy = data(SMALL)
    tensors = [mygrad.tensor(array) for array in (x, weight, bias)]
    adapter = Pass(lambda: batch_norm(*tensors), lambda y: y.backward(dy))
    functions = Pass(
        lambda: fastbn.batch_norm(x, weight, bias), lambda result: fastbn.batch_norm_backward(dy, result[1])
    )
    bridge = microseconds(adapter, functions)

    x, weight, bias, dy_large = data(LARGE)
    large = [mygrad.tensor(array) for array in (x, weight, bias)]
    ours = Pass(lambda: batch_norm(*large), lambda y: y.backward(dy_large))
    theirs = Pass(lambda: batchnorm(large[0], gamma=large[1], beta=large[2], eps=1e-5), lambda y: y.backward(dy_large))
    return {
        "host": f"mygrad {mygrad.__version__}", "lines": 2, "bridge_us": bridge, **speedups(ours, theirs),
        "own": "mygrad.nnet.layers.batchnorm", "shape": LARGE,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(measure()))
