"""Every check on what a caller passes, and every error message.

A message names the argument, says what was passed and what was expected, and how to get there where that is short.
All checks of a call come before anything is written.
"""

from __future__ import annotations

import math
import numbers
import operator
import warnings
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from fastbn import memory
from fastbn.moments import BackwardSums, Moments
from fastbn.results import Context

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

FLOAT32 = np.dtype(np.float32)
FLOAT64 = np.dtype(np.float64)
FLOAT16 = np.dtype(np.float16)
DTYPES = (FLOAT32, FLOAT64)
NO_NUMBERS = (bool, np.bool_, np.timedelta64)  # which Python or NumPy count among the integers
MOST = 2**59  # float64 values that an address space can hold


def is_half(dtype: np.dtype[Any]) -> bool:
    """Return whether a dtype is float16 or ml_dtypes' bfloat16, which NumPy knows by its name alone."""
    return dtype == FLOAT16 or (dtype.itemsize == 2 and dtype.name == "bfloat16" and dtype.isnative)


def _described(value: object) -> str:
    """Say in a few words what was passed."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} and shape {value.shape}"
    try:
        text = repr(value)
    except Exception:  # integers of more than 4300 digits, and classes whose representation fails
        return f"an object of type {type(value).__name__}"
    return f"{text} ({type(value).__name__})" if len(text) <= 40 else f"an object of type {type(value).__name__}"


def _plain(name: str, value: object, what: str, half: bool = False) -> Array:
    """Return an array of float32 or float64, or with `half` of a 16-bit float, as a plain ndarray."""
    if not isinstance(value, np.ndarray):
        raise TypeError(
            f"{name}: expected {what}, got {_described(value)}; make one with numpy.asarray(..., dtype=numpy.float32)"
        )
    if isinstance(value, np.ma.MaskedArray | np.matrix):
        raise TypeError(
            f"{name}: expected {what}, got a {type(value).__name__}, whose rules fastbn does not follow; "
            f"pass numpy.asarray({name}) if its plain values are meant"
        )
    if value.dtype not in DTYPES and not (half and is_half(value.dtype)):
        expected = "float32, float64, float16 or bfloat16 (ml_dtypes)" if half else "float32 or float64"
        raise TypeError(
            f"{name}: expected {what} of {expected} in native byte order, got {_described(value)}; "
            f"convert it with {name}.astype(numpy.float32)"
        )
    return value if type(value) is np.ndarray else value.view(np.ndarray)


def data(x: object) -> Array:
    """Check the input of a forward pass."""
    array = _plain("x", x, "a numpy.ndarray", half=True)
    if array.ndim < 2:
        raise ValueError(
            f"x: expected at least 2 dimensions, of which one is the channel axis, got shape {array.shape}; "
            "a single sample needs a batch axis, x[numpy.newaxis]"
        )
    return array


def axis(value: object, x: Array) -> int:
    """Check the channel axis and return it counted from the front."""
    index = integer("axis", value)
    if not -x.ndim <= index < x.ndim:
        raise ValueError(
            f"axis: expected an integer from {-x.ndim} to {x.ndim - 1} for x of shape {x.shape}, got {index}"
        )
    return index % x.ndim


def parameter(name: str, value: object, channels: int) -> Array | None:
    """Check a per-channel input; None stays None."""
    if value is None:
        return None
    array = _plain(name, value, f"None or a numpy.ndarray of shape ({channels},)")
    if array.shape != (channels,):
        raise ValueError(f"{name}: expected shape ({channels},), one value a channel, got shape {array.shape}")
    return array


def statistics(mean: object, var: object, channels: int, *, required: bool) -> tuple[Array, Array] | None:
    """Check running_mean and running_var: both or neither."""
    if mean is None and var is None:
        if required:
            raise ValueError(
                "running_mean, running_var: expected two arrays for normalisation with running statistics, got None; "
                "pass training=True to normalise with the batch's own"
            )
        return None
    if mean is None or var is None:
        given, missing = ("running_var", "running_mean") if mean is None else ("running_mean", "running_var")
        raise ValueError(f"{missing}: expected an array of shape ({channels},) because {given} is given, got None")
    checked = parameter("running_mean", mean, channels), parameter("running_var", var, channels)
    assert checked[0] is not None
    assert checked[1] is not None
    return checked[0], checked[1]


def writable(name: str, array: Array) -> None:
    """Check that an array may be written and has memory of its own for every element."""
    if not array.flags.writeable:
        raise ValueError(f"{name}: expected a writable array, because it is written in place, got a read-only one")
    if memory.overlaps_itself(array):
        raise ValueError(f"{name}: expected memory for every element, got overlapping strides {array.strides}")


def number(name: str, value: object, expected: str) -> float:
    """Check that a value is one finite real number and return it as a float."""
    if type(value) is not float and (isinstance(value, NO_NUMBERS) or not isinstance(value, numbers.Real)):
        raise TypeError(f"{name}: expected {expected}, got {_described(value)}")
    try:
        result = float(value)
    except OverflowError:  # an integer or a fraction beyond float64
        result = math.inf
    if not math.isfinite(result):
        raise ValueError(f"{name}: expected {expected}, got {result}")
    return result


def eps(value: object) -> float:
    """Check what is added to the variance."""
    expected = "a number > 0"
    result = number("eps", value, expected)
    if result <= 0.0:
        raise ValueError(f"eps: expected {expected}, got {result}; without it a constant channel divides by zero")
    return result


def momentum(value: object) -> float:
    """Check the weight of the new value in the running statistics."""
    expected = "a number from 0 to 1, the weight of the new value"
    if value is None:
        raise TypeError(
            "momentum: expected a number from 0 to 1, got None; the cumulative average needs the number of batches, "
            "which the layer BatchNorm(momentum=None) counts; in a function pass momentum=1 / batches so far"
        )
    result = number("momentum", value, expected)
    if not 0.0 <= result <= 1.0:
        raise ValueError(f"momentum: expected {expected}, got {result}")
    return result


def correction(value: object) -> float:
    """Check what the divisor of a variance is lowered by."""
    expected = "a number >= 0"
    result = number("correction", value, expected)
    if result < 0.0:
        raise ValueError(f"correction: expected {expected}, got {result}")
    return result


def degrees_of_freedom(count: int, correction: float) -> None:
    """Check that a variance divided by count - correction exists."""
    if count <= correction:
        raise ValueError(
            f"correction: expected less than the {count} value{'s' * (count != 1)} a channel, got {correction:g}; "
            "the running variance divides by values - correction, so pass more values or correction=0"
        )


def divisor(count: int, correction: float) -> None:
    """Check that the variance of moments divided by count - correction exists."""
    if count <= correction:
        raise ValueError(f"correction: expected less than the {count} values of these moments, got {correction:g}")


def count(value: object) -> int:
    """Check how many values a channel statistics are of."""
    result = integer("count", value)
    if result < 0:
        raise ValueError(f"count: expected an integer >= 0, got {result}")
    return result


def per_channel(name: str, value: object) -> Array:
    """Check a statistic of every channel and return it as float64, the same array if it is that."""
    if type(value) is np.ndarray and value.dtype == FLOAT64 and value.ndim == 1 and value.flags.carray:
        return value  # what fastbn's own calls come with
    array = _as_array(name, value)
    if array.dtype.kind not in "fiu" or array.ndim != 1 or isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected real numbers of shape (C,), got {_described(value)}")
    with np.errstate(over="ignore", invalid="ignore"):  # a wider float that float64 does not hold, a signalling NaN
        return np.require(array, FLOAT64, ("C", "A"))


def as_many(name: str, value: Array, other: str, of: Array) -> None:
    """Check that two statistics have the same channels."""
    if value.shape != of.shape:
        raise ValueError(f"{name}: expected shape {of.shape}, as {other} has, got shape {value.shape}")


def others(values: tuple[object, ...], kind: type[Moments] | type[BackwardSums], channels: int) -> None:
    """Check what is to be merged with statistics of so many channels."""
    for value in values:
        if not isinstance(value, kind):
            raise TypeError(f"others: expected fastbn.{kind.__name__}, got {_described(value)}")
        size = (value.mean if isinstance(value, Moments) else value.sum_dy).size
        if size != channels:
            raise ValueError(f"others: expected {kind.__name__} of {channels} channels, got {size}")


def batch(count: int, x: Array) -> None:
    """Check that there is something to take statistics of."""
    if count == 0:
        raise ValueError(f"x: expected at least one value a channel for batch statistics, got an empty batch {x.shape}")


def flag(name: str, value: object) -> bool:
    """Check a switch."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected True or False, got {_described(value)}")
    return bool(value)


