"""Backward passes on the processor: what the kernels read and write, of each kind of call."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fastbn import arithmetic, ghosts, in_place, layout
from fastbn.backends.cpu import launches, small_calls
from fastbn.call import BackwardCall
from fastbn.context import Context, GhostContext, Gradients
from fastbn.moments import BackwardSums
from fastbn_kernels.saved import D, R

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class Views(NamedTuple):
    """What the kernels read, as (N, C, S), and how it is stored."""

    dy: Array
    x: Array
    residual: Array | None
    mask: Array | None
    saved: Array
    sign: Array | None  # of the weights, if x holds y: then the sums are of dy * xhat * sign
    template: Array  # an array that is stored as all of these are

    @classmethod
    def of(cls, call: BackwardCall) -> Views:
        """Return the views of a call."""
        ctx = call.ctx
        dy, x = arithmetic.seen(call.dy, call.precision), arithmetic.seen(call.x, call.precision)
        dy, x, template = layout.for_backward(dy, x, ctx.axis)
        residual = None
        if call.residual is not None:
            residual = layout.conform(arithmetic.seen(call.residual, call.precision), ctx.axis, template, copy=True)
        mask = None if ctx.mask is None else layout.of(template, ctx.axis).positions(ctx.mask)
        saved, sign = (writable(ctx), None) if ctx.x is not None else in_place.rows(ctx)
        return cls(dy, x, residual, mask, saved, sign, template)

    def new(self, axis: int) -> tuple[Array, Array]:
        """Return a new array stored alike, and its view; zeros, if a mask leaves some of it alone."""
        array = layout.empty(self.template) if self.mask is None else np.zeros_like(self.template, subok=False)
        return array, layout.of(array, axis).view(array)

    def launched(self, operation: str, *arguments: Any) -> Any:
        """Call a launch."""
        if self.mask is None:
            return getattr(launches.launch(), operation)(self.dy, self.x, *arguments)
        return getattr(launches.masked(), operation)(self.dy, self.x, self.mask, *arguments)

    def signed(self, sums: Array) -> Array:
        """Return sums of dy and dy * xhat from those that kernels know, or the other way round."""
        return sums if self.sign is None else np.stack([sums[0], sums[1] * self.sign])


def sums(call: BackwardCall) -> BackwardSums:
    """Return the sums of the backward pass over this x."""
    if call.x.size == 0:
        return _no_sums(call)
    views = Views.of(call)
    tail = launches.launch().tail_back(call.activation, views.residual, inverse=call.ctx.x is None)
    return BackwardSums(call.ctx.count, *views.signed(views.launched("sums", views.saved, tail)))


def _no_sums(call: BackwardCall) -> BackwardSums:
    return BackwardSums(call.ctx.count, *np.zeros((2, call.ctx.channels)))


def backward(call: BackwardCall) -> Gradients:
    """Return the gradients; from given sums if the call has some."""
    ctx = call.ctx
    dresidual: Array | None
    if isinstance(ctx, GhostContext):
        dx, dresidual, found = launches.ghosts().backward(call) or ghosts.backward(call, _gradient)
    elif call.x.size == 0:
        dx = layout.empty(call.x) if call.out is None else call.out
        given, dresidual = call.sums or _no_sums(call), layout.empty(call.x)
        found = given.sum_dy, given.sum_dy_xhat
    else:
        dx, dresidual, given = _gradient(call)
        found = given.sum_dy, given.sum_dy_xhat
    if call.over_x:
        ctx.forget_x()
    wanted = None if ctx.beyond is None or ctx.beyond.residual is None else dresidual
    return Gradients(dx, *_of_parameters(ctx, *found), wanted, ctx.by_statistics(found))


def _gradient(call: BackwardCall) -> tuple[Array, Array | None, BackwardSums]:
    """Return dx, dresidual if there was a residual, and the sums."""
    ctx, given = call.ctx, call.sums
    views = Views.of(call)
    dtype, axis = call.x.dtype, ctx.axis
    dx = layout.empty(views.template).view(dtype) if call.out is None else call.out
    written = arithmetic.seen(dx, call.precision)
    fits = layout.of(written, axis).fits(layout.of(views.template, axis))
    buffer = written if fits else layout.empty(views.template)
    target = layout.of(buffer, axis).view(buffer)
    dresidual, through = None, None
    if views.residual is not None:  # an activation comes after it
        dresidual, through = views.new(axis)
        dresidual = dresidual.view(dtype)
    elif ctx.beyond is not None and ctx.beyond.residual is not None:
        dresidual = _as_it_came(call)
    whole = given is None
    tail = launches.launch().tail_back(call.activation, views.residual, through, ctx.x is None, whole)
    if given is None:
        found = views.launched("backward", views.saved, ctx.frozen, target, tail)
        given = BackwardSums(ctx.count, *views.signed(found))
    else:
        rows = views.signed(np.stack([given.sum_dy, given.sum_dy_xhat]))
        views.launched("gradient", views.saved, rows, given.count, ctx.frozen, target, tail)
    if not fits:
        written[...] = buffer
    return dx, dresidual, given


def _as_it_came(call: BackwardCall) -> Array:
    """Return the gradient of a residual that nothing was done to: dy, or a copy if dx goes there or a mask counts."""
    if call.ctx.mask is not None:
        return np.where(call.ctx.mask, call.dy, call.dy.dtype.type(0))
    over = call.out is not None and np.may_share_memory(call.out, call.dy)
    return call.dy.copy(order="K") if over else call.dy


def _of_parameters(ctx: Context, sum_dy: Array, sum_dy_xhat: Array) -> tuple[Array | None, Array | None]:
    """Return dweight and dbias, over all ghost batches."""
    by_weight, by_bias = sum_dy_xhat, sum_dy
    if ctx.renormalized:  # y = (xhat * r + d) * weight + bias
        by_weight = ctx.saved[..., R, :] * sum_dy_xhat + ctx.saved[..., D, :] * sum_dy
    if sum_dy.ndim == 2:
        by_weight, by_bias = by_weight.sum(axis=0), by_bias.sum(axis=0)
    return small_calls.cast(by_weight, ctx.weight_dtype), small_calls.cast(by_bias, ctx.bias_dtype)


def writable(ctx: Context) -> Array:
    """Return what a context saved, writable as kernels want it; a host that kept it may have made it read-only."""
    return np.require(ctx.saved, requirements=["C", "W"])
