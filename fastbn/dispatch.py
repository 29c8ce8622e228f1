"""Which processor runs a call, and why.

An array on a GPU is computed there, a NumPy array on the CPU, unless the caller says otherwise (`device=`), or the user
(`FASTBN_DEVICE`), or a model of what a round trip costs, whose rates `fastbn devices` measured on this machine.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import math
import os
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastbn.backends.cuda.arrays import Library, is_device_array, library

log = logging.getLogger("fastbn")

INSTALL = 'install NVIDIA\'s driver and pip install "fastbn[cuda]"'

NAMES = ("cpu", "cuda")

_backend: Any = None


def cuda_backend() -> Any:
    """Return the backend for GPUs, or raise; importing it imports numba.cuda, which CPU calls never do."""
    global _backend
    if _backend is None:
        require()
        from fastbn.backends.cuda import launch as cuda

        _backend = cuda
    return _backend


@functools.cache
def problem() -> str | None:
    """Return why no GPU can be used, in one line, or None."""
    try:
        if importlib.util.find_spec("numba_cuda") is None:
            found: str | None = "numba-cuda is not installed"
        else:
            from fastbn_kernels.cuda import gpu

            found = gpu.problem()
            if found is None:
                gpu.name()  # opens the GPU, which fails where it is there and not to be had
    except Exception as error:  # whatever a broken install raises
        found = f"numba-cuda does not work: {type(error).__name__}: {' '.join(str(error).split())}"
    return None if found is None else f"{found[:200].rstrip(' .')}; {INSTALL}"


def require() -> None:
    """Raise if no GPU can be used."""
    found = problem()
    if found is not None:
        raise ValueError(f"device: expected a machine with an NVIDIA GPU for 'cuda', but {found}")


def checked(device: object) -> str | None:
    """Return the name of a processor that a caller gave."""
    if device is None or (isinstance(device, str) and device in NAMES):
        return device
    try:
        shown = repr(device)
    except Exception:  # an integer of 5000 digits, say
        shown = f"an object of type {type(device).__name__}"
    kind = ValueError if isinstance(device, str) else TypeError
    raise kind(f"device: expected None, 'cpu' or 'cuda', got {shown}")


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
    if is_device_array(x):
        if given == "cpu":
            raise ValueError("device: expected None or 'cuda' for an array on a GPU, got 'cpu'; fetch it with to_host")
        return Choice("cuda", f"the array is on a GPU ({library(x).name}){_but('cuda')}")
    if given is not None:
        return Choice(given, f"the caller asked for it with device={_but(given)}")
    wanted = from_environment()
    if wanted is not None:
        return Choice(wanted, f"the environment variable FASTBN_DEVICE asks for it{_but(wanted)}")
    from fastbn import cost

    try:
        nbytes = np.asarray(x).nbytes
    except Exception:  # nested lists of several lengths, and whatever an __array__ raises
        raise TypeError(f"x: expected an array, got an object of type {type(x).__name__}") from None
    return Choice(*cost.choose(int(nbytes)))


def _but(name: str) -> str:
    """Return what to add to a reason if a call there would raise."""
    found = problem() if name == "cuda" else None
    return "" if found is None else f", but a call would raise: {found}"


# Bytes from which a NumPy array goes to the GPU by itself; None before the first call.
_by_itself_from: float | None = None

# Whether that is what the user says, or the rates of the GPU that is here.
_sure = False


def _learn() -> float:
    """Read the environment and the rates that were measured, once in a process."""
    global _by_itself_from, _sure
    wanted = from_environment()
    _sure = wanted is not None
    if wanted is None:
        from fastbn import cost

        limit = cost.threshold()
    else:
        limit = 0.0 if wanted == "cuda" else math.inf
    _by_itself_from = limit
    return limit


def _make_sure() -> bool:
    """Return whether the rates that send an array to a GPU are those of the one here; without, none goes by itself."""
    global _by_itself_from, _sure
    from fastbn import cost

    rates, reason = cost.find()
    if rates is None:
        log.info("fastbn: NumPy arrays stay on the CPU: %s", reason)
        _by_itself_from = math.inf
    _sure = True
    return rates is not None


def forget() -> None:
    """Read the environment and the rates again at the next call."""
    global _by_itself_from
    from fastbn import cost

    _by_itself_from = None
    cost.forget()


def of(x: Any, device: object) -> Any:
    """Return the module whose functions take a call on x: None is the CPU's."""
    if device is None and isinstance(x, np.ndarray):
        limit = _learn() if _by_itself_from is None else _by_itself_from
        if x.nbytes < limit or not (_sure or _make_sure()):
            return None
    elif is_device_array(x):
        if checked(device) == "cpu":
            raise ValueError("device: expected None or 'cuda' for an array on a GPU, got 'cpu'; fetch it with to_host")
        require()
        from fastbn.backends.cuda import on_device

        return on_device
    elif checked(device) != "cuda":  # what is no array at all is refused there
        return None
    from fastbn.backends.cuda import transfer as round_trip

    return round_trip


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
    return Library().send_as_it_is(array) if array.flags.forc else Library().send(None, array)


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
    if not is_device_array(array):
        raise TypeError(f"array: expected an array on a GPU, got an object of type {type(array).__name__}")
    own = library(array)
    if type(own) is Library:
        require()
    return own.fetch(array)