def output(out: object, like: Array, aliases: dict[str, Array], others: dict[str, Array | None]) -> Array:
    """Check `out`: shaped and typed as `like`, writable, each of `aliases` itself or apart from it and all others."""
    array = _plain("out", out, f"None or a numpy.ndarray of shape {like.shape}", half=True)
    if array.shape != like.shape:
        raise ValueError(f"out: expected shape {like.shape}, got shape {array.shape}")
    if array.dtype != like.dtype:
        raise TypeError(f"out: expected dtype {like.dtype}, got {array.dtype}")
    writable("out", array)
    for name, alias in aliases.items():
        if memory.overlap(array, alias) and not memory.same(array, alias):
            raise ValueError(f"out: expected {name} itself or memory apart from it, got an array that overlaps {name}")
    for name, other in others.items():
        if other is not None and memory.overlap(array, other):
            raise ValueError(f"out: expected memory apart from {name}, got an array that overlaps it")
    return array


def updated(running: tuple[Array, Array], others: dict[str, Array | None]) -> None:
    """Check running statistics that will be updated in place."""
    mean, var = running
    writable("running_mean", mean)
    writable("running_var", var)
    if memory.overlap(mean, var):
        raise ValueError("running_mean: expected memory apart from running_var, got arrays that overlap")
    for name, other in others.items():
        for own, array in (("running_mean", mean), ("running_var", var)):
            if other is not None and memory.overlap(array, other):
                raise ValueError(f"{own}: expected memory apart from {name}, got arrays that overlap")


