"""A whole call as a row of words, for compiled code that knows kernels and data by their addresses.

Whoever has a host's buffers (XLA's adapter, PyTorch's) fills in a row of WORDS words and calls a step at its address:
one of these functions, ``int step(intptr_t words)`` in Numba's calling convention, compiled for the dtype of the data
and the axes that the kernel wants. They do what `fastbn.backends.cpu.launch` does in Python, with the same bits, and
return whether they refused; then nothing was written. Absent parameters have the address 0.
"""

from __future__ import annotations

import functools
import threading
from typing import Any

import numpy as np
from numba import types
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import overload

from fastbn_kernels.build import cache, interrupts
from fastbn_kernels.build.addresses import address_of, array, call_int, words
from fastbn_kernels.build.decorators import scalar
from fastbn_kernels.cpu.columns import all_params
from fastbn_kernels.cpu.large_calls import backward_by, forward_by
from fastbn_kernels.cpu.params import as_pair
from fastbn_kernels.cpu.simd.tails import GELU, RELU, RELU6, SIGMOID, SILU, TANH, Activation, named
from fastbn_kernels.cpu.small_calls import REFUSED, begin_saved
from fastbn_kernels.saved import INVSTD, MEAN, MEAN_LO, ROWS

# The words: a kernel's address, those of data, and numbers. OUT is y or dx; FIRST and SECOND are the running mean and
# variance or, backward, dweight and dbias; FLAG is training or, backward, whether the statistics were frozen.
KERNEL, X, DY, OUT, SAVED, WEIGHT, BIAS, FIRST, SECOND, N, C, S, FLAG, PAST_CACHE, GROUPS = range(15)
RESIDUAL, DRESIDUAL = range(15, 17)
# And the words that are float64.
EPS, MOMENTUM, CORRECTION = range(17, 20)
WORDS = 20

CHANNELS_LAST, CHANNELS_FIRST = (0, 0), (0, 0, 0)  # values of shapes

# What may be done after the normalization, by its number; a leaky ReLU gets one when it is first asked for.
ACTIVATIONS: list[Activation | None] = [None, RELU, RELU6, SILU, TANH, SIGMOID, GELU]
MOST_ACTIVATIONS = 1 << 15

_numbering = threading.Lock()

# A value of what kernels see of a dtype; 16-bit floats are their bits, told apart by the sign, and so is float32 that
# is to be computed in float64 (`build/decorators.DTYPES`).
LIKE: dict[str, Any] = {
    "float32": np.float32(0),
    "float32_exact": np.intc(0),
    "float64": np.float64(0),
    "float16": np.int16(0),
    "bfloat16": np.uint16(0),
}


def number_of(name: str | None, slope: float | None = None) -> int | None:
    """Return the number of what `tails.named` returns, None if there are too many."""
    activation = named(name, slope)
    with _numbering:
        if activation not in ACTIVATIONS:
            if len(ACTIVATIONS) == MOST_ACTIVATIONS:
                return None
            ACTIVATIONS.append(activation)
        return ACTIVATIONS.index(activation)


def seen_as(dtype: str, precision: str) -> str:
    """Return the name in LIKE of data of a dtype, to be computed "fast" or "exact"."""
    return "float32_exact" if (dtype, precision) == ("float32", "exact") else dtype


def parameter_dtype(dtype: str) -> str:
    """Return the dtype of the parameters that kernels take with data of a dtype."""
    return "float64" if dtype == "float64" else "float32"


def shape_like(form: Any, row: Any) -> Any:
    """Return the shape of x as kernels take it: (N, C) or (N, C, S)."""


@overload(shape_like)  # type: ignore[untyped-decorator]
def _shape_like(form: Any, row: Any) -> Any:
    def channels_last(form: Any, row: Any) -> Any:
        return row[N], row[C]

    def channels_first(form: Any, row: Any) -> Any:
        return row[N], row[C], row[S]

    return channels_last if form.count == len(CHANNELS_LAST) else channels_first


def tail_like(activation: Any, residual: Any, row: Any, shape: Any, like: Any) -> Any:
    """Return the last argument of kernels; `residual` is None if there is none."""


@overload(tail_like)  # type: ignore[untyped-decorator]
def _tail_like(activation: Any, residual: Any, row: Any, shape: Any, like: Any) -> Any:
    def with_residual(activation: Any, residual: Any, row: Any, shape: Any, like: Any) -> Any:
        return activation, array(row[RESIDUAL], shape, like)

    def without(activation: Any, residual: Any, row: Any, shape: Any, like: Any) -> Any:
        return activation

    return without if residual in (types.none, None) else with_residual


def backward_tail_like(activation: Any, residual: Any, row: Any, shape: Any, like: Any) -> Any:
    """Return the last argument of kernels of a backward pass."""


@overload(backward_tail_like)  # type: ignore[untyped-decorator]
def _backward_tail_like(activation: Any, residual: Any, row: Any, shape: Any, like: Any) -> Any:
    def with_residual(activation: Any, residual: Any, row: Any, shape: Any, like: Any) -> Any:
        return activation, array(row[RESIDUAL], shape, like), array(row[DRESIDUAL], shape, like)

    def without(activation: Any, residual: Any, row: Any, shape: Any, like: Any) -> Any:
        return activation

    return without if residual in (types.none, None) else with_residual


