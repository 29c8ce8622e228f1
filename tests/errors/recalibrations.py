"""What `recalibrate` refuses: in the form of `functions`."""

import sys
from unittest import mock

import numpy as np

import fastbn
from errors.functions import F4, readonly


def good():
    """Two layers of a net, and what runs it."""
    layers = {"bn1": fastbn.BatchNorm(3), "bn2": fastbn.BatchNorm(3)}
    for layer in layers.values():
        layer.running_mean += 7
    return {"layers": layers, "batches": [np.arange(12, dtype=F4).reshape(4, 3)], "forward": net(layers)}


def net(layers):
    return lambda x: [layer(x) for layer in layers.values()]


def call(layers, batches, forward, without=(), **options):
    with mock.patch.dict(sys.modules, dict.fromkeys(without)):
        return fastbn.recalibrate(layers, batches, forward, **options)


def fixed(a):
    layer = fastbn.BatchNorm(3)
    readonly(layer.running_var)
    return {"layers": {"bn1": layer}}


def written(*values):
    return {"batches": [np.array(values, F4)[:, np.newaxis] * np.ones(3, F4)]}


CASES = [
    ("layers", "a number", TypeError, {"layers": 3}),
    ("layers", "none", ValueError, {"layers": []}),
    ("layers[1]", "an array", TypeError, {"layers": [fastbn.BatchNorm(3), np.ones(3)]}),
    ("layers['bn']", "without running statistics", ValueError,
     {"layers": {"bn": fastbn.BatchNorm(3, track_running_stats=False)}}),
    ("layers[0]", "frozen", ValueError, {"layers": [fastbn.BatchNorm(3).freeze()]}),
    ("layers['bn1'].running_var", "read-only", ValueError, fixed),
    ("batches", "a number", TypeError, {"batches": 3}),
    ("batches", "none", ValueError, {"batches": []}),
    ("batches", "one value a channel", ValueError, written(1)),
    ("batches", "one value a channel, in one of them", ValueError,
     lambda a: {"method": "average", "batches": [*a["batches"], np.ones((1, 3), F4)]}),
    ("batches", "with a NaN", ValueError, written(1, np.nan, 3)),
    ("batches", "with a variance beyond float32", ValueError, written(3e38, -3e38)),
    ("forward", "None", TypeError, {"forward": None}),
    ("forward", "it calls one of two layers", ValueError, lambda a: {"forward": a["layers"]["bn1"]}),
    ("method", "an unknown name", ValueError, {"method": "precise"}),
    ("method", "None", TypeError, {"method": None}),
    ("progress", "a number", TypeError, {"progress": 1}),
    ("progress", "rich is not installed", ModuleNotFoundError, {"progress": True, "without": ["rich.progress"]}),
]  # fmt: skip

TABLE = [("recalibrate", good, call, CASES)]
