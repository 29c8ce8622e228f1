"""The processor as a backend: what `protocol.Backend` asks for, from the files beside this one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from fastbn import arithmetic, layout
from fastbn.arithmetic import EXACT
from fastbn.backends.cpu import backward as backward_pass
from fastbn.backends.cpu import forward as forward_pass
from fastbn.backends.cpu import launches, small_calls
from fastbn.backends.cpu.backward import writable
from fastbn.backends.protocol import Support
from fastbn.call import DoubleBackwardCall, JvpCall, MomentsCall, as_it_is
from fastbn.moments import Moments
from fastbn_kernels.saved import M2, MEAN, MEAN_LO, ROWS

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

name = "cpu"
look = as_it_is
quick_forward = small_calls.forward
quick_backward = small_calls.backward
forward = forward_pass.forward
sums = backward_pass.sums
backward = backward_pass.backward


def supports(operation: str) -> Support:
    """Return that everything can be done here."""
    return Support(True)


def moments(call: MomentsCall) -> Moments:
    """Return the statistics of every channel, of float32 in float64 always: who asks for them wants digits."""
    x = arithmetic.seen(call.x, EXACT)
    channels = x.shape[call.axis]
    if x.size == 0 or call.count == 0:
        return Moments(call.count, np.zeros(channels), np.zeros(channels))
    if not layout.of(x, call.axis).contiguous:
        x = np.array(x, order="K")
    saved = np.empty((ROWS, channels))
    own = layout.of(x, call.axis)
    if call.mask is None:
        launches.launch().moments(own.view(x), saved)
    else:
        launches.masked().moments(own.view(x), own.positions(call.mask), saved)
    return Moments(call.count, saved[MEAN] + saved[MEAN_LO], saved[M2].copy())


def double_backward(call: DoubleBackwardCall) -> tuple[Array, Array, Array | None]:
    """Return ddy, dx and dweight, of float32 computed in float64 always."""
    ctx = call.ctx
    x, v, g = _stored_alike(call.x, ctx.axis, call.ddx, call.dy)
    ddy, dx = layout.empty(x), layout.empty(x)
    dweight = np.zeros(ctx.channels)
    if x.size:
        view = _view(x, ctx.axis)
        dweight = launches.derivatives().double_backward(
            view(v),
            call.ddweight,
            call.ddbias,
            view(g),
            view(x),
            writable(ctx),
            ctx.frozen,
            view(ddy),
            view(dx),
        )
    return ddy, dx, small_calls.cast(dweight, ctx.weight_dtype)


def jvp(call: JvpCall) -> Array:
    """Return the tangent of y, of float32 computed in float64 always."""
    ctx = call.ctx
    x, v = _stored_alike(call.x, ctx.axis, call.tx)
    ty = layout.empty(x)
    if x.size:
        view = _view(x, ctx.axis)
        launches.derivatives().jvp(view(v), call.tweight, call.tbias, view(x), writable(ctx), ctx.frozen, view(ty))
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
