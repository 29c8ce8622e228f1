"""The quick path of a call on a GPU: what was launched for the same kind of call before, with other addresses.

The full path (`fastbn.call` and `backend`) checks, lays out, plans and converts; all of that depends on types, shapes,
strides, dtypes, alignments and numbers alone. A call that it has gone through once is kept as a `Recipe` under exactly
these; the next one like it is checked for what they do not say, shared memory, and launched. Whatever is not as kept
takes the full path, which copes or says what is wrong.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastbn import arithmetic
from fastbn.backends.cuda.arrays import Library, own_stream
from fastbn.backends.cuda.context import DeviceContext
from fastbn.backends.cuda.device_call import DeviceCall
from fastbn.call import BackwardCall, ForwardCall
from fastbn.context import Gradients
from fastbn_kernels.saved import ROWS

# Kinds of calls that are kept; a network has some hundred.
MOST = 4096

ABSENT = (0, 0, None)  # of an array: address, bytes, everything else

# Where the addresses stand among a kernel's arguments: x, out, weight, bias, running_mean, running_var, saved forward;
# dy, x, dx, saved, dweight, dbias backward.
FORWARD = (0, 9, 2, 3, 4, 5, 1)
GIVEN = (0, 7, 2, 3, 4, 5, 1)  # with running statistics
BACKWARD = (0, 1, 4, 2, 5, 6)


class Recipe(NamedTuple):
    """A launch to be repeated."""

    launch: Any
    arguments: list[Any]
    places: tuple[int, ...]
    scalars: bool
    values: int
    channels: int
    dtypes: tuple[Any, Any]
    precision: str


_recipes: dict[Any, Recipe] = {}
_libraries: dict[type, Library] = {}


def forget() -> None:
    """Drop all recipes."""
    _recipes.clear()


def _described(library: Library, kind: type, *values: Any) -> list[tuple[int, int, Any]] | None:
    """Return address, bytes and everything else of arrays of one type, or None if one is not."""
    found = []
    for value in values:
        if value is None:
            found.append(ABSENT)
            continue
        if type(value) is not kind:
            return None
        description = library.describe(value)
        if description is None:
            return None
        found.append(description)
    return found


def _apart(a: tuple[int, int, Any], *others: tuple[int, int, Any]) -> bool:
    """Return whether an array shares no memory with others, all contiguous."""
    start, nbytes, _ = a
    end = start + nbytes
    for address, size, _ in others:  # noqa: SIM110 - all() and its generator take three times as long
        if end > address and address + size > start:
            return False
    return True


def _same_or_apart(a: tuple[int, int, Any], b: tuple[int, int, Any]) -> bool:
    return (a[0] == b[0] and a[2] == b[2]) or _apart(a, b)


def _launch(
    recipe: Recipe, library: Library, axis: int, data: int, values: tuple[Any, ...], addresses: tuple[int, ...]
) -> None:
    """Launch on these arrays, of which the first `data` are tensors; the address of a new one is not known yet."""
    arguments = recipe.arguments.copy()
    for i, value in enumerate(values):
        if value is not None:
            address = addresses[i] or library.address(value)
            arguments[recipe.places[i]] = (
                address
                if library.by_address
                else library.argument(value, axis, i < data, recipe.scalars, recipe.precision)
            )
    recipe.launch(arguments)


def _forward_key(
    x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, training: Any, momentum: Any, correction: Any,
    eps: Any, axis: Any, precision: Any, out: Any,
) -> tuple[Any, Any]:  # fmt: skip
    """Return what a forward pass is kept under, and the descriptions of its arrays, or None twice."""
    kind = type(x)
    library = _libraries.get(kind)
    if library is None or type(training) is not bool or type(axis) is not int or type(eps) is not float:
        return None, None
    if precision is None:
        precision = arithmetic.default or arithmetic.learn()
    elif type(precision) is not str or precision not in arithmetic.NAMES:
        return None, None
    ndim = len(x.shape)
    if type(momentum) is not float or type(correction) not in (int, float) or not -ndim <= axis < ndim:
        return None, None
    axis %= ndim
    found = _described(library, kind, x, out, weight, bias, running_mean, running_var)
    if found is None:
        return None, None
    aligned = found[0][0] & 15, found[1][0] & 15
    kinds = [description[2] for description in found]
    options = training, momentum, correction, eps, axis, precision
    return (kind, own_stream(library.stream(x)), *options, aligned, *kinds), found


def forward(
    x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, training: Any, momentum: Any, correction: Any,
    eps: Any, axis: Any, precision: Any, out: Any, activation: Any, residual: Any,
) -> tuple[Any, DeviceContext] | None:  # fmt: skip
    """Return y and the context of a plain forward pass like one before, or None."""
    if activation is not None or residual is not None:
        return None
    key, found = _forward_key(
        x, weight, bias, running_mean, running_var, training, momentum, correction, eps, axis, precision, out
    )
    recipe = _recipes.get(key)
    if recipe is None:
        return None
    source, target, *parameters = found
    if out is not None and not (_same_or_apart(target, source) and _apart(target, *parameters)):
        return None
    if training and running_mean is not None:
        w, b, mean, var = parameters
        if not (_apart(mean, source, w, b, var) and _apart(var, source, w, b)):
            return None
    library = _libraries[type(x)]
    y = library.empty_like(x, None) if out is None else out
    axis %= len(x.shape)
    saved = library.empty(x, (ROWS, recipe.channels), np.float64)
    addresses = *(description[0] for description in found), 0
    _launch(recipe, library, axis, 2, (x, y, weight, bias, running_mean, running_var, saved), addresses)
    ctx = DeviceContext(x, axis, recipe.values, saved, *recipe.dtypes, not training, None, recipe.precision)
    ctx.on_host = (False, False)
    if out is not None and target[0] == source[0]:
        ctx.forget_x(y)
    return y, ctx


def keep_forward(there: DeviceCall, ctx: DeviceContext, launched: tuple[Any, list[Any]], call: ForwardCall) -> None:
    """Keep a forward pass that the long way has launched as it came."""
    if not there.as_it_came or len(_recipes) >= MOST:
        return
    _libraries[type(there.x)] = there.library
    x, weight, bias, running_mean, running_var, out, _ = call.given
    options = call.training, call.momentum, call.correction, call.eps, call.axis, call.precision
    key, _ = _forward_key(x, weight, bias, running_mean, running_var, *options, out)
    if key is not None:
        launch, arguments = launched
        places = GIVEN if ctx.frozen else FORWARD
        dtypes = ctx.weight_dtype, ctx.bias_dtype
        _recipes[key] = Recipe(
            launch, arguments, places, launch.scalars, ctx.count, ctx.channels, dtypes, ctx.precision
        )


def _backward_key(dy: Any, ctx: Any, out: Any) -> tuple[Any, Any]:
    """Return what a backward pass is kept under, and the descriptions of its arrays, or None twice."""
    x = ctx.x
    kind = type(x)
    library = _libraries.get(kind)
    if library is None or ctx.on_host != (False, False) or not ctx.own_statistics:
        return None, None
    found = _described(library, kind, dy, x, out)
    if found is None:
        return None, None
    aligned = tuple(description[0] & 15 for description in found)
    kinds = [description[2] for description in found]
    stream = own_stream(library.stream(x))
    options = ctx.frozen, ctx.axis, ctx.precision, ctx.weight_dtype, ctx.bias_dtype
    return (kind, stream, *options, aligned, *kinds), found


def backward(dy: Any, ctx: DeviceContext, out: Any) -> Gradients | None:
    """Return the gradients of a plain backward pass like one before, or None."""
    if ctx.beyond is not None:
        return None
    key, found = _backward_key(dy, ctx, out)
    recipe = _recipes.get(key)
    if recipe is None:
        return None
    gradient, source, target = found
    if out is not None and not (_same_or_apart(target, gradient) and _same_or_apart(target, source)):
        return None
    x = ctx.x
    library = _libraries[type(x)]
    dx = library.empty_like(x, None) if out is None else out
    made = [None if dtype is None else library.empty(x, (recipe.channels,), dtype) for dtype in recipe.dtypes]
    addresses = gradient[0], source[0], target[0], 0, 0, 0
    _launch(recipe, library, ctx.axis, 3, (dy, x, dx, ctx.saved_there, *made), addresses)
    if out is not None and target[0] == source[0]:
        ctx.forget_x()
    return Gradients(dx, *made)


def keep_backward(there: DeviceCall, ctx: DeviceContext, launched: tuple[Any, list[Any]], call: BackwardCall) -> None:
    """Keep a backward pass that the long way has launched as it came."""
    if not there.as_it_came or len(_recipes) >= MOST or ctx.x is None:
        return
    _libraries[type(there.x)] = there.library
    key, _ = _backward_key(call.given_dy, ctx, call.given_out)
    if key is not None:
        launch, arguments = launched
        dtypes = ctx.weight_dtype, ctx.bias_dtype
        if len({dtype for dtype in dtypes if dtype is not None}) < 2:
            _recipes[key] = Recipe(
                launch, arguments, BACKWARD, launch.scalars, ctx.count, ctx.channels, dtypes, ctx.precision
            )
