"""Checks of numbers, switches, dtypes and statistics of channels, and how a message shows what was passed."""

from __future__ import annotations

import math
import numbers
import operator
import warnings
from typing import Any, TypeAlias

import numpy as np

from fastbn import arithmetic
from fastbn.activations import NAMES, SLOPE, Activation

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


def described(value: object) -> str:
    """Say in a few words what was passed."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype} and shape {value.shape}"
    try:
        text = repr(value)
    except Exception:  # integers of more than 4300 digits, and classes whose representation fails
        return f"an object of type {type(value).__name__}"
    return f"{text} ({type(value).__name__})" if len(text) <= 40 else f"an object of type {type(value).__name__}"


def unfit(name: str, value: object, expected: str) -> TypeError:
    """Return the error for an argument of another type than expected."""
    return TypeError(f"{name}: expected {expected}, got {described(value)}")


def as_array(name: str, value: object) -> Array:
    """Make an array of what a caller passed."""
    try:
        return np.asarray(value)
    except Exception as error:  # whatever the value's __array__ raises, such as a tensor that is on a GPU
        raise TypeError(f"{name}: expected what numpy.asarray takes, got {described(value)}: {error}") from error


def number(name: str, value: object, expected: str) -> float:
    """Check that a value is one finite real number and return it as a float."""
    if type(value) is not float and (isinstance(value, NO_NUMBERS) or not isinstance(value, numbers.Real)):
        raise TypeError(f"{name}: expected {expected}, got {described(value)}")
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


def flag(name: str, value: object) -> bool:
    """Check a switch."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{name}: expected True or False, got {described(value)}")
    return bool(value)


def precision(value: object) -> str:
    """Check in which arithmetic float32 data are to be computed; None stands for what the process does."""
    if value is None:
        return arithmetic.own()
    if isinstance(value, str) and value in arithmetic.NAMES:
        return str(value)
    kind = ValueError if isinstance(value, str) else TypeError
    raise kind(f"precision: expected None, 'fast' or 'exact', got {described(value)}")


def activation(value: object) -> Activation | None:
    """Check what is done after the normalization."""
    if value is None:
        return None
    slope: object = SLOPE
    name = value
    if isinstance(value, tuple) and len(value) == 2:
        name, slope = value
    if isinstance(name, str) and name in NAMES and (name == "leaky_relu" or name is value):
        if name != "leaky_relu":
            return Activation(str(name))
        slope = number("activation", slope, "a finite slope in ('leaky_relu', slope)")
        return Activation("leaky_relu", slope)
    kind = ValueError if isinstance(value, str | tuple) else TypeError
    raise kind(
        f"activation: expected None, one of {', '.join(map(repr, NAMES))} or ('leaky_relu', slope), "
        f"got {described(value)}"
    )


def ghost_batch_size(value: object) -> int | None:
    """Check how many samples have statistics together; None is all of them."""
    if value is None:
        return None
    size = integer("ghost_batch_size", value)
    if size < 1:
        raise ValueError(f"ghost_batch_size: expected at least 1 sample, got {size}")
    return size


def integer(name: str, value: object) -> int:
    """Check that a value is an integer."""
    try:
        if isinstance(value, bool | np.bool_):
            raise TypeError
        result = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {described(value)}") from None
    if not -(2**63) <= result < 2**63:  # nothing counts so far, and from 4300 digits on, none can be shown
        raise ValueError(f"{name}: expected an integer of 64 bits, got {described(value)}")
    return result


def shape(value: object) -> int | tuple[int, ...]:
    """Check the number of channels of a layer, or those of several axes."""
    if isinstance(value, tuple):
        found = tuple(features(each) for each in value)
        if math.prod(found) > MOST:
            raise ValueError(f"num_features: expected at most {MOST} channels, got {described(value)}")
        return found
    return features(value)


def layer_axis(value: object, num_features: int | tuple[int, ...]) -> int | tuple[int, ...]:
    """Check the channel axis of a layer, or as many as it has numbers of channels."""
    if not isinstance(num_features, tuple):
        return integer("axis", value)
    if not isinstance(value, tuple) or len(value) != len(num_features):
        raise ValueError(
            f"axis: expected a tuple of {len(num_features)} axes, as num_features has, got {described(value)}"
        )
    return tuple(integer("axis", each) for each in value)


def features(value: object) -> int:
    """Check the number of channels of a layer."""
    result = integer("num_features", value)
    if result < 1:
        raise ValueError(f"num_features: expected at least 1 channel, got {result}")
    if result > MOST:
        raise ValueError(f"num_features: expected at most {MOST} channels, got {result}")
    return result


def parameter_dtype(value: object) -> np.dtype[Any]:
    """Check the dtype of a layer's parameters."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # names that NumPy deprecates
            dtype: np.dtype[Any] = np.dtype(value)  # type: ignore[call-overload]
    except Exception:  # NumPy's parser of dtypes raises TypeError, ValueError, SyntaxError, UnicodeError
        raise TypeError(f"dtype: expected float32 or float64, got {described(value)}") from None
    if value is None or dtype not in DTYPES:
        raise TypeError(f"dtype: expected float32 or float64, got {described(value)}")
    return dtype


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
    array = as_array(name, value)
    if array.dtype.kind not in "fiu" or array.ndim != 1 or isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name}: expected real numbers of shape (C,), got {described(value)}")
    with np.errstate(over="ignore", invalid="ignore"):  # a wider float that float64 does not hold, a signalling NaN
        return np.require(array, FLOAT64, ("C", "A"))


def as_many(name: str, value: Array, other: str, of: Array) -> None:
    """Check that two statistics have the same channels."""
    if value.shape != of.shape:
        raise ValueError(f"{name}: expected shape {of.shape}, as {other} has, got shape {value.shape}")


def divisor(count: int, correction: float) -> None:
    """Check that the variance of moments divided by count - correction exists."""
    if count <= correction:
        raise ValueError(f"correction: expected less than the {count} values of these moments, got {correction:g}")
