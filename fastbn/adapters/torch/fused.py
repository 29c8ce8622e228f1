"""Batch norm and what follows it as one operator of fastbn's, with the derivatives of PyTorch's autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fastbn.adapters.torch.functional import is_native, is_ours, is_traced
from fastbn_kernels.cpu import flat_calls

Activation: TypeAlias = str | tuple[str, float] | None

# What may follow, by its name: what PyTorch calls it. A leaky ReLU is ("leaky_relu", slope).
ACTIVATIONS: dict[str | None, Callable[..., Tensor]] = {
    None: lambda y: y,
    "relu": torch.relu,
    "relu6": nn.functional.relu6,
    "leaky_relu": nn.functional.leaky_relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "silu": nn.functional.silu,
    "gelu": nn.functional.gelu,
}


def activate(activation: Activation, y: Tensor) -> Tensor:
    """Return what PyTorch makes of y."""
    if isinstance(activation, tuple):
        return ACTIVATIONS[activation[0]](y, activation[1])
    return ACTIVATIONS[activation](y)


def number_of(activation: Activation) -> int | None:
    """Return the number of an activation in compiled code, if it has one."""
    return flat_calls.number_of(*(activation if isinstance(activation, tuple) else (activation,)))


# Values from which one operator is faster than one after the other. PyTorch's autograd calls it by Python, which costs
# 30 us, forward and backward together: of 16,384 values it takes 1.04 times as long, of 131,072 0.93, of a million 0.75
# (relu). Of silu and the like the way back computes the exponential twice, PyTorch's own once: half a million values
# take 1.15 times as long, two million 0.85 to 0.94. After an addition it is computed once: a quarter of a million
# values take 0.77 to 0.96, a million 0.67 to 0.72.
FUSED_FROM = 1 << 15
SMOOTH_FROM = 1 << 20
SMOOTH = "tanh", "sigmoid", "silu", "gelu"


def takes(
    x: Tensor, running_mean: Any, running_var: Any, weight: Any, bias: Any, training: bool, momentum: float, eps: float,
    activation: Activation, residual: Any,
) -> bool:  # fmt: skip
    """Return whether a call is one operator's; a residual is a tensor like x."""
    return (
        x.numel() >= (SMOOTH_FROM if activation in SMOOTH and residual is None else FUSED_FROM)
        and number_of(activation) is not None
        and not torch.compiler.is_compiling()
        and not is_traced()
        and all(p is None or p.is_contiguous() for p in (weight, bias, running_mean, running_var))
        and is_ours(x, running_mean, running_var, weight, bias, training, momentum, eps)
        and is_native(x, weight, running_mean)
    )


class BatchNormActFunction(torch.autograd.Function):
    """``activation(batch_norm(x) + residual)``."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, running_mean: Any, running_var: Any, weight: Any, bias: Any, training: bool,
        momentum: float, eps: float, activation: Activation, residual: Any,
    ) -> Any:  # fmt: skip
        """Return y."""
        y, mean, invstd = torch.ops.fastbn.batch_norm_act.default(
            x, weight, bias, running_mean, running_var, training, momentum, eps, residual, number_of(activation)
        )
        statistics = (mean, invstd) if training else (running_mean, running_var)
        ctx.save_for_backward(x, weight, bias, *statistics, residual)
        ctx.options = training, eps, activation
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        """Return the gradients by the arguments."""
        x, weight, bias, first, second, residual = ctx.saved_tensors
        training, eps, activation = ctx.options
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled():  # derivatives of these: what PyTorch differentiates
            return _composed(ctx, dy)
        statistics = (None, None, first, second) if training else (first, second, None, None)
        given = dy, x, weight, *statistics, training, eps, [needed[0], needed[3], needed[4]]
        added = None if activation is None else residual  # what comes back to it is dy otherwise
        backward = torch.ops.fastbn.batch_norm_act_backward.default
        dx, dweight, dbias, dresidual = backward(*given, bias, number_of(activation), added)
        back = (dy if added is None else dresidual) if needed[9] else None
        return dx, None, None, dweight, dbias, None, None, None, None, back


def _composed(ctx: Any, dy: Tensor) -> Any:
    """Return the gradients as functions of the arguments, by PyTorch's own operators."""
    x, weight, bias, first, second, residual = ctx.saved_tensors
    training, eps, activation = ctx.options
    statistics = (None, None) if training else (first, second)
    y = nn.functional.batch_norm(x, *statistics, weight, bias, training, 0.0, eps)
    y = activate(activation, y if residual is None else y + residual)
    leaves = {at: leaf for at, leaf in ((0, x), (3, weight), (4, bias), (9, residual)) if ctx.needs_input_grad[at]}
    grads = dict(zip(leaves, torch.autograd.grad(y, tuple(leaves.values()), dy, create_graph=True), strict=True))
    return tuple(grads.get(at) for at in range(10))
