"""What the functions refuse: for each, a call that is good, and (argument, what is wrong with it, error, change)."""

import numpy as np

import fastbn
from errors.placed import forward

F4 = np.float32
as_strided = np.lib.stride_tricks.as_strided


def good():
    """Arguments that fit: a call of batch_norm that writes to three places."""
    return {
        "x": np.arange(24, dtype=F4).reshape(4, 3, 2),
        "weight": np.ones(3, F4),
        "bias": np.zeros(3, F4),
        "running_mean": np.full(3, 7, F4),
        "running_var": np.full(3, 7, F4),
        "out": np.full((4, 3, 2), 7, F4),
    }


def readonly(array):
    array.flags.writeable = False
    return array


class OnGpu:
    """As far as one can tell without looking at it, an array on a GPU."""

    __cuda_array_interface__ = None


class Unwilling:
    """What cannot be made an array of NumPy, as a tensor on a GPU."""

    def __array__(self, dtype=None, copy=None):
        raise RuntimeError("its values are elsewhere")

    def __repr__(self):
        return "Unwilling()"


def shifted(*names):
    """Return a change: the first argument and `out` share all but one row."""
    big = np.zeros((5, 3, 2), F4)
    return {names[0]: big[:4], "out": big[1:]}


STATISTICS = fastbn.Moments(8, np.zeros(3), np.ones(3))


def over_moments(a):
    """A call in float64 whose out is where the moments are."""
    memory = np.zeros(24)
    moments = fastbn.Moments(8, memory[:3], np.ones(3))
    return {"x": np.ones((4, 3, 2)), "moments": moments, "out": memory.reshape(4, 3, 2)}


def over_residual(a):
    """A call whose running mean is where the residual is."""
    residual = np.ones((4, 3, 2), F4)
    return {"residual": residual, "running_mean": residual.reshape(-1)[:3]}