def moments(value: object, channels: int, training: bool) -> Moments:
    """Check statistics that are given instead of taken."""
    if not isinstance(value, Moments):
        raise TypeError(f"moments: expected None or fastbn.Moments, got {_described(value)}")
    if not training:
        raise ValueError(
            "moments: expected None with training=False, which normalises with running_mean, running_var, got Moments"
        )
    if value.mean.shape != (channels,):
        raise ValueError(f"moments: expected {channels} channels, as x has, got {value.mean.size}")
    if value.count == 0:
        raise ValueError("moments: expected moments of at least one value, got count 0")
    return value


def context(value: object) -> Array:
    """Check what a forward pass left and return its x."""
    if not isinstance(value, Context):
        raise TypeError(f"ctx: expected the fastbn.Context that batch_norm returned with y, got {_described(value)}")
    if value.x is None:
        raise ValueError(
            "ctx: expected one that still has x, but x was overwritten (out=x); "
            "give the forward pass another out, or none, to go back through it"
        )
    return value.x


def sums(value: object, ctx: Context) -> BackwardSums:
    """Check backward sums that are given instead of taken."""
    if not isinstance(value, BackwardSums):
        raise TypeError(f"sums: expected None or fastbn.BackwardSums, got {_described(value)}")
    if value.sum_dy.shape != (ctx.channels,):
        raise ValueError(f"sums: expected {ctx.channels} channels, as x has, got {value.sum_dy.size}")
    if not ctx.frozen and value.count != ctx.statistics_count:
        raise ValueError(
            f"sums: expected sums over the {ctx.statistics_count} values a channel that the moments were taken of, "
            f"got sums over {value.count}; merge the backward_sums of all parts"
        )
    return value


def own_statistics(ctx: Context) -> None:
    """Check that the statistics were those of this x, so that its sums suffice."""
    if not ctx.own_statistics:
        raise ValueError(
            f"sums: expected the merged backward_sums of all parts, because the forward pass used moments of "
            f"{ctx.statistics_count} values a channel and x has {ctx.count}, got None"
        )


