"""Arrays on a GPU, whosever they are: PyTorch's, CuPy's, Numba's, or anything with `__cuda_array_interface__`.

Inside fastbn a device array is a `shadow`: a NumPy array with the shape, strides, dtype and address of the real one.
Everything that looks at these alone (checks, layouts, overlaps) then works on device arrays as it is. Reading an
element of a shadow would read the GPU's address in the host's memory, so shadows never leave a call.

What is allocated is allocated by the library whose array came in, and given back as its type.
"""

from __future__ import annotations

import math
import sys
import threading
from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def bfloat16(name: str) -> np.dtype[Any]:
    """Return NumPy's bfloat16."""
    try:
        import ml_dtypes
    except ImportError:
        raise TypeError(f"{name}: bfloat16 needs ml_dtypes: pip install ml_dtypes") from None
    dtype: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
    return dtype


def _memory() -> Any:
    from fastbn_kernels.cuda import memory  # imports numba.cuda

    return memory


def own_stream(stream: int) -> Any:
    """Return what tells a stream from others: handle 2 stands for another one in every thread."""
    return (stream, threading.get_ident()) if stream == 2 else stream


def bits(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return what data of a dtype are passed to kernels as: of 16-bit floats the integers, signed for float16."""
    if dtype.itemsize == 2:
        return np.dtype(np.int16 if dtype == np.float16 else np.uint16)
    return dtype


class _Export:
    """What NumPy makes an array of without looking at the memory."""

    def __init__(self, interface: dict[str, Any]) -> None:
        self.__array_interface__ = interface


def _shadow(address: int, shape: tuple[int, ...], strides: tuple[int, ...] | None, dtype: Any, readonly: bool) -> Array:
    if 0 in shape:
        return np.empty(shape, dtype)
    stored = np.dtype(dtype)
    plain = stored if stored.kind in "fiub" and stored.name != "bfloat16" else np.dtype(np.uint16)
    interface = {"data": (address, readonly), "shape": shape, "strides": strides, "typestr": plain.str, "version": 3}
    array = np.asarray(_Export(interface))
    return array if plain == stored else array.view(stored)


class Library:
    """What Numba's device arrays need; the base of the others."""

    name = "numba"
    by_address = True  # whether kernels get the address of an array; the simulated GPU's get the array, by `argument`

    def shadow(self, name: str, value: Any) -> Array:
        """Return the shadow of a device array."""
        interface = value.__cuda_array_interface__
        if interface.get("mask") is not None:
            raise TypeError(f"{name}: expected an array without a mask")
        address, readonly = interface["data"]
        typestr = interface["typestr"]
        dtype = bfloat16(name) if typestr.lstrip("<|=") == "V2" else np.dtype(typestr)
        return _shadow(address, tuple(interface["shape"]), interface.get("strides"), dtype, readonly)

    def describe(self, value: Any) -> tuple[int, int, Any] | None:
        """Return the address, the bytes and all else that matters of a device array, or None to have it looked at."""
        interface = value.__cuda_array_interface__
        if interface.get("mask") is not None:
            return None
        (address, readonly), shape, typestr = interface["data"], interface["shape"], interface["typestr"]
        nbytes = math.prod(shape) * int(typestr[2:])
        return address, nbytes, (shape, interface.get("strides"), typestr, readonly)

    def address(self, value: Any) -> int:
        """Return the address of a device array."""
        return int(self.describe(value)[0])  # type: ignore[index]

    def argument(self, value: Any, axis: int, data: bool, scalars: bool, precision: str) -> Any:
        """Return what a kernel gets for a contiguous array, of data or of params."""
        return self.address(value)

    def stream(self, value: Any) -> int:
        """Return the handle of the stream that the caller works on."""
        return int(value.__cuda_array_interface__.get("stream") or 0)

    def empty(self, like: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return a new array on the GPU, in C order."""
        return _memory().empty(shape, dtype)

    def empty_like(self, like: Any, shadow: Array | None) -> Any:
        """Return a new array of the shape, dtype and order of axes of `like`."""
        if shadow is None:
            shadow = self.shadow("array", like)
        model = np.lib.stride_tricks.as_strided(np.empty(1, shadow.dtype), shadow.shape, shadow.strides)
        strides = np.empty_like(model, order="K", subok=False).strides if shadow.size else None
        return _memory().empty(shadow.shape, shadow.dtype, strides)

    def send(self, like: Any, array: Array) -> Any:
        """Copy a NumPy array to the GPU."""
        return _memory().to_device(np.ascontiguousarray(array))

    def fetch(self, value: Any) -> Array:
        """Copy a device array to the host, once all that was launched before is done."""
        result: Array = _memory().to_host(value)
        return result


class Torch(Library):
    """PyTorch's tensors."""

    name = "torch"

    def __init__(self) -> None:
        self.torch = sys.modules["torch"]
        self._numbers: dict[Any, Any] = {}  # looking a type up is faster than making a dtype of it
        for own, theirs in ((np.float32, self.torch.float32), (np.float64, self.torch.float64)):
            self._numbers |= {own: theirs, np.dtype(own): theirs}
        # What Triton takes the current stream by, in 0.1 us; making a Stream takes one or two.
        self._raw_stream = getattr(self.torch._C, "_cuda_getCurrentRawStream", None)
        self.dtypes = {
            self.torch.float32: np.dtype(np.float32),
            self.torch.float64: np.dtype(np.float64),
            self.torch.float16: np.dtype(np.float16),
        }

    def shadow(self, name: str, value: Any) -> Array:
        """Return the shadow of a tensor."""
        if value.requires_grad:
            raise TypeError(f"{name}: expected a tensor without a gradient to record, pass {name}.detach()")
        dtype = self.dtypes.get(value.dtype)
        if dtype is None:
            if value.dtype is not self.torch.bfloat16:
                raise TypeError(
                    f"{name}: expected float32, float64, float16 or bfloat16, got {value.dtype}; "
                    f"convert it with {name}.float()"
                )
            dtype = bfloat16(name)
        if value.is_cuda and value.get_device() != self.torch.cuda.current_device():
            raise ValueError(
                f"{name}: expected a tensor on the current GPU, {self.torch.cuda.current_device()}, "
                f"got one on GPU {value.get_device()}; call it under torch.cuda.device({name}.device)"
            )
        strides = tuple(stride * value.element_size() for stride in value.stride())
        return _shadow(value.data_ptr(), tuple(value.shape), strides, dtype, False)

    def describe(self, value: Any) -> tuple[int, int, Any] | None:
        """Return the address, the bytes and all else that matters of a tensor."""
        if value.requires_grad:
            return None
        return value.data_ptr(), value.nbytes, (value.shape, value.stride(), value.dtype, value.get_device())

    def stream(self, value: Any) -> int:
        """Return PyTorch's current stream."""
        if self._raw_stream is not None:
            return int(self._raw_stream(value.get_device()))
        return int(self.torch.cuda.current_stream(value.device).cuda_stream)

    def address(self, value: Any) -> int:
        """Return the address of a tensor."""
        return int(value.data_ptr())

    def empty(self, like: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return a new tensor."""
        return self.torch.empty(shape, dtype=self._numbers[dtype], device=like.device)

    def empty_like(self, like: Any, shadow: Array | None) -> Any:
        """Return a new tensor of the shape, dtype and memory format of `like`."""
        return self.torch.empty_like(like)

    def send(self, like: Any, array: Array) -> Any:
        """Copy a NumPy array to the GPU."""
        return self.torch.from_numpy(np.array(array)).to(like.device)

    def fetch(self, value: Any) -> Array:
        """Copy a tensor to the host."""
        if value.dtype is self.torch.bfloat16:
            bits_ = np.asarray(value.view(self.torch.int16).cpu().numpy())
            return bits_.view(bfloat16("array"))
        return np.asarray(value.cpu().numpy())


class Cupy(Library):
    """CuPy's arrays."""

    name = "cupy"

    def __init__(self) -> None:
        self.cupy = sys.modules["cupy"]

    def describe(self, value: Any) -> tuple[int, int, Any] | None:
        """Return the address, the bytes and all else that matters of an array."""
        return value.data.ptr, value.nbytes, (value.shape, value.strides, value.dtype, value.device.id)

    def stream(self, value: Any) -> int:
        """Return CuPy's current stream."""
        return int(self.cupy.cuda.get_current_stream().ptr)

    def empty(self, like: Any, shape: tuple[int, ...], dtype: Any) -> Any:
        """Return a new array."""
        return self.cupy.empty(shape, dtype)

    def empty_like(self, like: Any, shadow: Array | None) -> Any:
        """Return a new array of the shape, dtype and order of axes of `like`."""
        return self.cupy.empty_like(like)

    def send(self, like: Any, array: Array) -> Any:
        """Copy a NumPy array to the GPU."""
        return self.cupy.asarray(array)

    def fetch(self, value: Any) -> Array:
        """Copy an array to the host."""
        return np.asarray(self.cupy.asnumpy(value))


KINDS: dict[str, type[Library]] = {"torch": Torch, "cupy": Cupy}
_libraries: dict[type[Library], Library] = {}


def library(value: Any) -> Library:
    """Return the library that a device array belongs to; strangers are treated as Numba's."""
    owner = type(value).__module__.partition(".")[0]
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):  # subclasses have modules of their own
        owner = "torch"
    kind = KINDS.get(owner, Library)
    if kind not in _libraries:
        _libraries[kind] = kind()
    return _libraries[kind]


def send(array: Array) -> Any:
    """Copy a NumPy array to the GPU, as it is stored if that is in C or Fortran order, else in C order."""
    return _memory().to_device(array if array.flags.forc else np.ascontiguousarray(array))
