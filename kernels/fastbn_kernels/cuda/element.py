"""What is computed of an element, forward and backward: here and nowhere else on the GPU.

Loops say where: they load, keep and store. What they have loaded goes through the functions here, 16 bytes at a time,
with the params of its channels (see `params`) and `after`, what is done after the normalization: a tail, None or a
constant of the compiled kernel (see `tails`), and where a residual and its gradient are. What the tail does not ask for
costs no instruction, no load and no register.

With the mean, scale and shift of a channel, its slope and offset once its sums are known, a unit that keeps all of it
in range (see `formulas`), and r, a residual or zero:

    d  = (x - mean) * unit                              u = d * scale / unit + shift + r
    y  = activated(u)                                   g = dy * activated'(u), with u computed again
    dx = g * scale + d * slope / unit + offset          g * scale with frozen statistics

g is the gradient of the residual: of a backward pass, the sweep that sums writes it, keeps it in the place of dy, and
the sweep after it reads it instead. Of an inverse tail, x holds y, d is made of what y was made of, and g by its sign.
"""

from __future__ import annotations

from typing import Any

from fastbn_kernels.cuda.build.decorators import device
from fastbn_kernels.cuda.simd.ops import (
    activated,
    add,
    adds,
    centre,
    decoded,
    encoded,
    fma,
    load_once,
    mul,
    nothing,
    smem_store,
    store,
    store_part,
    through,
    unbent,
    width,
    writes,
)


@device
def centred(x: Any, raw: Any, params: Any) -> Any:
    """Return d; of the sums that moments are made of, with a shift in the place of the mean."""
    return centre(x, decoded(x, raw), params[0], params[1])


@device
def beside(x: Any, at: int, after: Any) -> Any:
    """Load what is added to what is normalised of x, if there is anything."""
    if adds(after):
        return load_once(after[1], at)
    return nothing(x)


@device
def added(u: Any, x: Any, extra: Any, after: Any) -> Any:
    """Return u and what is added to it; `extra` is what `beside` loaded."""
    if adds(after):
        return add(u, decoded(x, extra))
    return u


@device
def normalized(x: Any, raw: Any, params: Any, after: Any, extra: Any) -> Any:
    """Return y."""
    return activated(added(fma(centred(x, raw, params), params[2], params[3]), x, extra, after), after)


@device
def gradient_terms(dy: Any, raw_dy: Any, x: Any, raw: Any, params: Any, after: Any, extra: Any) -> tuple[Any, Any]:
    """Return g and d: the sums of the first and of their product are those of the backward pass."""
    value = unbent(decoded(x, raw), after)
    off = centre(x, value, params[0], params[1])
    u = added(fma(off, params[2], params[3]), x, extra, after)
    return through(decoded(dy, raw_dy), u, value, after), off


@device
def keep(dy: Any, at: int, lo: int, hi: int, grad: Any, after: Any, smem: Any, slot: int, in_slot: bool) -> None:
    """Write places lo to hi of g, if anything was added; to the slot of dy too, if that is there."""
    if writes(after):
        if lo == 0 and hi >= width(dy):
            store(after[2], at, grad)
        else:
            store_part(after[2], at, grad, lo, hi)
        if in_slot:
            smem_store(smem, slot, encoded(dy, grad))


@device
def gradient(grad: Any, off: Any, params: Any) -> Any:
    """Return dx of g and d; the scale, a product by a power of two, is computed once before the loop."""
    return fma(grad, mul(params[2], params[1]), fma(off, params[4], params[5]))


@device
def frozen_gradient(grad: Any, params: Any) -> Any:
    """Return dx where nothing flows back through the statistics: finite even where x is not."""
    return mul(grad, mul(params[2], params[1]))
