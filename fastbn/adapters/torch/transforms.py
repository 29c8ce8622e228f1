"""fastbn under the transforms of `torch.func`: grad, vjp, jvp, vmap, and any of them over others.

Four functions of tensors, each linear in what stands first, and each with the derivatives that the next ones are:

    Forward(x, weight, bias)                  y, and the rows that it leaves (`saved`), which no gradient flows through
    Backward(dy; x, weight)                   the gradients of sum(y * dy)
    Tangent(tx, tweight, tbias; x, weight)    the derivative of y in a direction
    DoubleBackward(ddx, ddweight, ddbias; dy, x, weight)      the gradients of sum(Tangent * dy) by dy, x and weight

The matrix of second derivatives of sum(y * dy) is symmetric, so DoubleBackward is also what the derivative of Backward
in a direction consists of. What is beyond second derivatives is PyTorch's, of formulas.

Under `vmap` the elements of the batch are more channels, whose statistics are their own: (B, N, C, ...) becomes
(N, B C, ...), in one call. With running statistics and nothing but x in the batch they are more samples.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

import fastbn
from fastbn.adapters.torch import formulas
from fastbn.adapters.torch.function import PARAMETERS, array, forward, like, optional, tensor

# What an argument or a result is, which says where channels are: data (N, C, ...), a parameter (C,), saved rows.
DATA, PARAMETER, SAVED = range(3)
CHANNELS = {DATA: 1, PARAMETER: 0, SAVED: 1}

NOT_BATCHED = (
    "Batch norm got a batched tensor as input while the running_mean or running_var, which will be updated in place, "
    "were not batched.\nIf you are using a module and do not need eval mode, please set `track_running_stats` to be "
    "False."
)


def _folded(value: Any, kind: int, dim: int | None, size: int) -> Any:
    """Make the elements of a batch channels; what is not batched is the same for all of them."""
    if value is None:
        return None
    at = CHANNELS[kind]
    if dim is None:
        shape = list(value.shape)
        return value.unsqueeze(at).expand(*shape[:at], size, *shape[at:]).flatten(at, at + 1)
    return value.movedim(dim, at).flatten(at, at + 1)


def _apart(results: tuple[Tensor, ...], kinds: tuple[int, ...], size: int) -> tuple[Any, Any]:
    """Make a batch of channels again; return it with the axes that its elements lie along."""
    at = tuple(CHANNELS[kind] for kind in kinds)
    return tuple(r.unflatten(i, (size, -1)) for r, i in zip(results, at, strict=True)), at


def _mapped(function: Any, kinds: tuple[int, ...], out: tuple[int, ...], size: int, dims: Any, given: Any) -> Any:
    """Do one call for a whole batch; all tensors come first."""
    count = len(kinds)
    folded = [_folded(v, kind, dim, size) for v, kind, dim in zip(given[:count], kinds, dims[:count], strict=True)]
    results = function.apply(*folded, *given[count:])
    return _apart(results if isinstance(results, tuple) else (results,), out, size)


def _context(x: Tensor, saved: Tensor, options: formulas.Options) -> fastbn.Context:
    """Return the context of a forward pass."""
    weight, bias = (PARAMETERS[dtype] for dtype in (options.weight, options.bias))
    count = x.numel() // x.shape[1]
    return fastbn.Context(array(x), 1, count, saved.contiguous().numpy(), weight, bias, options.frozen)


def _primal(value: Any) -> Any:
    """Return a tensor without what forward mode has it carry."""
    return forward_ad.unpack_dual(value, level=0).primal if isinstance(value, Tensor) else value


def _forward_mode(jvp: Callable[..., Any]) -> Callable[..., Any]:
    """Let a function's `jvp` have derivatives itself; it gets the saved tensors before the tangents.

    PyTorch 2.13 switches forward mode off around it, for all transforms that are at work, so that a transform around
    this one would find that nothing depends on anything: a second derivative came out as 0. So it is on again here, and
    what this transform itself would go on with is taken off the tensors.
    """

    @functools.wraps(jvp)
    def called(ctx: Any, *tangents: Any) -> Any:
        with forward_ad._set_fwd_grad_enabled(True):
            return jvp(ctx, tuple(map(_primal, ctx.saved_tensors)), *map(_primal, tangents))

    return called


class Forward(torch.autograd.Function):
    """Batch normalization, with the arguments of `torch.nn.functional.batch_norm`."""

    @staticmethod
    def forward(x: Tensor, mean: Any, var: Any, weight: Any, bias: Any, training: bool, *values: float) -> Any:
        """Return y and the saved rows; in training, move the running statistics in place."""
        y, context = forward(x, mean, var, weight, bias, training, *values)
        return y, torch.from_numpy(context.saved)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep what the derivatives take."""
        x, _, _, weight, bias, training, _, eps = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(x, weight, output[1])
        ctx.save_for_forward(x, weight, output[1])
        dtypes = (torch.float64 if x.dtype is torch.float64 else torch.float32 if p is None else p.dtype
                  for p in (weight, bias))  # fmt: skip
        ctx.options = formulas.Options(not training, eps, *dtypes)
        ctx.present = weight is not None, bias is not None

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _: Any) -> Any:
        """Return the gradients by the arguments."""
        dx, dweight, dbias = Backward.apply(dy, *ctx.saved_tensors, ctx.options)
        has_weight, has_bias = ctx.present
        return dx, None, None, dweight if has_weight else None, dbias if has_bias else None, None, None, None

    @staticmethod
    @_forward_mode
    def jvp(ctx: Any, saved: Any, tx: Any, _mean: Any, _var: Any, tweight: Any, tbias: Any, *_: Any) -> Any:
        """Return the derivative of y in the direction of the arguments'."""
        return Tangent.apply(tx, tweight, tbias, *saved, ctx.options), None

    @staticmethod
    def vmap(info: Any, in_dims: Any, x: Tensor, mean: Any, var: Any, weight: Any, bias: Any, *values: Any) -> Any:
        """Normalise a batch in one call."""
        size, training = info.batch_size, values[0]
        x_dim, *dims = in_dims[:5]
        if not training and all(dim is None for dim in dims):
            y, saved = Forward.apply(x.movedim(x_dim, 0).flatten(0, 1), mean, var, weight, bias, *values)
            return (y.unflatten(0, (size, -1)), saved), (0, None)
        moved, written = (mean, var), []
        if training and mean is not None:
            if dims[0] is None and dims[1] is None and x_dim is None:
                Forward.apply(x, mean, var, None, None, *values)  # once, for all that is alike
                moved = None, None
            elif dims[0] is None or dims[1] is None:
                raise RuntimeError(NOT_BATCHED)
            else:
                written = [
                    (s.movedim(dim, 0), s.movedim(dim, 0).flatten()) for s, dim in zip(moved, dims, strict=False)
                ]
                moved = written[0][1], written[1][1]
                dims[:2] = None, None
        elif mean is not None:
            moved = _folded(mean, PARAMETER, dims[0], size), _folded(var, PARAMETER, dims[1], size)
        parameters = (_folded(p, PARAMETER, dim, size) for p, dim in ((weight, dims[2]), (bias, dims[3])))
        results = Forward.apply(_folded(x, DATA, x_dim, size), *moved, *parameters, *values)
        for place, flat in written:
            if not place.is_contiguous():  # flat is a copy then
                place.copy_(flat.unflatten(0, (size, -1)))
        return _apart(results, (DATA, SAVED), size)


