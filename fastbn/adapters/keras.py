"""Keras 3: parameters and statistics of a `keras.layers.BatchNormalization` to a `fastbn.BatchNorm` and back.

Keras names them gamma, beta, moving_mean and moving_variance, weighs the old value where fastbn weighs the new one
(momentum 0.99 there is 0.01 here), and keeps the biased variance (``correction=0``).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from keras.ops import convert_to_numpy

import fastbn

OWN = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}
UNTOUCHED = {"weight": 1, "bias": 0}  # what a layer without scale, or without center, computes with


def _check(layer: Any) -> None:
    if not hasattr(layer, "moving_variance") or not hasattr(layer, "epsilon"):
        raise TypeError(f"layer: expected a keras.layers.BatchNormalization, got a {type(layer).__name__}")
    if layer.moving_mean is None:
        raise ValueError("layer: expected a layer that has been built, with layer.build(shape) or a call")
    if getattr(layer, "renorm", False):
        raise ValueError("layer: expected renorm=False, fastbn has no batch renormalization")


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