def gradient(dy: object, x: Array) -> Array:
    """Check the gradient that comes in."""
    array = _plain("dy", dy, f"a numpy.ndarray of shape {x.shape}", half=True)
    if array.shape != x.shape:
        raise ValueError(f"dy: expected the shape of x and y, {x.shape}, got shape {array.shape}")
    if array.dtype != x.dtype:
        raise TypeError(f"dy: expected the dtype of x and y, {x.dtype}, got {array.dtype}")
    return array


def integer(name: str, value: object) -> int:
    """Check that a value is an integer."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        result = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {_described(value)}") from None
    if not -(2**63) <= result < 2**63:  # nothing counts so far, and from 4300 digits on, none can be shown
        raise ValueError(f"{name}: expected an integer of 64 bits, got {_described(value)}")
    return result


def features(value: object) -> int:
    """Check the number of channels of a layer."""
    result = integer("num_features", value)
    if result < 1:
        raise ValueError(f"num_features: expected at least 1 channel, got {result}")
    if result > MOST:
        raise ValueError(f"num_features: expected at most {MOST} channels, got {result}")
    return result


def channels(x: Array, axis: int, expected: int) -> None:
    """Check that x has a layer's channels."""
    if x.shape[axis] != expected:
        raise ValueError(f"x: expected {expected} channels along axis {axis}, got shape {x.shape}")


def parameter_dtype(value: object) -> np.dtype[Any]:
    """Check the dtype of a layer's parameters."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # names that NumPy deprecates
            dtype: np.dtype[Any] = np.dtype(value)  # type: ignore[call-overload]
    except Exception:  # NumPy's parser of dtypes raises TypeError, ValueError, SyntaxError, UnicodeError
        raise TypeError(f"dtype: expected float32 or float64, got {_described(value)}") from None
    if value is None or dtype not in DTYPES:
        raise TypeError(f"dtype: expected float32 or float64, got {_described(value)}")
    return dtype


def unfit(name: str, value: object, expected: str) -> TypeError:
    """Return the error for an argument of another type than expected."""
    return TypeError(f"{name}: expected {expected}, got {_described(value)}")


def _as_array(name: str, value: object) -> Array:
    try:
        return np.asarray(value)
    except Exception as error:  # whatever the value's __array__ raises, such as a tensor that is on a GPU
        raise TypeError(f"{name}: expected what numpy.asarray takes, got {_described(value)}: {error}") from error


def state(value: object, arrays: dict[str, Array], counted: bool, prefix: str = "") -> dict[str, Array]:
    """Check a state dict against a layer's arrays and return its values, cast and not yet stored."""
    if not isinstance(value, Mapping):
        raise TypeError(f"state: expected a mapping from names to arrays, got {_described(value)}")
    expected = {*arrays, *(("num_batches_tracked",) if counted else ())}
    if set(value) != expected:
        missing, unknown = (
            sorted(prefix + str(key) for key in keys) for keys in (expected - set(value), set(value) - expected)
        )
        raise ValueError(
            f"state: expected the keys {sorted(prefix + key for key in expected)}; missing {missing}, unknown {unknown}"
        )
    new = {}
    for name, array in arrays.items():
        label = f"state[{prefix + name!r}]"
        given = _as_array(label, value[name])
        if given.dtype.kind != "f":
            raise TypeError(f"{label}: expected real floating numbers, got {_described(given)}")
        if given.shape != array.shape:
            raise ValueError(f"{label}: expected shape {array.shape}, got shape {given.shape}")
        with np.errstate(over="ignore"):
            new[name] = given.astype(array.dtype)
        if not np.array_equal(np.isfinite(new[name]), np.isfinite(given)):
            raise ValueError(f"{label}: expected values that {array.dtype} can hold, got larger ones")
    if counted:
        label = f"state[{prefix + 'num_batches_tracked'!r}]"
        count = _as_array(label, value["num_batches_tracked"])
        if count.dtype.kind not in "iu" or count.size != 1:
            raise TypeError(f"{label}: expected one integer, got {_described(count)}")
        if int(count.item()) < 0:
            raise ValueError(f"{label}: expected a count >= 0, got {count.item()}")
        new["num_batches_tracked"] = count.reshape(())
    return new
