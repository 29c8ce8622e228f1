"""What the layer, the statistics and the rest refuse: in the form of `functions`."""

import os
from unittest import mock

import numpy as np

import fastbn
from errors.functions import F4, OnGpu, Unwilling
from fastbn import BackwardSums, BatchNorm, Moments, Renorm, arithmetic
from fastbn.warmup import warmup

CONSTRUCTOR = [
    ("num_features", "zero", ValueError, {"num_features": 0}),
    ("num_features", "more than memory can hold", ValueError, {"num_features": 2**60}),
    ("num_features", "a fraction", TypeError, {"num_features": 2.0}),
    ("axis", "a string", TypeError, {"axis": "1"}),
    ("eps", "zero", ValueError, {"eps": 0}),
    ("momentum", "above 1", ValueError, {"momentum": 2}),
    ("correction", "negative", ValueError, {"correction": -1}),
    ("num_features", "none, of several axes", ValueError, {"num_features": (3, 0), "axis": (1, 2)}),
    (
        "num_features",
        "more than memory can hold, of several axes",
        ValueError,
        {"num_features": (2**30, 2**30), "axis": (1, 2)},
    ),
    ("axis", "one, for several numbers of features", ValueError, {"num_features": (3, 4), "axis": 1}),
    ("affine", "a number", TypeError, {"affine": 1}),
    ("weight", "an array", TypeError, {"weight": np.ones(3, F4)}),
    ("bias", "a number", TypeError, {"bias": 0}),
    ("activation", "an unknown name", ValueError, {"activation": "softmax"}),
    ("ghost_batch_size", "negative", ValueError, {"ghost_batch_size": -32}),
    ("renorm", "a pair", TypeError, {"renorm": (3, 5)}),
    ("renorm", "without running statistics", ValueError, {"renorm": Renorm(), "track_running_stats": False}),
    ("track_running_stats", "None", TypeError, {"track_running_stats": None}),
    ("dtype", "integers", TypeError, {"dtype": np.int32}),
    ("dtype", "float16", TypeError, {"dtype": np.float16}),
    ("dtype", "None", TypeError, {"dtype": None}),
    ("dtype", "no dtype", TypeError, {"dtype": "nonsense"}),
    ("dtype", "no dtype, of brackets", TypeError, {"dtype": "f4,("}),
    ("precision", "an unknown name", ValueError, {"precision": "double"}),
    ("device", "an unknown name", ValueError, {"device": "gpu"}),
]

CALL = [
    ("x", "a list", TypeError, {"x": [1]}),
    ("x", "another number of channels", ValueError, {"x": np.ones((2, 4), F4)}),
    ("axis", "x has fewer axes than the layer's", ValueError, {"layer": BatchNorm(3, axis=2)}),
    ("correction", "one value a channel", ValueError, {"x": np.ones((1, 3), F4)}),
    (
        "x",
        "other channels, along several axes",
        ValueError,
        {"layer": BatchNorm((3, 4), axis=(1, 2)), "x": np.ones((2, 3, 5), F4)},
    ),
    ("update_stats", "a number", TypeError, {"update_stats": 1}),
    ("out", "another shape", ValueError, {"out": np.ones((3, 2), F4)}),
    ("device", "cuda, where there is none", ValueError, {"layer": BatchNorm(3, device="cuda")}),
]


def called():
    """A layer after a call."""
    layer = BatchNorm(3)
    layer(np.arange(12, dtype=F4).reshape(4, 3))
    return {"layer": layer, "dy": np.ones((4, 3), F4)}


def over_x(a):
    layer, x = BatchNorm(3, activation="relu"), np.arange(12, dtype=F4).reshape(4, 3)
    layer(x, out=x)
    return {"layer": layer}


LAYER_BACKWARD = [
    ("backward", "the layer has not been called", RuntimeError, {"layer": BatchNorm(3)}),
    ("dy", "another shape than x", ValueError, {"dy": np.ones((4, 4), F4)}),
    ("ctx", "x was overwritten by out=x, through an activation that loses it", ValueError, over_x),
]

TRAIN = [("mode", "a number", TypeError, {"mode": 1})]


def loadable():
    layer = called()["layer"]
    return {"layer": layer, "state": {name: values + 1 for name, values in layer.state_dict().items()}}


def but(name, value):
    """A state with one value changed."""
    return lambda a: {"state": a["state"] | {name: value}}


STATE = [
    ("state", "a list", TypeError, {"state": [1]}),
    ("state", "a key is missing, another unknown", ValueError,
     lambda a: {"state": {name.replace("bias", "beta"): values for name, values in a["state"].items()}}),
    ("state['running_var']", "another number of channels", ValueError, but("running_var", np.ones(4))),
    ("state['running_var']", "integers", TypeError, but("running_var", np.ones(3, np.int64))),
    ("state['weight']", "what cannot be made an array", TypeError, but("weight", Unwilling())),
    ("state['running_mean']", "a masked array", TypeError, but("running_mean", np.ma.zeros(3))),
    ("state['weight']", "beyond float32", ValueError, but("weight", np.full(3, 1e300))),
    ("state['num_batches_tracked']", "negative", ValueError, but("num_batches_tracked", -1)),
    ("state['num_batches_tracked']", "a fraction", TypeError, but("num_batches_tracked", 1.5)),
]  # fmt: skip