FORWARD = [
    ("x", "a list", TypeError, {"x": [[1.0, 2.0]]}),
    ("x", "a number", TypeError, {"x": 3.0}),
    ("x", "None", TypeError, {"x": None}),
    ("x", "integers", TypeError, {"x": np.ones((4, 3, 2), np.int64)}),
    ("x", "truth values", TypeError, {"x": np.ones((4, 3, 2), bool)}),
    ("x", "complex numbers", TypeError, {"x": np.ones((4, 3, 2), complex)}),
    ("x", "bytes that are no numbers", TypeError, {"x": np.ones((4, 3, 2), "V2")}),
    ("x", "the other byte order", TypeError, {"x": np.ones((4, 3, 2), ">f4")}),
    ("x", "Python objects", TypeError, {"x": np.ones((4, 3, 2), object)}),
    ("x", "a masked array", TypeError, {"x": np.ma.ones((4, 3, 2), F4)}),
    ("x", "a vector", ValueError, {"x": np.ones(3, F4)}),
    ("x", "no axes", ValueError, {"x": np.array(1, F4)}),
    ("x", "an empty batch in training", ValueError, {"x": np.ones((0, 3, 2), F4), "out": None}),
    ("axis", "beyond the axes of x", ValueError, {"axis": 3}),
    ("axis", "before the axes of x", ValueError, {"axis": -4}),
    ("axis", "a fraction", TypeError, {"axis": 1.0}),
    ("axis", "None", TypeError, {"axis": None}),
    ("axis", "a truth value", TypeError, {"axis": True}),
    ("axis", "a list", TypeError, {"axis": [1]}),
    ("axis", "several, one beyond the axes of x", ValueError, {"axis": (1, 3)}),
    ("axis", "several, one of them twice", ValueError, {"axis": (1, -2)}),
    ("axis", "all axes", ValueError, {"axis": (0, 1, 2)}),
    ("axis", "none", ValueError, {"axis": ()}),
    ("axis", "several, with x on a GPU", ValueError, {"x": OnGpu(), "axis": (1, 2)}),
    ("weight", "not the shape of several channel axes", ValueError, {"axis": (1, 2)}),
    ("residual", "another shape, with several channel axes", ValueError,
     {"axis": (1, 2), "weight": None, "bias": None, "running_mean": None, "running_var": None,
      "residual": np.ones((4, 3), F4)}),
    ("axis", "an integer of 5000 digits", ValueError, {"axis": 10**5000}),
    ("weight", "another number of channels", ValueError, {"weight": np.ones(4, F4)}),
    ("weight", "two axes", ValueError, {"weight": np.ones((1, 3), F4)}),
    ("weight", "integers", TypeError, {"weight": np.ones(3, np.int64)}),
    ("weight", "float16", TypeError, {"weight": np.ones(3, np.float16)}),
    ("weight", "no values", ValueError, {"weight": np.empty(0, F4)}),
    ("weight", "a number", TypeError, {"weight": 1.0}),
    ("bias", "no values", ValueError, {"bias": np.empty(0, F4)}),
    ("bias", "another number of channels", ValueError, {"bias": np.ones(2, F4)}),
    ("bias", "a list", TypeError, {"bias": [0, 0, 0]}),
    ("running_mean", "another number of channels", ValueError, {"running_mean": np.ones(4, F4)}),
    ("running_var", "another number of channels", ValueError, {"running_var": np.ones(4, F4)}),
    ("running_var", "integers", TypeError, {"running_var": np.ones(3, np.int64)}),
    ("running_var", "None, with running_mean", ValueError, {"running_var": None}),
    ("running_mean", "None, with running_var", ValueError, {"running_mean": None}),
    ("running_mean, running_var", "None, with training=False", ValueError,
     {"running_mean": None, "running_var": None, "training": False}),
    ("running_mean", "read-only, in training", ValueError, {"running_mean": readonly(np.ones(3, F4))}),
    ("running_var", "read-only, in training", ValueError, {"running_var": readonly(np.ones(3, F4))}),
    ("running_mean", "one value broadcast to all channels, in training", ValueError,
     {"running_mean": as_strided(np.ones(1, F4), (3,), (0,))}),
    ("running_mean", "running_var too", ValueError, lambda a: {"running_var": a["running_mean"]}),
    ("running_var", "weight too", ValueError, lambda a: {"running_var": a["weight"]}),
    ("running_mean", "a part of x", ValueError, lambda a: {"running_mean": a["x"].reshape(-1)[:3]}),
    ("running_var", "a part of the moments", ValueError,
     lambda a: {"running_var": STATISTICS.m2, "moments": STATISTICS}),
    ("running_mean", "the mean of the moments", ValueError,
     lambda a: {"running_mean": STATISTICS.mean, "moments": STATISTICS}),
    ("out", "overlaps the moments", ValueError, over_moments),
    ("eps", "zero", ValueError, {"eps": 0}),
    ("eps", "negative", ValueError, {"eps": -1e-5}),
    ("eps", "NaN", ValueError, {"eps": np.nan}),
    ("eps", "infinite", ValueError, {"eps": np.inf}),
    ("eps", "an integer beyond float64", ValueError, {"eps": 10**400}),
    ("eps", "a string", TypeError, {"eps": "1e-5"}),
    ("eps", "None", TypeError, {"eps": None}),
    ("eps", "an array", TypeError, {"eps": np.ones(2)}),
    ("momentum", "above 1", ValueError, {"momentum": 1.5}),
    ("momentum", "negative", ValueError, {"momentum": -0.1}),
    ("momentum", "None", TypeError, {"momentum": None}),
    ("momentum", "a string", TypeError, {"momentum": "0.1"}),
    ("correction", "negative", ValueError, {"correction": -1}),
    ("correction", "None", TypeError, {"correction": None}),
    ("correction", "as many as there are values", ValueError, {"correction": 8}),
    ("correction", "1, with one value a channel", ValueError, {"x": np.ones((1, 3, 1), F4), "out": None}),
    ("training", "a number", TypeError, {"training": 1}),
    ("training", "None", TypeError, {"training": None}),
    ("out", "another shape", ValueError, {"out": np.zeros((4, 3, 3), F4)}),
    ("out", "another dtype", TypeError, {"out": np.zeros((4, 3, 2))}),
    ("out", "integers", TypeError, {"out": np.zeros((4, 3, 2), np.int64)}),
    ("out", "a list", TypeError, {"out": [0]}),
    ("out", "read-only", ValueError, {"out": readonly(np.zeros((4, 3, 2), F4))}),
    ("out", "one sample broadcast to all", ValueError, {"out": as_strided(np.zeros(6, F4), (4, 3, 2), (0, 8, 4))}),
    ("out", "x, shifted by a row", ValueError, shifted("x")),
    ("out", "x, backwards", ValueError, lambda a: {"out": a["x"][::-1]}),
    ("out", "overlaps weight", ValueError, lambda a: {"weight": a["out"].reshape(-1)[:3]}),
    ("out", "overlaps running_var", ValueError, lambda a: {"running_var": a["out"].reshape(-1)[:3]}),
    ("moments", "a number", TypeError, {"moments": 3}),
    ("moments", "of other channels", ValueError, {"moments": fastbn.Moments(8, np.zeros(2), np.ones(2))}),
    ("moments", "of nothing", ValueError, {"moments": fastbn.Moments(0, np.zeros(3), np.ones(3))}),
    ("correction", "1, with moments of one value", ValueError,
     {"moments": fastbn.Moments(1, np.zeros(3), np.ones(3))}),
    ("moments", "given with training=False", ValueError, {"moments": STATISTICS, "training": False}),
    ("activation", "an unknown name", ValueError, {"activation": "swish"}),
    ("activation", "a slope for one that has none", ValueError, {"activation": ("relu", 0.1)}),
    ("activation", "a slope that is not finite", ValueError, {"activation": ("leaky_relu", np.inf)}),
    ("activation", "a slope that is no number", TypeError, {"activation": ("leaky_relu", "0.1")}),
    ("activation", "a function", TypeError, {"activation": np.tanh}),
    ("residual", "another shape", ValueError, {"residual": np.ones((4, 3, 1), F4)}),
    ("residual", "another dtype", TypeError, {"residual": np.ones((4, 3, 2))}),
    ("residual", "a number", TypeError, {"residual": 1.0}),
    ("residual", "on a GPU, with x of NumPy", TypeError, {"residual": OnGpu()}),
    ("out", "the residual, shifted by a row", ValueError, shifted("residual")),
    ("running_mean", "a part of the residual", ValueError, over_residual),
    ("mask", "another shape", ValueError, {"mask": np.ones((4, 3, 2), bool)}),
    ("mask", "numbers", TypeError, {"mask": np.ones((4, 2))}),
    ("mask", "a list", TypeError, {"mask": [True]}),
    ("mask", "no True, in training", ValueError, {"mask": np.zeros((4, 1), bool)}),
    ("mask", "no True in a ghost batch", ValueError,
     {"mask": np.array([[True], [True], [False], [False]]), "ghost_batch_size": 2}),
    ("correction", "as many as a mask leaves", ValueError, {"mask": np.eye(4, 2, dtype=bool), "correction": 2}),
    ("ghost_batch_size", "zero", ValueError, {"ghost_batch_size": 0}),
    ("ghost_batch_size", "a fraction", TypeError, {"ghost_batch_size": 2.5}),
    ("ghost_batch_size", "with moments", ValueError, {"ghost_batch_size": 2, "moments": STATISTICS}),
    ("correction", "as many as a ghost batch has values", ValueError, {"ghost_batch_size": 1, "correction": 2}),
    ("renorm", "a number", TypeError, {"renorm": 3.0}),
    ("running_mean, running_var", "None, with renorm", ValueError,
     {"renorm": fastbn.Renorm(), "running_mean": None, "running_var": None}),
    ("update_stats", "a number", TypeError, {"update_stats": 0}),
    ("precision", "an unknown name", ValueError, {"precision": "float64"}),
    ("precision", "a dtype", TypeError, {"precision": np.float64}),
    ("precision", "a truth value", TypeError, {"precision": True}),
    ("device", "an unknown name", ValueError, {"device": "gpu"}),
    ("device", "a number", TypeError, {"device": 0}),
    ("device", "cuda, where there is none", ValueError, {"device": "cuda"}),
    ("device", "cpu, for an array on a GPU", ValueError, {"x": OnGpu(), "device": "cpu"}),
]  # fmt: skip

