"""What `save` and `load` refuse: in the form of `functions`."""

import atexit
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np

import fastbn
from errors.functions import F4

_folder = tempfile.TemporaryDirectory(prefix="fastbn-errors-")
atexit.register(_folder.cleanup)
FOLDER = Path(_folder.name)


def layers():
    return {"bn1": fastbn.BatchNorm(3), "bn2": fastbn.BatchNorm(5, affine=False)}


def saved():
    """A file that fits two layers."""
    fastbn.save(FOLDER / "net.npz", layers())
    return {"path": FOLDER / "net.npz", "layers": layers()}


def holding(name, change):
    """A change of the path: to a file with other content."""

    def write(a):
        with np.load(a["path"]) as file:
            arrays = dict(file)
        np.savez(FOLDER / name, **{key: value for key, value in (arrays | change).items() if value is not None})
        return {"path": FOLDER / name}

    return write


def with_bytes(name):
    def write(a):
        (FOLDER / name).write_bytes(b"PK\x03\x04 and no more")
        return {"path": FOLDER / name}

    return write


def single(a):
    with (FOLDER / "one.npz").open("wb") as file:
        np.save(file, np.ones(3))
    return {"path": FOLDER / "one.npz"}


PLACES = [
    ("path", "a number", TypeError, {"path": 3}),
    ("path", "another ending", ValueError, {"path": "net.pt"}),
    (
        "path",
        "safetensors, where it is not installed",
        ModuleNotFoundError,
        {"path": "net.safetensors", "without": True},
    ),
    ("layers", "a list", TypeError, {"layers": []}),
    ("layers", "a name that is no string", TypeError, lambda a: {"layers": {1: fastbn.BatchNorm(2)}}),
    ("layers['bn']", "an array in the place of a layer", TypeError, {"layers": {"bn": np.ones(3, F4)}}),
]

CONTENTS = [
    ("strict", "a number", TypeError, {"strict": 1}),
    ("path", "no npz file", ValueError, with_bytes("broken.npz")),
    ("path", "no safetensors file", ValueError, with_bytes("broken.safetensors")),
    ("path", "a single array", ValueError, single),
    ("path", "a pickle", ValueError, holding("pickle.npz", {"bn1.weight": np.array([None, 1, 2])})),
    ("path", "a key of no layer", ValueError, holding("more.npz", {"fc.weight": np.ones(3)})),
    ("state", "a key is missing", ValueError, holding("less.npz", {"bn2.running_var": None})),
    ("state['bn2.running_var']", "another number of channels", ValueError,
     holding("other.npz", {"bn2.running_var": np.ones(4)})),
]  # fmt: skip


def call(function):
    def called(path, layers, without=False, **more):
        hidden = {"safetensors.numpy": None} if without else {}
        with mock.patch.dict(sys.modules, hidden):
            return function(path, layers, **more)

    return called


TABLE = [
    ("save", saved, call(fastbn.save), PLACES),
    ("load", saved, call(fastbn.load), [*PLACES, *CONTENTS]),
]
