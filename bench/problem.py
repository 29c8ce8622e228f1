"""The arrays of one case, and what every participant makes of them: a call to time and a result to check."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from suites import Case

EPS = 1e-5
MOMENTUM = 0.1
OPERATIONS = ("forward", "inference", "backward", "both")
DTYPES = ("float32", "float64", "float16", "bfloat16")

# How far results may be apart: relative to the value, and to the largest value of the array. Not a test of accuracy
# (tests/ and accuracy.py are), but a wrong kernel must not win: the sums of NumPy and of the frameworks are good to
# some 1e-5 in float32, and results of 16 bits may be rounded to either neighbour.
TOLERANCES = {"float32": (0, 1e-3), "float64": (0, 1e-9), "float16": (2e-3, 2e-3), "bfloat16": (1.6e-2, 4e-3)}
BLOCK = 1 << 16


class Unavailable(Exception):  # noqa: N818 - nothing went wrong
    """A participant cannot take part, and why."""


@dataclass(frozen=True)
class Run:
    """What a participant does with a problem."""

    call: Callable[[], Any]
    arrays: Callable[[Any], dict[str, np.ndarray]]  # of what `call` returned, as stored: y, dx, dweight, dbias


@dataclass(frozen=True)
class Problem:
    """The inputs of a case in one dtype. x and dy have the shape of the case, everything else is (C,)."""

    case: Case
    x: np.ndarray
    dy: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    running_mean: np.ndarray
    running_var: np.ndarray

    @property
    def axes(self) -> tuple[int, ...]:
        """The axes that a channel's sums run over."""
        return tuple(i for i in range(self.x.ndim) if i != self.case.axis)

    @property
    def broadcast(self) -> tuple[int, ...]:
        """The shape that lines (C,) up with x."""
        return tuple(-1 if i == self.case.axis else 1 for i in range(self.x.ndim))


def numpy_dtype(name: str) -> np.dtype[Any]:
    if name != "bfloat16":
        return np.dtype(name)
    try:
        import ml_dtypes
    except ImportError as error:
        raise Unavailable("ml_dtypes, which has NumPy's bfloat16, is not installed") from error
    return np.dtype(ml_dtypes.bfloat16)


def parameter_dtype(data: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of parameters and statistics: that of the data, but not of 16 bits."""
    return data if data.itemsize > 2 else np.dtype(np.float32)


def draw(case: Case, dtype: str, operation: str) -> Problem:
    """Return fresh random data; dy is empty where it is not needed.

    Channels are neither centred nor of variance 1, and dy is correlated with x: sums of which all terms cancel would
    be compared in their rounding errors.
    """
    rng = np.random.default_rng()
    data = numpy_dtype(dtype)
    own = parameter_dtype(data)

    def small(low: float, high: float) -> np.ndarray:
        return rng.uniform(low, high, case.channels).astype(own)

    x = rng.standard_normal(case.shape, own)
    x *= 1.5
    x += 0.5
    dy = np.empty(0, own)
    if operation in ("backward", "both"):
        dy = rng.standard_normal(case.shape, own)
        dy += np.float32(0.25) * x
    x, dy = x.astype(data, copy=False), dy.astype(data, copy=False)
    return Problem(case, x, dy, small(0.5, 1.5), small(-1, 1), small(-1, 1), small(0.5, 1.5))


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the values in pieces that fit a cache, those of 16 bits as float32."""
    flat = array.reshape(-1)
    for start in range(0, flat.size, BLOCK):
        yield flat[start : start + BLOCK].astype(parameter_dtype(array.dtype), copy=False)


def check(name: str, found: dict[str, np.ndarray], expected: dict[str, np.ndarray], dtype: str) -> None:
    """Raise AssertionError unless the results agree."""
    relative, absolute = TOLERANCES[dtype]
    for key, reference in expected.items():
        array = found[key]
        assert array.shape == reference.shape, f"{name}: {key} has shape {array.shape}, not {reference.shape}"
        largest = max(np.abs(block).max() for block in _blocks(reference))
        for a, b in zip(_blocks(array), _blocks(reference), strict=True):
            apart = np.abs(a - b)
            excess = (apart - relative * np.abs(b) if relative else apart).max()
            assert excess <= absolute * largest, f"{name}: {key} is off by {excess:.3g}, of at most {largest:.3g}"
