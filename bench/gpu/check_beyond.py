"""What is checked of a case beyond plain batch norm: tails, masks, ghost batches, renormalization, back from y."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastbn
import reference
from beyond import close, passes
from grid import draw
from reference import column

from . import arrays
from .check import Trial, same, tuple_of


def _close(t: Trial, found: tuple[Any, ...], expected: tuple[Any, ...]) -> None:
    """Compare y or dx and dresidual, which have the shape of x, and numbers of channels, which are sums."""
    for ours, theirs in zip(found, expected, strict=True):
        if ours is not None and theirs is not None:
            terms = 4.0 if ours.ndim > 1 else t.count * (1 + t.reach)
            close(ours, theirs, t.x.dtype if ours.ndim > 1 else ours.dtype, terms * float(np.abs(t.dy).max() + 1))


def _plain(t: Trial) -> None:
    if t.count < 2 or t.case.mean:
        raise arrays.Unsupported("a case of its own")


def tail(t: Trial) -> None:
    """Check smooth activations with a residual, through the batch's statistics and through given ones."""
    _plain(t)
    residual = draw(np.random.default_rng(t.C), t.x.shape, t.x.dtype)
    for activation, more in (("gelu", {}), ("silu", {}), ("tanh", {"training": False})):
        running = {"running_mean": t.there(t.mean), "running_var": t.there(t.var)} if more else {}

        def once(activation: str = activation, more: dict[str, Any] = more | running) -> tuple[Any, ...]:
            added = t.stored(residual)
            y, ctx = t.forward(t.poisoned(), activation=activation, residual=added, **more)
            grads = fastbn.batch_norm_backward(t.stored(t.dy), ctx, out=t.poisoned())
            return t.fetch(y), *tuple_of(t.gradients(grads)), t.fetch(grads.dresidual)

        given = {"mean": t.mean, "var": t.var} if more else {}
        expected, by = passes(t.x, t.dy, t.weight, t.bias, activation, residual, axis=t.axis, **given)
        first = once()
        _close(t, first, (expected, *by))
        same(first, once(), f"{activation}, computed again")


def mask(t: Trial) -> None:
    """Check that a mask is the same as taking what counts, and that nothing else is read."""
    _plain(t)
    shape = t.x.shape[: t.axis % t.x.ndim] + t.x.shape[t.axis % t.x.ndim + 1 :]
    chosen = np.random.default_rng(t.C).random(shape) < 0.7
    if chosen.sum() < 2:
        raise arrays.Unsupported("too few values for a mask")
    full = np.broadcast_to(np.expand_dims(chosen, t.axis % t.x.ndim), t.x.shape)
    x, dy = (np.where(full, array, np.array(np.nan, t.x.dtype)) for array in (t.x, t.dy))

    def once() -> tuple[Any, ...]:
        y, ctx = t.forward(t.poisoned(), t.stored(x), mask=chosen)
        grads = t.gradients(fastbn.batch_norm_backward(t.stored(dy), ctx, out=t.poisoned()))
        return t.fetch(y), *tuple_of(grads)

    def taken(array: np.ndarray) -> np.ndarray:
        return np.moveaxis(array, t.axis, -1)[chosen]

    first = once()
    expected, by = passes(taken(t.x), taken(t.dy), t.weight, t.bias)
    _close(t, (taken(first[0]), taken(first[1]), *first[2:]), (expected, *by[:3]))
    assert not first[0][~full].any(), "y where a mask excludes is not 0"
    assert not first[1][~full].any(), "dx where a mask excludes is not 0"
    same(first, once(), "computed again")


def ghosts(t: Trial) -> None:
    """Check that ghost batches are what a loop over parts gives, a shorter tail too."""
    _plain(t)
    along = next(i for i in range(t.x.ndim) if i != t.axis % t.x.ndim)
    size = t.x.shape[along] // 2 + 1
    if size >= t.x.shape[along] or t.count // t.x.shape[along] * (t.x.shape[along] - size) < 2:
        raise arrays.Unsupported("too few samples to part")
    y, ctx = t.forward(t.poisoned(), ghost_batch_size=size)
    dx = t.fetch(fastbn.batch_norm_backward(t.stored(t.dy), ctx, out=t.poisoned()).dx)
    for part in (slice(0, size), slice(size, None)):
        cut = *[slice(None)] * along, part
        expected, (by, *_) = passes(t.x[cut], t.dy[cut], t.weight, t.bias, axis=t.axis)
        _close(t, (t.fetch(y)[cut], dx[cut]), (expected, by))


def renorm(t: Trial) -> None:
    """Check batch renormalization."""
    _plain(t)
    running = t.there(t.mean), t.there(t.var)
    given = {"running_mean": running[0], "running_var": running[1], "update_stats": False}
    y, ctx = t.forward(t.poisoned(), renorm=fastbn.Renorm(1.5, 0.5), **given)
    grads = t.gradients(fastbn.batch_norm_backward(t.stored(t.dy), ctx, out=t.poisoned()))
    f, sigma = t.batch, np.sqrt(t.var.astype(np.longdouble) + 1e-5)
    r = np.clip(np.sqrt(f.var + 1e-5) / sigma, 1 / 1.5, 1.5)
    d = np.clip((f.mean - t.mean) / sigma, -0.5, 0.5)
    weight, bias = (1.0 if t.weight is None else t.weight), (0.0 if t.bias is None else t.bias)
    expected = f.xhat * column(r * weight, t.x, t.axis) + column(d * weight + bias, t.x, t.axis)
    dx, by_xhat, by_one = reference.backward(t.dy, t.x, r * weight, axis=t.axis)
    _close(t, (t.fetch(y), *tuple_of(grads)), (expected, dx, r * by_xhat + d * by_one, by_one))


def from_y(t: Trial) -> None:
    """Check the way back from y, which lies where x was."""
    _plain(t)
    if t.x.itemsize == 2 or t.weight is None:
        raise arrays.Unsupported("too few digits, or no weights")
    weight = np.where(t.weight < 0, -1, 1).astype(t.weight.dtype) * np.maximum(
        np.abs(t.weight), t.weight.dtype.type(0.5)
    )
    x = t.stored(t.x)
    parameters = t.there(weight), t.there(t.bias)
    _, ctx = fastbn.batch_norm(x, *parameters, axis=t.axis, out=x, precision=t.precision)
    grads = t.gradients(fastbn.batch_norm_backward(t.stored(t.dy), ctx, out=t.poisoned()))
    _close(t, tuple_of(grads), reference.backward(t.dy, t.x, weight, axis=t.axis))


ASPECTS = {"tail": tail, "mask": mask, "ghosts": ghosts, "renorm": renorm, "from y": from_y}
