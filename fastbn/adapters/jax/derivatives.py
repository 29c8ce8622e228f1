"""Batch norm as functions that JAX differentiates, once and twice: by XLA's calls of kernels, or through Python."""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fastbn.activations import Activation
from fastbn.adapters.jax import callbacks, xla
from fastbn.adapters.jax.callbacks import Options
from fastbn_kernels.cpu.flat_calls import parameter_dtype


def _foreign(
    target: xla.Target, options: Options, flag: bool, results: list[Any], arguments: list[Any], present: list[bool]
) -> Any:
    """Call a handler of XLA's; absent arguments are left out."""
    x = arguments[0]
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


def _takes(options: Options, x: Any, mask: Any, dtypes: set[str | None]) -> bool:
    """Return whether XLA can call kernels by itself."""
    alone = mask is None and options.ghost_batch_size is None and options.renorm is None
    return alone and xla.takes(x.dtype.name, dtypes)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def forward(options: Options, x: Any, weight: Any, bias: Any, running: Any, residual: Any, mask: Any) -> Any:
    """Return y, what is saved, and the running statistics, which are the next ones if they move."""
    channels = (x.shape[options.axis],)
    new = [(channels, r.dtype) for r in running if options.updates]
    results = [(x.shape, x.dtype), (options.saved(x.shape), np.uint32), *new]
    parameters = [weight, bias, *running]
    if _takes(options, x, mask, {a.dtype.name for a in parameters if a is not None}):
        tail = xla.tail(options.activation, 0 if residual is None else 1)
        target = xla.forward(_split(x.shape, options.axis), x.dtype.name, options.precision, options.training, tail)
        present = [weight is not None, bias is not None, bool(running), residual is not None]
        y, saved, *updated = _foreign(target, options, options.training, results, [x, *parameters, residual], present)
    else:
        arguments = [x, weight, bias, residual, mask, *running]
        y, saved, *updated = callbacks.call(callbacks.run_forward, options, results, arguments)
    return y, saved, updated or list(running)


def _forward_kept(options: Options, x: Any, weight: Any, bias: Any, running: Any, residual: Any, mask: Any) -> Any:
    results = forward(options, x, weight, bias, running, residual, mask)
    return results, (x, weight, bias, running, residual if options.activation else None, mask, results[1])


def _forward_vjp(options: Options, kept: Any, cotangents: Any) -> Any:
    dy = cotangents[0]
    mask = kept[5]
    dx, dweight, dbias, dresidual = backward(options, *kept, dy)
    if dresidual is None:  # of a residual that nothing was done to, if there was one
        dresidual = dy if mask is None else jnp.where(jnp.expand_dims(mask, options.axis), dy, 0)
    return dx, dweight, dbias, None, dresidual, None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def backward(
    options: Options, x: Any, weight: Any, bias: Any, running: Any, residual: Any, mask: Any, saved: Any, dy: Any
) -> Any:
    """Return dx, dweight, dbias and, if there is a residual, dresidual."""
    channels = (x.shape[options.axis],)
    dtypes = options.weight, options.bias
    more = [] if residual is None else [(x.shape, x.dtype)]
    if _takes(options, x, mask, set(dtypes)):
        tail = xla.tail(options.activation, 0 if residual is None else 2)
        target = xla.backward(_split(x.shape, options.axis), x.dtype.name, options.precision, tail)
        results = [(x.shape, x.dtype), *2 * [(channels, parameter_dtype(x.dtype.name))], *more]
        present = [False, False, False, residual is not None]
        dx, *sums = _foreign(target, options, not options.training, results, [x, saved, dy, residual], present)
        found = [dx, *(None if dtype is None else s for dtype, s in zip(dtypes, sums[:2], strict=True)), *sums[2:]]
    else:
        results = [(x.shape, x.dtype), *((channels, dtype) for dtype in dtypes), *more]
        found = callbacks.call(callbacks.run_backward, options, results, [x, saved, dy, residual, mask])
    return *found, *([] if more else [None])


def _backward_kept(options: Options, *arguments: Any) -> Any:
    return backward(options, *arguments), arguments


def _backward_vjp(options: Options, kept: Any, cotangents: Any) -> Any:
    x, weight, bias, running, residual, mask, saved, dy = kept
    if mask is not None or options.ghost_batch_size is not None or options.renorm is not None:
        raise NotImplementedError(
            "batch_norm: fastbn has first derivatives with mask=, ghost_batch_size= or renorm=, "
            "a second one was asked for"
        )
    if options.activation is None:
        ddy, dx, dweight = _double_backward(options, x, saved, dy, *cotangents[:3])
        return dx, dweight, None, None, None, None, None, ddy

    def composed(x: Any, weight: Any, bias: Any, residual: Any, dy: Any) -> Any:
        """Return the same gradients of a plain batch norm and an activation of JAX's."""
        _, back = jax.vjp(functools.partial(_composed, options, running), x, weight, bias, residual)
        return back(dy)

    _, back = jax.vjp(composed, x, weight, bias, residual, dy)
    dx, dweight, dbias, dresidual, ddy = back(tuple(cotangents))
    return dx, dweight, dbias, None, dresidual, None, None, ddy


def _composed(options: Options, running: Any, x: Any, weight: Any, bias: Any, residual: Any) -> Any:
    plain = options._replace(activation=None, updates=False)
    z = forward(plain, x, weight, bias, () if options.training else running, residual, None)[0]
    assert options.activation is not None
    return activated(z, options.activation)


def activated(z: Any, activation: Activation) -> Any:
    """Return an activation of z, of JAX's own."""
    if activation.name == "leaky_relu":
        return jax.nn.leaky_relu(z, activation.slope)
    if activation.name == "gelu":
        return jax.nn.gelu(z, approximate=False)
    return getattr(jax.nn, activation.name)(z)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _double_backward(options: Options, x: Any, saved: Any, dy: Any, ddx: Any, ddweight: Any, ddbias: Any) -> Any:
    results = [(x.shape, x.dtype), (x.shape, x.dtype), ((x.shape[options.axis],), options.weight)]
    arguments = [x, saved, dy, ddx, ddweight, ddbias]
    return tuple(callbacks.call(callbacks.run_double_backward, options, results, arguments))


def _double_backward_kept(options: Options, *arguments: Any) -> Any:
    return _double_backward(options, *arguments), None


def _double_backward_vjp(options: Options, kept: Any, cotangents: Any) -> Any:
    raise NotImplementedError("batch_norm: fastbn has first and second derivatives, a third one was asked for")


forward.defvjp(_forward_kept, _forward_vjp)
backward.defvjp(_backward_kept, _backward_vjp)
_double_backward.defvjp(_double_backward_kept, _double_backward_vjp)
