"""Launches of higher derivatives on the processor; arrays, tables and plans as in `cpu`.

Through running statistics nothing is summed to come back, and other kernels do all of it.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from fastbn.backends.cpu import launch as cpu
from fastbn_kernels.cpu import double_backward as double_kernels
from fastbn_kernels.cpu import jvp as jvp_kernels
from fastbn_kernels.saved import BIAS, INVSTD, MEAN, MEAN_LO, WEIGHT

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def _row(parameter: Array | None, table: Array) -> Array:
    """Return a per-channel input in float64, zeros for None."""
    return np.zeros(table.shape[1]) if parameter is None else parameter.astype(np.float64)


def jvp(tx: Array, tweight: Array | None, tbias: Array | None, x: Array, table: Array, frozen: bool, ty: Array) -> None:
    """Write the tangent of y."""
    if frozen and tweight is None:  # finite even where x is not
        scaling = np.zeros_like(table)
        scaling[WEIGHT], scaling[BIAS] = table[WEIGHT] * table[INVSTD], _row(tbias, table)
        cpu.normalize(tx, scaling, 1.0, ty)
        return
    own = cpu.plan_of(x)
    adjacent = own.family == "adjacent"
    data, source, target = (cpu.data_of(array, own) for array in (tx, x, ty))
    given = data, source, table, _row(tweight, table), _row(tbias, table)
    if own.whole and not adjacent and not frozen:
        jvp_kernels.jvp_apart.launch(source.dtype, own.parallel, *given, own.past_cache[1], target)
        return
    sums = np.zeros((2, table.shape[1])) if frozen else cpu.sums(tx, x, table)
    kernel = jvp_kernels.tangent_adjacent if adjacent else jvp_kernels.tangent_apart
    kernel.launch(source.dtype, own.parallel, *given, *sums, own.past_cache[1], target)


def double_backward(
    v: Array, ddweight: Array | None, ddbias: Array | None, g: Array, x: Array, table: Array, frozen: bool,
    ddy: Array, dx: Array,
) -> Array:  # fmt: skip
    """Write ddy and dx; return the gradient of the weight. v is ddx, and g is dy."""
    if frozen:
        jvp(v, ddweight, ddbias, x, table, True, ddy)
        other = table.copy()
        other[WEIGHT] = _row(ddweight, table)
        nothing = np.zeros(table.shape[1])
        cpu.gradient(g, x, other, np.stack([nothing, nothing]), 1, True, dx)
        other[MEAN] = other[MEAN_LO] = 0.0
        dweight: Array = cpu.sums(v, g, other)[1]  # invstd * sum(v * g)
        return dweight
    own = cpu.plan_of(x)
    if own.family == "adjacent":
        kernel = double_kernels.double_backward_adjacent
    else:
        kernel = double_kernels.double_backward_apart if own.whole else double_kernels.double_backward_tiles
    dweight = np.empty(table.shape[1])
    data, source, came, first, second = (cpu.data_of(array, own) for array in (v, x, g, ddy, dx))
    parameters = _row(ddweight, table), _row(ddbias, table)
    kernel.launch(source.dtype, own.parallel, data, came, source, table, *parameters, first, second, dweight)
    return dweight