INFERENCE = [
    ("x", "a list", TypeError, {"x": [1]}),
    ("axis", "beyond the axes of x", ValueError, {"axis": 9}),
    ("running_mean", "None", ValueError, {"running_mean": None}),
    ("running_mean, running_var", "None", ValueError, {"running_mean": None, "running_var": None}),
    ("eps", "zero", ValueError, {"eps": 0}),
    ("precision", "an unknown name", ValueError, {"precision": "high"}),
    ("out", "another shape", ValueError, {"out": np.zeros((4, 3), F4)}),
    ("out", "overlaps running_mean", ValueError, lambda a: {"running_mean": a["out"].reshape(-1)[:3]}),
]

MOMENTS = [
    ("mask", "another shape", ValueError, {"mask": np.ones((3, 2), bool)}),
    ("axis", "several, one of them twice", ValueError, {"axis": (1, 1)}),
    ("x", "a list", TypeError, {"x": [1, 2]}),
    ("axis", "beyond the axes of x", ValueError, {"axis": 3}),
]


def good_backward():
    a = good()
    _, ctx = forward(a["x"], a["weight"], a["bias"])
    return {"dy": np.ones((4, 3, 2), F4), "ctx": ctx, "out": np.full((4, 3, 2), 7, F4)}


def overwritten(weight=1.0, **options):
    """A change to a context whose x is y now."""

    def change(a):
        x = np.arange(24, dtype=F4).reshape(4, 3, 2)
        weights = np.array([1, weight, 1], F4)
        return {"ctx": forward(x, weights, np.full(3, 0.5, F4), out=x, **options)[1]}

    return change


