"""What is computed of an element, forward and backward: here and nowhere else on the GPU.

Loops say where: they load, keep and store. What they have loaded goes through the functions here, 16 bytes at a time,
with the params of its channels (see `params`) and the choice of a `tail`, what is done after the normalization; loops
and kernels hand both down without looking at them. `tail` is a constant of every compiled kernel (`build.decorators`),
None or a number of this file: what it does not ask for costs no instruction, no load and no register.

With the mean, scale and shift of a channel, its slope and offset once its sums are known, and a unit that keeps all of
it in range (see `formulas`):

    d  = (x - mean) * unit                              u = d * scale / unit + shift
    y  = finish(u)                                      g = dy * finish'(u), with u computed again
    dx = g * scale + d * slope / unit + offset          g * scale with frozen statistics

An activation is one more case in `finish` and in `incoming`. A residual, which is added to u, is besides one more
array that the loops load.
"""

from __future__ import annotations

from typing import Any

from fastbn_kernels.cuda.build.decorators import device
from fastbn_kernels.cuda.simd.ops import centre, decoded, fma, mul, where_positive

# What may be done after the normalization, besides nothing.
RELU = 1


@device
def centred(x: Any, raw: Any, params: Any) -> Any:
    """Return d; of the sums that moments are made of, with a shift in the place of the mean."""
    return centre(x, decoded(x, raw), params[0], params[1])


@device
def finish(u: Any, tail: int | None) -> Any:
    """Return y of what was normalised."""
    if tail is None:
        return u
    return where_positive(u, u)


@device
def incoming(grad: Any, off: Any, params: Any, tail: int | None) -> Any:
    """Return the gradient by what was normalised, g, from that by y; `off` is d."""
    if tail is None:
        return grad
    return where_positive(fma(off, params[2], params[3]), grad)


@device
def normalized(x: Any, raw: Any, params: Any, tail: int | None) -> Any:
    """Return y."""
    return finish(fma(centred(x, raw, params), params[2], params[3]), tail)


@device
def gradient_terms(dy: Any, raw_dy: Any, x: Any, raw: Any, params: Any, tail: int | None) -> tuple[Any, Any]:
    """Return g and d: the sums of the first and of their product are those of the backward pass."""
    off = centred(x, raw, params)
    return incoming(decoded(dy, raw_dy), off, params, tail), off


@device
def gradient(dy: Any, raw_dy: Any, x: Any, raw: Any, params: Any, tail: int | None) -> Any:
    """Return dx; the scale, a product by a power of two, is computed once before the loop."""
    grad, off = gradient_terms(dy, raw_dy, x, raw, params, tail)
    return fma(grad, mul(params[2], params[1]), fma(off, params[4], params[5]))


@device
def frozen_gradient(dy: Any, raw_dy: Any, x: Any, raw: Any, params: Any, tail: int | None) -> Any:
    """Return dx where nothing flows back through the statistics: finite even where x is not."""
    grad, _ = gradient_terms(dy, raw_dy, x, raw, params, tail)
    return mul(grad, mul(params[2], params[1]))
