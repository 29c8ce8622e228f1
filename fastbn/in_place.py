"""The way back through a forward pass that wrote y where x was: xhat = (y - bias) / weight.

In-place activated batch norm (Rota Bulo, Porzi and Kontschieder 2018, arXiv:1712.02616) with weights of either sign:
kernels take y for x, centred with the bias and scaled by 1 / |weight|, which gives xhat times the sign of the weight:
dx is the same, since xhat enters it twice, and the sum of dy * xhat has that sign.

y was rounded, and the bias takes digits of it: xhat is off by at most (u |bias| + t) / |weight| and u |xhat|, u being
half a unit in the last place of 1 and t half the smallest number, in the dtype of x; with leaky_relu, which rounds once
more, twice u. Measured, it is up to 0.99 of that (docs/numerics.md).
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from fastbn.context import Context
from fastbn_kernels.saved import BIAS, INVSTD, MEAN, ROWS, WEIGHT

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

# Half a unit in the last place of 1, and half the smallest number.
ROUNDED = {
    "float64": (2.0**-53, 2.0**-1074),
    "float32": (2.0**-24, 2.0**-150),
    "float16": (2.0**-11, 2.0**-25),
    "bfloat16": (2.0**-8, 2.0**-134),
}

# How far off, in standard deviations, an xhat may be that was got back from y.
OFF = 2.0**-8


def error(ctx: Context, dtype: np.dtype[Any]) -> Array:
    """Return how far off xhat of every channel is that is got back from y of a dtype, beside what u |xhat| is."""
    u, t = ROUNDED[dtype.name]
    beyond = ctx.beyond
    slope = 1.0
    if beyond is not None and beyond.activation is not None:
        u, slope = 2 * u, min(1.0, beyond.activation.slope or 1.0)
    with np.errstate(all="ignore"):
        off: Array = (u * np.abs(ctx.bias) + t / slope) / np.abs(ctx.weight)
    return np.where(np.isnan(off), np.inf, off)


def rows(ctx: Context) -> tuple[Array, Array]:
    """Return the saved rows with which kernels go back from y, and the signs of the weights."""
    saved = np.zeros((ROWS, ctx.channels))
    size, sign = np.abs(ctx.weight), np.where(ctx.weight < 0, -1.0, 1.0)
    with np.errstate(all="ignore"):
        saved[MEAN], saved[INVSTD] = ctx.bias, 1 / size
        saved[WEIGHT] = ctx.weight * ctx.invstd * size
    saved[BIAS] = 0.0
    return saved, sign