class Backward(torch.autograd.Function):
    """The gradients of sum(y * dy) by x, weight and bias."""

    @staticmethod
    def forward(dy: Tensor, x: Tensor, weight: Any, saved: Tensor, options: formulas.Options) -> Any:
        """Return the gradients, of a weight and a bias of one where there are none."""
        dx = torch.empty_like(x)
        grads = fastbn.batch_norm_backward(array(dy), _context(x, saved, options), out=array(dx))
        return dx, tensor(grads.dweight), tensor(grads.dbias)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep what the derivatives take."""
        ctx.save_for_backward(*inputs[:4])
        ctx.save_for_forward(*inputs[:4])
        ctx.options = inputs[4]

    @staticmethod
    def backward(ctx: Any, ddx: Tensor, ddweight: Tensor, ddbias: Tensor) -> Any:
        """Return the gradients by dy, x and weight."""
        dy, x, weight, saved = ctx.saved_tensors
        ddy, dx, dweight = DoubleBackward.apply(ddx, ddweight, ddbias, dy, x, weight, saved, ctx.options)
        return ddy, dx, None if weight is None else dweight, None, None

    @staticmethod
    @_forward_mode
    def jvp(ctx: Any, given: Any, tdy: Any, tx: Any, tweight: Any, *_: Any) -> Any:
        """Return the derivatives of the gradients in a direction: it is linear in dy, and symmetric in the rest."""
        dy, x, weight, saved = given
        found = Backward.apply(torch.zeros_like(dy) if tdy is None else tdy, x, weight, saved, ctx.options)
        if tx is None and tweight is None:
            return found
        _, dx, dweight = DoubleBackward.apply(tx, tweight, None, dy, x, weight, saved, ctx.options)
        return found[0] + dx, found[1] + dweight, found[2]

    @staticmethod
    def vmap(info: Any, in_dims: Any, *given: Any) -> Any:
        """Go back through a batch in one call."""
        kinds, out = (DATA, DATA, PARAMETER, SAVED), (DATA, PARAMETER, PARAMETER)
        return _mapped(Backward, kinds, out, info.batch_size, in_dims, given)


class Tangent(torch.autograd.Function):
    """The derivative of y in a direction; None is no direction."""

    @staticmethod
    def forward(
        tx: Any, tweight: Any, tbias: Any, x: Tensor, weight: Any, saved: Tensor, options: formulas.Options
    ) -> Any:
        """Return it."""
        given = optional(tx), optional(tweight), optional(tbias)
        return like(fastbn.batch_norm_jvp(*given, _context(x, saved, options)), x)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep what the derivatives take."""
        ctx.save_for_backward(*inputs[:6])
        ctx.save_for_forward(*inputs[:6])
        ctx.options = inputs[6]

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        """Return the gradients by the direction, x and weight."""
        tx, tweight, tbias, x, weight, saved = ctx.saved_tensors
        found = Backward.apply(g, x, weight, saved, ctx.options)
        _, dx, dweight = DoubleBackward.apply(tx, tweight, tbias, g, x, weight, saved, ctx.options)
        given = tx, tweight, tbias, weight
        wanted = (None if t is None else r for t, r in zip(given, (*found, dweight), strict=True))
        by_tx, by_tweight, by_tbias, by_weight = wanted
        return by_tx, by_tweight, by_tbias, dx, by_weight, None, None

    @staticmethod
    @_forward_mode
    def jvp(ctx: Any, given: Any, *tangents: Any) -> Any:
        """Return the second derivative of y, by PyTorch's operations."""
        return formulas.derivative(formulas.tangent, given, tangents[:5], ctx.options)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *given: Any) -> Any:
        """Take the directions of a batch in one call."""
        kinds = PARAMETER, PARAMETER, DATA, PARAMETER, SAVED
        results, dims = _mapped(Tangent, (DATA, *kinds), (DATA,), info.batch_size, in_dims, given)
        return results[0], dims[0]


