"""Numba's simulated device arrays as fastbn takes arrays on a GPU."""

from __future__ import annotations

from typing import Any

from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray

from fastbn import layout
from fastbn.arithmetic import seen
from fastbn.backends.cuda import arrays


def _interface(own: Any) -> dict[str, Any]:
    """Return the interface that a real device array has, of NumPy's memory."""
    array = own._ary
    plain = array.dtype.kind in "biufc" and array.dtype.isbuiltin == 1
    return {
        "data": (array.__array_interface__["data"][0], not array.flags.writeable),
        "shape": array.shape,
        "strides": None if array.flags.c_contiguous else array.strides,
        "typestr": array.dtype.str if plain else f"<V{array.itemsize}",
        "stream": None,
        "version": 3,
    }


FakeCUDAArray.__cuda_array_interface__ = property(_interface)


class Simulated(arrays.Library):
    """What Numba's simulated device arrays need: kernels run on arrays, not on addresses."""

    by_address = False

    def shadow(self, name: str, value: Any) -> Any:
        """Return the array that is wrapped, with whatever dtype and flags it has."""
        return value._ary

    def argument(self, value: Any, axis: int, data: bool, scalars: bool, precision: str) -> Any:
        """Return what a simulated kernel gets."""
        from fastbn_kernels.cuda import memory

        shadow = value._ary
        if not data:
            return memory.params_argument(shadow)
        view = layout.of(shadow, axis).view(shadow)
        return memory.argument(seen(view.view(arrays.bits(view.dtype)), precision), scalars)


def install() -> None:
    """Make fastbn take Numba's device arrays for simulated ones."""
    arrays.KINDS["numba"] = Simulated


install()