def residual_overwritten(a):
    """A context whose residual is y now."""
    x, residual = np.arange(24, dtype=F4).reshape(4, 3, 2), np.ones((4, 3, 2), F4)
    return {"ctx": forward(x, residual=residual, activation="relu", out=residual)[1], "out": None}


def ghosts(**change):
    """A change to a context of ghost batches."""
    x = np.arange(24, dtype=F4).reshape(4, 3, 2)
    return lambda a: {"ctx": forward(x, ghost_batch_size=2)[1]} | change


def shared(a):
    """A context of a half whose statistics are those of the whole."""
    x = np.arange(24, dtype=F4).reshape(4, 3, 2)
    ctx = forward(x[:2], moments=fastbn.batch_moments(x))[1]
    return {"dy": x[:2], "ctx": ctx, "out": None}


def wide_sums(a):
    """A call in float64 whose out is where the sums are."""
    x = np.arange(6.0).reshape(2, 3)
    sums = fastbn.BackwardSums(2, np.zeros(6)[:3], np.zeros(3))
    return {"dy": x, "ctx": forward(x)[1], "sums": sums, "out": sums.sum_dy.base.reshape(2, 3)}


BACKWARD = [
    ("dy", "a list", TypeError, {"dy": [1]}),
    ("dy", "another shape than x", ValueError, {"dy": np.ones((4, 3), F4)}),
    ("dy", "another dtype than x", TypeError, {"dy": np.ones((4, 3, 2))}),
    ("dy", "integers", TypeError, {"dy": np.ones((4, 3, 2), np.int64)}),
    ("ctx", "None", TypeError, {"ctx": None}),
    ("ctx", "the arguments were swapped", TypeError, lambda a: {"dy": a["ctx"], "ctx": a["dy"]}),
    ("ctx", "x was overwritten by out=x, and a weight is near zero", ValueError, overwritten(1e-9)),
    ("ctx", "x was overwritten by out=x, through an activation that loses it", ValueError,
     overwritten(activation="relu")),
    ("ctx", "the residual was overwritten by out=residual", ValueError, residual_overwritten),
    ("sums", "with ghost batches", ValueError,
     ghosts(out=None, sums=fastbn.BackwardSums(8, np.zeros(3), np.zeros(3)))),
    ("out", "another shape", ValueError, {"out": np.zeros((4, 3), F4)}),
    ("out", "another dtype", TypeError, {"out": np.zeros((4, 3, 2))}),
    ("out", "dy, shifted by a row", ValueError, shifted("dy")),
    ("out", "overlaps sums", ValueError, wide_sums),
    ("sums", "a number", TypeError, {"sums": 1}),
    ("sums", "of other channels", ValueError, {"sums": fastbn.BackwardSums(8, np.zeros(2), np.zeros(2))}),
    ("sums", "of another count than the moments", ValueError,
     {"sums": fastbn.BackwardSums(9, np.zeros(3), np.zeros(3))}),
    ("sums", "None, after a forward pass with moments of more than x", ValueError, shared),
]  # fmt: skip

SUMS = [
    ("dy", "another shape than x", ValueError, {"dy": np.ones((4, 3), F4)}),
    ("ctx", "x was overwritten by out=x, and a weight is zero", ValueError, overwritten(0)),
    ("ctx", "of ghost batches", ValueError, ghosts()),
]


