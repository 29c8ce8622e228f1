"""Ghost batches in one launch, where they lie in memory one after the other; what does not, `fastbn.ghosts` takes."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fastbn import arithmetic, ghosts, layout
from fastbn.backends.cpu import launch, plan
from fastbn.call import BackwardCall, ForwardCall
from fastbn.checks.beyond import batch_axis
from fastbn.context import GhostContext
from fastbn_kernels.build import spread, threads
from fastbn_kernels.build.addresses import callable_at
from fastbn_kernels.build.decorators import tail_key
from fastbn_kernels.cpu import kernel
from fastbn_kernels.saved import ROWS

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

KERNELS = tuple(f"ghosts_{way}_channels_{order}" for way in ("forward", "backward") for order in ("first", "last"))


class Parts(NamedTuple):
    """How x (N, C, S) or (R, C) is cut, and where the kernels of a part and of the last one are."""

    step: int
    small: bool
    at: Any
    past_cache: bool
    groups: int
    last_at: Any
    last_past_cache: bool
    last_groups: int


def _step(x: Array, axis: int, size: int, own: layout.Layout) -> int | None:
    """Return how many rows of the kernels' N a part has, or None if parts do not lie one after the other."""
    at = batch_axis(axis)
    first = next((i for i in own.order if x.shape[i] > 1), at)
    if not own.contiguous or first != at or x.size == 0:
        return None
    rows, more = divmod(own.shape[0], x.shape[at])  # of one channel all samples are one row
    return None if more else size * rows


def _launch(data: Array, step: int, operation: str, key: Any) -> tuple[Any, bool, Parts]:
    """Return the kernel that takes all parts of data as kernels take it, whether threads are woken, and the parts."""
    count = threads.count() if data.size >= plan.PARALLEL_FROM else 1
    return _found(data.shape, data.dtype.char, step, operation, key, count)


def _part(rows: int, shape: tuple[int, ...], char: str, count: int) -> plan.Plan:
    """Return the plan of so many rows of a tensor, past the cache if all of it is.

    Once all parts are written, the first is not in the cache any more: 256 x 64 x 28 x 28 forward in parts of 32, each
    of which would fit it, takes 1.25 times what it takes in one part through it, 0.94 past it.
    """
    C, S = shape[1], shape[2] if len(shape) == 3 else 1
    own, whole = plan.make(rows, C, S, char, count), plan.make(shape[0], C, S, char, count)
    return plan.of_family(own.family, own.call_forward is not None, own.parallel, whole.past_cache, own.groups)


@functools.lru_cache(maxsize=4096)
def _found(
    shape: tuple[int, ...], char: str, step: int, operation: str, key: Any, count: int
) -> tuple[Any, bool, Parts]:
    """Find them, which takes 30 us; 256 x 128 in parts of 32 takes 60 in all."""
    N = shape[0]
    own, last = (_part(n, shape, char, count) for n in (step, N % step or step))
    dtype, back = np.dtype(char), operation == "backward"
    if own.call_forward is not None:
        at = callable_at(kernel(getattr(own, f"call_{operation}")).get(dtype, False, key))
        parts, parallel = Parts(step, True, at, False, 0, at, False, 0), count > 1
    else:
        found: list[Any] = []
        for each in (own, last):
            at = callable_at(kernel(getattr(each, operation)).get(dtype, each.parallel, key))
            found += [at, each.past_cache[back], each.groups]
        parts, parallel = Parts(step, False, *found), own.parallel
    order = "last" if len(shape) == 2 else "first"
    return kernel(f"ghosts_{operation}_channels_{order}").get(dtype, parallel, key), parallel, parts


