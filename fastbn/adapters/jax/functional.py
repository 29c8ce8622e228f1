"""Batch norm for arrays of JAX, traced or not: checked as any call, with derivatives of two orders."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fastbn
from fastbn.adapters.jax import xla
from fastbn.call import ForwardCall
from fastbn_kernels.cpu.flat_calls import parameter_dtype
from fastbn_kernels.saved import ROWS

# What a context saves travels as pairs of uint32: JAX has no float64 unless it is switched on.


class _Options(NamedTuple):
    """What a call is traced with."""

    axis: int
    eps: float
    momentum: float
    correction: float
    training: bool
    precision: str
    weight: str | None  # its dtype
    bias: str | None


def _run_forward(options: _Options, x: Any, weight: Any, bias: Any, *running: Any) -> list[Any]:
    running = tuple(r.copy() for r in running)  # fastbn updates them in place, and those of JAX are read-only
    mean, var = running or (None, None)
    y, ctx = fastbn.batch_norm(
        x, weight, bias, running_mean=mean, running_var=var, training=options.training, momentum=options.momentum,
        correction=options.correction, eps=options.eps, axis=options.axis, precision=options.precision,
    )  # fmt: skip
    return [y, ctx.saved.view(np.uint32), *(running if options.training else ())]


def _context(options: _Options, x: Any, saved: Any) -> fastbn.Context:
    weight, bias = (None if name is None else np.dtype(name) for name in (options.weight, options.bias))
    count = x.size // x.shape[options.axis]
    rows = saved.view(np.float64)
    frozen = not options.training
    return fastbn.Context(x, options.axis, count, rows, weight, bias, frozen, precision=options.precision)


def _run_backward(options: _Options, x: Any, saved: Any, dy: Any) -> list[Any]:
    grads = fastbn.batch_norm_backward(dy, _context(options, x, saved))
    return [grads.dx, grads.dweight, grads.dbias]


def _run_double_backward(options: _Options, x: Any, saved: Any, dy: Any, *seconds: Any) -> list[Any]:
    ddx, ddweight, ddbias = seconds
    return list(fastbn.batch_norm_double_backward(ddx, ddweight, ddbias, dy, _context(options, x, saved)))


@functools.cache  # JAX compiles again for a function that it has not seen
def _on_arrays(run: Callable[..., list[Any]], options: _Options) -> Callable[..., list[Any]]:
    def call(*arguments: Any) -> list[Any]:
        return run(options, *(None if a is None else np.asarray(a) for a in arguments))

    return call


def _call(run: Callable[..., list[Any]], options: _Options, results: list[Any], arguments: list[Any]) -> Any:
    """Call a function of arrays of NumPy; absent arguments and results are None."""
    shapes = [None if dtype is None else jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in results]
    return jax.pure_callback(_on_arrays(run, options), shapes, *arguments, vmap_method="sequential")


def _foreign(target: xla.Target, options: _Options, flag: bool, results: list[Any], arguments: list[Any]) -> Any:
    """Call a handler of XLA's; absent arguments are left out."""
    x = arguments[0]
    present = options.weight is not None, options.bias is not None, len(arguments) > 3
    numbers = np.array([
        *_split(x.shape, options.axis), options.eps, options.momentum, options.correction, flag, target.past_cache,
        target.groups, *present,
    ], float)  # fmt: skip
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in results]
    call = jax.ffi.ffi_call(target.name, shapes, vmap_method="sequential")
    return call(*(a for a in arguments if a is not None), numbers=numbers)


def _split(shape: tuple[int, ...], axis: int) -> tuple[int, int, int]:
    """Return a shape as (N, C, S)."""
    return math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :])


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _forward(options: _Options, x: Any, weight: Any, bias: Any, running: Any) -> Any:
    channels = (x.shape[options.axis],)
    new = [(channels, r.dtype) for r in running if options.training]
    results = [(x.shape, x.dtype), ((ROWS, 2 * channels[0]), np.uint32), *new]
    arguments = [x, weight, bias, *running]
    if xla.takes(x.dtype.name, {a.dtype.name for a in arguments[1:] if a is not None}):
        target = xla.forward(_split(x.shape, options.axis), x.dtype.name, options.precision, options.training)
        y, saved, *updated = _foreign(target, options, options.training, results, arguments)
    else:
        y, saved, *updated = _call(_run_forward, options, results, arguments)
    return y, saved, updated or list(running)


def _forward_kept(options: _Options, x: Any, weight: Any, bias: Any, running: Any) -> Any:
    results = _forward(options, x, weight, bias, running)
    return results, (x, weight, results[1])


