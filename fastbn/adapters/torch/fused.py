"""Batch norm and what follows it as one operator of fastbn's, with the derivatives of PyTorch's autograd."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from fastbn.adapters.torch.functional import is_native, is_ours, is_traced
from fastbn_kernels.cpu import flat_calls

# What may follow, by its name: its number in compiled code, and what PyTorch calls it.
NUMBERS = {None if a is None else a.name: number for number, a in enumerate(flat_calls.ACTIVATIONS)}
ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    None: lambda y: y,
    "relu": torch.relu,
    "relu6": nn.functional.relu6,
    "silu": nn.functional.silu,
}

# Values from which one operator is faster than one after the other. PyTorch's autograd calls it by Python, which costs
# 30 us, forward and backward together: of 16,384 values it takes 1.04 times as long, of 131,072 0.93, of a million 0.75
# (relu). Of silu the way back computes the exponential twice, PyTorch's own once: half a million values take 1.15 times
# as long, two million 0.85 to 0.94.
FUSED_FROM = 1 << 15
SILU_FROM = 1 << 20


def takes(
    x: Tensor, running_mean: Any, running_var: Any, weight: Any, bias: Any, training: bool, momentum: float, eps: float,
    activation: str | None, residual: Any,
) -> bool:  # fmt: skip
    """Return whether a call is one operator's; a residual is a tensor like x."""
    return (
        x.numel() >= (SILU_FROM if activation == "silu" else FUSED_FROM)
        and (residual is None or activation in (None, "relu"))
        and not torch.compiler.is_compiling()
        and not is_traced()
        and all(p is None or p.is_contiguous() for p in (weight, bias, running_mean, running_var))
        and is_ours(x, running_mean, running_var, weight, bias, training, momentum, eps)
        and is_native(x, weight, running_mean)
    )


class BatchNormActFunction(torch.autograd.Function):
    """``activation(batch_norm(x) + residual)``; a residual goes with relu or with nothing."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, running_mean: Any, running_var: Any, weight: Any, bias: Any, training: bool,
        momentum: float, eps: float, activation: str | None, residual: Any,
    ) -> Any:  # fmt: skip
        """Return y."""
        y, mean, invstd = torch.ops.fastbn.batch_norm_act.default(
            x, weight, bias, running_mean, running_var, training, momentum, eps, residual, NUMBERS[activation]
        )
        statistics = (mean, invstd) if training else (running_mean, running_var)
        masks = y if residual is not None and activation is not None else None
        ctx.save_for_backward(x, weight, bias, *statistics, masks, residual)
        ctx.options = training, eps, activation
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        """Return the gradients by the arguments."""
        x, weight, bias, first, second, masks, _ = ctx.saved_tensors
        training, eps, activation = ctx.options
        needed = ctx.needs_input_grad
        if torch.is_grad_enabled():  # derivatives of these: what PyTorch differentiates
            return _composed(ctx, dy)
        if masks is not None:
            dy = torch.ops.aten.threshold_backward.default(dy, masks, 0)
        statistics = (None, None, first, second) if training else (first, second, None, None)
        given = dy, x, weight, *statistics, training, eps, [needed[0], needed[3], needed[4]]
        number = NUMBERS[activation] if masks is None else 0
        dx, dweight, dbias = torch.ops.fastbn.batch_norm_act_backward.default(*given, bias, number)
        return dx, None, None, dweight, dbias, None, None, None, None, dy if needed[9] else None


def _composed(ctx: Any, dy: Tensor) -> Any:
    """Return the gradients as functions of the arguments, by PyTorch's own operators."""
    x, weight, bias, first, second, _, residual = ctx.saved_tensors
    training, eps, activation = ctx.options
    statistics = (None, None) if training else (first, second)
    y = nn.functional.batch_norm(x, *statistics, weight, bias, training, 0.0, eps)
    y = ACTIVATIONS[activation](y if residual is None else y + residual)
    leaves = {at: leaf for at, leaf in ((0, x), (3, weight), (4, bias), (9, residual)) if ctx.needs_input_grad[at]}
    grads = dict(zip(leaves, torch.autograd.grad(y, tuple(leaves.values()), dy, create_graph=True), strict=True))
    return tuple(grads.get(at) for at in range(10))
