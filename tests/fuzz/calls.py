"""Calls of every function: good arguments, some of which are then spoilt, or share memory with others."""

import os

import numpy as np
from hypothesis import strategies as st

import fastbn
from fuzz.arrays import DATA, PARAMETERS, Memory, junk, stored, values, within

# float32 that is computed exactly has kernels of its own: as with 16-bit data (`DATA`).
PRECISIONS = [None] * 6 + ["fast", np.str_("fast")] + (["exact"] if os.environ.get("NUMBA_BOUNDSCHECK") != "1" else [])
DEVICES = st.sampled_from([None] * 50 + ["cpu", "cpu", "gpu", 0, np.str_("cpu"), ["cpu"]])


class Call:
    """Arguments by name, and the memory that their arrays lie in."""

    def __init__(self, memory, arguments):
        self.memory = memory
        self.arguments = arguments

    def __repr__(self):
        return "\n".join(f"{name}={described(value)}" for name, value in self.arguments.items())


def described(value):
    if isinstance(value, np.ndarray):
        where = f"strides={value.strides}, at={value.__array_interface__['data'][0]}, {value.flags.writeable=}"
        return f"<{type(value).__name__} {value.dtype} {value.shape} {where} {np.asarray(value).tolist()}>"
    try:
        return repr(value)
    except Exception:
        return f"<{type(value).__name__}>"


def shape_and_axis(draw):
    """Two to five axes, of which few are long, and any of them the channels."""
    shape = draw(st.lists(st.sampled_from([0, 1, 1, 2, 2, 2, 3, 3, 4, 5, 9]), min_size=2, max_size=5))
    if draw(st.integers(0, 3)) == 0:
        shape[draw(st.integers(0, len(shape) - 1))] = draw(st.integers(10, 70))
    if draw(st.integers(0, 5)):
        shape = [n or 2 for n in shape]
    return tuple(shape), draw(st.integers(-len(shape), len(shape) - 1))


def parameter(draw, memory, channels, dtype, positive=False):
    """Values a channel, usually in the dtype that goes with the data."""
    usual = np.dtype(np.float64 if dtype == np.float64 else np.float32)
    dtype = usual if draw(st.integers(0, 3)) else draw(st.sampled_from(PARAMETERS))
    return stored(draw, memory, values(draw, (channels,), dtype, positive), legal=draw(st.integers(0, 7)) > 0)


def output(draw, memory, x, *others):
    """None, an array apart from x, x itself, or something that overlaps it or another array."""
    kind = draw(st.sampled_from(["none"] * 5 + ["new"] * 5 + ["same"] * 3 + ["flipped", "within", "seen"]))
    if kind == "none":
        return None
    if kind == "same":
        return draw(st.sampled_from([x, *others]))
    if kind == "flipped":
        return x[::-1]
    if kind == "within":
        target = draw(st.sampled_from([x, *others]))
        return within(draw, target, x.shape, x.dtype)
    if kind == "seen":
        return x.view(type(x)).reshape(x.shape) if draw(st.booleans()) else x[...]
    return stored(draw, memory, np.zeros(x.shape, x.dtype), legal=draw(st.integers(0, 4)) > 0)


def spoil(draw, memory, arguments, names):
    """Replace none, one or two of the named arguments by anything."""
    for _ in range(draw(st.sampled_from([0] * 6 + [1, 1, 2]))):
        name = draw(st.sampled_from(names))
        arguments[name] = junk(draw, memory)


def alias(draw, arguments, names):
    """Let one argument lie in the memory of another."""
    if draw(st.integers(0, 9)) == 0:
        one, other = arguments[draw(st.sampled_from(names))], draw(st.sampled_from(names))
        replaced = arguments[other]
        if isinstance(one, np.ndarray) and isinstance(replaced, np.ndarray):
            arguments[other] = one if draw(st.booleans()) else within(draw, one, replaced.shape, replaced.dtype)


@st.composite
def forward(draw, spoilt=True):
    memory = Memory()
    shape, axis = shape_and_axis(draw)
    dtype = draw(DATA)
    channels = shape[axis]
    x = stored(draw, memory, values(draw, shape, dtype))
    arguments = {"x": x, "weight": None, "bias": None, "running_mean": None, "running_var": None}
    for name in ("weight", "bias"):
        if draw(st.booleans()):
            arguments[name] = parameter(draw, memory, channels, dtype)
    if draw(st.booleans()):
        arguments["running_mean"] = parameter(draw, memory, channels, dtype)
        arguments["running_var"] = parameter(draw, memory, channels, dtype, positive=True)
    switches = [True, True, np.True_] if arguments["running_mean"] is None else [True, True, False, False, np.False_]
    arguments["training"] = draw(st.sampled_from(switches))
    arguments["momentum"] = draw(st.sampled_from([0.1, 0.1, 0.25, 0, 1, np.float32(0.5)]))
    arguments["correction"] = draw(st.sampled_from([1, 1, 0, 1.5, 0.0]))
    arguments["eps"] = draw(st.sampled_from([1e-5, 1e-5, 1e-3, 0.1, 1, 5e-324, 1e300, np.float64(1e-8)]))
    arguments["axis"] = draw(st.sampled_from([axis, axis, np.int64(axis)]))
    arguments["moments"] = None
    if draw(st.integers(0, 6)) == 0:
        arguments["moments"] = moments(draw, channels)
    arguments["precision"] = draw(st.sampled_from(PRECISIONS * 5 + [""]))
    arguments["out"] = output(draw, memory, x, *(a for a in arguments.values() if isinstance(a, np.ndarray)))
    arguments["device"] = draw(DEVICES)
    if spoilt:
        alias(draw, arguments, ["x", "weight", "bias", "running_mean", "running_var"])
        spoil(draw, memory, arguments, list(arguments))
    return Call(memory, arguments)