def _forward_vjp(options: _Options, kept: Any, cotangents: Any) -> Any:
    return *_backward(options, *kept, cotangents[0]), None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _backward(options: _Options, x: Any, weight: Any, saved: Any, dy: Any) -> Any:
    channels = (x.shape[options.axis],)
    dtypes = options.weight, options.bias
    if xla.takes(x.dtype.name, set(dtypes)):
        target = xla.backward(_split(x.shape, options.axis), x.dtype.name, options.precision)
        results = [(x.shape, x.dtype), *2 * [(channels, parameter_dtype(x.dtype.name))]]
        dx, *sums = _foreign(target, options, not options.training, results, [x, saved, dy])
        return dx, *(None if dtype is None else s for dtype, s in zip(dtypes, sums, strict=True))
    results = [(x.shape, x.dtype), *((channels, dtype) for dtype in dtypes)]
    return tuple(_call(_run_backward, options, results, [x, saved, dy]))


def _backward_kept(options: _Options, x: Any, weight: Any, saved: Any, dy: Any) -> Any:
    return _backward(options, x, weight, saved, dy), (x, saved, dy)


def _backward_vjp(options: _Options, kept: Any, cotangents: Any) -> Any:
    ddy, dx, dweight = _double_backward(options, *kept, *cotangents)
    return dx, dweight, None, ddy


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _double_backward(options: _Options, x: Any, saved: Any, dy: Any, ddx: Any, ddweight: Any, ddbias: Any) -> Any:
    results = [(x.shape, x.dtype), (x.shape, x.dtype), ((x.shape[options.axis],), options.weight)]
    return tuple(_call(_run_double_backward, options, results, [x, saved, dy, ddx, ddweight, ddbias]))


def _double_backward_kept(options: _Options, *arguments: Any) -> Any:
    return _double_backward(options, *arguments), None


def _double_backward_vjp(options: _Options, kept: Any, cotangents: Any) -> Any:
    raise NotImplementedError("batch_norm: fastbn has first and second derivatives, a third one was asked for")


_forward.defvjp(_forward_kept, _forward_vjp)
_backward.defvjp(_backward_kept, _backward_vjp)
_double_backward.defvjp(_double_backward_kept, _double_backward_vjp)


def _look(name: str, value: Any) -> Any:
    """Return what NumPy sees of an array of JAX, which may be traced: its shape and dtype."""
    return value if value is None else np.broadcast_to(np.zeros((), value.dtype), value.shape)


def batch_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    running_mean: Any = None,
    running_var: Any = None,
    *,
    training: bool = True,
    momentum: float = 0.1,
    correction: float = 1,
    eps: float = 1e-5,
    axis: int = -1,
    precision: str | None = None,
) -> tuple[Any, Any, Any]:
    """Normalise every channel of a batch, then scale and shift it: `fastbn.batch_norm` for arrays of JAX.

    Parameters
    ----------
    x : jax.Array of float32, float64, float16 or bfloat16, at least two axes
    weight, bias : jax.Array of float32 or float64, shape (C,), optional
    running_mean, running_var : jax.Array of float32 or float64, shape (C,), optional
        No gradient flows through them, neither in nor out. ``momentum=1, correction=0`` returns the batch's own
        mean and variance.
    training, momentum, correction, eps, precision
        As for `fastbn.batch_norm`, and fixed under `jax.jit`. Momentum is the weight of the new value: 0.01 where Flax
        has 0.99.
    axis : int, default -1
        The channel axis; the last one, as in Flax.

    Returns
    -------
    y : jax.Array
        Shape and dtype of x.
    running_mean, running_var : jax.Array or None
        The next ones.

    Raises
    ------
    TypeError, ValueError
        While tracing, if anything does not fit.
    """
    given = [None if a is None else jnp.asarray(a) for a in (x, weight, bias, running_mean, running_var)]
    x, weight, bias, mean, var = given
    call = ForwardCall.check(
        x, weight, bias, mean, var, training, momentum, correction, eps, axis, None, precision, None,
        look=_look, in_place=False,
    )  # fmt: skip
    if x.size == 0:
        return x, mean, var
    dtypes = (None if dtype is None else dtype.name for dtype in call.dtypes)
    momentum = call.momentum if call.updates else 0.0
    options = _Options(call.axis, call.eps, momentum, call.correction, call.training, call.precision, *dtypes)
    y, _, running = _forward(options, x, weight, bias, () if mean is None else (mean, var))
    return y, *(running or (None, None))
