"""Keras 3: parameters and statistics of a `keras.layers.BatchNormalization` to a `fastbn.BatchNorm` and back.

`call` is that layer's call, whose mask means another thing than fastbn's: it chooses what statistics are taken of, and
all of x is normalised.

Keras names them gamma, beta, moving_mean and moving_variance, weighs the old value where fastbn weighs the new one
(momentum 0.99 there is 0.01 here), and keeps the biased variance (``correction=0``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from keras.ops import convert_to_numpy

import fastbn

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

OWN = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
UNTOUCHED = {"weight": 1, "bias": 0}  # what a layer without scale, or without center, computes with


def _check(layer: Any) -> None:
    if not hasattr(layer, "moving_variance") or not hasattr(layer, "epsilon"):
        raise TypeError(f"layer: expected a keras.layers.BatchNormalization, got a {type(layer).__name__}")
    if layer.moving_mean is None:
        raise ValueError("layer: expected a layer that has been built, with layer.build(shape) or a call")
    if getattr(layer, "renorm", False):
        raise ValueError(
            "layer: expected renorm=False; Keras renormalises towards statistics of their own, renorm_mean and "
            "renorm_stddev, fastbn towards the running ones"
        )


def from_keras(layer: Any) -> fastbn.BatchNorm:
    """Return a layer of fastbn that computes what a built layer of Keras does.

    Parameters
    ----------
    layer : keras.layers.BatchNormalization
        Built, of any backend, with or without center and scale; a layer with one of the two gets ones or zeros for the
        other.

    Returns
    -------
    fastbn.BatchNorm
        With Keras's axis, epsilon and momentum, ``correction=0``, and copies of its numbers. An axis that Keras has
        counted from the end is counted so here.

    Raises
    ------
    TypeError, ValueError
        If the layer is another one, is not built, or renormalises.
    """
    _check(layer)
    mean = convert_to_numpy(layer.moving_mean.value)
    bn = fastbn.BatchNorm(
        mean.size,
        axis=layer.axis,
        eps=layer.epsilon,
        momentum=1 - layer.momentum,
        correction=0,
        affine=layer.scale or layer.center,
        dtype=np.float64 if mean.dtype == np.float64 else np.float32,
    )
    state: dict[str, Any] = {"num_batches_tracked": np.array(0)}
    for name in bn.state_dict().keys() & OWN.keys():
        variable = getattr(layer, OWN[name])
        absent = variable is None
        state[name] = np.full(mean.size, UNTOUCHED[name], bn.dtype) if absent else convert_to_numpy(variable.value)
    bn.load_state_dict(state)
    return bn


def to_keras(bn: fastbn.BatchNorm, layer: Any) -> None:
    """Write parameters and statistics of a layer of fastbn into a built layer of Keras: all of them, or nothing.

    Parameters
    ----------
    bn : fastbn.BatchNorm
        With running statistics. Its momentum, eps, axis and correction are not written, Keras fixes its own when a
        layer is made; they must be what computes the same.
    layer : keras.layers.BatchNormalization
        Built. Without scale (or center) it takes a weight of ones (or a bias of zeros) alone.

    Raises
    ------
    TypeError, ValueError
        If anything does not fit; nothing is written then.
    """
    _check(layer)
    if not isinstance(bn, fastbn.BatchNorm):
        raise TypeError(f"bn: expected a fastbn.BatchNorm, got a {type(bn).__name__}")
    rank = layer.input_spec.ndim
    mine = (bn.axis % rank, bn.eps, None if bn.momentum is None else round(1 - bn.momentum, 12), bn.correction)
    theirs = (layer.axis % rank, layer.epsilon, round(layer.momentum, 12), 0)
    if mine != theirs:
        raise ValueError(f"bn: expected axis, epsilon, Keras's momentum and correction {theirs}, got {mine}")
    state = bn.state_dict()
    if "running_mean" not in state:
        raise ValueError("bn: expected a layer with running statistics")
    pairs = []
    for name, key in OWN.items():
        variable = getattr(layer, key)
        value = state.get(name, np.full(bn.num_features, UNTOUCHED.get(name), bn.dtype))
        if variable is None:
            if (value != UNTOUCHED[name]).any():
                raise ValueError(f"layer: expected a {key} for the {name} of bn, it has none")
        elif tuple(variable.shape) != value.shape:
            raise ValueError(f"bn.{name}: expected shape {tuple(variable.shape)}, got {value.shape}")
        else:
            pairs.append((variable, value))
    for variable, value in pairs:
        variable.assign(value)


def call(
    bn: fastbn.BatchNorm, inputs: Array, training: bool | None = None, mask: Any = None
) -> tuple[Array, Callable[[Array], Array]]:
    """Do what ``keras.layers.BatchNormalization.call(inputs, training, mask)`` does.

    Parameters
    ----------
    bn : fastbn.BatchNorm
        As `from_keras` makes them, without an activation.
    inputs : array
        As for the layer.
    training : bool, optional
        Whether to normalise with the batch's statistics and to move the running ones; by default as the layer's mode
        is. A frozen layer does not.
    mask : array, shape ``inputs.shape[:-1]``, optional
        What is not zero there counts for the statistics in training. Other than with fastbn's ``mask=``, all of the
        inputs are normalised, so y and dx are not zero elsewhere, and NaN does harm.

    Returns
    -------
    y : array
        Shape and dtype of the inputs.
    backward : callable
        Takes dy and returns dx; sets `bn.dweight` and `bn.dbias`, as ``bn.backward(dy)`` does.

    Raises
    ------
    TypeError, ValueError
        For anything that does not fit, before anything is written.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> from fastbn.adapters.keras import call
    >>> bn = fastbn.BatchNorm(4, axis=-1, correction=0)
    >>> x = np.random.default_rng(0).normal(size=(3, 5, 4)).astype(np.float32)
    >>> y, backward = call(bn, x, training=True, mask=np.arange(5) < np.array([[5], [2], [3]]))
    >>> dx = backward(np.ones_like(y))
    """
    use_batch = (bn.training if training is None else training) and not bn.frozen
    moments = None
    if mask is not None:
        mask = _mask(mask, inputs, bn.axis)
        moments = fastbn.batch_moments(inputs, axis=bn.axis, mask=mask) if use_batch else None
    y, ctx = fastbn.batch_norm(
        inputs, bn.weight, bn.bias, running_mean=bn.running_mean, running_var=bn.running_var, training=use_batch,
        momentum=1.0 / (bn.num_batches_tracked + 1) if bn.momentum is None else bn.momentum, correction=bn.correction,
        eps=bn.eps, axis=bn.axis, moments=moments, precision=bn.precision,
    )  # fmt: skip
    bn.num_batches_tracked += int(use_batch)

    def backward(dy: Array) -> Array:
        sums = None
        if moments is not None:  # what all of y gives to the statistics
            every = fastbn.backward_sums(dy, ctx)
            sums = fastbn.BackwardSums(moments.count, every.sum_dy, every.sum_dy_xhat)
        grads = fastbn.batch_norm_backward(dy, ctx, sums=sums)
        bn.dweight, bn.dbias = grads.dweight, grads.dbias
        if moments is None:
            return grads.dx
        return np.where(mask[..., None], grads.dx, (dy * (ctx.weight * ctx.invstd)).astype(dy.dtype))

    return y, backward


def _mask(mask: Any, inputs: Any, axis: Any) -> Array:
    """Check a mask of Keras's."""
    found = np.asarray(mask)
    if np.shape(inputs)[:-1] != found.shape:
        raise ValueError(f"mask: expected the shape of inputs without the last axis, {np.shape(inputs)[:-1]}, got "
                         f"shape {found.shape}")  # fmt: skip
    if axis not in (-1, len(np.shape(inputs)) - 1):
        raise ValueError(f"mask: expected None for channels along axis {axis}; Keras's has all axes but the last one")
    return found.astype(bool)
