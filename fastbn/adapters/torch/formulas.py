"""Batch norm's derivatives by PyTorch's own operations, which it differentiates further: for third derivatives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastbn_kernels.saved import INVSTD, MEAN, MEAN_LO


class Options(NamedTuple):
    """What a forward pass was called with, besides tensors."""

    frozen: bool
    eps: float
    weight: torch.dtype  # of the gradients by a weight and a bias, whether or not there are any
    bias: torch.dtype


class Normalized(NamedTuple):
    """A batch and its statistics, wide enough to compute with."""

    xhat: Tensor
    invstd: Tensor
    along: list[int]
    frozen: bool

    def centred(self, g: Tensor) -> Tensor:
        """Return g without its mean and without what goes along xhat."""
        if self.frozen:
            return g
        part = (g * self.xhat).mean(self.along, keepdim=True)
        return g - g.mean(self.along, keepdim=True) - self.xhat * part


def shape_of(x: Tensor) -> list[int]:
    """Return the shape in which a parameter goes with x."""
    return [1, -1] + [1] * (x.ndim - 2)


def normalized(x: Tensor, saved: Tensor, options: Options) -> Normalized:
    """Normalise x with its own statistics, or with those that were saved."""
    along = [i for i in range(x.ndim) if i != 1]
    values = x.to(torch.promote_types(x.dtype, torch.float32))
    if options.frozen:
        mean, invstd = (
            row.to(values.dtype).reshape(shape_of(x)) for row in (saved[MEAN] + saved[MEAN_LO], saved[INVSTD])
        )
    else:
        var, mean = torch.var_mean(values, along, correction=0, keepdim=True)
        invstd = (var + options.eps).rsqrt()
    return Normalized((values - mean) * invstd, invstd, along, options.frozen)


def gradients(dy: Tensor, x: Tensor, weight: Tensor, saved: Tensor, options: Options) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of sum(y * dy) by x, weight and bias."""
    own = normalized(x, saved, options)
    g = dy.to(own.xhat.dtype)
    dx = own.centred(g) * own.invstd * weight.reshape(shape_of(x))
    dweight, dbias = (g * own.xhat).sum(own.along), g.sum(own.along)
    return dx.to(x.dtype), dweight.to(options.weight), dbias.to(options.bias)


def tangent(
    tx: Tensor, tweight: Tensor, tbias: Tensor, x: Tensor, weight: Tensor, saved: Tensor, options: Options
) -> Tensor:
    """Return the derivative of y in a direction."""
    own, shape = normalized(x, saved, options), shape_of(x)
    ty = own.centred(tx.to(own.xhat.dtype)) * own.invstd * weight.reshape(shape)
    return (ty + tweight.reshape(shape) * own.xhat + tbias.reshape(shape)).to(x.dtype)


def double_backward(
    ddx: Tensor, ddweight: Tensor, ddbias: Tensor, dy: Tensor, x: Tensor, weight: Tensor, saved: Tensor,
    options: Options,
) -> tuple[Tensor, ...]:  # fmt: skip
    """Return the gradients of sum(tangent * dy) by dy, x and weight."""
    primal, pullback = torch.func.vjp(lambda g, v, w: gradients(g, v, w, saved, options), dy, x, weight)
    given = (v.to(p.dtype) for v, p in zip((ddx, ddweight, ddbias), primal, strict=True))
    found: tuple[Tensor, ...] = pullback(tuple(given))
    return found


def _given(function: Callable[..., Any], saved_tensors: tuple[Any, ...], options: Options) -> tuple[list[Tensor], Any]:
    """Return the arguments of a formula, zeros and ones for those that are not there, and the formula of them alone."""
    *given, saved = saved_tensors
    x, weight = given[-2:]
    parameter = torch.ones(x.shape[1], dtype=options.weight) if weight is None else weight
    absent = [x, parameter, parameter, x]  # the first argument is data, two parameters follow
    full = [torch.zeros_like(absent[i]) if value is None else value for i, value in enumerate(given[:-1])]
    return [*full, parameter], lambda *arguments: function(*arguments, saved, options)


def derivative(function: Callable[..., Any], saved_tensors: Any, tangents: Any, options: Options) -> Any:
    """Return the derivative of a formula in a direction; None is no direction.

    By reverse mode twice, since `pullback` is linear and its own pullback is what goes forward: called where forward
    mode is at work, `torch.func.jvp` would go on with what its tensors carry.
    """
    given, formula = _given(function, saved_tensors, options)
    directions = tuple(torch.zeros_like(p) if t is None else t for p, t in zip(given, tangents, strict=True))
    primal, pullback = torch.func.vjp(formula, *given)
    zeros = torch.zeros_like(primal) if isinstance(primal, Tensor) else tuple(map(torch.zeros_like, primal))
    _, forward = torch.func.vjp(pullback, zeros)
    return forward(directions)[0]


def gradient(function: Callable[..., Any], saved_tensors: Any, cotangents: Any, options: Options) -> list[Any]:
    """Return the gradients of a formula by its arguments; None by one that is not there."""
    given, formula = _given(function, saved_tensors, options)
    _, pullback = torch.func.vjp(formula, *given)
    found = pullback(tuple(cotangents))
    return [None if value is None else g for value, g in zip(saved_tensors[:-1], found, strict=True)]
