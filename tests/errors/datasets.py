"""What `rescale` and `decorrelate` refuse: in the form of `functions`."""

import numpy as np

import fastbn
from errors.functions import F4, readonly


def good():
    return {"data": np.arange(24, dtype=F4).reshape(6, 4) ** 2, "out": np.full((6, 4), 7, F4)}


SETS = [
    ("data", "a number", TypeError, {"data": 3.0}),
    ("data", "a string", TypeError, {"data": "data.npy"}),
    ("data", "a generator", TypeError, {"data": iter(()), "out": None}),
    ("data", "integers", TypeError, {"data": np.ones((6, 4), np.int64)}),
    ("data", "a vector", ValueError, {"data": np.ones(4, F4)}),
    ("data", "lists of numbers", TypeError, {"data": [[1.0, 2.0]], "out": None}),
    (
        "data",
        "batches of other channels",
        ValueError,
        {"data": [np.ones((2, 4), F4), np.ones((2, 3), F4)], "out": None},
    ),
    ("data", "no samples", ValueError, {"data": np.ones((0, 4), F4), "out": None}),
    ("data", "no batches", ValueError, {"data": [], "out": None}),
    ("axis", "beyond the axes of the data", ValueError, {"axis": 2}),
    ("axis", "a fraction", TypeError, {"axis": 1.0}),
    ("out", "another shape", ValueError, {"out": np.ones((4, 6), F4)}),
    ("out", "read-only", ValueError, {"out": readonly(np.ones((6, 4), F4))}),
    ("out", "given with batches", ValueError, lambda a: {"data": [a["data"]]}),
]

DECORRELATE = [
    ("method", "an unknown name", ValueError, {"method": "cholesky"}),
    ("method", "None", TypeError, {"method": None}),
    ("groups", "no divisor", ValueError, {"groups": 3}),
    ("eps", "negative", ValueError, {"eps": -1}),
    ("eps", "a string", TypeError, {"eps": "0"}),
]

TRANSFORM = [
    ("x", "another number of channels", ValueError, {"x": np.ones((2, 3), F4)}),
    ("x", "a list", TypeError, {"x": [1.0]}),
    ("out", "another dtype", TypeError, {"out": np.ones((2, 4))}),
]


def transform(function):
    own = []

    def call(x, out):
        if not own:
            own.append(function(good()["data"])[1])
        return own[0](x, out=out)

    return call


def another():
    return {"x": np.ones((2, 4), F4), "out": np.full((2, 4), 7, F4)}


TABLE = [
    ("rescale", good, fastbn.rescale, SETS),
    ("decorrelate", good, fastbn.decorrelate, [*SETS, *DECORRELATE]),
    ("a transform of rescale", another, transform(fastbn.rescale), TRANSFORM),
    ("a transform of decorrelate", another, transform(fastbn.decorrelate), TRANSFORM),
]
