"""NVIDIA GPUs as a backend: lay out, launch, copy nothing of the tensor's size.

Parameters and statistics of NumPy may come with data on the GPU: they are sent there, and what is written to them is
fetched, which waits for the GPU. With everything on the GPU nothing waits. NumPy data, with ``device="cuda"``, goes
through `transfer`.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from fastbn import in_place
from fastbn.arithmetic import EXACT, FLOAT32, seen
from fastbn.backends.cuda import availability, beyond, launch, launch_cache, transfer
from fastbn.backends.cuda.arrays import library
from fastbn.backends.cuda.context import DeviceContext, DeviceGhostContext, SentContext
from fastbn.backends.cuda.device_call import DeviceCall
from fastbn.call import BackwardCall, DoubleBackwardCall, ForwardCall, JvpCall, MomentsCall
from fastbn.checks.place import on_gpu
from fastbn.context import Context, Gradients
from fastbn.layout import Layout
from fastbn.moments import BackwardSums, Moments, held_mean
from fastbn_kernels.saved import M2, MEAN, MEAN_LO, ROWS, VAR

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

name = "cuda"
quick_forward = launch_cache.forward
quick_backward = launch_cache.backward

supports = availability.supports


def look(name: str, value: Any) -> Any:
    """Return the shadow of an array on a GPU, anything else as it is; a mask is fetched, since it is counted."""
    if name == "mask" and on_gpu(value):
        return library(value).fetch(value)
    return library(value).shadow(name, value) if on_gpu(value) else value


def _common_dtype(x: Array, *params: Array | None) -> np.dtype[Any]:
    """Return the one dtype that the params of a launch come in: theirs, or float64 if they differ."""
    given = {p.dtype for p in params if p is not None}
    if len(given) == 1:
        return given.pop()
    return np.dtype(np.float64) if given or x.dtype == np.float64 else np.dtype(np.float32)


def _on_host(parameter: Any) -> bool:
    return parameter is not None and not on_gpu(parameter)


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
    if call.training and call.moments is None:
        options = call.momentum, call.correction, call.eps
        launched = launch.forward(read, *params, *statistics, *options, write, saved, there.stream, tail)
    else:
        if call.moments is not None:
            launch.copy(there.sent(_given_rows(call.moments, x, call.precision)), saved, there.stream)
        launched = launch.normalize(read, *params, *statistics, call.eps, write, saved, there.stream, tail)
    there.done()
    if call.moments is None and call.beyond is None and call.update_stats:
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


def moments(call: MomentsCall) -> Moments:
    """Return the statistics of every channel, of float32 in float64 always; wait for the result."""
    if not on_gpu(call.given):
        return transfer.moments(call, moments)
    x = call.x
    channels = x.shape[call.axis]
    if x.size == 0:
        return Moments(call.count, np.zeros(channels), np.zeros(channels))
    there = DeviceCall(call.given)
    saved_there, saved = there.new((ROWS, channels), np.float64)
    own = there.common_layout(call.axis, x)
    launch.moments(seen(there.read(x, own), EXACT), saved, there.stream)
    rows = there.library.fetch(saved_there)
    return Moments(call.count, rows[MEAN] + rows[MEAN_LO], rows[M2].copy())


def sums(call: BackwardCall) -> BackwardSums:
    """Return the sums of the backward pass over this x; wait for the result."""
    ctx = call.ctx
    assert isinstance(ctx, DeviceContext)
    if call.x.size == 0:
        return BackwardSums(ctx.count, *np.zeros((2, ctx.channels)))
    if isinstance(ctx, SentContext) and not on_gpu(call.given_dy):
        return transfer.sums(call, sums)
    there = DeviceCall(ctx.data)
    own = there.common_layout(ctx.axis, call.x, call.dy)
    result_there, result = there.new((2, ctx.channels), np.float64)
    saved, sign = _saved(there, ctx)
    launch.sums(*_read(there, call, own), saved, result, there.stream, _tail_back(there, call, own)[0])
    sum_dy, sum_dy_xhat = there.library.fetch(result_there)
    return BackwardSums(ctx.count, sum_dy, sum_dy_xhat if sign is None else sum_dy_xhat * sign)


def _saved(there: DeviceCall, ctx: DeviceContext) -> tuple[Array, Array | None]:
    """Return what was saved and, if x was overwritten with y, the signs of the weights; see `in_place`."""
    if ctx.x is not None:
        return look("saved", ctx.saved_there), None
    rows, sign = in_place.rows(ctx)
    return there.sent(rows), sign


def _read(there: DeviceCall, call: BackwardCall, own: Layout) -> tuple[Array, Array]:
    """Return dy and x as a launch takes them."""
    return seen(there.read(call.dy, own), call.precision), seen(there.read(call.x, own), call.precision)


def backward(call: BackwardCall) -> Gradients:
    """Return the gradients; from given sums if the call has some."""
    ctx = call.ctx
    if isinstance(ctx, DeviceGhostContext):
        return beyond.ghosts_backward(call, backward)
    assert isinstance(ctx, DeviceContext)
    if isinstance(ctx, SentContext) and not on_gpu(call.given_dy):
        return transfer.backward(call, backward)
    there = DeviceCall(ctx.data)
    dx, target = there.like(ctx.data, call.x) if call.out is None else (call.given_out, call.out)
    wanted = ctx.weight_dtype, ctx.bias_dtype
    own = there.common_layout(ctx.axis, call.x, call.dy)
    given = call.sums
    if given is None and call.x.size == 0:
        given = BackwardSums(ctx.count, *np.zeros((2, ctx.channels)))
    elif given is None and (ctx.x is None or ctx.renormalized):
        given = sums(call)  # what comes of them is computed on the host
    read, write = _read(there, call, own), seen(there.write(target, own), call.precision)
    if given is not None:
        tail, dresidual = _tail_back(there, call, own, whole=False)
        if call.x.size:
            saved, sign = _saved(there, ctx)
            rows = there.sent(np.stack([given.sum_dy, given.sum_dy_xhat if sign is None else given.sum_dy_xhat * sign]))
            launch.gradient(*read, saved, rows, given.count, ctx.frozen, write, there.stream, tail)
        by_weight = given.sum_dy_xhat
        if ctx.corrections is not None:
            by_weight = ctx.corrections[0] * by_weight + ctx.corrections[1] * given.sum_dy
        grads = [
            None if dtype is None else there.result(values.astype(dtype), on_host)
            for values, dtype, on_host in zip((by_weight, given.sum_dy), wanted, ctx.on_host, strict=True)
        ]
    else:
        common = {dtype for dtype in wanted if dtype is not None}
        dtype = common.pop() if len(common) == 1 else np.dtype(np.float64)
        made = [None if own_dtype is None else there.new((ctx.channels,), dtype) for own_dtype in wanted]
        dweight, dbias = (None if pair is None else pair[1] for pair in made)
        tail, dresidual = _tail_back(there, call, own, whole=True)
        saved = look("saved", ctx.saved_there)
        launched = launch.backward(*read, saved, ctx.frozen, write, dweight, dbias, there.stream, tail)
        if ctx.beyond is None:
            launch_cache.keep_backward(there, ctx, launched, call)
        grads = [
            None if pair is None or own_dtype is None else there.delivered(*pair, own_dtype, on_host)
            for pair, own_dtype, on_host in zip(made, wanted, ctx.on_host, strict=True)
        ]
    there.done()
    if call.over_x:
        ctx.forget_x()
    sum_pair = None if given is None else (given.sum_dy, given.sum_dy_xhat)
    return Gradients(dx, *grads, dresidual, sum_pair, ctx)


def _tail(there: DeviceCall, call: ForwardCall, own: Layout) -> Any:
    """Return what is done after the normalization, as launches take it."""
    if call.residual is None:
        return launch.tail(call.activation, None)
    return launch.tail(call.activation, seen(there.read(call.residual, own), call.precision))


def _tail_back(there: DeviceCall, call: BackwardCall, own: Layout, whole: bool | None = None) -> tuple[Any, Any]:
    """Return what to go back through, and where the gradient of a residual goes; with `whole` None only sums are taken."""
    ctx = call.ctx
    if call.residual is None:
        dresidual = None
        if ctx.beyond is not None and ctx.beyond.residual is not None and whole is not None:
            dresidual = call.given_dy
            if call.out is not None:
                dresidual, target = there.like(call.given_dy, call.dy)
                launch.copy(call.dy, target, there.stream)
        return launch.tail_back(call.activation, None), dresidual
    residual = seen(there.read(call.residual, own), call.precision)
    if whole is None:
        return launch.tail_back(call.activation, residual), None
    dresidual, target = there.like(ctx.data, call.x)
    through = seen(there.write(target, own), call.precision)
    return launch.tail_back(call.activation, residual, through, whole), dresidual


def double_backward(call: DoubleBackwardCall) -> tuple[Any, Any, Any]:
    """Do what `supports` says is not done here."""
    raise NotImplementedError(availability.NO_DERIVATIVES)


def jvp(call: JvpCall) -> Any:
    """Do what `supports` says is not done here."""
    raise NotImplementedError(availability.NO_DERIVATIVES)
