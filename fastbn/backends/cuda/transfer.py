"""Calls on NumPy arrays that run on a GPU: send, compute there, fetch.

What travels is (N, C, S), contiguous as the array is stored, so that channels-last data stays channels-last. The call
has been checked on the caller's arrays; what is sent is a call of its own, which fits because that one did.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from fastbn import layout
from fastbn.backends.cuda.arrays import library, send
from fastbn.backends.cuda.context import SentContext
from fastbn.call import BackwardCall, ForwardCall, MomentsCall
from fastbn.context import Context, Gradients
from fastbn.moments import BackwardSums, Moments

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def _sent(array: Array, own: layout.Layout) -> tuple[Any, Array]:
    """Return an array on the GPU, as (N, C, S), and its shadow."""
    there = send(np.ascontiguousarray(array.transpose(own.order)).reshape(own.shape))
    return there, library(there).shadow("sent", there)


def _fetch(there: Any, own: layout.Layout, target: Array) -> None:
    """Fetch (N, C, S) into an array of the caller's shape."""
    target.transpose(own.order)[...] = library(there).fetch(there).reshape([target.shape[i] for i in own.order])


def forward(call: ForwardCall, compute: Callable[[ForwardCall], tuple[Any, Any]]) -> tuple[Array, Context]:
    """Return y and the context; `compute` takes the same call on the GPU."""
    own = layout.of(call.x, call.axis)
    there, shadow = _sent(call.x, own)
    given = call.given._replace(x=there, out=None)
    residual = mask = None
    if call.residual is not None:
        residual_there, residual = _sent(call.residual, own)
        given = given._replace(residual=residual_there)
    if call.mask is not None:
        N, _, S = own.shape
        mask = own.positions(call.mask).reshape(N, 1, S)
    sent = dataclasses.replace(call, x=shadow, axis=1, out=None, given=given, residual=residual, mask=mask)
    y_there, made = compute(sent)
    y = layout.empty(call.x) if call.out is None else call.out
    dtypes = made.weight_dtype, made.bias_dtype
    ctx = SentContext(
        there, 1, made.count, made.saved_there, *dtypes, made.frozen, call.moments, call.precision, made.beyond
    )
    ctx.on_host, ctx.corrections, ctx.layout, ctx.caller_x = made.on_host, made.corrections, own, call.x
    ctx.overwritten(y_there, call.over_x, call.over_residual)
    _fetch(y_there, own, y)
    return y, ctx


def moments(call: MomentsCall, compute: Callable[[MomentsCall], Moments]) -> Moments:
    """Return the statistics of every channel."""
    there, shadow = _sent(call.x, layout.of(call.x, call.axis))
    mask = None
    if call.mask is not None:
        N, _, S = layout.of(call.x, call.axis).shape
        mask = layout.of(call.x, call.axis).positions(call.mask).reshape(N, 1, S)
    return compute(MomentsCall(shadow, 1, there, mask))


def _sent_back(call: BackwardCall) -> tuple[SentContext, BackwardCall]:
    ctx = call.ctx
    assert isinstance(ctx, SentContext)
    there, shadow = _sent(call.dy, ctx.layout)
    x = library(ctx.data).shadow("x", ctx.data)
    return ctx, dataclasses.replace(call, x=x, dy=shadow, out=None, given_dy=there, given_out=None)


def sums(call: BackwardCall, compute: Callable[[BackwardCall], BackwardSums]) -> BackwardSums:
    """Return the sums of the backward pass."""
    return compute(_sent_back(call)[1])


def backward(call: BackwardCall, compute: Callable[[BackwardCall], Gradients]) -> Gradients:
    """Return the gradients."""
    ctx, sent = _sent_back(call)
    grads = compute(sent)
    dx = layout.empty(call.x) if call.out is None else call.out
    if call.over_x:
        ctx.forget_x()
    _fetch(grads.dx, ctx.layout, dx)
    dresidual = None
    if grads.dresidual is not None:
        dresidual = layout.empty(call.x)
        _fetch(grads.dresidual, ctx.layout, dresidual)
    return Gradients(dx, grads.dweight, grads.dbias, dresidual, grads._by_statistics)