def _parameter_dtype(data: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype of the parameters that go with data."""
    return np.dtype(np.float64 if data == np.float64 else np.float32)


def forward(call: ForwardCall) -> tuple[Array, GhostContext] | None:
    """Return y and the context, or None with nothing written."""
    x, size = call.x, call.ghost_batch_size
    own = layout.of(x, call.axis)
    assert size is not None
    step = _step(x, call.axis, size, own)
    if step is None or call.mask is not None or call.renorm is not None:
        return None
    y = layout.empty(x) if call.out is None else call.out
    if not layout.of(y, call.axis).fits(own):
        return None
    residual = call.residual
    if residual is not None:
        residual = layout.conform(residual, call.axis, x, copy=True)
    dtype = _parameter_dtype(x.dtype)
    none = np.empty(0, dtype)
    parameters = []
    for given, written in ((call.weight, False), (call.bias, False), *((array, True) for array in call.running or ())):
        if given is not None and (given.dtype != dtype or not given.flags.c_contiguous) and (written and call.updates):
            return None
        parameters.append(none if given is None else np.ascontiguousarray(given, dtype))
    weight, bias = parameters[:2]
    running = parameters[2:] if call.updates else [none, none]

    def seen(array: Array) -> Array:
        return launch.as_bits(own.compact(arithmetic.seen(array, call.precision)))

    if residual is not None:
        residual = arithmetic.seen(residual, call.precision).reshape(own.compact_shape)
    tail = launch.tail(call.activation, residual)
    key, tail = tail_key(tail), launch.bits_of(tail)
    data = seen(x)
    function, parallel, parts = _launch(data, step, "forward", key)
    saved = np.empty((-(-data.shape[0] // step), ROWS, call.channels))
    options = call.momentum if call.updates else 0.0, call.correction, call.eps, True
    spread.launch(
        function, parallel, data, weight, bias, *running, none, *options, seen(y), saved.reshape(-1, call.channels),
        *parts, tail,
    )  # fmt: skip
    per_row = own.per_channel // own.shape[0]
    counts = [per_row * (min(data.shape[0], n + step) - n) for n in range(0, data.shape[0], step)]
    return y, ghosts.context(call, y, saved, tuple(counts))


def backward(call: BackwardCall) -> tuple[Array, Array | None, tuple[Array, Array]] | None:
    """Return dx, dresidual and the sums of every part, (G, C) of dy and of dy * xhat, or None with nothing written."""
    ctx = call.ctx
    assert isinstance(ctx, GhostContext)
    assert ctx.beyond is not None
    assert ctx.beyond.ghost_batch_size is not None
    x, dy = call.x, call.dy
    own = layout.of(x, ctx.axis)
    step = _step(x, ctx.axis, ctx.beyond.ghost_batch_size, own)
    dx = layout.empty(x) if call.out is None else call.out
    stored_alike = all(layout.of(array, ctx.axis).fits(own) for array in (dy, dx))
    if step is None or not stored_alike or ctx.x is None or ctx.mask is not None or ctx.renormalized:
        return None

    def seen(array: Array) -> Array:
        return own.compact(arithmetic.seen(array, call.precision))

    dresidual = None
    residual, through = call.residual, None
    if ctx.beyond.residual is not None:
        if call.activation is None:
            dresidual = dy.copy(order="K") if call.out is not None else dy
        else:
            if residual is None or not layout.of(residual, ctx.axis).fits(own):
                return None
            dresidual = layout.empty(x)
            residual, through = seen(residual), seen(dresidual)
    tail = launch.tail_back(call.activation, residual, through)
    key, tail = tail_key(tail), launch.bits_of(tail)
    data = launch.as_bits(seen(x))
    function, parallel, parts = _launch(data, step, "backward", key)
    G, C = ctx.saved.shape[0], ctx.channels
    sums, by = np.empty((2 * G, C)), np.empty((2, G * C), _parameter_dtype(x.dtype))
    saved = np.require(ctx.saved, requirements=["C", "W"]).reshape(-1, C)
    gradient, target = launch.as_bits(seen(dy)), launch.as_bits(seen(dx))
    spread.launch(function, parallel, gradient, data, saved, False, target, *by, sums, *parts, tail)
    return dx, dresidual, (sums[::2], sums[1::2])
