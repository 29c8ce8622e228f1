"""Tensors of more than 2^31 values, where a 32-bit index would wrap: every value is checked, by PyTorch in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import fastbn
import reference
from tolerance import check_forward, relative

from . import arrays
from .check import same

# Values that are compared at a time.
CHUNK = 1 << 27
NEEDED = 10  # times the bytes of x, for x, y, dy, dx and float64 chunks


class Chunks:
    """Sums and comparisons over a tensor in pieces along its first axis, in float64 on the GPU."""

    def __init__(self, torch: Any, x: Any) -> None:
        self.torch = torch
        self.others = tuple(i for i in range(x.ndim) if i != 1)
        self.view = [1, -1] + [1] * (x.ndim - 2)
        step = max(1, CHUNK // (x[0].numel()))
        self.places = [(i, min(i + step, x.shape[0])) for i in range(0, x.shape[0], step)]

    def column(self, values: Any) -> Any:
        """Shape (C,) values so that they broadcast against x."""
        return values.double().reshape(self.view)

    def sums(self, function: Callable[..., Any], *tensors: Any) -> Any:
        """Return the sums a channel of a function of the values."""
        return sum(function(*(t[a:b].double() for t in tensors)).sum(self.others) for a, b in self.places)

    def excess(self, got: Any, function: Callable[..., Any], allowed: float, bits: int, *tensors: Any) -> float:
        """Return how far values are off a function by more than one rounding and `allowed`; NaN counts as infinite."""
        worst = -float("inf")
        for a, b in self.places:
            want = function(*(t[a:b].double() for t in tensors))
            rounding = want.abs() * 2.0 ** -(bits + 1) * 1.002 + (2.0**-25 if bits == 10 else 0.0)
            off = ((got[a:b].double() - want).abs() - rounding - allowed).nan_to_num(nan=float("inf")).max()
            worst = max(worst, float(off))
        return worst


def ends(x: Any) -> list[tuple[slice, ...]]:
    """Return small pieces at both ends and around value 2^31, for the oracle, along the first and the last axis."""
    inner = x[0].numel()
    border = min(2**31 // inner, x.shape[0] - 1)
    rows = max(1, 4096 // inner)
    rest = (slice(None),) * (x.ndim - 1)
    if inner > 1 << 20:
        rest = (*rest[:-1], slice(-4096, None))
    return [(slice(i, min(i + rows, x.shape[0])), *rest) for i in (0, max(0, border - 1), x.shape[0] - rows)]


def run(given: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Check one tensor forward and backward."""
    own = arrays.house()
    if own.name != "torch":
        tell({"skipped": "no PyTorch on a GPU here"})
        return
    torch, dtype, shape = own.torch, given["dtype"], tuple(given["shape"])
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info()
    nbytes = int(np.prod(shape)) * 2
    if free < NEEDED * nbytes:
        tell({"skipped": f"{NEEDED * nbytes >> 30} GB are needed, {free >> 30} are free"})
        return
    torch.manual_seed(given["seed"])
    x, dy = (own.random(shape, dtype) for _ in range(2))
    C = shape[1]
    weight, bias = (torch.randn(C, device=own.where) for _ in range(2))
    y, dx = (torch.full_like(x, float("nan")) for _ in range(2))
    _, ctx = fastbn.batch_norm(x, weight, bias, out=y)
    grads = fastbn.batch_norm_backward(dy, ctx, out=dx)
    torch.cuda.synchronize()
    _judge(own, given, x, dy, (weight, bias), y, ctx, grads)
    before = [own.fetch(t[where]) for t in (y, dx) for where in ends(x)]
    tell({"what": "against float64", "ok": True})
    y.fill_(float("nan"))
    dx.fill_(float("nan"))
    _, again = fastbn.batch_norm(x, weight, bias, out=y)
    other = fastbn.batch_norm_backward(dy, again, out=dx)
    same(before, [own.fetch(t[where]) for t in (y, dx) for where in ends(x)], "computed again")
    same([own.fetch(grads.dweight)], [own.fetch(other.dweight)], "dweight computed again")
    tell({"what": "the same bits", "ok": True})


def _judge(
    own: Any, given: dict[str, Any], x: Any, dy: Any, affine: tuple[Any, Any], y: Any, ctx: Any, grads: Any
) -> None:
    """Raise unless all values agree with float64 sums over pieces, and those at the ends with the oracle."""
    chunks, count = Chunks(own.torch, x), x.numel() // x.shape[1]
    column = chunks.column
    mean = chunks.sums(lambda v: v, x) / count
    var = chunks.sums(lambda v: (v - column(mean)) ** 2, x) / count
    invstd = (var + 1e-5).rsqrt()
    m = ctx.moments

    def xhat(v: Any) -> Any:
        return (v - column(mean)) * column(invstd)

    reach = max(float(xhat(x[a:b].double()).abs().max()) for a, b in chunks.places)
    error = relative(count, reach, np.float16)
    np.testing.assert_allclose(m.mean, own.fetch(mean), rtol=0, atol=error * float(var.max()) ** 0.5)
    np.testing.assert_allclose(m.var(), own.fetch(var), rtol=error)
    w, b = affine
    bits = {"float16": 10, "bfloat16": 7}[given["dtype"]]
    allowed = error * float((reach + 1) * w.abs().max() + b.abs().max())
    off = chunks.excess(y, lambda v: xhat(v) * column(w) + column(b), allowed, bits, x)
    assert off <= 0, f"y is off by {off:.3g} more than a rounding"
    dbias, dweight = chunks.sums(lambda g: g, dy), chunks.sums(lambda g, v: g * xhat(v), dy, x)
    np.testing.assert_allclose(own.fetch(grads.dbias), own.fetch(dbias), rtol=1e-5, atol=1e-6 * count)
    np.testing.assert_allclose(own.fetch(grads.dweight), own.fetch(dweight), rtol=1e-5, atol=1e-6 * count)

    def gradient(g: Any, v: Any) -> Any:
        return column(w * invstd) * (g - column(dbias / count) - xhat(v) * column(dweight / count))

    scale = float((w * invstd).abs().max() * dy.abs().max())
    off = chunks.excess(grads.dx, gradient, error * scale * (2 + reach**2), bits, dy, x)
    assert off <= 0, f"dx is off by {off:.3g} more than a rounding"
    statistics = {"mean": own.fetch(mean), "var": own.fetch(var)}
    w, b = own.fetch(w), own.fetch(b)
    for where in ends(x):
        f = reference.forward(own.fetch(x[where]), w, b, **statistics)
        check_forward(own.fetch(y[where]), f, w, b)
