"""The processor as a backend: arrays into the kernels' (N, C, S), statistics in and out of what is saved.

Kernels come with the first call, through `launch`, which imports Numba; `import fastbn` must not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from fastbn import arithmetic, layout
from fastbn.arithmetic import EXACT
from fastbn.backends.cpu import small_calls
from fastbn.backends.protocol import Support
from fastbn.call import BackwardCall, DoubleBackwardCall, ForwardCall, JvpCall, MomentsCall, as_it_is
from fastbn.context import Context, Gradients
from fastbn.moments import BackwardSums, Moments
from fastbn_kernels.saved import BIAS, INVSTD, M2, MEAN, MEAN_LO, ROWS, VAR, WEIGHT

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

name = "cpu"
look = as_it_is
quick_forward = small_calls.forward
quick_backward = small_calls.backward


@functools.cache
def launch() -> Any:
    """Return the launches; the import of Numba is what this is not done earlier for."""
    from fastbn.backends.cpu import launch

    return launch


@functools.cache
def derivatives() -> Any:
    """Return the launches of higher derivatives."""
    from fastbn.backends.cpu import derivatives

    return derivatives


def supports(operation: str) -> Support:
    """Return that everything can be done here."""
    return Support(True)


def forward(call: ForwardCall) -> tuple[Array, Context]:
    """Return y and the context; move the running statistics."""
    x = call.x
    y = layout.empty(x) if call.out is None else call.out
    saved = np.empty((ROWS, call.channels))
    with np.errstate(invalid="ignore"):  # a signalling NaN
        saved[WEIGHT] = 1.0 if call.weight is None else call.weight
        saved[BIAS] = 0.0 if call.bias is None else call.bias
    if call.training and call.moments is None and call.channels > 0:
        _normalize(call, y, launch().forward, saved)
    else:
        _take_statistics(call, saved)
        if x.size:
            _normalize(call, y, launch().normalize, saved)
    ctx = Context(x, call.axis, call.count, saved, *call.dtypes, call.frozen, call.moments, call.precision)
    if call.updates:
        _update_running(call, ctx)
    if call.over_x:
        ctx.forget_x()
    return y, ctx


def _take_statistics(call: ForwardCall, saved: Array) -> None:
    """Fill the rows of statistics that were given: moments, running ones, or those of an empty batch."""
    if call.moments is not None:
        mean, var = call.moments.mean, call.moments.var()
    elif call.running is not None:
        mean, var = call.running
    else:
        mean, var = np.empty(0), np.empty(0)
    with np.errstate(all="ignore"):  # of an empty batch nothing is computed but this
        saved[MEAN], saved[MEAN_LO], saved[VAR] = mean, 0.0, var
        if call.x.size == 0:
            saved[INVSTD] = 1 / np.sqrt(saved[VAR] + call.eps)


def _normalize(call: ForwardCall, y: Array, function: Callable[..., None], saved: Array) -> None:
    """Call a launch that reads x and writes y, as (N, C, S)."""
    x, y = arithmetic.seen(call.x, call.precision), arithmetic.seen(y, call.precision)
    source, target, buffer = layout.for_forward(x, y, call.axis)
    function(source, saved, call.eps, target)
    if buffer is not None:
        y[...] = buffer


def _update_running(call: ForwardCall, ctx: Context) -> None:
    """Move the running statistics towards the batch's; both are computed before either is written."""
    batch = ctx.moments
    assert batch is not None
    assert call.running is not None
    running_mean, running_var = call.running
    old, new = np.float64(1.0 - call.momentum), np.float64(call.momentum)
    with np.errstate(over="ignore", invalid="ignore"):  # an infinite batch gives infinite statistics, without a warning
        mean = running_mean * old + batch.mean * new
        var = running_var * old + batch.var(call.correction) * new
        running_mean[...] = mean
        running_var[...] = var


def moments(call: MomentsCall) -> Moments:
    """Return the statistics of every channel, of float32 in float64 always: who asks for them wants digits."""
    x = arithmetic.seen(call.x, EXACT)
    channels = x.shape[call.axis]
    if x.size == 0:
        return Moments(call.count, np.zeros(channels), np.zeros(channels))
    if not layout.of(x, call.axis).contiguous:
        x = np.array(x, order="K")
    saved = np.empty((ROWS, channels))
    launch().moments(layout.of(x, call.axis).view(x), saved)
    return Moments(call.count, saved[MEAN] + saved[MEAN_LO], saved[M2].copy())


