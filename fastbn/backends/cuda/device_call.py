"""One call on a GPU: which of its arrays are there, which are sent, and what is copied back when it is done."""

from __future__ import annotations

import math
from typing import Any, TypeAlias

import numpy as np

from fastbn import layout
from fastbn.backends.cuda import launch
from fastbn.backends.cuda.arrays import Library, library
from fastbn.checks.place import on_gpu
from fastbn.moments import Moments

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class DeviceCall:
    """The arrays of one call, for the library and on the stream of its x."""

    def __init__(self, x: Any) -> None:
        launch.check_gpu()
        self.x = x
        self.library: Library = library(x)
        self.stream = self.library.stream(x)
        self._alive: list[Any] = []  # what a launch uses and nobody else holds; given back in the order of the stream
        self._after: list[tuple[Any, Any, Any]] = []
        self.as_it_came = True  # whether all arrays were launched on as they are: nothing copied, sent or converted

    def shadow(self, name: str, value: Any) -> Any:
        """Return the shadow of a device array; anything else as it is, for the checks to judge."""
        return library(value).shadow(name, value) if on_gpu(value) else value

    def new(self, shape: tuple[int, ...], dtype: Any) -> tuple[Any, Array]:
        """Return a new array on the GPU, and its shadow."""
        there = self.library.empty(self.x, shape, dtype)
        self._alive.append(there)
        return there, self.shadow("new", there)

    def like(self, value: Any, shadow: Array) -> tuple[Any, Array]:
        """Return a new array like a device array, and its shadow."""
        there = self.library.empty_like(value, shadow)
        return there, self.shadow("new", there)

    def sent(self, array: Array) -> Array:
        """Send a NumPy array and return the shadow of what is there now."""
        self.as_it_came = False
        there = self.library.send(self.x, array)
        self._alive.append(there)
        shadow: Array = self.shadow("sent", there)
        return shadow

    def sent_mask(self, mask: Array, own: layout.Layout) -> Array:
        """Return a mask on the GPU, as (N, S), a byte a position."""
        return self.sent(own.positions(mask).view(np.uint8))

    def parameter(self, given: Any, checked: Array | None, dtype: Any, *, written: bool = False) -> Array | None:
        """Return a parameter on the GPU, contiguous and of the one dtype of all parameters of the launch."""
        if checked is None:
            return None
        if not on_gpu(given):
            self.as_it_came = False
            there = self.library.send(self.x, checked.astype(dtype))
            self._alive.append(there)
            if written:
                self._after.append(("fetch", there, checked))
            shadow: Array = self.shadow("sent", there)
            return shadow
        if checked.dtype == dtype and checked.flags.c_contiguous:
            return checked
        self.as_it_came = False
        _, shadow = self.new(checked.shape, dtype)
        launch.convert(checked, shadow, self.stream)
        if written:
            self._after.append(("convert", shadow, checked))
        return shadow

    def common_layout(self, axis: int, *arrays: Array) -> layout.Layout:
        """Return the layout of the first array that is contiguous in some order; if none is, that of C order."""
        self.axis = axis
        for array in arrays:
            own = layout.of(array, axis)
            if own.contiguous:
                return own
        shape, itemsize = arrays[0].shape, arrays[0].itemsize
        strides = tuple(itemsize * math.prod(shape[i + 1 :]) for i in range(len(shape)))
        return layout.analyse(shape, strides, itemsize, axis)

    def _temporary(self, like: Array, own: layout.Layout) -> tuple[Array, Array]:
        """Return new memory in a layout, in the shape of `like` and as (N, C, S)."""
        self.as_it_came = False
        nbytes = like.size * like.itemsize
        _, raw = self.new((-(-nbytes // 8),), np.float64)
        flat = raw.view(np.uint8)[:nbytes].view(like.dtype)
        ordered = flat.reshape([like.shape[i] for i in own.order])
        return ordered.transpose(np.argsort(own.order)), flat.reshape(own.shape)

    def read(self, array: Array, own: layout.Layout) -> Array:
        """Return data as (N, C, S) in a layout, of a copy if it is not stored so."""
        if layout.of(array, self.axis).fits(own):
            return own.view(array)
        there, view = self._temporary(array, own)
        launch.copy(array, there, self.stream)
        return view

    def write(self, array: Array, own: layout.Layout) -> Array:
        """Return where data goes as (N, C, S) in a layout; what is not stored so is copied when the call is done."""
        if layout.of(array, self.axis).fits(own):
            return own.view(array)
        there, view = self._temporary(array, own)
        self._after.append(("copy", there, array))
        return view

    def delivered(self, there: Any, shadow: Array, dtype: np.dtype[Any], on_host: bool) -> Any:
        """Return a new array (C,) in the dtype and on the processor that its parameter has."""
        if shadow.dtype != dtype:
            there, target = self.new(shadow.shape, dtype)
            launch.convert(shadow, target, self.stream)
        return self.library.fetch(there) if on_host else there

    def result(self, array: Array, on_host: bool) -> Any:
        """Return a NumPy array on the processor that its parameter has."""
        return array if on_host else self.library.send(self.x, array)

    def done(self) -> None:
        """Copy back what was computed elsewhere than where it belongs."""
        for what, there, target in self._after:
            if what == "copy":
                launch.copy(there, target, self.stream)
            elif what == "convert":
                launch.convert(there, target, self.stream)
            else:
                target[...] = self.library.fetch(there)

    def update(self, running: tuple[Any, Any], moments: Moments, momentum: float, correction: float) -> None:
        """Move running statistics towards moments that the host has; waits for the GPU."""
        for given, batch in zip(running, (moments.mean, moments.var(correction)), strict=True):
            there = on_gpu(given)
            old = self.library.fetch(given) if there else given
            with np.errstate(over="ignore", invalid="ignore"):
                new = (old * np.float64(1.0 - momentum) + batch * np.float64(momentum)).astype(old.dtype)
            if there:
                launch.convert(self.sent(new), self.shadow("running", given), self.stream)
            else:
                given[...] = new
