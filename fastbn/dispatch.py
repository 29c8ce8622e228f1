"""Which backend runs a call, and why.

An array on a GPU is computed there, a NumPy array on the CPU, unless the caller says otherwise (`device=`) or the user
does (`FASTBN_DEVICE`).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastbn.backends.cpu import backend as cpu
from fastbn.backends.cuda import arrays, availability
from fastbn.backends.protocol import Backend
from fastbn.checks import scalars
from fastbn.checks.place import on_gpu
from fastbn.context import Context

NAMES = ("cpu", "cuda")
SUPPORTS = {"cpu": cpu.supports, "cuda": availability.supports}  # asked without importing what a backend needs
ON_A_GPU = "device: expected None or 'cuda' for an array on a GPU, got 'cpu'; fetch it with to_host"


def backend(name: str) -> Backend:
    """Return a backend by its name, or raise if it can compute nothing here."""
    if name == "cpu":
        return cpu
    availability.require()
    from fastbn.backends.cuda import backend as cuda  # imports numba.cuda, which calls on the CPU never do

    return cuda


def checked(device: object) -> str | None:
    """Return the name of a backend that a caller gave."""
    if device is None or (isinstance(device, str) and device in NAMES):
        return device
    kind = ValueError if isinstance(device, str) else TypeError
    raise kind(f"device: expected None, 'cpu' or 'cuda', got {scalars.described(device)}")


def from_environment() -> str | None:
    """Return what `FASTBN_DEVICE` says; empty or "auto" says nothing."""
    value = os.environ.get("FASTBN_DEVICE", "")
    if value in ("", "auto"):
        return None
    if value not in NAMES:
        raise ValueError(f"FASTBN_DEVICE: expected 'cpu', 'cuda' or 'auto' in the environment, got {value!r}")
    return value


@dataclass(frozen=True)
class Choice:
    """Which processor a call on an array would run on.

    Attributes
    ----------
    device : str
        "cpu" or "cuda".
    reason : str
        Why, in a sentence.
    """

    device: str
    reason: str

    def __str__(self) -> str:
        return f"{self.device}: {self.reason}"


def explain(x: Any, *, device: str | None = None) -> Choice:
    """Return which processor `batch_norm` of an array would run on, and why.

    Parameters
    ----------
    x : array
        On the host or on a GPU.
    device : str, optional
        As for `batch_norm`.

    Returns
    -------
    Choice
        `device` and `reason`.

    Raises
    ------
    TypeError, ValueError
        For a `device` that is neither "cpu" nor "cuda", or that x cannot be computed on.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> print(fastbn.explain(np.zeros((2, 3)), device="cpu"))
    cpu: the caller asked for it with device=
    """
    given = checked(device)
    if on_gpu(x):
        if given == "cpu":
            raise ValueError(ON_A_GPU)
        return Choice("cuda", f"the array is on a GPU ({arrays.library(x).name}){_but('cuda')}")
    if given is not None:
        return Choice(given, f"the caller asked for it with device={_but(given)}")
    wanted = from_environment()
    if wanted is not None:
        return Choice(wanted, f"the environment variable FASTBN_DEVICE asks for it{_but(wanted)}")
    return Choice("cpu", "NumPy arrays are computed on the CPU unless device= or FASTBN_DEVICE says otherwise")


def _but(name: str) -> str:
    """Return what to add to a reason if a call there would raise."""
    found = availability.problem() if name == "cuda" else None
    return "" if found is None else f", but a call would raise: {found}"


# Where FASTBN_DEVICE sends NumPy arrays; None before the first call. Asking the environment takes 1 us of a call of 5.
_for_numpy: Backend | None = None


def _learn() -> Backend:
    """Read the environment, once in a process."""
    global _for_numpy
    _for_numpy = backend(from_environment() or "cpu")
    return _for_numpy


def forget() -> None:
    """Read the environment again at the next call."""
    global _for_numpy
    _for_numpy = None


def of(x: Any, device: object) -> Backend:
    """Return the backend that takes a call on x."""
    if device is None and isinstance(x, np.ndarray):
        return _for_numpy or _learn()
    given = checked(device)
    if on_gpu(x):
        if given == "cpu":
            raise ValueError(ON_A_GPU)
        return backend("cuda")
    return backend(given or "cpu")  # what is no array at all is refused there


def of_context(ctx: Any) -> Backend:
    """Return the backend that goes back through a context; what is none is refused there."""
    return backend(ctx.device) if isinstance(ctx, Context) else cpu


def for_derivatives(ctx: Any) -> Backend:
    """Return the backend that takes higher derivatives of a context, or raise if that of its forward pass has none."""
    supports = SUPPORTS[ctx.device] if isinstance(ctx, Context) else cpu.supports
    support = supports("derivatives")
    if not support:
        raise ValueError(f"ctx: {support.reason}")
    return of_context(ctx)


def to_device(array: Any) -> Any:
    """Copy a NumPy array to the GPU.

    Parameters
    ----------
    array : array
        Of NumPy; strides are kept where it is contiguous in C or Fortran order, otherwise the copy is in C order.

    Returns
    -------
    numba.cuda.DeviceNDArray
        With `__cuda_array_interface__`, which PyTorch and CuPy take without a copy.

    Raises
    ------
    TypeError
        If it is not a NumPy array.
    ValueError
        If there is no GPU.
    """
    if not isinstance(array, np.ndarray):
        raise TypeError(f"array: expected a numpy.ndarray, got an object of type {type(array).__name__}")
    availability.require()
    return arrays.send(array)


def to_host(array: Any) -> np.ndarray[Any, Any]:
    """Copy an array on a GPU to the host, once everything launched before is done.

    Parameters
    ----------
    array : array
        Of Numba, CuPy, PyTorch or anything with `__cuda_array_interface__`; an array of NumPy is returned as it is.

    Returns
    -------
    numpy.ndarray

    Raises
    ------
    TypeError
        If it is neither.
    ValueError
        If numba-cuda, which copies for all but PyTorch and CuPy, finds no GPU.
    """
    if isinstance(array, np.ndarray):
        return array
    if not on_gpu(array):
        raise TypeError(f"array: expected an array on a GPU, got an object of type {type(array).__name__}")
    own = arrays.library(array)
    if type(own) is arrays.Library:
        availability.require()
    return own.fetch(array)
