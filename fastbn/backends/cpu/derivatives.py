"""Launches of higher derivatives on the processor; arrays, saved rows and plans as in `launch`.

Through running statistics nothing is summed to come back, and other kernels do all of it.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from fastbn.backends.cpu import launch as cpu
from fastbn_kernels.cpu import kernel
from fastbn_kernels.saved import BIAS, INVSTD, MEAN, MEAN_LO, WEIGHT

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def _row(parameter: Array | None, saved: Array) -> Array:
    """Return a per-channel input in float64, zeros for None."""
    return np.zeros(saved.shape[1]) if parameter is None else parameter.astype(np.float64)


def jvp(tx: Array, tweight: Array | None, tbias: Array | None, x: Array, saved: Array, frozen: bool, ty: Array) -> None:
    """Write the tangent of y."""
    if frozen and tweight is None:  # finite even where x is not
        scaling = np.zeros_like(saved)
        scaling[WEIGHT], scaling[BIAS] = saved[WEIGHT] * saved[INVSTD], _row(tbias, saved)
        cpu.normalize(tx, scaling, 1.0, ty)
        return
    own = cpu.plan_of(x)
    data, source, target = (cpu.data_of(array, own) for array in (tx, x, ty))
    given = saved, _row(tweight, saved), _row(tbias, saved), frozen, own.past_cache[1]
    kernel(own.jvp).launch(source.dtype, own.parallel, data, source, *given, target)


def double_backward(
    v: Array, ddweight: Array | None, ddbias: Array | None, g: Array, x: Array, saved: Array, frozen: bool,
    ddy: Array, dx: Array,
) -> Array:  # fmt: skip
    """Write ddy and dx; return the gradient of the weight. v is ddx, and g is dy."""
    if frozen:
        jvp(v, ddweight, ddbias, x, saved, True, ddy)
        other = saved.copy()
        other[WEIGHT] = _row(ddweight, saved)
        cpu.gradient(g, x, other, np.zeros((2, saved.shape[1])), 1, True, dx)
        other[MEAN] = other[MEAN_LO] = 0.0
        dweight: Array = cpu.sums(v, g, other)[1]  # invstd * sum(v * g)
        return dweight
    own = cpu.plan_of(x)
    dweight = np.empty(saved.shape[1])
    data, source, came, first, second = (cpu.data_of(array, own) for array in (v, x, g, ddy, dx))
    given = saved, _row(ddweight, saved), _row(ddbias, saved)
    kernel(own.double_backward).launch(source.dtype, own.parallel, data, came, source, *given, first, second, dweight)
    return dweight
