"""fastbn's functions for tensors, called by Python: an autograd function, and operators for `torch.compile`.

The function is for calls that are not PyTorch's own operator's (`native`): of releases before 2.13, on a GPU, in
forward mode, with parameters of another dtype. A tensor on the CPU is seen as an array of its own memory, one on a GPU
is passed as it is. The operators are opaque to the compiler, so that a compiled model has no graph break.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import forward_ad

import fastbn
from fastbn_kernels.saved import ROWS

try:  # NumPy's bfloat16
    from ml_dtypes import bfloat16
except ImportError:  # pragma: no cover
    BFLOAT16 = None
else:
    BFLOAT16 = np.dtype(bfloat16)

DATA = {torch.float32, torch.float64, torch.float16} | (set() if BFLOAT16 is None else {torch.bfloat16})
PARAMETERS = {None: None, torch.float32: np.dtype(np.float32), torch.float64: np.dtype(np.float64)}


def array(tensor: Tensor) -> Any:
    """Return a tensor as fastbn takes it, without a copy."""
    tensor = tensor.detach()
    if tensor.is_cuda:
        return tensor
    if tensor.dtype is torch.bfloat16:  # which PyTorch does not hand to NumPy
        return tensor.view(torch.int16).numpy().view(BFLOAT16)
    return tensor.numpy()


def optional(tensor: Tensor | None) -> Any:
    """Return the array of a tensor, or None."""
    return None if tensor is None else array(tensor)


def tensor(result: Any) -> Any:
    """Return a gradient of a parameter as a tensor; None stays None."""
    return torch.from_numpy(result) if isinstance(result, np.ndarray) else result


def forward(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    training: bool, momentum: float, eps: float,
) -> tuple[Tensor, fastbn.Context]:  # fmt: skip
    """Normalise x and move the running statistics; return y and the context of the backward pass."""
    y = torch.empty_like(x)
    _, context = fastbn.batch_norm(
        array(x),
        optional(weight),
        optional(bias),
        running_mean=optional(running_mean),
        running_var=optional(running_var),
        training=training,
        momentum=momentum,
        eps=eps,
        out=array(y),
    )
    if training and running_mean is not None and running_var is not None:
        torch.autograd.graph.increment_version((running_mean, running_var))
    return y, context


def backward(dy: Tensor, x: Tensor, context: fastbn.Context) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the gradients by x, weight and bias."""
    dx = torch.empty_like(x)
    grads = fastbn.batch_norm_backward(array(dy), context, out=array(dx))
    return dx, tensor(grads.dweight), tensor(grads.dbias)


def context_of(x: Tensor, saved: fastbn.Context) -> fastbn.Context:
    """Return a context with x as autograd kept it.

    A context refers to x. One that does would keep x alive whatever autograd does with it, such as checkpoints, or
    hooks that move what is saved elsewhere; so x is taken out of the one that is kept.
    """
    if x.is_cuda:
        return saved
    return fastbn.Context(
        array(x), saved.axis, saved.count, saved.saved, saved.weight_dtype, saved.bias_dtype, saved.frozen,
        precision=saved.precision,
    )  # fmt: skip


class BatchNormFunction(torch.autograd.Function):
    """Batch normalization in eager mode, with the arguments of `torch.nn.functional.batch_norm`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, running_mean: Any, running_var: Any, weight: Any, bias: Any, *values: Any) -> Any:
        """Return y."""
        y, context = forward(x, running_mean, running_var, weight, bias, *values)
        if not x.is_cuda:
            context.x = None
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)
        ctx.context = context
        ctx.eps = values[-1]
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Any:
        """Return the gradients by the arguments."""
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled() or forward_ad._current_level >= 0:  # create_graph=True; forward over reverse
            dx, dweight, dbias = BackwardFunction.apply(dy, x, weight, ctx.context, ctx.eps)
        else:
            dx, dweight, dbias = backward(dy, x, context_of(x, ctx.context))
        return dx, None, None, dweight, dbias, None, None, None

    @staticmethod
    def jvp(ctx: Any, dx: Any, dmean: Any, dvar: Any, dweight: Any, dbias: Any, *values: Any) -> Any:
        """Return the derivative of y in the direction of the arguments'."""
        x, _ = ctx.saved_tensors
        context = context_of(x, ctx.context)
        y = fastbn.batch_norm_jvp(optional(dx), optional(dweight), optional(dbias), context)
        return like(y, x)


class BackwardFunction(torch.autograd.Function):
    """The backward pass, as a function that has derivatives itself."""

    @staticmethod
    def forward(ctx: Any, dy: Tensor, x: Tensor, weight: Any, saved: fastbn.Context, eps: float) -> Any:
        """Return the gradients by x, weight and bias."""
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(dy, x, weight)
        ctx.context, ctx.eps = saved, eps
        return backward(dy, x, context_of(x, saved))

    @staticmethod
    def backward(ctx: Any, ddx: Any, ddweight: Any, ddbias: Any) -> Any:
        """Return the gradients by dy, x and weight."""
        given = ddx, ddweight, ddbias
        dy, x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # for third derivatives: the formulas, by PyTorch's own operations
            return *formulas_backward(given, dy, x, weight, ctx.context, ctx.eps), None, None
        context = context_of(x, ctx.context)
        ddy, dx, dweight = fastbn.batch_norm_double_backward(
            optional(ddx), optional(ddweight), optional(ddbias), array(dy), context
        )
        return like(ddy, x), like(dx, x), tensor(dweight), None, None


