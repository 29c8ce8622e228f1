"""Forward passes on the processor: arrays into the kernels' (N, C, S), statistics in and out of what is saved."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from fastbn import arithmetic, ghosts, layout
from fastbn.backends.cpu import launches
from fastbn.call import ForwardCall
from fastbn.context import Context
from fastbn.renorm import Renorm
from fastbn_kernels.saved import (
    BIAS,
    D_MAX,
    EPS,
    INVSTD,
    MEAN,
    MEAN_LO,
    R_MAX,
    RENORM_ROWS,
    ROWS,
    VAR,
    WEIGHT,
    D,
    R,
)

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def forward(call: ForwardCall) -> tuple[Array, Context]:
    """Return y and the context; move the running statistics."""
    if call.ghost_batch_size is not None:
        return _ghosts(call)
    x = call.x
    y = layout.empty(x) if call.out is None else call.out
    saved = begin_saved(call)
    if call.training and call.moments is None and call.channels > 0:
        _normalize(call, y, "forward", saved)
    else:
        _take_statistics(call, saved)
        if x.size:
            _normalize(call, y, "normalize", saved)
    ctx = Context(x, call.axis, call.count, saved, *call.dtypes, call.frozen, call.moments, call.precision, call.beyond)
    if call.updates:
        update_running(call, ctx)
    ctx.overwritten(y, call.over_x, call.over_residual)
    return y, ctx


def _ghosts(call: ForwardCall) -> tuple[Array, Context]:
    """Do a forward pass of ghost batches, in one launch if their memory lies side by side."""
    done = launches.ghosts().forward(call)
    return ghosts.forward(call, forward) if done is None else done


def begin_saved(call: ForwardCall) -> Array:
    """Return what is to be saved, with the rows that are known before x is read."""
    saved = np.empty((ROWS if call.renorm is None else RENORM_ROWS, call.channels))
    with np.errstate(invalid="ignore"):  # a signalling NaN
        saved[WEIGHT] = 1.0 if call.weight is None else call.weight
        saved[BIAS] = 0.0 if call.bias is None else call.bias
    if call.renorm is not None:
        assert call.running is not None
        begin_renorm(call.renorm, call.running, call.eps, saved)
    return saved


def begin_renorm(renorm: Renorm, running: tuple[Array, Array], eps: float, saved: Array) -> None:
    """Fill the rows that say what to correct towards, and how far."""
    with np.errstate(all="ignore"):
        saved[R] = 1 / np.sqrt(running[1].astype(np.float64) + eps)
        saved[D] = running[0]
    saved[R_MAX], saved[D_MAX], saved[EPS] = renorm.r_max, renorm.d_max, eps


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
    if call.renorm is not None:
        launches.launch().renormalize(saved, 0, call.channels)


def _normalize(call: ForwardCall, y: Array, operation: str, saved: Array) -> None:
    """Call a launch that reads x, mask and residual and writes y, all as (N, C, S)."""
    x, y = arithmetic.seen(call.x, call.precision), arithmetic.seen(y, call.precision)
    residual = None if call.residual is None else arithmetic.seen(call.residual, call.precision)
    own = layout.of(x, call.axis)
    if residual is not None and call.over_residual and not own.contiguous:
        residual = residual.copy()  # x may be copied to where it is
    source, target, buffer = layout.for_forward(x, y, call.axis)
    stored = y if buffer is None else buffer
    if residual is not None:
        residual = layout.conform(residual, call.axis, stored, copy=True)
    tail = launches.launch().tail(call.activation, residual)
    if call.mask is None:
        getattr(launches.launch(), operation)(source, saved, call.eps, target, tail)
    else:
        mask = layout.of(stored, call.axis).positions(call.mask)
        getattr(launches.masked(), operation)(source, mask, saved, call.eps, target, tail)
    if buffer is not None:
        y[...] = buffer


def update_running(call: ForwardCall, ctx: Context) -> None:
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
