"""What goes beyond plain batch normalization: an activation, a residual, masks, ghost batches, renormalization.

y and the first gradients are one call of fastbn each. Tangents and further derivatives are those of `composed`, which
makes the same of plain batch norms and autograd's own functions: as right, and slower by what autograd takes for these.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import autograd.numpy as anp
import numpy as np
from autograd.builtins import tuple as traced_tuple
from autograd.core import make_jvp, make_vjp
from autograd.extend import defjvp_argnums, defvjp_argnums, primitive

import fastbn
from fastbn.adapters.autograd import plain
from fastbn.adapters.autograd.activations import activated
from fastbn.adapters.autograd.plain import Argnums, Vjp, at, cast
from fastbn_kernels.saved import D, R

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

NAMES = "x", "weight", "bias", "residual"
BEYOND = "activation", "mask", "ghost_batch_size", "renorm"


class _Call:
    """One call: its options, and what the forward pass leaves for the derivatives."""

    def __init__(self, inputs: Argnums, options: dict[str, Any]) -> None:
        self.inputs = inputs  # which of NAMES there are, by position
        self.options = options
        self.again = {name: value for name, value in options.items() if name not in BEYOND} | {"update_stats": False}
        self.ctx: Any = None
        self.dtype: Any = None

    def run(self, *inputs: Any) -> Array:
        """Go forward."""
        y, self.ctx = fastbn.batch_norm(**dict(zip(NAMES, inputs, strict=True)), **self.options)
        self.dtype = y.dtype
        for name in ("running_mean", "running_var"):
            # Further derivatives are through the running statistics of now; in training through none.
            given = self.options[name]
            self.again[name] = given.copy() if self.ctx.frozen else None
        return y

    def pack(self, *inputs: Any) -> Any:
        """Return the inputs that there are as a tuple that autograd can trace."""
        return traced_tuple([inputs[i] for i in self.inputs])

    def unpack(self, packed: Any) -> list[Any]:
        """Return a value, or None, for each of NAMES."""
        return [packed[self.inputs.index(i)] if i in self.inputs else None for i in range(len(NAMES))]


def batch_norm(x: Any, weight: Any, bias: Any, residual: Any, options: dict[str, Any]) -> Any:
    """Return y of a call with these other arguments of `fastbn.batch_norm`."""
    return _forward(x, weight, bias, residual, _Call(plain.present(x, weight, bias, residual), options))


def _run_forward(x: Any, weight: Any, bias: Any, residual: Any, call: _Call) -> Array:
    return call.run(x, weight, bias, residual)


def _run_backward(dy: Any, x: Any, weight: Any, bias: Any, residual: Any, call: _Call) -> tuple[Array, ...]:
    gradients = fastbn.batch_norm_backward(np.asarray(dy, call.dtype), call.ctx)
    found: list[Any] = [getattr(gradients, f"d{name}") for name in NAMES]
    return tuple(found[i] for i in call.inputs)


_forward, _backward = primitive(_run_forward), primitive(_run_backward)


def _forward_vjp(argnums: Argnums, y: Any, args: Any, kwargs: Any) -> Vjp:
    call = args[-1]

    def vjp(dy: Any) -> list[Any]:
        gradients = _backward(dy, *args)
        return [gradients[call.inputs.index(i)] for i in argnums]

    return vjp


# ---------------------------------------------------------------- the same, composed of what autograd knows


def composed(x: Any, weight: Any, bias: Any, residual: Any, call: _Call) -> Any:
    """Return y."""
    ctx = call.ctx
    beyond = ctx.beyond
    if ctx.batches > 1:
        parts = [_part(x[ctx.cut(g)], weight, bias, part, call.again) for g, part in enumerate(ctx.parts())]
        z = anp.concatenate(parts, ctx.batch_axis)
    else:
        z = _part(x, weight, bias, ctx, call.again)
    if residual is not None:
        residual = cast(residual, call.dtype)  # and so has its gradient, which some of autograd's functions widen
        z = z + (residual if ctx.mask is None else anp.where(ctx.mask, residual, 0 * z))
    if beyond.activation is not None:
        z = activated(z, *beyond.activation)
    return z if ctx.mask is None else anp.where(ctx.mask, z, 0 * z)


def _part(x: Any, weight: Any, bias: Any, ctx: fastbn.Context, options: dict[str, Any]) -> Any:
    """Return what was normalised of a batch with statistics of its own; of what a mask left out, anything finite."""
    order = [i for i in range(x.ndim) if i != ctx.axis] + [ctx.axis]
    rows, axis = x, ctx.axis
    if ctx.mask is not None:
        counted = np.transpose(ctx.mask, order).reshape(-1)
        if not counted.any():
            return np.zeros(x.shape, x.dtype)
        moved = anp.transpose(x, order)
        rows, axis = anp.reshape(moved, (-1, ctx.channels))[np.flatnonzero(counted)], 1
    w, b = (None, None) if ctx.renormalized else (weight, bias)
    z = plain.batch_norm(rows, w, b, options | {"axis": axis})
    if ctx.renormalized:
        column = tuple(-1 if i == axis else 1 for i in range(z.ndim))
        z = z * ctx.saved[R].astype(z.dtype).reshape(column) + ctx.saved[D].astype(z.dtype).reshape(column)
        z = z if weight is None else z * anp.reshape(cast(weight, z.dtype), column)
        z = z if bias is None else z + anp.reshape(cast(bias, z.dtype), column)
    if ctx.mask is not None:
        z = anp.reshape(z[np.maximum(np.cumsum(counted) - 1, 0)], moved.shape)
        z = anp.transpose(z, np.argsort(order))
    return z


def _composed_backward(dy: Any, x: Any, weight: Any, bias: Any, residual: Any, call: _Call) -> Any:
    inputs = x, weight, bias, residual

    def function(packed: Any) -> Any:
        x, weight, bias, residual = call.unpack(packed)
        return composed(x, weight, bias, residual, call)

    return make_vjp(function, call.pack(*inputs))[0](cast(dy, call.dtype))


def _forward_jvp(argnums: Argnums, tangents: Any, y: Any, args: Any, kwargs: Any) -> Any:
    return make_jvp(*at(composed, argnums, args))(traced_tuple(tangents))[1]


def _backward_jvp(argnums: Argnums, tangents: Any, gradients: Any, args: Any, kwargs: Any) -> Any:
    return make_jvp(*at(_composed_backward, argnums, args))(traced_tuple(tangents))[1]


def _backward_vjp(argnums: Argnums, gradients: Any, args: Any, kwargs: Any) -> Vjp:
    return lambda dd: make_vjp(*at(_composed_backward, argnums, args))[0](dd)


defvjp_argnums(_forward, _forward_vjp)
defjvp_argnums(_forward, _forward_jvp)
defvjp_argnums(_backward, _backward_vjp)
defjvp_argnums(_backward, _backward_jvp)