def formulas_backward(
    given: tuple[Tensor | None, ...], dy: Tensor, x: Tensor, weight: Tensor | None, saved: fastbn.Context, eps: float
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return what the backward pass of the backward pass returns, as PyTorch differentiates the formulas."""
    shape = [1, -1] + [1] * (x.ndim - 2)
    along = [i for i in range(x.ndim) if i != 1]
    wide = torch.promote_types(x.dtype, torch.float32)

    def gradients(dy: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        g, values = dy.to(wide), x.to(wide)
        if saved.frozen:
            mean, invstd = (torch.from_numpy(a.copy()).to(values).reshape(shape) for a in (saved.mean, saved.invstd))
        else:
            var, mean = torch.var_mean(values, along, correction=0, keepdim=True)
            invstd = (var + eps).rsqrt()
        xhat = (values - mean) * invstd
        dx = g if saved.frozen else g - g.mean(along, keepdim=True) - xhat * (g * xhat).mean(along, keepdim=True)
        dx = dx * invstd * weight.reshape(shape)
        return dx.to(x.dtype), (g * xhat).sum(along).to(weight.dtype), g.sum(along).to(weight.dtype)

    w = torch.ones(x.shape[1], dtype=wide, device=x.device) if weight is None else weight
    primal, pullback = torch.func.vjp(gradients, dy, x, w)
    cotangents = tuple(torch.zeros_like(p) if g is None else g for g, p in zip(given, primal, strict=True))
    ddy, dx, dweight = pullback(cotangents)
    return ddy, dx, None if weight is None else dweight


def like(result: Any, x: Tensor) -> Any:
    """Return a result of the dtype of x as a tensor."""
    if isinstance(result, np.ndarray) and x.dtype is torch.bfloat16:
        return torch.from_numpy(result.view(np.int16)).view(torch.bfloat16)
    return tensor(result)


# An operator with an autograd formula may not change its arguments: it returns what the running statistics become.
@torch.library.custom_op("fastbn::batch_norm", mutates_args=())
def operator(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    training: bool, momentum: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """Return y, what the context saves, and the next running statistics; those are empty if nothing moves them."""
    mean, var = (None, None) if running_mean is None or running_var is None else (running_mean, running_var)
    if training and mean is not None and var is not None:
        mean, var = mean.clone(), var.clone()
    y, context = forward(x, mean, var, weight, bias, training, momentum, eps)
    if not training or mean is None or var is None:
        mean, var = x.new_empty(0), x.new_empty(0)
    return y, torch.from_numpy(context.saved), mean, var


@operator.register_fake
def _(x: Any, running_mean: Any, running_var: Any, weight: Any, bias: Any, training: Any, *values: Any) -> Any:
    moved = training and running_mean is not None
    mean, var = (running_mean, running_var) if moved else (x.new_empty(0), x.new_empty(0))
    saved = x.new_empty((ROWS, x.shape[1]), dtype=torch.float64)
    return torch.empty_like(x), saved, torch.empty_like(mean), torch.empty_like(var)


@torch.library.custom_op("fastbn::batch_norm_backward", mutates_args=())
def backward_operator(
    dy: Tensor, x: Tensor, saved: Tensor, dtype: torch.dtype, frozen: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients by x and by a weight and a bias of a dtype."""
    parameter = PARAMETERS[dtype]
    context = fastbn.Context(array(x), 1, x.numel() // x.shape[1], saved.numpy(), parameter, parameter, frozen)
    return backward(dy, x, context)


@backward_operator.register_fake
def _(dy: Any, x: Any, saved: Any, dtype: Any, frozen: Any) -> Any:
    dweight, dbias = (x.new_empty(x.shape[1], dtype=dtype) for _ in range(2))
    return torch.empty_like(x), dweight, dbias


def _setup(ctx: Any, inputs: Any, output: Any) -> None:
    x, _, _, weight, bias, training, *_ = inputs
    ctx.save_for_backward(x, output[1])
    given = [p.dtype for p in (weight, bias) if p is not None]
    ctx.dtype = given[0] if given else torch.float32
    ctx.present = weight is not None, bias is not None
    ctx.frozen = not training


def _gradients(ctx: Any, dy: Tensor, *_: Any) -> Any:
    x, saved = ctx.saved_tensors
    dx, dweight, dbias = backward_operator(dy, x, saved, ctx.dtype, ctx.frozen)
    has_weight, has_bias = ctx.present
    return dx, None, None, dweight if has_weight else None, dbias if has_bias else None, None, None, None


operator.register_autograd(_gradients, setup_context=_setup)


def compiled(
    x: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None, bias: Tensor | None,
    training: bool, momentum: float, eps: float,
) -> Tensor:  # fmt: skip
    """Return y, computed by the operator: what `torch.compile` takes into its graph."""
    y, _, mean, var = operator(x, running_mean, running_var, weight, bias, training, momentum, eps)
    if training and running_mean is not None and running_var is not None:
        running_mean.copy_(mean.detach())
        running_var.copy_(var.detach())
    return y
