"""What the docstrings allow, written down a second time, from nothing that fastbn checks with.

A predicate answers True (must not raise), False (must raise) or None (either will do).
"""

import math
import numbers
import operator
import os

import numpy as np

import fastbn
from fuzz.arrays import BFLOAT16, addresses

F2, F4, F8 = np.dtype(np.float16), np.dtype(np.float32), np.dtype(np.float64)


def every(*answers):
    """Return False if one is, else None if one is, else True."""
    return False if False in answers else None if None in answers else True


def plain(value, dtypes):
    return (
        isinstance(value, np.ndarray)
        and not isinstance(value, np.ma.MaskedArray | np.matrix)
        and any(value.dtype == dtype for dtype in dtypes)
    )


def data(x):
    return plain(x, (F2, F4, F8, BFLOAT16)) and x.ndim >= 2


def index(value):
    if isinstance(value, bool | np.bool_):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def axis(value, x):
    found = index(value)
    return found is not None and -x.ndim <= found < x.ndim


def number(value, low, high=math.inf, above=False):
    if isinstance(value, bool | np.bool_ | np.timedelta64) or not isinstance(value, numbers.Real):
        return False
    try:
        value = float(value)
    except OverflowError:
        return False
    return math.isfinite(value) and (low < value if above else low <= value) and value <= high


def flag(value):
    return isinstance(value, bool | np.bool_)


def parameter(value, channels):
    return value is None or (plain(value, (F4, F8)) and value.shape == (channels,))


def apart(a, b):
    """Two arrays share no byte; with b None they do not either."""
    return b is None or not addresses(a)[0] & addresses(b)[0]


def same(a, b):
    """Two arrays are the same elements at the same places."""
    steps = [[s for s, n in zip(v.strides, v.shape, strict=True) if n > 1] for v in (a, b)]
    return a.shape == b.shape and steps[0] == steps[1] and start(a) == start(b) and a.dtype == b.dtype


def start(a):
    return a.__array_interface__["data"][0]


def writable(a):
    return a.flags.writeable and not addresses(a)[1]


def output(out, like, aliases, others):
    if out is None:
        return True
    if not plain(out, (like.dtype,)) or out.shape != like.shape or not writable(out):
        return False
    return all(apart(out, a) or same(out, a) for a in aliases) and all(apart(out, other) for other in others)


def device(value):
    """None and "cpu"; "cuda" needs a GPU, and no other name is one."""
    return value is None or (isinstance(value, str) and value == "cpu")


def precision(value):
    return value is None or (isinstance(value, str) and value in ("fast", "exact"))


def gpu():
    return bool(os.environ.get("NUMBA_ENABLE_CUDASIM"))


ACTIVATIONS = "relu", "relu6", "leaky_relu", "tanh", "sigmoid", "silu", "gelu"


def activation(value):
    """None, a name, or the one with a slope in a pair with it."""
    if isinstance(value, tuple):
        return (
            len(value) == 2 and isinstance(value[0], str) and value[0] == "leaky_relu" and number(value[1], -math.inf)
        )
    return value is None or (isinstance(value, str) and value in ACTIVATIONS)


def mask(value, shape):
    """Booleans that broadcast to the shape of x without its channels."""
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray) or value.dtype != np.bool_:
        return False
    if isinstance(value, np.matrix):
        return None
    own = (1,) * (len(shape) - value.ndim) + value.shape
    return len(own) == len(shape) and all(n in (1, m) for n, m in zip(own, shape, strict=True))


def parts(a):
    """Of a call that is otherwise legal, which values count in each batch with statistics of its own.

    Booleans in the shape of x without its channels.
    """
    x, at = a["x"], operator.index(a["axis"]) % a["x"].ndim
    shape = x.shape[:at] + x.shape[at + 1 :]
    given = a.get("mask")
    counted = np.broadcast_to(True if given is None else np.asarray(given), shape)
    size = a.get("ghost_batch_size")
    if size is None or not a["training"] or a["moments"] is not None:
        return [counted]
    size, sample = operator.index(size), np.arange(shape[0]).reshape(-1, *[1] * (len(shape) - 1))
    return [counted & (sample // size == g) for g in range(max(1, -(-shape[0] // size)))]


def beyond(a, x, at, training):
    """What goes beyond plain batch norm, of arguments that may lack all of it."""
    shape = x.shape[:at] + x.shape[at + 1 :]
    size, renorm, residual, given = (a.get(name) for name in ("ghost_batch_size", "renorm", "residual", "mask"))
    if not activation(a.get("activation")) or not flag(a.get("update_stats", True)):
        return False
    if residual is not None and not gradient(residual, x):
        return False
    if renorm is not None and not (isinstance(renorm, fastbn.Renorm) and a["running_mean"] is not None):
        return False
    if size is not None and (index(size) is None or not 1 <= index(size) < 2**63 or a["moments"] is not None):
        return False
    if given is None or mask(given, shape) is not True:
        return given is None or mask(given, shape)
    return not training or bool(np.asarray(given).any() and math.prod(shape))


def batch_norm(a):
    """A call of batch_norm with all its arguments."""
    x, training, moments = a["x"], a["training"], a["moments"]
    if not data(x) or not axis(a["axis"], x) or not flag(training) or not device(a["device"]):
        return False
    if not precision(a["precision"]):
        return False
    training = bool(training)
    at = operator.index(a["axis"]) % x.ndim
    channels = x.shape[at]
    parameters = [a[name] for name in ("weight", "bias", "running_mean", "running_var")]
    mean, var = parameters[2:]
    if not all(parameter(value, channels) for value in parameters) or (mean is None) is not (var is None):
        return False
    if not number(a["eps"], 0, above=True) or not number(a["correction"], 0):
        return False
    if moments is not None:
        if not isinstance(moments, fastbn.Moments) or not training or moments.mean.shape != (channels,):
            return False
        if moments.count == 0:
            return False
    sure = beyond(a, x, at, training)
    if sure is not True:
        return sure
    counts = [np.count_nonzero(part) for part in parts(a)] if moments is None else [moments.count]
    if training and 0 in counts:
        return False
    if not training and mean is None:
        return False
    residual = a.get("residual")
    if training and mean is not None and a.get("update_stats", True):
        if not number(a["momentum"], 0, 1) or not min(counts) > float(a["correction"]):
            return False
        if not writable(mean) or not writable(var) or not apart(mean, var):
            return False
        others = (x, *parameters[:2]) if residual is None else (x, residual, *parameters[:2])
        if not all(apart(own, other) for own in (mean, var) for other in others):
            return False
    return output(a["out"], x, [x] if residual is None else [x, residual], parameters)


def sums(value, ctx):
    if value is None:
        return ctx.own_statistics
    return (
        isinstance(value, fastbn.BackwardSums)
        and value.sum_dy.shape == (ctx.channels,)
        and (ctx.frozen or value.count == ctx.statistics_count)
    )


def gradient(dy, x):
    return plain(dy, (x.dtype,)) and dy.shape == x.shape


def backward(a):
    ctx = a["ctx"]
    if not isinstance(ctx, fastbn.Context) or ctx.like is None:
        return False
    if not gradient(a["dy"], ctx.like) or not sums(a["sums"], ctx):
        return False
    given = [] if a["sums"] is None else [a["sums"].sum_dy, a["sums"].sum_dy_xhat]
    fits = output(a["out"], ctx.like, [a["dy"], ctx.like], given)
    return None if fits and ctx.x is None else fits  # x is told from y, or not, as weights are