class DoubleBackward(torch.autograd.Function):
    """The gradients of sum(Tangent(ddx, ddweight, ddbias) * dy) by dy, x and weight."""

    @staticmethod
    def forward(
        ddx: Any, ddweight: Any, ddbias: Any, dy: Tensor, x: Tensor, weight: Any, saved: Tensor,
        options: formulas.Options,
    ) -> Any:  # fmt: skip
        """Return them, that by a weight of one where there is none."""
        given = optional(ddx), optional(ddweight), optional(ddbias), array(dy)
        ddy, dx, dweight = fastbn.batch_norm_double_backward(*given, _context(x, saved, options))
        return like(ddy, x), like(dx, x), tensor(dweight)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        """Keep what the derivatives take."""
        ctx.save_for_backward(*inputs[:7])
        ctx.save_for_forward(*inputs[:7])
        ctx.options = inputs[7]

    @staticmethod
    def backward(ctx: Any, *cotangents: Any) -> Any:
        """Return third derivatives, by PyTorch's operations."""
        return *formulas.gradient(formulas.double_backward, ctx.saved_tensors, cotangents, ctx.options), None, None

    @staticmethod
    @_forward_mode
    def jvp(ctx: Any, given: Any, *tangents: Any) -> Any:
        """Return third derivatives, by PyTorch's operations."""
        return formulas.derivative(formulas.double_backward, given, tangents[:6], ctx.options)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *given: Any) -> Any:
        """Go back twice through a batch in one call."""
        kinds = DATA, PARAMETER, PARAMETER, DATA, DATA, PARAMETER, SAVED
        return _mapped(DoubleBackward, kinds, (DATA, DATA, PARAMETER), info.batch_size, in_dims, given)


def batch_norm(*given: Any) -> Tensor:
    """Return what `torch.nn.functional.batch_norm` returns of a call that fastbn takes."""
    y: Tensor = Forward.apply(*given)[0]
    return y
