"""Launches on the processor.

Every array of data comes as (N, C, S), contiguous, and as `arithmetic.seen` made it: float32 that is to be computed in
float64 as its bits, an int32. `saved` holds the rows that `fastbn_kernels.saved` defines. The plan of a tensor names
the kernel of every operation, and all kernels of an operation take the same arguments.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from fastbn.activations import Activation
from fastbn.backends.cpu import plan
from fastbn.moments import held_mean
from fastbn_kernels.build import spread, threads
from fastbn_kernels.build.addresses import callable_at
from fastbn_kernels.build.decorators import tail_key
from fastbn_kernels.cpu import kernel
from fastbn_kernels.cpu.params import renormalize as renormalize
from fastbn_kernels.cpu.simd import tails
from fastbn_kernels.cpu.simd.tails import WithResidual
from fastbn_kernels.cpu.small_calls import REFUSED
from fastbn_kernels.saved import MEAN, MEAN_LO

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def _read_pool() -> None:
    """Do what `FASTBN_POOL` says, once in a process; empty or "auto" says nothing."""
    value = os.environ.get("FASTBN_POOL", "")
    if value not in ("", "auto", "numba"):
        raise ValueError(f"FASTBN_POOL: expected 'numba' or 'auto' in the environment, got {value!r}")
    if value == "numba":
        spread.keep_to_numba()


_read_pool()


def plan_of(x: Array) -> plan.Plan:
    """Return the plan of x, (N, C, S) or (N, C), for the threads that there are now."""
    shape = x.shape
    count = threads.count() if x.size >= plan.PARALLEL_FROM else 1
    return plan.make(shape[0], shape[1], shape[2] if len(shape) == 3 else 1, as_bits(x).dtype.char, count)


def as_bits(array: Array) -> Array:
    """Return the bits of 16-bit floats as integers, whose sign tells float16 and bfloat16 apart."""
    if array.itemsize == 2:
        return array.view(np.int16 if array.dtype == np.float16 else np.uint16)
    return array


def data_of(array: Array, own: plan.Plan) -> Array:
    """Return (N, C, S) as the kernels of a plan take it: (N, C) if channels come last, the bits of 16-bit floats."""
    array = as_bits(array)
    return array[:, :, 0] if own.in_rows else array


def tail(activation: Activation | None, residual: Array | None) -> Any:
    """Return what is done after the normalization, as launches take it; a residual is (N, C, S), as y."""
    named = None if activation is None else tails.named(activation.name, activation.slope)
    return named if residual is None else (named, residual)


def tail_back(
    activation: Activation | None, residual: Array | None, dresidual: Array | None = None, inverse: bool = False,
    whole: bool = True,
) -> Any:  # fmt: skip
    """Return likewise what to go back through.

    `dresidual` is where the gradient of a residual goes, while the `whole` backward pass is done or else its second
    half; with `inverse` y is given in the place of x.
    """
    if activation is None:
        return None
    named = tails.named(activation.name, activation.slope)
    if inverse:
        assert isinstance(named, tails.LeakyReLU)
        return tails.inverse(named)
    if residual is None:
        return named
    if dresidual is None:
        return named, residual
    return (named, residual, dresidual) if whole else (named, residual, dresidual, tails.WRITE)


def tail_of(tail: Any, own: plan.Plan) -> Any:
    """Return what is done after the normalization as the kernels of a plan take it: its arrays as they take y."""
    return with_arrays(tail, lambda array: data_of(array, own))


def with_arrays(tail: Any, data: Callable[[Array], Array]) -> Any:
    """Return a tail with its arrays as kernels take them."""
    if not isinstance(tail, tuple):
        return tail
    return WithResidual(data(part) if isinstance(part, np.ndarray) else part for part in tail)


def bits_of(tail: Any) -> Any:
    """Return a tail of arrays in the axes that kernels take with 16-bit floats as their bits."""
    return with_arrays(tail, as_bits)


def moments(x: Array, saved: Array) -> None:
    """Fill MEAN, MEAN_LO and M2."""
    own = plan_of(x)
    data = data_of(x, own)
    kernel(own.moments).launch(data.dtype, own.parallel, data, saved)


def forward(x: Array, saved: Array, eps: float, y: Array, tail: Any = None) -> None:
    """Normalise with the batch's own statistics; WEIGHT and BIAS are given, all other rows are filled.

    `tail` is None, an activation, or (activation or None, residual): an array like y, which may be it, added before.
    """
    own = plan_of(x)
    data = data_of(x, own)
    options = eps, own.past_cache[0], own.groups
    kernel(own.forward).launch(data.dtype, own.parallel, data, saved, *options, data_of(y, own), tail_of(tail, own))


def normalize(x: Array, saved: Array, eps: float, y: Array, tail: Any = None) -> None:
    """Normalise with MEAN, MEAN_LO and VAR; fill INVSTD. For 16-bit x, fill MEAN_LO with what MEAN is rounded by."""
    if x.itemsize == 2:
        saved[MEAN], saved[MEAN_LO] = held_mean(saved[MEAN])
    own = plan_of(x)
    data = data_of(x, own)
    options = eps, own.past_cache[0], own.groups
    kernel(own.normalize).launch(data.dtype, own.parallel, data, saved, *options, data_of(y, own), tail_of(tail, own))


def sums(dy: Array, x: Array, saved: Array, tail: Any = None) -> Array:
    """Return the sums of dy and of dy * xhat of every channel, (2, C)."""
    own = plan_of(x)
    found = np.empty((2, saved.shape[1]))
    data = data_of(x, own)
    kernel(own.sums).launch(data.dtype, own.parallel, data_of(dy, own), data, saved, found, tail_of(tail, own))
    return found


def gradient(
    dy: Array, x: Array, saved: Array, sums: Array, count: int, frozen: bool, dx: Array, tail: Any = None
) -> None:
    """Write dx from given sums, (2, C), over `count` values a channel."""
    own = plan_of(x)
    data = data_of(x, own)
    options = float(count), frozen, own.past_cache[1], own.groups
    kernel(own.gradient).launch(
        data.dtype, own.parallel, data_of(dy, own), data, saved, sums, *options, data_of(dx, own), tail_of(tail, own)
    )


def backward(dy: Array, x: Array, saved: Array, frozen: bool, dx: Array, tail: Any = None) -> Array:
    """Write dx; return the sums of dy and of dy * xhat of every channel, (2, C)."""
    own = plan_of(x)
    found = np.empty((2, saved.shape[1]))
    data = data_of(x, own)
    options = frozen, own.past_cache[1], own.groups
    kernel(own.backward).launch(
        data.dtype, own.parallel, data_of(dy, own), data, saved, *options, data_of(dx, own), found, tail_of(tail, own)
    )
    return found


# The compiled kernels that do a whole call, by operation, axes and dtype, as plans named them: all small (N, C), and
# all small (N, C, S), have the same ones. To make a plan and find its kernel anew costs 0.4 of 6 us (32 x 64).
_small: dict[tuple[str, int, str, Any], Any] = {}


def small_call(operation: str, data: Array, key: Any) -> Any:
    """Return the compiled kernel that does a whole call on bits of a small x; `key` is that of its tail."""
    kept = operation, data.ndim, data.dtype.char, key
    found = _small.get(kept)
    if found is None:
        found = _small[kept] = kernel(getattr(plan_of(data), operation)).get(data.dtype, False, key)
    return found


@functools.lru_cache(maxsize=4096)
def large_call(
    operation: str, shape: tuple[int, ...], dtype: str, count: int, key: Any
) -> tuple[Any, bool, Any, bool, int]:
    """Return what does a whole call on bits of a large x by the kernel of an operation, and how that is launched.

    That is (function, parallel, at, past_cache, groups), the last three being its last arguments. To find this takes
    0.16 us, to find a plan alone 0.9.
    """
    bits = np.dtype(dtype)
    own = plan.make(shape[0], shape[1], shape[2] if len(shape) == 3 else 1, dtype, count)
    back = operation == "backward"
    order = "channels_last" if own.in_rows else "channels_first"
    function = kernel(f"large_{'backward' if back else 'forward'}_{order}").get(bits, False, key)
    at = callable_at(kernel(getattr(own, operation)).get(bits, own.parallel, key))
    return function, own.parallel, at, own.past_cache[back], own.groups


def call_forward(
    x: Array, weight: Array, bias: Array, running_mean: Array, running_var: Array, momentum: float, correction: float,
    eps: float, training: bool, y: Array, saved: Array, tail: Any = None,
) -> int:  # fmt: skip
    """Check and do a forward pass of x, (N, C) or (N, C, S) with S > 1, and fill `saved`.

    An empty parameter stands for none, and a residual is as x. Answer as `small_calls` of the kernels.
    """
    key = None
    if tail is not None:
        key, tail = tail_key(tail), bits_of(tail)
    data, target = (x, y) if x.itemsize > 2 else (as_bits(x), as_bits(y))
    parameters = weight, bias, running_mean, running_var
    answer: int
    try:
        if data.size < plan.PARALLEL_FROM:
            whole = small_call("call_forward", data, key)
            answer = whole(data, *parameters, momentum, correction, eps, training, target, saved, tail)
        else:
            operation = "forward" if training else "normalize"
            function, parallel, *own = large_call(operation, data.shape, data.dtype.char, threads.count(), key)
            given = data, *parameters, momentum, correction, eps, training, target, saved
            answer = spread.launch(function, parallel, *given, *own, tail)
    except TypeError:  # Numba's dispatcher: an array of another dtype, memory order or writability
        return REFUSED
    return answer


def call_backward(
    dy: Array, x: Array, saved: Array, frozen: bool, dx: Array, dweight: Array, dbias: Array, tail: Any = None
) -> int:
    """Check and do a backward pass; answer as `small_calls` of the kernels."""
    key = None
    if tail is not None:
        key, tail = tail_key(tail), bits_of(tail)
    arrays = (dy, x, dx) if x.itemsize > 2 else (as_bits(dy), as_bits(x), as_bits(dx))
    data = arrays[1]
    answer: int
    try:
        if data.size < plan.PARALLEL_FROM:
            whole = small_call("call_backward", data, key)
            answer = whole(arrays[0], data, saved, frozen, arrays[2], dweight, dbias, tail)
        else:
            function, parallel, *own = large_call("backward", data.shape, data.dtype.char, threads.count(), key)
            given = arrays[0], data, saved, frozen, arrays[2], dweight, dbias
            answer = spread.launch(function, parallel, *given, *own, tail)
    except TypeError:
        return REFUSED
    return answer
