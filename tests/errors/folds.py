"""What `fold` and `fold_next` refuse: in the form of `functions`."""

from types import SimpleNamespace

import numpy as np

import fastbn
from errors.functions import F4, Unwilling


def good_fold():
    return {"weight": np.ones((3, 4), F4), "bias": np.zeros(3, F4), "bn": fastbn.BatchNorm(3)}


def good_fold_next():
    return {"bn": fastbn.BatchNorm(4), "weight": np.ones((3, 4), F4), "bias": np.zeros(3, F4)}


def bn(**change):
    """A change of the batch norm: of one of its numbers."""

    def changed(a):
        names = "running_mean", "running_var", "weight", "bias", "eps"
        return {"bn": SimpleNamespace(**{name: getattr(a["bn"], name) for name in names} | change)}

    return changed


LAYER = [
    (
        "bn",
        "with an activation",
        ValueError,
        lambda a: {"bn": fastbn.BatchNorm(a["bn"].num_features, activation="relu")},
    ),
    ("weight", "a list of integers", TypeError, {"weight": [[1, 2]]}),
    ("weight", "integers", TypeError, {"weight": np.ones((3, 4), int)}),
    ("weight", "what cannot be made an array", TypeError, {"weight": Unwilling()}),
    ("weight", "a masked array", TypeError, {"weight": np.ma.ones((3, 4), F4)}),
    ("bias", "another number of channels", ValueError, {"bias": np.zeros(4, F4)}),
    ("bias", "integers", TypeError, {"bias": np.zeros(3, int)}),
    ("axis", "beyond the axes of the weight", ValueError, {"axis": 2}),
    ("axis", "a fraction", TypeError, {"axis": 0.0}),
    ("groups", "zero", ValueError, {"groups": 0}),
]

NORM = [
    ("bn", "an array", TypeError, {"bn": np.ones(3, F4)}),
    ("bn", "without running statistics", ValueError, {"bn": fastbn.BatchNorm(3, track_running_stats=False)}),
    ("bn.running_mean", "two axes", TypeError, bn(running_mean=np.ones((1, 3)))),
    ("bn.running_var", "another number of channels than running_mean", ValueError, bn(running_var=np.ones(5))),
    ("bn.running_var", "negative", ValueError, bn(running_mean=np.zeros(3), running_var=[1, -2, 1])),
    ("bn.running_var", "zero, and eps too", ValueError, bn(running_mean=np.zeros(3), running_var=np.zeros(3), eps=0)),
    ("bn.weight", "another number of channels", ValueError, bn(weight=np.ones(5))),
    ("bn.eps", "negative", ValueError, bn(eps=-1e-5)),
    ("bn.eps", "None", TypeError, bn(eps=None)),
]

FOLD = [
    *LAYER,
    ("weight", "the output channels are on another axis", ValueError, {"weight": np.ones((4, 3), F4)}),
    ("weight", "the output channels of a group", ValueError, {"weight": np.ones((4, 1), F4), "axis": 1}),
    ("weight", "other channels, with groups", ValueError, {"weight": np.ones((4, 2), F4), "axis": 1, "groups": 2}),
    ("weight", "beyond the dtype, once folded", ValueError,
     lambda a: {"weight": np.full((3, 4), 6e4, np.float16)} | bn(weight=np.full(3, 9.0))(a)),
    ("groups", "do not divide the input channels", ValueError,
     {"weight": np.ones((4, 1), F4), "axis": 1, "groups": 3}),
    ("in_axis", "the axis of the output channels", ValueError,
     {"weight": np.ones((6, 1), F4), "axis": 1, "groups": 3, "in_axis": -1}),
    ("in_axis", "not given, for an axis that is not beside one end", ValueError,
     {"weight": np.ones((2, 3, 1), F4), "axis": 2, "groups": 3}),
    *NORM,
]  # fmt: skip

FOLD_NEXT = [
    *LAYER,
    ("weight", "one axis", ValueError, {"weight": np.ones(4, F4), "axis": 0}),
    ("weight", "the input channels are on another axis", ValueError, {"axis": 0, "bias": None}),
    ("weight", "the input channels of a group", ValueError, {"weight": np.ones((3, 2), F4)}),
    ("groups", "do not divide the input channels", ValueError, {"groups": 3}),
    ("groups", "do not divide the output channels", ValueError, {"weight": np.ones((3, 2), F4), "groups": 2}),
    ("out_axis", "the axis of the input channels", ValueError, {"out_axis": 1}),
    ("out_axis", "not given, for an axis that is not beside one end", ValueError,
     {"weight": np.ones((3, 3, 4), F4), "axis": 2}),
    *NORM,
]  # fmt: skip

TABLE = [
    ("fold", good_fold, fastbn.fold, FOLD),
    ("fold_next", good_fold_next, fastbn.fold_next, FOLD_NEXT),
]
