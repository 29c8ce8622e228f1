"""Batch norm for arrays of JAX, traced or not, checked as any call."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np

import fastbn
from fastbn.adapters.jax.callbacks import Options
from fastbn.adapters.jax.derivatives import forward
from fastbn.call import ForwardCall


def _seen(value: Any) -> Any:
    """Return what NumPy sees of an array of JAX, which may be traced: its shape and dtype."""
    return value if value is None else np.broadcast_to(np.ones((), value.dtype), value.shape)


def _names(dtypes: tuple[Any, Any]) -> tuple[str | None, str | None]:
    """Return the names of the dtypes of weight and bias."""
    weight, bias = (None if dtype is None else dtype.name for dtype in dtypes)
    return weight, bias


def _mask(mask: Any, x: Any, axis: int) -> Any:
    """Return a mask that broadcasts to x, and is the same for all channels, without its channel axis."""
    expected = f"mask: expected an array of bool that broadcasts to x, {x.shape}, with 1 channel along axis {axis}"
    mask = jnp.asarray(mask)
    if mask.dtype != jnp.bool_:
        raise TypeError(f"{expected}, got dtype {mask.dtype}; mask != 0 makes one of numbers")
    shape = (1,) * (x.ndim - mask.ndim) + mask.shape
    fits = len(shape) == x.ndim and all(n in (1, own) for n, own in zip(shape, x.shape, strict=True))
    if not fits or shape[axis] != 1:
        raise ValueError(f"{expected}, got shape {mask.shape}")
    return mask.reshape(*(n for i, n in enumerate(shape) if i != axis))


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
    activation: str | tuple[str, float] | None = None,
    residual: Any = None,
    mask: Any = None,
    ghost_batch_size: int | None = None,
    renorm: fastbn.Renorm | None = None,
    update_stats: bool = True,
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
    training, momentum, correction, eps, activation, ghost_batch_size, renorm, update_stats, precision
        As for `fastbn.batch_norm`, and fixed under `jax.jit`. Momentum is the weight of the new value: 0.01 where Flax
        has 0.99.
    axis : int, default -1
        The channel axis; the last one, as in Flax.
    residual : jax.Array, shape and dtype of x, optional
        Added before the activation; gradients flow into it.
    mask : jax.Array of bool, optional
        Which positions count. As in Flax it broadcasts to x, here with one channel: (N, T, 1) for sequences (N, T, C).
        Other than in Flax, y is 0 where it is False, as everywhere in fastbn, and nothing is read there.

    Returns
    -------
    y : jax.Array
        Shape and dtype of x.
    running_mean, running_var : jax.Array or None
        The next ones.

    Raises
    ------
    TypeError, ValueError
        While tracing, if anything does not fit. What a mask leaves is known when it runs: none of a batch is then an
        error of JAX's.
    NotImplementedError
        For derivatives beyond the second, or, with a mask, ghost batches or renormalization, beyond the first.
    """
    given = [None if a is None else jnp.asarray(a) for a in (x, weight, bias, running_mean, running_var, residual)]
    x, weight, bias, mean, var, residual = given

    own, *parameters, added = (_seen(a) for a in given)

    def check(mask: Any) -> ForwardCall:
        options: Any = training, momentum, correction, eps, axis, None, precision, None
        beyond: Any = activation, added, mask, ghost_batch_size, renorm, update_stats
        check: Any = ForwardCall.check
        checked: ForwardCall = check(own, *parameters, *options, *beyond, in_place=False)
        return checked

    call = check(None)
    if mask is not None:
        mask = _mask(mask, x, call.axis)
        call = check(_seen(mask))
    if x.size == 0:
        return x, mean, var
    read = mean is not None and (not call.training or call.updates or call.renorm is not None)
    options = Options(
        call.axis, call.eps, call.momentum if call.updates else 0.0, call.correction, call.training, call.updates,
        call.precision, *_names(call.dtypes), call.activation,
        call.ghost_batch_size, None if call.renorm is None else (call.renorm.r_max, call.renorm.d_max),
    )  # fmt: skip
    y, _, running = forward(options, x, weight, bias, (mean, var) if read else (), residual, mask)
    return y, *(running if call.updates else (mean, var))
