"""What the host does with the simulated GPU: the twins of `gpu`, `memory` and `build.launch` in `fastbn_kernels.cuda`.

Its arrays are those of Numba's simulator, which are NumPy arrays inside. A kernel gets arrays where a real one gets
addresses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda as numba_cuda

from simulated import gpu
from simulated.gpu_vector import Pointer


class Launch:
    """A kernel with all that a launch needs but its arguments."""

    def __init__(
        self, kernel: Any, compiled: Any, variant: Any, grid: int, threads: int, stream: int, shared: int
    ) -> None:
        self.scalars = variant.scalars
        self._source = compiled
        self._shape = grid, threads, shared
        self._constants = (variant.tail,) * kernel.kinds.count("Tail")

    def converted(self, arguments: tuple[Any, ...]) -> list[Any]:
        """Return arguments as a launch takes them."""
        return list(arguments)

    def __call__(self, arguments: list[Any]) -> None:
        """Launch with converted arguments."""
        gpu.launch(self._source, *self._shape, (*arguments, *self._constants))


# ---------------------------------------------------------------- the twin of `gpu`


def properties() -> dict[str, Any]:
    """Return what a launch plan needs to know: few and small, so that small arrays reach every plan."""
    return {"multiprocessors": 2, "shared_per_block": 32768, "shared_per_multiprocessor": 32768,
            "l2_bytes": 1 << 20, "threads": 32}  # fmt: skip


def shared_limit() -> int:
    """Return how much shared memory a block may have."""
    return 32768


def index() -> int:
    """Return which GPU is current."""
    return 0


def name() -> str:
    """Return what it is called."""
    return "simulator"


def memory_bytes() -> None:
    """Return the size of its memory: it has none of its own."""


def problem() -> None:
    """Return why it cannot be used: it can."""


def synchronize() -> None:
    """Wait until all that was launched is done, as it is."""


# ---------------------------------------------------------------- the twin of `memory`


def flat(array: Any) -> Any:
    """Return a contiguous array as one axis, without a copy."""
    view = array.reshape(-1)
    assert array.size == 0 or np.may_share_memory(view, array)
    return view


def argument(array: Any, scalars: bool) -> Any:
    """Return what a kernel gets for an array of data."""
    return Pointer(flat(array), scalars)


def params_argument(array: Any) -> Any:
    """Return what a kernel gets for parameters of channels or workspace; None is nothing."""
    return np.empty(1) if array is None else flat(array)


def empty(shape: tuple[int, ...], dtype: Any, strides: tuple[int, ...] | None = None) -> Any:
    """Return a new array on the GPU."""
    return numba_cuda.device_array(shape, np.dtype(dtype), strides=strides)


def to_device(array: Any) -> Any:
    """Copy a NumPy array to the GPU."""
    return numba_cuda.to_device(array)


def to_host(array: Any) -> Any:
    """Copy an array to the host."""
    return array.copy_to_host()


def zeros(nbytes: int) -> Any:
    """Return zeroed memory of the GPU."""
    return np.zeros(nbytes, np.uint8)


def piece(memory: Any, start: int, count: int, dtype: Any) -> Any:
    """Return part of such memory as a kernel takes it."""
    return memory[start : start + count * np.dtype(dtype).itemsize].view(dtype)