@scalar
def parameter(row: Any, at: int, own: Any) -> Any:
    """Return the values of a parameter, none of an absent one."""
    return array(row[at], (row[C] if row[at] != 0 else 0,), own)


@scalar
def opened(pointer: int, like: Any, own: Any, form: Any) -> Any:
    """Return the row as words and as float64, the shape of x, x, what is written, saved, and FIRST and SECOND."""
    row = words(pointer, WORDS)
    shape = shape_like(form, row)
    x, out = array(row[X], shape, like), array(row[OUT], shape, like)
    saved = array(row[SAVED], (ROWS, row[C]), np.float64(0))
    return row, row.view(np.float64), shape, x, out, saved, parameter(row, FIRST, own), parameter(row, SECOND, own)


def _steps(like: Any, own: Any, form: Any, activation: Any, residual: Any) -> dict[str, Any]:
    """Return the steps for data and parameters like these, and a tail; `form` is a value of the shape of x."""

    def whole_forward(pointer: int) -> Any:
        """Go forward by a kernel that does everything."""
        row, numbers, shape, x, y, saved, mean, var = opened(pointer, like, own, form)
        weight, bias = parameter(row, WEIGHT, own), parameter(row, BIAS, own)
        options = numbers[MOMENTUM], numbers[CORRECTION], numbers[EPS], row[FLAG] != 0
        tail = tail_like(activation, residual, row, shape, like)
        return call_int(row[KERNEL], (x, weight, bias, mean, var) + options + (y, saved, tail)) == REFUSED  # noqa: RUF005

    def forward(pointer: int) -> Any:
        """Normalise by a kernel, with the batch's own statistics or running ones."""
        row, numbers, shape, x, y, saved, mean, var = opened(pointer, like, own, form)
        weight, bias = parameter(row, WEIGHT, own), parameter(row, BIAS, own)
        by = row[KERNEL], row[PAST_CACHE] != 0, row[GROUPS]
        options = numbers[MOMENTUM], numbers[CORRECTION], numbers[EPS], row[FLAG] != 0
        tail = tail_like(activation, residual, row, shape, like)
        return forward_by(*by, row[N] * row[S], x, weight, bias, mean, var, *options, y, saved, tail) == REFUSED

    def whole_backward(pointer: int) -> Any:
        """Go back by a kernel that does everything."""
        row, _, shape, x, dx, saved, dweight, dbias = opened(pointer, like, own, form)
        dy, tail = array(row[DY], shape, like), backward_tail_like(activation, residual, row, shape, like)
        return call_int(row[KERNEL], (dy, x, saved, row[FLAG] != 0, dx, dweight, dbias, tail)) == REFUSED

    def backward(pointer: int) -> Any:
        """Sum and write dx by a kernel."""
        row, _, shape, x, dx, saved, dweight, dbias = opened(pointer, like, own, form)
        dy, tail = array(row[DY], shape, like), backward_tail_like(activation, residual, row, shape, like)
        by = row[KERNEL], row[PAST_CACHE] != 0, row[GROUPS]
        return backward_by(*by, dy, x, saved, row[FLAG] != 0, dx, dweight, dbias, tail) == REFUSED

    def restore(pointer: int) -> Any:
        """Fill `saved` for a backward pass: with running statistics if frozen, else from float64 means and invstds."""
        row, numbers, _, x, _, saved, mean, var = opened(pointer, like, own, form)
        weight, bias = parameter(row, WEIGHT, own), parameter(row, BIAS, own)
        frozen = row[FLAG] != 0
        begin_saved(x, weight, bias, mean, var, not frozen, saved)
        if frozen:
            all_params(x, saved, numbers[EPS])
        else:
            means, invstds = parameter(row, FIRST, np.float64(0)), parameter(row, SECOND, np.float64(0))
            for c in range(means.size):
                saved[MEAN, c], saved[MEAN_LO, c] = as_pair(x, means[c], 0.0)
                saved[INVSTD, c] = invstds[c]
        return False

    return {step.__name__: scalar(step) for step in (whole_forward, forward, whole_backward, backward, restore)}


@functools.cache
def step(name: str, dtype: str, channels_last: bool, tail: Any = None) -> int:
    """Return the address of a step, by its name in `_steps`; `tail` is the key of the kernel's (`Kernel.get`).

    It is compiled once a machine, then loaded.
    """
    form = CHANNELS_LAST if channels_last else CHANNELS_FIRST
    activation, residual = (tail[0], True) if isinstance(tail, tuple) else (tail, None)
    found = _steps(LIKE[dtype], LIKE[parameter_dtype(dtype)], form, activation, residual)[name]
    _kept.append(found)
    cache.enable(found)
    with global_compiler_lock, interrupts.held_back():
        found.compile(types.intp(types.int64))
    return address_of(found)


_kept: list[Any] = []  # the machine code of what callers have the addresses of