def good_double_backward():
    a = good_backward()
    ones = {name: np.ones(3, F4) for name in ("ddweight", "ddbias")}
    return {"ddx": np.ones((4, 3, 2), F4), **ones, "dy": a["dy"], "ctx": a["ctx"]}


def good_jvp():
    a = good_double_backward()
    return {"tx": a["ddx"], "tweight": a["ddweight"], "tbias": a["ddbias"], "ctx": a["ctx"]}


class ContextOfGpu(fastbn.Context):
    """As far as one can tell without looking further, what a forward pass on a GPU left."""

    device = "cuda"


def on_gpu(a):
    """The context of the good call, as if it came from a GPU."""
    ctx = a["ctx"]
    return {"ctx": ContextOfGpu(ctx.x, ctx.axis, ctx.count, ctx.saved, ctx.weight_dtype, ctx.bias_dtype)}


def bare(a):
    """A context without weight and bias."""
    return {"ctx": fastbn.batch_norm(a["ctx"].x)[1]}


DERIVATIVES = [
    ("ctx", "None", TypeError, {"ctx": None}),
    ("ctx", "x was overwritten by out=x", ValueError, overwritten()),
    ("ctx", "with an activation", ValueError, lambda a: {"ctx": fastbn.batch_norm(a["ctx"].x, activation="tanh")[1]}),
    ("ctx", "of several channel axes", ValueError, lambda a: {"ctx": fastbn.batch_norm(a["ctx"].x, axis=(1, 2))[1]}),
    ("ctx", "from a GPU", ValueError, on_gpu),
    ("ctx", "of moments of more than x", ValueError, lambda a: {"ctx": shared(a)["ctx"]}),
]

DOUBLE_BACKWARD = [
    *DERIVATIVES,
    ("dy", "another shape than x", ValueError, {"dy": np.ones((4, 3), F4)}),
    ("dy", "None", TypeError, {"dy": None}),
    ("ddx", "another shape than x", ValueError, {"ddx": np.ones((4, 3), F4)}),
    ("ddx", "another dtype than x", TypeError, {"ddx": np.ones((4, 3, 2))}),
    ("ddx", "a list", TypeError, {"ddx": [1]}),
    ("ddweight", "another number of channels", ValueError, {"ddweight": np.ones(4, F4)}),
    ("ddweight", "integers", TypeError, {"ddweight": np.ones(3, np.int64)}),
    ("ddweight", "given without a weight", ValueError, bare),
    ("ddbias", "another number of channels", ValueError, {"ddbias": np.ones(4, F4)}),
    ("ddbias", "given without a bias", ValueError, lambda a: bare(a) | {"ddweight": None}),
]

JVP = [
    *DERIVATIVES,
    ("tx", "another shape than x", ValueError, {"tx": np.ones((4, 3), F4)}),
    ("tx", "another dtype than x", TypeError, {"tx": np.ones((4, 3, 2))}),
    ("tx", "a number", TypeError, {"tx": 1.0}),
    ("tweight", "another number of channels", ValueError, {"tweight": np.ones(4, F4)}),
    ("tweight", "given without a weight", ValueError, bare),
    ("tbias", "a list", TypeError, {"tbias": [0, 0, 0]}),
    ("tbias", "given without a bias", ValueError, lambda a: bare(a) | {"tweight": None}),
]


def only(*names):
    """Return what makes good arguments of some of the names."""
    return lambda: {name: value for name, value in (good() | good_backward()).items() if name in names}


# Function, what makes good arguments of it, the call, the cases.
TABLE = [
    ("batch_norm", good, fastbn.batch_norm, FORWARD),
    ("batch_norm_inference", good, fastbn.batch_norm_inference, INFERENCE),
    ("batch_norm_backward", good_backward, fastbn.batch_norm_backward, BACKWARD),
    ("batch_moments", only("x"), fastbn.batch_moments, MOMENTS),
    ("backward_sums", only("dy", "ctx"), fastbn.backward_sums, SUMS),
    ("batch_norm_double_backward", good_double_backward, fastbn.batch_norm_double_backward, DOUBLE_BACKWARD),
    ("batch_norm_jvp", good_jvp, fastbn.batch_norm_jvp, JVP),
]
