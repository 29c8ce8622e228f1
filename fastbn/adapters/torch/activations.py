"""Batch norm, a residual and an activation in one call: the one place that every fused call comes to."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastbn.adapters.torch import fused
from fastbn.adapters.torch.functional import PLAIN, batch_norm
from fastbn.adapters.torch.fused import ACTIVATIONS, Activation


def is_like(residual: Any, input: Tensor) -> bool:
    """Return whether a residual is a tensor of the shape, dtype and device of a batch norm's input."""
    return (
        type(residual) in PLAIN
        and residual.shape == input.shape
        and residual.dtype is input.dtype
        and residual.device == input.device
        and residual.layout is torch.strided
    )


def batch_norm_act(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    activation: Activation,
    residual: Tensor | None,
) -> Tensor:
    """Return ``activation(batch_norm(input, ...) + residual)``.

    Parameters
    ----------
    input, running_mean, running_var, weight, bias, training, momentum, eps
        As `torch.nn.functional.batch_norm`'s.
    activation : {None, "relu", "relu6", "leaky_relu", "tanh", "sigmoid", "silu", "gelu"} or ("leaky_relu", float)
        What is done last; a slope is that of a leaky ReLU, else 0.01.
    residual : Tensor, optional
        What is added before the activation; whatever PyTorch adds to y, by its rules of shapes and dtypes.

    Returns
    -------
    Tensor
        A new tensor: nothing is changed but the running statistics.
    """
    name = activation[0] if isinstance(activation, tuple) else activation
    if name not in ACTIVATIONS or (name is not activation and name != "leaky_relu"):
        raise ValueError(f"activation: expected one of {sorted(filter(None, ACTIVATIONS))} or None, got {activation!r}")
    given = input, running_mean, running_var, weight, bias, training, momentum, eps
    if (residual is None or is_like(residual, input)) and fused.takes(*given, activation, residual):
        one: Tensor = fused.BatchNormActFunction.apply(*given, activation, residual)
        return one
    y = batch_norm(*given)
    if residual is not None:
        y = y + residual
    if activation == "relu":
        return torch.relu_(y)
    return fused.activate(activation, y)
