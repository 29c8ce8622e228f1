"""Forward passes on a GPU: lay out, launch, copy nothing of the tensor's size.

Parameters and statistics of NumPy may come with data on the GPU: they are sent there, and what is written to them is
fetched, which waits for the GPU. With everything on the GPU nothing waits. NumPy data, with ``device="cuda"``, goes
through `transfer`.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from fastbn.arithmetic import EXACT, FLOAT32, seen
from fastbn.backends.cuda import beyond, launch, launch_cache, masked, transfer
from fastbn.backends.cuda.context import DeviceContext
from fastbn.backends.cuda.device_call import DeviceCall
from fastbn.call import ForwardCall, MomentsCall
from fastbn.checks.place import on_gpu
from fastbn.context import Context
from fastbn.layout import Layout
from fastbn.moments import Moments, held_mean
from fastbn_kernels.saved import M2, MEAN, MEAN_LO, ROWS, VAR

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def forward(call: ForwardCall) -> tuple[Any, Context]:
    """Return y and the context; move the running statistics."""
    if call.ghost_batch_size is not None:
        return beyond.ghosts_forward(call, forward)
    if not on_gpu(call.given.x):
        return transfer.forward(call, forward)
    if call.renorm is not None:
        return beyond.renorm_forward(call, forward, moments)
    x, given = call.x, call.given
    there = DeviceCall(given.x)
    y, target = there.like(given.x, x) if call.out is None else (given.out, call.out)
    running = call.running or (None, None)
    dtype = _common_dtype(x, call.weight, call.bias, *running)
    saved_there, saved = there.new((ROWS, call.channels), np.float64)
    ctx = DeviceContext(
        given.x, call.axis, call.count, saved_there, *call.dtypes, call.frozen, call.moments, call.precision,
        call.beyond,
    )  # fmt: skip
    ctx.on_host = _on_host(given.weight), _on_host(given.bias)
    if x.size == 0:
        return y, ctx
    params = there.parameter(given.weight, call.weight, dtype), there.parameter(given.bias, call.bias, dtype)
    statistics: tuple[Array | None, Array | None] = (None, None)
    if call.moments is None and (call.updates or call.frozen):
        pairs = zip((given.running_mean, given.running_var), running, strict=True)
        mean, var = (there.parameter(theirs, seen, dtype, written=call.updates) for theirs, seen in pairs)
        statistics = mean, var
    own = there.common_layout(call.axis, target, x)
    read, write = seen(there.read(x, own), call.precision), seen(there.write(target, own), call.precision)
    tail = _tail(there, call, own)
    launched = None
    mask = None if call.mask is None else there.sent_mask(call.mask, own)
    if call.moments is not None:
        launch.copy(there.sent(_given_rows(call.moments, x, call.precision)), saved, there.stream)
    if call.training and call.moments is None:
        numbers = call.momentum, call.correction, call.eps
        if mask is None:
            launched = launch.forward(read, *params, *statistics, *numbers, write, saved, there.stream, tail)
        else:
            masked.forward(
                read, mask, ctx.count, *params, *statistics, *numbers, write, saved, there.stream, tail
            )  # fmt: skip
    elif mask is None:
        launched = launch.normalize(read, *params, *statistics, call.eps, write, saved, there.stream, tail)
    else:
        masked.normalize(read, mask, *params, *statistics, call.eps, write, saved, there.stream, tail)
    there.done()
    if launched is not None and call.moments is None and call.beyond is None and call.update_stats:
        launch_cache.keep_forward(there, ctx, launched, call)
    elif call.updates and call.moments is not None:
        there.update((given.running_mean, given.running_var), call.moments, call.momentum, call.correction)
    ctx.overwritten(y, call.over_x, call.over_residual)
    return y, ctx


def _given_rows(moments: Moments, x: Array, precision: str) -> Array:
    """Return what is saved of statistics that were given: the mean as the arithmetic holds it, what it lacks, var."""
    rows = np.zeros((ROWS, moments.mean.size))
    rows[MEAN], rows[VAR] = moments.mean, moments.var()
    if x.itemsize == 2 or (x.dtype == FLOAT32 and precision != EXACT):
        rows[MEAN], rows[MEAN_LO] = held_mean(moments.mean)
    return rows


def _tail(there: DeviceCall, call: ForwardCall, own: Layout) -> Any:
    """Return what is done after the normalization, as launches take it."""
    if call.residual is None:
        return beyond.tail(call.activation, None)
    return beyond.tail(call.activation, seen(there.read(call.residual, own), call.precision))


def _common_dtype(x: Array, *params: Array | None) -> np.dtype[Any]:
    """Return the one dtype that the params of a launch come in: theirs, or float64 if they differ."""
    given = {p.dtype for p in params if p is not None}
    if len(given) == 1:
        return given.pop()
    return np.dtype(np.float64) if given or x.dtype == np.float64 else np.dtype(np.float32)


def _on_host(parameter: Any) -> bool:
    return parameter is not None and not on_gpu(parameter)


def moments(call: MomentsCall) -> Moments:
    """Return the statistics of every channel, of float32 in float64 always; wait for the result."""
    if not on_gpu(call.given):
        return transfer.moments(call, moments)
    x = call.x
    channels = x.shape[call.axis]
    if call.count == 0 or x.size == 0:
        return Moments(call.count, np.zeros(channels), np.zeros(channels))
    there = DeviceCall(call.given)
    saved_there, saved = there.new((ROWS, channels), np.float64)
    own = there.common_layout(call.axis, x)
    read = seen(there.read(x, own), EXACT)
    if call.mask is None:
        launch.moments(read, saved, there.stream)
    else:
        masked.moments(read, there.sent_mask(call.mask, own), call.count, saved, there.stream)
    rows = there.library.fetch(saved_there)
    return Moments(call.count, rows[MEAN] + rows[MEAN_LO], rows[M2].copy())
