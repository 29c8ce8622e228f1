"""What goes beyond plain batch norm on a GPU, of launches that there are.

They are several a call, with numbers of channels on the host in between, which waits for the GPU. Ghost batches are
launched one after the other. Renormalization takes moments first, corrects the parameters by them and normalises with
both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from fastbn import ghosts, layout
from fastbn.activations import Activation
from fastbn.backends.cuda import launch
from fastbn.backends.cuda.arrays import library
from fastbn.backends.cuda.context import DeviceContext, DeviceGhostContext
from fastbn.backends.cuda.device_call import DeviceCall
from fastbn.call import BackwardCall, ForwardCall, MomentsCall
from fastbn.checks.beyond import batch_axis
from fastbn.checks.place import on_gpu
from fastbn.context import Context, Gradients
from fastbn.moments import Moments
from fastbn_kernels.cuda import tails

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Forward: TypeAlias = Callable[[ForwardCall], tuple[Any, Context]]


# ---------------------------------------------------------------- what is done after the normalization


def tail(activation: Activation | None, residual: Array | None) -> Any:
    """Return what is done after the normalization, as launches take it."""
    named = None if activation is None else tails.named(activation.name, activation.slope)
    return named if residual is None else (named, residual)


def tail_back(
    activation: Activation | None, residual: Array | None, dresidual: Array | None = None, inverse: bool = False
) -> Any:
    """Return likewise what to go back through; with `inverse` y is given in the place of x."""
    if activation is None:
        return None
    named = tails.named(activation.name, activation.slope)
    if inverse:
        assert named is not None
        return tails.inverse(named)
    if residual is None:
        return named
    return (named, residual) if dresidual is None else (named, residual, dresidual)


# ---------------------------------------------------------------- ghost batches


def new_like(given: Any, seen: Array) -> tuple[Any, Array]:
    """Return a new array like one that was given, where that is, and what NumPy sees of it."""
    if on_gpu(given):
        return DeviceCall(given).like(given, seen)
    made = layout.empty(seen)
    return made, made


def ghosts_forward(call: ForwardCall, compute: Forward) -> tuple[Any, Context]:
    """Return y and the context; `compute` takes each ghost batch."""
    y, target = new_like(call.given.x, call.x) if call.out is None else (call.given.out, call.out)
    parts = [compute(part)[1] for part in ghosts.forward_parts(call, y, target)]
    none = np.empty((0, 0, call.channels))  # what is saved is with the parts
    ctx = DeviceGhostContext(
        call.given.x, call.axis, call.count, none, *call.dtypes, False, None, call.precision, call.beyond
    )
    ctx.each, ctx.batch_axis, ctx.counts = tuple(parts), batch_axis(call.axis), tuple(part.count for part in parts)
    if call.over_x:
        ctx.forget_x(y)
    return y, ctx


def ghosts_backward(call: BackwardCall, compute: Callable[[BackwardCall], Gradients]) -> Gradients:
    """Return the gradients; `compute` takes each ghost batch."""
    ctx = call.ctx
    assert isinstance(ctx, DeviceGhostContext)
    dx, target = new_like(ctx.like, call.x) if call.out is None else (call.given_out, call.out)
    dresidual: Any = None
    if ctx.beyond is not None and ctx.beyond.residual is not None:
        dresidual = new_like(ctx.like, call.x)[0]
    totals: list[Any] = [None, None]
    like: list[Any] = [None, None]
    for cut, part in ghosts.backward_parts(call, dx, target):
        grads = compute(part)
        if dresidual is not None:
            _put(grads.dresidual, dresidual[cut])
        for i, found in enumerate((grads.dweight, grads.dbias)):
            if found is not None:
                value = np.asarray(library(found).fetch(found) if on_gpu(found) else found, np.float64)
                totals[i] = value if totals[i] is None else totals[i] + value
                like[i] = found
    if call.over_x:
        ctx.forget_x()
    dweight, dbias = (None if value is None else _as(value, theirs) for value, theirs in zip(totals, like, strict=True))
    return Gradients(dx, dweight, dbias, dresidual)


def _put(source: Any, target: Any) -> None:
    """Copy between arrays of one place."""
    if not on_gpu(target):
        target[...] = source
        return
    own = library(target)
    launch.copy(own.shadow("dresidual", source), own.shadow("dresidual", target), own.stream(target))


def _as(value: Array, theirs: Any) -> Any:
    """Return numbers of channels in the dtype, and where, other such numbers are."""
    if not on_gpu(theirs):
        return value.astype(theirs.dtype)
    return library(theirs).send(theirs, value.astype(library(theirs).shadow("parameter", theirs).dtype))


# ---------------------------------------------------------------- renormalization


def renorm_forward(
    call: ForwardCall, compute: Forward, moments: Callable[[MomentsCall], Moments]
) -> tuple[Any, Context]:
    """Return y and the context of a forward pass whose statistics are corrected towards the running ones."""
    assert call.renorm is not None
    assert call.running is not None
    found = call.moments or moments(MomentsCall(call.x, call.axis, call.given.x, call.mask))
    mean, var, weight, bias = (
        None if given is None else _fetched(given)
        for given in (call.given.running_mean, call.given.running_var, call.given.weight, call.given.bias)
    )
    assert mean is not None
    assert var is not None
    with np.errstate(all="ignore"):
        sigma = np.sqrt(var + call.eps)
        r = np.clip(np.sqrt(found.var() + call.eps) / sigma, 1 / call.renorm.r_max, call.renorm.r_max)
        d = np.clip((found.mean - mean) / sigma, -call.renorm.d_max, call.renorm.d_max)
        weight = np.ones(call.channels) if weight is None else weight
        scale, shift = weight * r, weight * d + (0.0 if bias is None else bias)
    sub = dataclasses.replace(
        call, weight=scale, bias=shift, moments=found, renorm=None, given=call.given._replace(weight=scale, bias=shift)
    )
    y, ctx = compute(sub)
    assert isinstance(ctx, DeviceContext)
    ctx.weight_dtype, ctx.bias_dtype = call.dtypes
    ctx.on_host = tuple(given is not None and not on_gpu(given) for given in call.given[1:3])  # type: ignore[assignment]
    ctx.beyond = call.beyond
    ctx.corrections = r, d
    return y, ctx


def _fetched(given: Any) -> Array:
    """Return numbers of channels on the host, in float64."""
    return np.asarray(library(given).fetch(given) if on_gpu(given) else given, np.float64)