def statistics(first, second):
    """What makes good arguments of Moments or BackwardSums."""
    return lambda: {"count": 2, first: [0.0, 1.0], second: [1.0, 1.0]}


def made_of(first, second):
    return [
        ("count", "a fraction", TypeError, {"count": 1.5}),
        ("count", "negative", ValueError, {"count": -1}),
        (first, "strings", TypeError, {first: ["a"]}),
        (first, "two axes", TypeError, {first: [[0.0]]}),
        (first, "what cannot be made an array", TypeError, {first: Unwilling()}),
        (second, f"another number of channels than {first}", ValueError, {second: [0.0]}),
    ]


def merged(kind):
    return [
        ("others", "a number", TypeError, {"others": [3]}),
        ("others", "of other channels", ValueError, {"others": [kind(1, [0.0], [0.0])]}),
    ]


def several(kind):
    return lambda: {"own": kind(2, [0.0, 1.0], [1.0, 1.0]), "others": []}


def merge(own, others):
    return own.merge(*others)


VAR = [
    ("correction", "as many as there are values", ValueError, {"correction": 2}),
    ("correction", "negative", ValueError, {"correction": -1}),
    ("correction", "a string", TypeError, {"correction": "1"}),
]


def explain(x, device=None, environment=""):
    with mock.patch.dict(os.environ, FASTBN_DEVICE=environment):
        return fastbn.explain(x, device=device)


EXPLAIN = [
    ("device", "an unknown name", ValueError, {"device": "gpu"}),
    ("device", "cpu, for an array on a GPU", ValueError, {"x": OnGpu(), "device": "cpu"}),
    ("FASTBN_DEVICE", "an unknown name", ValueError, {"environment": "gpu"}),
]


def first_call(x, environment=""):
    """The first call of a process with FASTBN_PRECISION in its environment."""
    try:
        with mock.patch.dict(os.environ, FASTBN_PRECISION=environment):
            arithmetic.forget()
            return fastbn.batch_norm(x)
    finally:
        arithmetic.forget()


WARMUP = [
    ("dtypes", "an unknown name", ValueError, {"dtypes": ("float8",)}),
    ("dtypes", "none", ValueError, {"dtypes": ()}),
    ("precision", "an unknown name", ValueError, {"dtypes": ("float32",), "precision": "exactly"}),
]


def an_array(name):
    return lambda: {name: np.zeros((4, 3), F4)}


def on_a_layer():
    return {"layer": BatchNorm(3), "x": np.arange(12, dtype=F4).reshape(4, 3), "out": np.full((4, 3), 7, F4)}


TABLE = [
    ("BatchNorm", lambda: {"num_features": 3}, BatchNorm, CONSTRUCTOR),
    ("BatchNorm.__call__", on_a_layer, lambda layer, x, **options: layer(x, **options), CALL),
    ("BatchNorm.backward", called, lambda layer, dy: layer.backward(dy), LAYER_BACKWARD),
    ("BatchNorm.train", lambda: {"layer": BatchNorm(3), "mode": True}, lambda layer, mode: layer.train(mode), TRAIN),
    ("BatchNorm.freeze", lambda: {"layer": BatchNorm(3)}, lambda layer: layer.freeze(), [
        ("freeze", "without running statistics", ValueError, {"layer": BatchNorm(3, track_running_stats=False)}),
    ]),
    ("BatchNorm.load_state_dict", loadable, lambda layer, state: layer.load_state_dict(state), STATE),
    ("Renorm", lambda: {"r_max": 3.0, "d_max": 5.0}, Renorm, [
        ("r_max", "below 1", ValueError, {"r_max": 0.5}),
        ("r_max", "infinite", ValueError, {"r_max": np.inf}),
        ("d_max", "negative", ValueError, {"d_max": -1.0}),
        ("d_max", "a string", TypeError, {"d_max": "5"}),
    ]),
    ("Moments", statistics("mean", "m2"), Moments, made_of("mean", "m2")),
    ("Moments.merge", several(Moments), merge, merged(Moments)),
    ("Moments.var", lambda: {"correction": 1}, Moments(2, [0.0], [1.0]).var, VAR),
    ("BackwardSums", statistics("sum_dy", "sum_dy_xhat"), BackwardSums, made_of("sum_dy", "sum_dy_xhat")),
    ("BackwardSums.merge", several(BackwardSums), merge, merged(BackwardSums)),
    ("the first call", an_array("x"), first_call, [
        ("FASTBN_PRECISION", "an unknown name", ValueError, {"environment": "double"}),
    ]),
    ("explain", an_array("x"), explain, EXPLAIN),
    ("to_device", an_array("array"), fastbn.to_device, [
        ("array", "a list", TypeError, {"array": [1.0]}),
        ("device", "there is no GPU", ValueError, {}),
    ]),
    ("to_host", an_array("array"), fastbn.to_host, [("array", "a list", TypeError, {"array": [1.0]})]),
    ("warmup.warmup", lambda: {"dtypes": ()}, warmup, WARMUP),
]  # fmt: skip
