"""Which processor runs a call, and why.

An array on a GPU is computed there, a NumPy array on the CPU, unless the caller says otherwise (`device=`), or the user
(`FASTBN_DEVICE`), or a model of what a round trip costs, whose rates `fastbn devices` measured on this machine.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastbn.device_array import is_device_array, library

INSTALL = 'install NVIDIA\'s driver and pip install "fastbn[cuda]"'

NAMES = ("cpu", "cuda")

_backend: Any = None


def cuda_backend() -> Any:
    """Return the backend for GPUs; importing it imports numba.cuda, which nothing else does."""
    global _backend
    if _backend is None:
        from fastbn.backends import cuda

        _backend = cuda
    return _backend


@functools.cache
def problem() -> str | None:
    """Return why no GPU can be used, in one line, or None."""
    if importlib.util.find_spec("numba_cuda") is None:
        return f"numba-cuda is not installed; {INSTALL}"
    try:
        from fastbn_kernels.cuda import toolkit

        found = toolkit.problem()
    except Exception as error:  # whatever a broken install raises
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None if found is None else f"{found[:200]}; {INSTALL}"


def require() -> None:
    """Raise if no GPU can be used."""
    found = problem()
    if found is not None:
        raise ValueError(f"device: expected a machine with an NVIDIA GPU for 'cuda', but {found}")


def checked(device: object, name: str = "device") -> str | None:
    """Return the name of a processor that a caller or the user gave."""
    if device is None or (isinstance(device, str) and device in NAMES):
        return device
    kind = ValueError if isinstance(device, str) else TypeError
    raise kind(f"{name}: expected None, 'cpu' or 'cuda', got {device!r}")


def from_environment() -> str | None:
    """Return what `FASTBN_DEVICE` says; empty or "auto" says nothing."""
    value = os.environ.get("FASTBN_DEVICE", "")
    return None if value in ("", "auto") else checked(value, "FASTBN_DEVICE")


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
    if is_device_array(x):
        if given == "cpu":
            raise ValueError("device: expected None or 'cuda' for an array on a GPU, got 'cpu'; fetch it with to_host")
        return Choice("cuda", f"the array is on a GPU ({library(x).name})")
    if given is not None:
        return Choice(given, "the caller asked for it with device=")
    wanted = from_environment()
    if wanted is not None:
        return Choice(wanted, "the environment variable FASTBN_DEVICE asks for it")
    from fastbn import cost

    return Choice(*cost.choose(int(np.asarray(x).nbytes)))


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
    require()
    from fastbn.device_array import Library

    if array.flags.f_contiguous and not array.flags.c_contiguous:
        return Library().send_as_it_is(array)
    return Library().send(None, array)


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
    """
    if isinstance(array, np.ndarray):
        return array
    if not is_device_array(array):
        raise TypeError(f"array: expected an array on a GPU, got an object of type {type(array).__name__}")
    return library(array).fetch(array)
