"""Arrays of a GPU as kernels take them, and copies to and from it.

A kernel takes an array as its address. The arrays here are Numba's, which have `__cuda_array_interface__`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastbn_kernels.cuda.build.numba_cuda import SIMULATED, numba_cuda, stand_ins

__all__ = ["argument", "empty", "params_argument", "piece", "to_device", "to_host", "zeros"]


def argument(array: Any, scalars: bool) -> Any:
    """Return what a kernel gets for an array of data, contiguous; `scalars` if it is taken a value at a time."""
    return array.__array_interface__["data"][0]


def params_argument(array: Any) -> Any:
    """Return what a kernel gets for parameters of channels or workspace; None is nothing."""
    return 0 if array is None else array.__array_interface__["data"][0]


def empty(shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...] | None = None) -> Any:
    """Return a new array on the GPU."""
    return numba_cuda.device_array(shape, np.dtype(dtype), strides=strides)


def to_device(array: Any) -> Any:
    """Copy a NumPy array, contiguous in C or Fortran order, to the GPU."""
    if array.dtype.kind == "V":  # bfloat16, of which Numba cannot take the buffer
        return numba_cuda.to_device(array.view(np.uint16)).view(array.dtype)
    return numba_cuda.to_device(array)


def to_host(array: Any) -> Any:
    """Copy an array with `__cuda_array_interface__` to the host, once all that was launched before is done."""
    if not hasattr(array, "copy_to_host"):
        array = numba_cuda.as_cuda_array(array)
    numba_cuda.synchronize()  # whatever stream it was computed on
    return array.copy_to_host()


def zeros(nbytes: int) -> Any:
    """Return zeroed memory of the GPU."""
    memory = numba_cuda.to_device(np.zeros(nbytes, np.uint8))
    numba_cuda.synchronize()  # other streams may use it from now on
    return memory


def piece(memory: Any, start: int, count: int, dtype: Any) -> Any:
    """Return part of such memory as a kernel takes it."""
    return memory.__cuda_array_interface__["data"][0] + start


if SIMULATED:
    globals().update(stand_ins("gpu_host", *__all__))
