"""Ghost batches one after the other, for whatever a backend does not take in one launch.

Hoffer, Hubara and Soudry (2017), "Train longer, generalize better", arXiv:1705.08741.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np

from fastbn import layout
from fastbn.call import BackwardCall, ForwardCall
from fastbn.checks.beyond import batch_axis
from fastbn.context import Context, GhostContext
from fastbn.moments import BackwardSums

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def context(call: ForwardCall, y: Array, saved: Array, counts: tuple[int, ...]) -> GhostContext:
    """Return what a forward pass of ghost batches leaves."""
    ctx = GhostContext(call.x, call.axis, sum(counts), saved, *call.dtypes, False, None, call.precision, call.beyond)
    ctx.batch_axis, ctx.counts = batch_axis(call.axis), counts
    ctx.overwritten(y, call.over_x, call.over_residual)
    return ctx


def forward_parts(call: ForwardCall, y: Any, target: Array) -> Iterator[ForwardCall]:
    """Return the call of every ghost batch, which writes to its part of y; `target` is what NumPy sees of y."""
    at, size = batch_axis(call.axis), call.ghost_batch_size
    assert size is not None
    for start in range(0, call.x.shape[at], size):
        cut = *[slice(None)] * at, slice(start, start + size)
        theirs, residual, mask = (
            None if array is None else array[cut] for array in (call.given.residual, call.residual, call.mask)
        )
        given = call.given._replace(x=call.given.x[cut], out=y[cut], residual=theirs)
        yield dataclasses.replace(
            call, x=call.x[cut], out=target[cut], residual=residual, mask=mask, ghost_batch_size=None, given=given
        )


def backward_parts(call: BackwardCall, dx: Any, target: Array) -> Iterator[tuple[tuple[slice, ...], BackwardCall]]:
    """Return where every ghost batch lies and its call, which writes to its part of dx; `target` as above."""
    ctx = call.ctx
    assert isinstance(ctx, GhostContext)
    for g, part in enumerate(ctx.parts()):
        cut = ctx.cut(g)
        residual = None if call.residual is None else call.residual[cut]
        given = call.given_dy[cut], dx[cut]
        yield cut, BackwardCall(part, call.x[cut], call.dy[cut], None, target[cut], *given, residual)


def forward(call: ForwardCall, compute: Callable[[ForwardCall], tuple[Array, Context]]) -> tuple[Array, Context]:
    """Return y and the context; `compute` takes each ghost batch and moves the running statistics."""
    y = layout.empty(call.x) if call.out is None else call.out
    parts = [compute(part)[1] for part in forward_parts(call, y, y)]
    return y, context(call, y, np.stack([part.saved for part in parts]), tuple(part.count for part in parts))


def backward(
    call: BackwardCall, compute: Callable[[BackwardCall], tuple[Array, Array | None, BackwardSums]]
) -> tuple[Array, Array | None, tuple[Array, Array]]:
    """Return dx, dresidual and the sums of each ghost batch, (G, C) of dy and of dy * xhat; `compute` takes one."""
    dx = layout.empty(call.x) if call.out is None else call.out
    dresidual: Array | None = None
    sums = []
    for cut, part in backward_parts(call, dx, dx):
        _, found, own = compute(part)
        if found is not None:
            dresidual = layout.empty(call.x) if dresidual is None else dresidual
            dresidual[cut] = found
        sums.append(own)
    return dx, dresidual, (np.stack([own.sum_dy for own in sums]), np.stack([own.sum_dy_xhat for own in sums]))
