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
    sent = dataclasses.replace(call, x=shadow, axis=1, out=None, given=call.given._replace(x=there, out=None))
    y_there, made = compute(sent)
    y = layout.empty(call.x) if call.out is None else call.out
    dtypes = made.weight_dtype, made.bias_dtype
    ctx = SentContext(there, 1, made.count, made.saved_there, *dtypes, made.frozen, call.moments, call.precision)
    ctx.on_host, ctx.layout, ctx.caller_x = made.on_host, own, call.x
    if call.over_x:
        ctx.forget_x()
    _fetch(y_there, own, y)
    return y, ctx


def moments(call: MomentsCall, compute: Callable[[MomentsCall], Moments]) -> Moments:
    """Return the statistics of every channel."""
    there, shadow = _sent(call.x, layout.of(call.x, call.axis))
    return compute(MomentsCall(shadow, 1, there))


def _sent_back(call: BackwardCall) -> tuple[SentContext, BackwardCall]:
    ctx = call.ctx
    assert isinstance(ctx, SentContext)
    there, shadow = _sent(call.dy, ctx.layout)
    x = library(ctx.x).shadow("x", ctx.x)
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
    return Gradients(dx, grads.dweight, grads.dbias)