BEYOND = "activation", "residual", "mask", "ghost_batch_size", "renorm", "update_stats"
TAILS = [None] * 4 + ["relu", "leaky_relu", ("leaky_relu", 0.25), np.str_("silu"), "relu6", "tanh", "sigmoid", "gelu"]


@st.composite
def beyond(draw):
    """A call of batch_norm with what goes beyond, some of it wrong."""
    call = draw(forward(spoilt=False))
    a, memory = call.arguments, call.memory
    x = a["x"]
    at = int(a["axis"]) % x.ndim
    shape = x.shape[:at] + x.shape[at + 1 :]
    a["activation"] = draw(st.sampled_from(TAILS))
    a["residual"] = stored(draw, memory, values(draw, x.shape, x.dtype)) if draw(st.booleans()) else None
    a["mask"] = None
    if draw(st.integers(0, 2)) == 0:
        own = tuple(draw(st.sampled_from([n, n, n, 1])) for n in shape)[draw(st.sampled_from([0, 0, 0, 1])) :]
        rng = np.random.default_rng(draw(st.integers(0, 2**32)))
        chosen = rng.random(own) < draw(st.sampled_from([0.7, 0.7, 0.3, 1, 0]))
        a["mask"] = stored(draw, memory, chosen, legal=draw(st.booleans()))
    a["ghost_batch_size"] = draw(st.sampled_from([None] * 4 + [1, 2, 3, np.int64(2), 100, 2**62]))
    a["renorm"] = draw(st.sampled_from([None] * 3 + [fastbn.Renorm(), fastbn.Renorm(1.2, 0.3), fastbn.Renorm(1, 0)]))
    a["update_stats"] = draw(st.sampled_from([True, True, np.True_, False]))
    if a["residual"] is not None and draw(st.integers(0, 5)) == 0:
        a["out"] = a["residual"]
    arrays = [name for name, value in a.items() if isinstance(value, np.ndarray) and name != "mask"]
    alias(draw, a, arrays)
    wrong = [("relu", 0.1), ["relu"], "swish", ("leaky_relu", np.nan), ("leaky_relu",), ("leaky_relu", "1")]
    if draw(st.integers(0, 9)) == 0:
        a["activation"] = draw(st.sampled_from(wrong))
    spoil(draw, memory, a, list(a))
    return call


def moments(draw, channels):
    """Statistics of some batch, sometimes of one that never was."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    mean, m2 = rng.standard_normal(channels), rng.uniform(0.5, 9, channels)
    if channels and draw(st.integers(0, 3)) == 0:
        m2[0], mean[-1] = draw(st.sampled_from([(-1, 0), (np.inf, np.nan), (1e308, np.inf), (0, 1e308)]))
    return fastbn.Moments(draw(st.sampled_from([0, 1, 2, 7, 2**40])), mean, m2)


def sums(draw, ctx):
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    channels = draw(st.sampled_from([ctx.channels] * 4 + [ctx.channels + 1]))
    scale = draw(st.sampled_from([1, 1, 1, 1e300]))
    count = draw(st.sampled_from([ctx.statistics_count] * 4 + [ctx.statistics_count + 1]))
    return fastbn.BackwardSums(count, *(rng.standard_normal((2, channels)) * scale))


@st.composite
def backward(draw, forward_call, ctx):
    """A call of batch_norm_backward after a call of batch_norm."""
    memory = forward_call.memory
    x = forward_call.arguments["x"]
    like = x if isinstance(x, np.ndarray) else np.zeros((2, 3))
    if ctx.like is not None:
        like = ctx.like
    dy = stored(draw, memory, values(draw, like.shape, like.dtype))
    arguments = {"dy": dy, "ctx": ctx, "sums": None}
    if draw(st.integers(0, 4)) == 0:
        arguments["sums"] = sums(draw, ctx)
    given = [] if arguments["sums"] is None else [arguments["sums"].sum_dy, arguments["sums"].sum_dy_xhat]
    arguments["out"] = output(draw, memory, like, dy, *given)
    alias(draw, arguments, ["dy", "out"])
    spoil(draw, memory, arguments, list(arguments))
    return Call(memory, arguments)
