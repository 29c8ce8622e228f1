"""Calls through Python: fastbn's functions on arrays of NumPy, for XLA's `pure_callback`.

What a context saves travels as pairs of uint32: JAX has no float64 unless it is switched on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import fastbn
from fastbn.activations import Activation
from fastbn.context import Beyond, GhostContext
from fastbn_kernels.saved import RENORM_ROWS, ROWS


class Options(NamedTuple):
    """What a call is traced with; `activation` is its name and slope, `renorm` r_max and d_max."""

    axis: int
    eps: float
    momentum: float
    correction: float
    training: bool
    updates: bool
    precision: str
    weight: str | None  # its dtype
    bias: str | None
    activation: Activation | None = None
    ghost_batch_size: int | None = None
    renorm: tuple[float, float] | None = None

    @property
    def batch_axis(self) -> int:
        """Return the axis that samples lie along."""
        return 1 if self.axis == 0 else 0

    def saved(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape of what is saved of an x, as uint32."""
        rows = ROWS if self.renorm is None else RENORM_ROWS
        each = rows, 2 * shape[self.axis]
        size = self.ghost_batch_size
        return each if size is None else (-(-shape[self.batch_axis] // size), *each)


def _renorm(options: Options) -> fastbn.Renorm | None:
    return None if options.renorm is None else fastbn.Renorm(*options.renorm)


def run_forward(options: Options, x: Any, weight: Any, bias: Any, residual: Any, mask: Any, *running: Any) -> list[Any]:
    """Go forward; return y, what is saved, and the next running statistics if they move."""
    running = tuple(r.copy() for r in running)  # fastbn updates them in place, and those of JAX are read-only
    mean, var = running or (None, None)
    activation: Any = options.activation
    if activation is not None and activation.slope is None:
        activation = activation.name
    y, ctx = fastbn.batch_norm(
        x, weight, bias, running_mean=mean, running_var=var, training=options.training, momentum=options.momentum,
        correction=options.correction, eps=options.eps, axis=options.axis,
        activation=activation, residual=residual, mask=mask,
        ghost_batch_size=options.ghost_batch_size, renorm=_renorm(options), update_stats=options.updates,
        precision=options.precision,
    )  # fmt: skip
    return [y, ctx.saved.view(np.uint32), *(running if options.updates else ())]


def _context(options: Options, x: Any, saved: Any, residual: Any = None, mask: Any = None) -> fastbn.Context:
    """Make the context of a forward pass again."""
    weight, bias = (None if name is None else np.dtype(name) for name in (options.weight, options.bias))
    shape = tuple(n for i, n in enumerate(x.shape) if i != options.axis)
    counted = np.expand_dims(np.broadcast_to(np.True_ if mask is None else mask, shape), options.axis)
    own = options.activation, residual, None if mask is None else counted, options.ghost_batch_size, _renorm(options)
    beyond = None if all(value is None for value in own) else Beyond(*own)
    rest = saved.view(np.float64), weight, bias, not options.training, None, options.precision, beyond
    size = options.ghost_batch_size
    if size is None:
        return fastbn.Context(x, options.axis, int(np.count_nonzero(counted)), *rest)
    samples = np.moveaxis(counted, options.batch_axis, 0)
    counts = tuple(int(np.count_nonzero(samples[start : start + size])) for start in range(0, len(samples), size))
    ctx = GhostContext(x, options.axis, sum(counts), *rest)
    ctx.batch_axis, ctx.counts = options.batch_axis, counts
    return ctx


def run_backward(options: Options, x: Any, saved: Any, dy: Any, residual: Any, mask: Any) -> list[Any]:
    """Go back; return dx, dweight, dbias and, of a residual, dresidual."""
    grads = fastbn.batch_norm_backward(dy, _context(options, x, saved, residual, mask))
    return [grads.dx, grads.dweight, grads.dbias, *(() if residual is None else (grads.dresidual,))]


def run_double_backward(options: Options, x: Any, saved: Any, dy: Any, *seconds: Any) -> list[Any]:
    """Go back through a plain backward pass."""
    ddx, ddweight, ddbias = seconds
    return list(fastbn.batch_norm_double_backward(ddx, ddweight, ddbias, dy, _context(options, x, saved)))


@functools.cache  # JAX compiles again for a function that it has not seen
def _on_arrays(run: Callable[..., list[Any]], options: Options) -> Callable[..., list[Any]]:
    def call(*arguments: Any) -> list[Any]:
        return run(options, *(None if a is None else np.asarray(a) for a in arguments))

    return call


def call(run: Callable[..., list[Any]], options: Options, results: list[Any], arguments: list[Any]) -> Any:
    """Call a function of arrays of NumPy; absent arguments and results are None."""
    shapes = [None if dtype is None else jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in results]
    return jax.pure_callback(_on_arrays(run, options), shapes, *arguments, vmap_method="sequential")
