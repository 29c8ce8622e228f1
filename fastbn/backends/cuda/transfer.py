"""Calls on NumPy arrays that run on a GPU: send, compute there, fetch.

What travels is (N, C, S), contiguous as the array is stored, so that channels-last data stays channels-last.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from fastbn import layout
from fastbn.backends.cuda import on_device
from fastbn.backends.cuda.device_call import DeviceContext
from fastbn.checks import aliasing as memory
from fastbn.checks import arrays as validate
from fastbn.context import Context, Gradients
from fastbn.dispatch import require, to_device, to_host
from fastbn.moments import BackwardSums, Moments

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class RoundTripContext(DeviceContext):
    """A `DeviceContext` of a NumPy array. Its x is on the GPU, as (N, C, S)."""

    __slots__ = ("like", "own")

    @property
    def where(self) -> Any:
        """Return the module that goes back through it."""
        from fastbn.backends.cuda import transfer as round_trip

        return round_trip

    own: layout.Layout
    like: Array  # the caller's x, or after out=x an array stored as it


def _sent(array: Array, own: layout.Layout) -> Any:
    return to_device(np.ascontiguousarray(array.transpose(own.order)).reshape(own.shape))


def _fetch(there: Any, own: layout.Layout, target: Array) -> None:
    """Fetch (N, C, S) into an array of the caller's shape."""
    target.transpose(own.order)[...] = to_host(there).reshape([target.shape[i] for i in own.order])


def batch_norm(
    x: object, weight: Any, bias: Any, running_mean: Any, running_var: Any, training: bool, momentum: float,
    correction: float, eps: float, axis: int, moments: Moments | None, out: Any,
) -> tuple[Array, Context]:  # fmt: skip
    """Do what `functional.batch_norm` does, on a GPU."""
    require()
    array = validate.data(x)
    own = layout.of(array, validate.axis(axis, array))
    if out is not None:
        given = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
        others = {name: value if isinstance(value, np.ndarray) else None for name, value in given.items()}
        out = validate.output(out, array, {"x": array}, others)
    sent = _sent(array, own)
    there, made = on_device.batch_norm(
        sent, weight, bias, running_mean, running_var, training, momentum, correction, eps, 1, moments, None
    )
    y = layout.empty(array) if out is None else out
    ctx = RoundTripContext(
        sent, 1, made.count, made.table_there, made.weight_dtype, made.bias_dtype, made.frozen, moments
    )
    ctx.on_host = made.on_host
    ctx.own = own
    ctx.like = array
    if out is not None and memory.same(array, out):
        ctx.forget_x()
    _fetch(there, own, y)
    return y, ctx


def batch_moments(x: object, axis: int) -> Moments:
    """Do what `functional.batch_moments` does, on a GPU."""
    require()
    array = validate.data(x)
    own = layout.of(array, validate.axis(axis, array))
    return on_device.batch_moments(_sent(array, own), 1)


def backward_sums(dy: object, ctx: RoundTripContext) -> BackwardSums:
    """Do what `functional.backward_sums` does, on a GPU."""
    validate.context(ctx)
    return on_device.backward_sums(_sent(validate.gradient(dy, ctx.like), ctx.own), ctx)


def batch_norm_backward(dy: object, ctx: RoundTripContext, sums: BackwardSums | None, out: Any) -> Gradients:
    """Do what `functional.batch_norm_backward` does, on a GPU."""
    validate.context(ctx)
    gradient = validate.gradient(dy, ctx.like)
    if out is not None:
        out = validate.output(out, ctx.like, {"dy": gradient, "x": ctx.like}, {})
    grads = on_device.batch_norm_backward(_sent(gradient, ctx.own), ctx, sums, None)
    dx = layout.empty(ctx.like) if out is None else out
    _fetch(grads.dx, ctx.own, dx)
    return Gradients(dx, grads.dweight, grads.dbias)
