"""The rest of what is checked of a case: running, merged and given statistics, outputs over inputs, NaN."""

from __future__ import annotations

from typing import Any

import numpy as np

import fastbn
import reference
from gpu_tolerance import check_backward, check_forward, statistics_error
from tolerance import check

from . import arrays
from .check import Trial, check_moments, same, tuple_of


def frozen(t: Trial) -> None:
    """Check inference, and the gradients through running statistics."""

    def once() -> tuple[Any, ...]:
        running = t.there(t.mean), t.there(t.var)
        y, ctx = t.forward(t.poisoned(), running_mean=running[0], running_var=running[1], training=False)
        other = fastbn.batch_norm_inference(
            t.stored(t.x), *running, *t.parameters, axis=t.axis, out=t.poisoned(), precision=t.precision
        )  # fmt: skip
        grads = t.gradients(fastbn.batch_norm_backward(t.stored(t.dy), ctx, out=t.poisoned()))
        return t.fetch(y), t.fetch(other), *map(t.fetch, running), *tuple_of(grads)

    first = once()
    given = {"mean": t.mean, "var": t.var, "axis": t.axis}
    f = reference.forward(t.x, t.weight, t.bias, **given)
    check_forward(first[0], f, t.weight, t.bias, axis=t.axis, **t.bounds)
    same(first[:1], first[1:2], "batch_norm_inference")
    same(first[2:4], (t.mean, t.var), "running statistics, which inference must leave alone")
    grads = fastbn.Gradients(*first[4:])
    check_backward(grads, reference.backward(t.dy, t.x, t.weight, **given), t.dy, f, t.weight, axis=t.axis, **t.bounds)
    same(first, once(), "computed again")


def moments(t: Trial) -> None:
    """Check `batch_moments`."""
    first, second = (fastbn.batch_moments(t.stored(t.x), axis=t.axis) for _ in range(2))
    check_moments(t, first, exact=True)
    same((first.mean, first.m2), (second.mean, second.m2), "computed again")


def check_sums(t: Trial, sums: fastbn.BackwardSums) -> None:
    _, dweight, dbias = t.backward
    error = statistics_error(t.count, t.reach, t.x.dtype, **t.bounds) * float(np.abs(t.dy).max()) * t.count
    assert sums.count == t.count, f"count {sums.count}, not {t.count}"
    check(sums.sum_dy, dbias, error)
    check(sums.sum_dy_xhat, dweight, error * (1 + t.reach))


def sums(t: Trial) -> None:
    """Check `backward_sums`."""
    _, ctx = t.forward()
    first, second = (fastbn.backward_sums(t.stored(t.dy), ctx) for _ in range(2))
    check_sums(t, first)
    same((first.sum_dy, first.sum_dy_xhat), (second.sum_dy, second.sum_dy_xhat), "computed again")


def shared(t: Trial) -> None:
    """Check that two ranks, which share moments forward and sums backward, are one batch."""
    along = next(i for i in range(t.x.ndim) if i != t.axis % t.x.ndim)
    if t.x.shape[along] < 2:
        raise arrays.Unsupported("one row cannot be shared")
    cuts = [t.x.shape[along] // 3 or 1]
    xs = [t.stored(part) for part in np.split(t.x, cuts, along)]
    dys = [t.stored(part) for part in np.split(t.dy, cuts, along)]

    def once() -> tuple[Any, ...]:
        parts = [fastbn.batch_moments(x, axis=t.axis) for x in xs]
        merged = parts[0].merge(*parts[1:])
        made = [t.forward(x=x, moments=merged) for x in xs]
        partial = [fastbn.backward_sums(dy, ctx) for dy, (_, ctx) in zip(dys, made, strict=True)]
        whole = partial[0].merge(*partial[1:])
        check_sums(t, whole)
        grads = [
            t.gradients(fastbn.batch_norm_backward(dy, ctx, sums=whole)) for dy, (_, ctx) in zip(dys, made, strict=True)
        ]
        same(tuple_of(grads[0])[1:], tuple_of(grads[1])[1:], "what two ranks say of the parameters")
        y = np.concatenate([t.fetch(y) for y, _ in made], along)
        return y, np.concatenate([g.dx for g in grads], along), grads[0].dweight, grads[0].dbias

    first = once()
    check_forward(first[0], t.batch, t.weight, t.bias, axis=t.axis, **t.bounds)
    check_backward(fastbn.Gradients(*first[1:]), t.backward, t.dy, t.batch, t.weight, axis=t.axis, **t.bounds)
    same(first, once(), "computed again")


def in_place(t: Trial) -> None:
    """Check that `out=x` forward, and `out=dy` and `out=x` backward, give the bits that other memory gets."""
    y, ctx = t.forward(t.poisoned())
    expected = t.fetch(y)
    x = t.stored(t.x)
    over, spent = t.forward(x, x)
    assert over is x
    assert spent.x is None
    same([t.fetch(x)], [expected], "y over x")
    grads = t.gradients(fastbn.batch_norm_backward(t.stored(t.dy), ctx, out=t.poisoned()))
    dy = t.stored(t.dy)
    same([t.fetch(fastbn.batch_norm_backward(dy, ctx, out=dy).dx)], [grads.dx], "dx over dy")
    same([t.fetch(fastbn.batch_norm_backward(t.stored(t.dy), ctx, out=ctx.x).dx)], [grads.dx], "dx over x")


def nan(t: Trial) -> None:
    """Check that a NaN fills its channel and no other."""
    if t.C < 2:
        raise arrays.Unsupported("one channel")

    def results(x: np.ndarray) -> tuple[Any, ...]:
        there = t.stored(x)
        y, ctx = t.forward(t.poisoned(), there)
        grads = t.gradients(fastbn.batch_norm_backward(t.stored(t.dy), ctx, out=t.poisoned()))
        return tuple(np.moveaxis(a, t.axis, 0) for a in (t.fetch(y), grads.dx))

    bad = t.x.copy()
    channel = np.moveaxis(bad, t.axis, 0)[t.C // 2]
    channel[tuple(n // 2 for n in channel.shape)] = np.nan
    for got, clean in zip(results(bad), results(t.x), strict=True):
        assert np.isnan(got[t.C // 2]).all(), "a channel with a NaN is not all NaN"
        same([np.delete(got, t.C // 2, 0)], [np.delete(clean, t.C // 2, 0)], "channels beside a NaN")


def allocated(t: Trial) -> None:
    """Check outputs that fastbn allocates, an output stored in another way than x, and copies there and back."""
    x = t.stored(t.x)
    y, ctx = t.forward(x=x)
    assert type(y) is type(x)
    assert tuple(y.shape) == t.x.shape
    given, _ = t.forward(t.poisoned(), x)
    same([t.fetch(y)], [t.fetch(given)], "y without out=")
    dx = fastbn.batch_norm_backward(t.stored(t.dy), ctx).dx
    other = fastbn.batch_norm_backward(t.stored(t.dy), ctx, out=t.poisoned()).dx
    same([t.fetch(dx)], [t.fetch(other)], "dx without out=")
    plain, _ = t.forward(t.own.send(np.full(t.x.shape, np.nan, t.x.dtype)), x)
    check_forward(t.fetch(plain), t.batch, t.weight, t.bias, axis=t.axis, **t.bounds)
    same([fastbn.to_host(x)], [t.x], "to_host")
    same([fastbn.to_host(fastbn.to_device(t.x))], [t.x], "to_device")


ASPECTS = {
    "frozen": frozen, "moments": moments, "sums": sums, "shared": shared, "in place": in_place, "nan": nan,
    "allocated": allocated,
}  # fmt: skip
