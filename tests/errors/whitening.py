"""What whitening refuses: in the form of `functions`."""

import numpy as np

from errors.functions import F4
from fastbn import DecorrelatedBatchNorm

CONSTRUCTOR = [
    ("num_features", "zero", ValueError, {"num_features": 0}),
    ("groups", "no divisor", ValueError, {"groups": 4}),
    ("groups", "zero", ValueError, {"groups": 0}),
    ("groups", "a fraction", TypeError, {"groups": 2.0}),
    ("eps", "zero", ValueError, {"eps": 0}),
    ("dtype", "float16", TypeError, {"dtype": np.float16}),
]

CALL = [
    ("x", "a list", TypeError, {"x": [1]}),
    ("x", "integers", TypeError, {"x": np.ones((4, 6), np.int64)}),
    ("x", "another number of channels", ValueError, {"x": np.ones((2, 4), F4)}),
    ("x", "an empty batch in training", ValueError, {"x": np.ones((0, 6), F4)}),
    ("axis", "x has fewer axes than the layer's", ValueError, {"layer": DecorrelatedBatchNorm(6, axis=2)}),
    ("correction", "one value a channel", ValueError, {"x": np.ones((1, 6), F4)}),
    ("out", "another shape", ValueError, {"out": np.ones((6, 2), F4)}),
    ("out", "overlaps the running covariance", ValueError,
     lambda a: {"x": np.ones((2, 6), F4), "out": a["layer"].running_cov.reshape(3, 6)[:2]}),
]  # fmt: skip


def called(out=False):
    layer, x = DecorrelatedBatchNorm(6, groups=2), np.arange(24, dtype=F4).reshape(4, 6) ** 2
    layer(x, out=x if out else None)
    return {"layer": layer, "dy": np.ones((4, 6), F4)}


BACKWARD = [
    ("backward", "the layer has not been called", RuntimeError, {"layer": DecorrelatedBatchNorm(6)}),
    ("backward", "x was overwritten by out=x", ValueError, lambda a: {"layer": called(out=True)["layer"]}),
    ("dy", "another shape than x", ValueError, {"dy": np.ones((4, 4), F4)}),
]

STATE = [
    ("state", "that of a BatchNorm", ValueError,
     lambda a: {"state": {name.replace("cov", "var"): values for name, values in a["state"].items()}}),
    ("state['running_cov']", "another number of groups", ValueError,
     lambda a: {"state": a["state"] | {"running_cov": np.ones((1, 6, 6))}}),
]  # fmt: skip


def on_a_layer():
    return {"layer": DecorrelatedBatchNorm(6, groups=2), "x": np.ones((4, 6), F4), "out": None}


def loadable():
    layer = DecorrelatedBatchNorm(6, groups=2)
    return {"layer": layer, "state": {name: values + 1 for name, values in layer.state_dict().items()}}


TABLE = [
    ("DecorrelatedBatchNorm", lambda: {"num_features": 6}, DecorrelatedBatchNorm, CONSTRUCTOR),
    ("DecorrelatedBatchNorm.__call__", on_a_layer, lambda layer, x, out: layer(x, out=out), CALL),
    ("DecorrelatedBatchNorm.backward", called, lambda layer, dy: layer.backward(dy), BACKWARD),
    ("DecorrelatedBatchNorm.load_state_dict", loadable, lambda layer, state: layer.load_state_dict(state), STATE),
]