def sums(call: BackwardCall) -> BackwardSums:
    """Return the sums of the backward pass over this x."""
    if call.x.size == 0:
        return _no_sums(call)
    dy, x, _ = layout.for_backward(*_seen(call), call.ctx.axis)
    return BackwardSums(call.ctx.count, *launch().sums(dy, x, _writable(call.ctx)))


def _seen(call: BackwardCall) -> tuple[Array, Array]:
    """Return dy and x as kernels take them."""
    return arithmetic.seen(call.dy, call.precision), arithmetic.seen(call.x, call.precision)


def _no_sums(call: BackwardCall) -> BackwardSums:
    return BackwardSums(call.ctx.count, *np.zeros((2, call.ctx.channels)))


def backward(call: BackwardCall) -> Gradients:
    """Return the gradients; from given sums if the call has some."""
    ctx, given = call.ctx, call.sums
    if call.x.size == 0:
        dx = layout.empty(call.x) if call.out is None else call.out
        given = given or _no_sums(call)
    else:
        dy, x, template = layout.for_backward(*_seen(call), ctx.axis)
        dx = layout.empty(template).view(call.x.dtype) if call.out is None else call.out
        written = arithmetic.seen(dx, call.precision)
        fits = layout.of(written, ctx.axis).fits(layout.of(template, ctx.axis))
        buffer = written if fits else layout.empty(template)
        target = layout.of(buffer, ctx.axis).view(buffer)
        if given is None:
            given = BackwardSums(ctx.count, *launch().backward(dy, x, _writable(ctx), ctx.frozen, target))
        else:
            rows = np.stack([given.sum_dy, given.sum_dy_xhat])
            launch().gradient(dy, x, _writable(ctx), rows, given.count, ctx.frozen, target)
        if not fits:
            written[...] = buffer
    if call.over_x:
        ctx.forget_x()
    return Gradients(
        dx, small_calls.cast(given.sum_dy_xhat, ctx.weight_dtype), small_calls.cast(given.sum_dy, ctx.bias_dtype)
    )


def double_backward(call: DoubleBackwardCall) -> tuple[Array, Array, Array | None]:
    """Return ddy, dx and dweight, of float32 computed in float64 always."""
    ctx = call.ctx
    x, v, g = _stored_alike(call.x, ctx.axis, call.ddx, call.dy)
    ddy, dx = layout.empty(x), layout.empty(x)
    dweight = np.zeros(ctx.channels)
    if x.size:
        view = _view(x, ctx.axis)
        dweight = derivatives().double_backward(
            view(v), call.ddweight, call.ddbias, view(g), view(x), _writable(ctx), ctx.frozen, view(ddy), view(dx)
        )
    return ddy, dx, small_calls.cast(dweight, ctx.weight_dtype)


def jvp(call: JvpCall) -> Array:
    """Return the tangent of y, of float32 computed in float64 always."""
    ctx = call.ctx
    x, v = _stored_alike(call.x, ctx.axis, call.tx)
    ty = layout.empty(x)
    if x.size:
        view = _view(x, ctx.axis)
        derivatives().jvp(view(v), call.tweight, call.tbias, view(x), _writable(ctx), ctx.frozen, view(ty))
    return ty


def _stored_alike(x: Array, axis: int, *others: Array | None) -> list[Array]:
    """Return x, contiguous in its order of memory, and the others in the same, copied where need be; None as zeros."""
    if not layout.of(x, axis).contiguous:
        x = np.array(x, order="K")
    own = layout.of(x, axis)
    alike = [x]
    for array in others:
        if array is None:
            array = np.zeros_like(x)
        elif not layout.of(array, axis).fits(own):
            copy = layout.empty(x)
            np.copyto(copy, array)
            array = copy
        alike.append(array)
    return alike


def _view(x: Array, axis: int) -> Callable[[Array], Array]:
    """Return what makes (N, C, S) of arrays stored as x is, to be computed exactly."""
    own = layout.of(x, axis)
    return lambda array: arithmetic.seen(own.view(array), EXACT)


def _writable(ctx: Context) -> Array:
    """Return what a context saved, writable as kernels want it; a host that kept it may have made it read-only."""
    return np.require(ctx.saved, requirements=["C", "W"])
