"""Backward passes on a GPU: lay out, launch, copy nothing of the tensor's size."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from fastbn import in_place
from fastbn.arithmetic import seen
from fastbn.backends.cuda import beyond, launch, launch_cache, masked, transfer
from fastbn.backends.cuda.context import DeviceContext, DeviceGhostContext, SentContext
from fastbn.backends.cuda.device_call import DeviceCall
from fastbn.call import BackwardCall
from fastbn.checks.place import on_gpu
from fastbn.context import Gradients
from fastbn.layout import Layout
from fastbn.moments import BackwardSums

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


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
    read, tail = _read(there, call, own), _tail_back(there, call, own, writes=False)[0]
    if ctx.mask is None:
        launch.sums(*read, saved, result, there.stream, tail)
    else:
        masked.sums(*read, there.sent_mask(ctx.mask, own), saved, result, there.stream, tail)
    sum_dy, sum_dy_xhat = there.library.fetch(result_there)
    return BackwardSums(ctx.count, sum_dy, sum_dy_xhat if sign is None else sum_dy_xhat * sign)


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
    mask = None if ctx.mask is None else there.sent_mask(ctx.mask, own)
    if given is not None:
        tail, dresidual = _tail_back(there, call, own)
        if call.x.size:
            saved, sign = _saved(there, ctx)
            rows = there.sent(np.stack([given.sum_dy, given.sum_dy_xhat if sign is None else given.sum_dy_xhat * sign]))
            if mask is None:
                launch.gradient(*read, saved, rows, given.count, ctx.frozen, write, there.stream, tail)
            else:
                masked.gradient(*read, mask, saved, rows, given.count, ctx.frozen, write, there.stream, tail)
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
        tail, dresidual = _tail_back(there, call, own)
        saved = there.shadow("saved", ctx.saved_there)
        if mask is not None:
            _, result = there.new((2, ctx.channels), np.float64)
            masked.backward(
                *read, mask, ctx.count, saved, ctx.frozen, write, dweight, dbias, result, there.stream, tail
            )
        else:
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
    by_statistics = None if given is None else ctx.by_statistics((given.sum_dy, given.sum_dy_xhat))
    by_weight_there, by_bias_there = grads
    return Gradients(dx, by_weight_there, by_bias_there, dresidual, by_statistics)


def _saved(there: DeviceCall, ctx: DeviceContext) -> tuple[Array, Array | None]:
    """Return what was saved and, if x was overwritten with y, the signs of the weights; see `in_place`."""
    if ctx.x is not None:
        return there.shadow("saved", ctx.saved_there), None
    rows, sign = in_place.rows(ctx)
    return there.sent(rows), sign


def _read(there: DeviceCall, call: BackwardCall, own: Layout) -> tuple[Array, Array]:
    """Return dy and x as a launch takes them."""
    return seen(there.read(call.dy, own), call.precision), seen(there.read(call.x, own), call.precision)


def _tail_back(there: DeviceCall, call: BackwardCall, own: Layout, writes: bool = True) -> tuple[Any, Any]:
    """Return what to go back through, and where the gradient of a residual goes if it `writes` one."""
    ctx = call.ctx
    assert isinstance(ctx, DeviceContext)
    if call.residual is None:
        dresidual = None
        if ctx.beyond is not None and ctx.beyond.residual is not None and writes:
            dresidual = call.given_dy
            if call.out is not None:
                dresidual, target = there.like(call.given_dy, call.dy)
                launch.copy(call.dy, target, there.stream)
        return beyond.tail_back(call.activation, None, None, ctx.x is None), dresidual
    residual = seen(there.read(call.residual, own), call.precision)
    if not writes:
        return beyond.tail_back(call.activation, residual), None
    dresidual, target = there.like(ctx.data, call.x)
    through = seen(there.write(target, own), call.precision)
    return beyond.tail_back(call.activation, residual, through), dresidual
