"""Device arrays of PyTorch, CuPy and Numba, made from NumPy arrays in every form that a caller may come with."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np

import fastbn
from fastbn_kernels.cuda import gpu
from fastbn_kernels.cuda.build.numba_cuda import SIMULATED

DTYPES = ("float32", "float64", "float16", "bfloat16")


class Unsupported(Exception):  # noqa: N818 - nothing went wrong
    """A library cannot do what was asked, and why."""


def dtype(name: str) -> np.dtype[Any]:
    """Return the dtype of data, which of "exact" is float32."""
    if name == "exact":
        name = "float32"
    if name != "bfloat16":
        return np.dtype(name)
    import ml_dtypes

    return np.dtype(ml_dtypes.bfloat16)


class Numba:
    """Numba's arrays, which `fastbn.to_device` makes; the only ones of the simulator."""

    name = "numba"

    def send(self, array: np.ndarray) -> Any:
        """Return a copy on the GPU."""
        return fastbn.to_device(array)

    def fetch(self, there: Any) -> np.ndarray:
        """Return a copy on the host."""
        return fastbn.to_host(there)

    def permute(self, there: Any, axes: tuple[int, ...]) -> Any:
        """Return the array with its axes in another order, over the same memory."""
        try:
            return there.transpose(axes)
        except NotImplementedError as error:
            raise Unsupported("Numba transposes no more than two axes") from error

    def random(self, shape: tuple[int, ...], name: str, last: bool = False) -> Any:
        """Return an array of values that are neither centred nor of variance 1."""
        return self.send((np.random.default_rng().standard_normal(shape) * 1.5 + 0.5).astype(dtype(name)))

    def copy(self, target: Any, source: Any) -> None:
        """Copy on the GPU."""
        if SIMULATED:  # its own way does not know bfloat16
            target[...] = source._ary
        else:
            target.copy_to_device(source)

    def synchronize(self) -> None:
        """Wait for the GPU."""
        gpu.synchronize()


class Torch(Numba):
    """PyTorch's tensors."""

    name = "torch"

    def __init__(self, where: str = "cuda") -> None:
        import torch

        self.torch = torch
        self.where = where

    def send(self, array: np.ndarray) -> Any:
        """Return a copy on the GPU."""
        array = np.ascontiguousarray(array)
        if array.dtype.name == "bfloat16":  # unknown to from_numpy
            return self.torch.from_numpy(array.view(np.int16)).to(self.where, copy=True).view(self.torch.bfloat16)
        return self.torch.from_numpy(array).to(self.where, copy=True)

    def fetch(self, there: Any) -> np.ndarray:
        """Return a copy on the host."""
        self.synchronize()
        if there.dtype == self.torch.bfloat16:
            return there.cpu().contiguous().view(self.torch.int16).numpy().view(dtype("bfloat16"))
        return there.cpu().numpy()

    def permute(self, there: Any, axes: tuple[int, ...]) -> Any:
        """Return the array with its axes in another order, over the same memory."""
        return there.permute(axes)

    def random(self, shape: tuple[int, ...], name: str, last: bool = False) -> Any:
        """Return a tensor of values that are neither centred nor of variance 1; `last` is a memory format."""
        tensor = self.torch.empty(shape, device=self.where, dtype=getattr(self.torch, dtype(name).name))
        if last:
            tensor = tensor.to(memory_format=self.torch.channels_last)
        return tensor.normal_(0.5, 1.5)

    def copy(self, target: Any, source: Any) -> None:
        """Copy on the GPU."""
        target.copy_(source)

    def synchronize(self) -> None:
        """Wait for the GPU."""
        if self.where == "cuda":
            self.torch.cuda.synchronize()


class Cupy(Numba):
    """CuPy's arrays."""

    name = "cupy"

    def __init__(self) -> None:
        import cupy

        self.cupy = cupy

    def send(self, array: np.ndarray) -> Any:
        """Return a copy on the GPU."""
        if array.dtype.name == "bfloat16":
            raise Unsupported("CuPy's bfloat16 is not NumPy's")
        return self.cupy.asarray(array)

    def fetch(self, there: Any) -> np.ndarray:
        """Return a copy on the host."""
        return self.cupy.asnumpy(there)

    def permute(self, there: Any, axes: tuple[int, ...]) -> Any:
        """Return the array with its axes in another order, over the same memory."""
        return there.transpose(axes)

    def copy(self, target: Any, source: Any) -> None:
        """Copy on the GPU."""
        target[...] = source

    def synchronize(self) -> None:
        """Wait for the GPU."""
        self.cupy.cuda.runtime.deviceSynchronize()


KINDS = {"torch": Torch, "cupy": Cupy, "numba": Numba}


def house(owner: str = "") -> Any:
    """Return the library of that name or, without a name, PyTorch if it has a GPU here, else Numba."""
    if not owner:
        owner = "numba"
        if not SIMULATED and importlib.util.find_spec("torch"):
            import torch

            owner = "torch" if torch.cuda.is_available() else "numba"
    elif SIMULATED and owner != "numba":
        raise Unsupported(f"the simulator has no arrays of {owner}")
    try:
        return KINDS[owner]()
    except ImportError as error:
        raise Unsupported(f"{owner} is not installed") from error


def alive() -> bool:
    """Return whether the GPU still answers this process; after an illegal access it never does again."""
    try:
        own = house()
        return own.fetch(own.send(np.ones(8, np.float32))).sum() == 8
    except Exception:
        return False


def stored(own: Any, array: np.ndarray, form: str) -> Any:
    """Return the values on the GPU, stored in a form: what is between them is NaN."""
    if form == "contiguous":
        return own.send(array)
    if form == "misaligned":  # one element in, so that vectors of 16 bytes are not aligned
        flat = np.full(array.size + 1, np.nan, array.dtype)
        flat[1:] = array.reshape(-1)
        return own.send(flat)[1:].reshape(array.shape)
    if form == "strided":
        wide = np.full((*array.shape[:-1], 2 * array.shape[-1]), np.nan, array.dtype)
        wide[..., ::2] = array
        return own.send(wide)[(*[slice(None)] * (array.ndim - 1), slice(None, None, 2))]
    if form == "channels_last":
        axes = (0, array.ndim - 1, *range(1, array.ndim - 1))
        return own.permute(own.send(np.ascontiguousarray(np.moveaxis(array, 1, -1))), axes)
    if form == "reversed axes":
        axes = tuple(reversed(range(array.ndim)))
        return own.permute(own.send(np.ascontiguousarray(array.transpose(axes))), axes)
    raise ValueError(form)
