"""Plain batch normalization as primitives of autograd.

Write y for the forward pass, J for its derivative by (x, weight, bias). Four primitives, a call of fastbn each:

1. `_forward`: y
2. `_tangent`: J t
3. `_backward`: J' dy, for all inputs at once
4. `_double_backward`: the gradient by (dy, x, weight) of <dd, J' dy>, in which the Hessian of <dy, y> times dd is, too

Gradients of 1 are 3, of 2 and of 3 are 4; tangents of 1 are 2, of 3 are 3 and 4. What is left, tangents of 2 and every
derivative of 4, autograd takes of the formula written in its own NumPy, in float64: slow, and for any order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import autograd.numpy as anp
import numpy as np
from autograd.builtins import tuple as traced_tuple
from autograd.core import make_jvp, make_vjp
from autograd.extend import defjvp, defjvp_argnums, defvjp, defvjp_argnums, primitive, vspace

import fastbn

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
Argnums: TypeAlias = tuple[int, ...]
Vjp: TypeAlias = Callable[[Any], Any]


class _Call:
    """One call of `batch_norm`: its options, and what the forward pass leaves for the derivatives."""

    def __init__(self, inputs: tuple[int, ...], options: dict[str, Any]) -> None:
        self.inputs = inputs  # which of x, weight and bias there are, by position
        self.options = options
        self.ctx: Any = None
        self.dtypes: tuple[Any, ...] = ()

    def run(self, x: Any, weight: Any, bias: Any) -> Array:
        """Go forward."""
        y, self.ctx = fastbn.batch_norm(x, weight, bias, **self.options)
        self.dtypes = y.dtype, self.ctx.weight_dtype, self.ctx.bias_dtype
        return y

    def cast(self, value: Any, i: int) -> Any:
        """Return what belongs to an input in its dtype: on its way through other functions it may have been widened."""
        return None if value is None else np.asarray(value, self.dtypes[i])

    def pack(self, *values: Any) -> Any:
        """Return the values of the inputs there are, zeros for None, as a tuple that autograd can trace."""
        shapes = self.ctx.x.shape, self.ctx.channels, self.ctx.channels
        return traced_tuple(
            [np.zeros(shapes[i], self.dtypes[i]) if values[i] is None else values[i] for i in self.inputs]
        )

    def unpack(self, packed: Any) -> list[Any]:
        """Return a value, or None, for each of x, weight and bias."""
        return [packed[self.inputs.index(i)] if i in self.inputs else None for i in range(3)]


def batch_norm(x: Any, weight: Any, bias: Any, options: dict[str, Any]) -> Any:
    """Return y of a call with these other arguments of `fastbn.batch_norm`."""
    return _forward(x, weight, bias, _Call(present(x, weight, bias), options))


def present(x: Any, *others: Any) -> Argnums:
    """Return which of the inputs there are, by position."""
    return 0, *(i for i, value in enumerate(others, 1) if value is not None)


def _run_forward(x: Any, weight: Any, bias: Any, call: _Call) -> Array:
    return call.run(x, weight, bias)


def _run_tangent(tx: Any, tweight: Any, tbias: Any, x: Any, weight: Any, call: _Call) -> Array:
    ty: Array = fastbn.batch_norm_jvp(call.cast(tx, 0), call.cast(tweight, 1), call.cast(tbias, 2), call.ctx)
    return ty


def _run_backward(dy: Any, x: Any, weight: Any, call: _Call) -> tuple[Array, ...]:
    gradients = fastbn.batch_norm_backward(call.cast(dy, 0), call.ctx)
    return tuple(g for g in (gradients.dx, gradients.dweight, gradients.dbias) if g is not None)


def _run_double_backward(dd: Any, dy: Any, x: Any, weight: Any, call: _Call) -> tuple[Array, ...]:
    ddx, ddweight, ddbias = (call.cast(value, i) for i, value in enumerate(call.unpack(dd)))
    gradients = fastbn.batch_norm_double_backward(ddx, ddweight, ddbias, call.cast(dy, 0), call.ctx)
    return tuple(g for g in gradients if g is not None)  # by dy, x and, where there is one, the weight


_forward, _tangent = primitive(_run_forward), primitive(_run_tangent)
_backward, _double_backward = primitive(_run_backward), primitive(_run_double_backward)


# The rules. A `vjp` gets the arguments that are traced, by position, and returns what maps the gradient by the result
# to the gradients by these; a `jvp` maps their tangents to the result's.


def _forward_vjp(argnums: Argnums, y: Any, args: Any, kwargs: Any) -> Vjp:
    x, weight, _, call = args

    def vjp(dy: Any) -> list[Any]:
        gradients = call.unpack(_backward(dy, x, weight, call))
        return [gradients[i] for i in argnums]

    return vjp


def _forward_jvp(argnums: Argnums, tangents: Any, y: Any, args: Any, kwargs: Any) -> Any:
    x, weight, _, call = args
    given = dict(zip(argnums, tangents, strict=True))
    return _tangent(given.get(0), given.get(1), given.get(2), x, weight, call)


def _tangent_vjp(argnums: Argnums, ty: Any, args: Any, kwargs: Any) -> Vjp:
    *tangents, x, weight, call = args

    def vjp(u: Any) -> list[Any]:
        by: list[Any] = [None] * 5
        if min(argnums) < 3:
            by[:3] = call.unpack(_backward(u, x, weight, call))
        if max(argnums) >= 3:
            second = _double_backward(call.pack(*tangents), u, x, weight, call)
            by[3:] = [second[i] for i in range(1, len(second))]
        return [by[i] for i in argnums]

    return vjp


def _backward_vjp(argnums: Argnums, gradients: Any, args: Any, kwargs: Any) -> Vjp:
    def vjp(dd: Any) -> list[Any]:
        second = _double_backward(dd, *args)
        return [second[i] for i in argnums]

    return vjp


def _backward_jvp(argnums: Argnums, tangents: Any, gradients: Any, args: Any, kwargs: Any) -> Any:
    _, x, weight, call = args
    given = dict(zip(argnums, tangents, strict=True))
    parts = []
    if 0 in given:
        parts.append(_backward(given[0], x, weight, call))
    if 1 in given or 2 in given:  # the Hessian of <dy, y>, which is symmetric, times the tangents
        second = _double_backward(call.pack(given.get(1), given.get(2), None), *args)
        parts.append(call.pack(second[1], second[2] if weight is not None else None, None))
    return parts[0] if len(parts) == 1 else vspace(gradients).add(*parts)


cast = primitive(lambda value, dtype: np.asarray(value, dtype))  # autograd's own astype has no forward mode
defvjp(cast, lambda ans, value, dtype: lambda g: cast(g, vspace(value).dtype))
defjvp(cast, lambda g, ans, value, dtype: cast(g, dtype))


def _formula(inputs: Any, call: _Call) -> Any:
    """Return y by the formula. The mean is taken off twice, so that large ones do not cost digits."""
    x, weight, bias = call.unpack(inputs)
    ctx, axis = call.ctx, call.ctx.axis
    others = tuple(i for i in range(x.ndim) if i != axis)
    column = tuple(x.shape[axis] if i == axis else 1 for i in range(x.ndim))
    xhat = cast(x, np.float64) - (ctx.mean + ctx.mean_lo).reshape(column)
    if ctx.frozen:
        xhat = xhat * ctx.invstd.reshape(column)
    else:
        xhat = xhat - anp.mean(xhat, others, keepdims=True)
        xhat = xhat / anp.sqrt(anp.mean(xhat**2, others, keepdims=True) + call.options["eps"])
    y = xhat if weight is None else xhat * anp.reshape(cast(weight, np.float64), column)
    y = y if bias is None else y + anp.reshape(cast(bias, np.float64), column)
    return cast(y, x.dtype)


def _formula_tangent(tx: Any, tweight: Any, tbias: Any, x: Any, weight: Any, call: _Call) -> Any:
    return make_jvp(lambda inputs: _formula(inputs, call), call.pack(x, weight, None))(call.pack(tx, tweight, tbias))[1]


def _formula_double_backward(dd: Any, dy: Any, x: Any, weight: Any, call: _Call) -> Any:
    def backward(point: Any) -> Any:
        inputs = call.pack(point[1], None if weight is None else point[2], None)
        return make_vjp(lambda inputs: _formula(inputs, call), inputs)[0](point[0])

    return make_vjp(backward, traced_tuple([dy, x] if weight is None else [dy, x, weight]))[0](dd)


def at(formula: Callable[..., Any], argnums: Argnums, args: Any) -> tuple[Callable[[Any], Any], Any]:
    """Return a formula as a function of some of its arguments, in a tuple, and these."""

    def function(point: Any) -> Any:
        given = dict(zip(argnums, point, strict=True))
        return formula(*(given.get(i, value) for i, value in enumerate(args)))

    return function, traced_tuple([args[i] for i in argnums])


def _tangent_jvp(argnums: Argnums, tangents: Any, ty: Any, args: Any, kwargs: Any) -> Any:
    return make_jvp(*at(_formula_tangent, argnums, args))(traced_tuple(tangents))[1]


def _double_backward_jvp(argnums: Argnums, tangents: Any, gradients: Any, args: Any, kwargs: Any) -> Any:
    return make_jvp(*at(_formula_double_backward, argnums, args))(traced_tuple(tangents))[1]


def _double_backward_vjp(argnums: Argnums, gradients: Any, args: Any, kwargs: Any) -> Vjp:
    return lambda ddd: make_vjp(*at(_formula_double_backward, argnums, args))[0](ddd)


defvjp_argnums(_forward, _forward_vjp)
defjvp_argnums(_forward, _forward_jvp)
defvjp_argnums(_tangent, _tangent_vjp)
defjvp_argnums(_tangent, _tangent_jvp)
defvjp_argnums(_backward, _backward_vjp)
defjvp_argnums(_backward, _backward_jvp)
defvjp_argnums(_double_backward, _double_backward_vjp)
defjvp_argnums(_double_backward, _double_backward_jvp)
