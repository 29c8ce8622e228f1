"""A whole call in one kernel, for tensors so small that the Python around a kernel is the cost.

Parameters and running statistics come as the caller holds them and are checked here: their lengths, and that what is
written shares no memory with anything else. A kernel that refuses has written nothing; the caller then takes the long
way, whose checks say what is wrong. What a refusal does not cover, dtypes and memory orders, Numba's
dispatcher checks when it is called.

`enter` and `leave` are the two ends of a call around a kernel for larger tensors. A table holds a row (C,) each of
mean, low, m2, invstd, weight and bias.
"""

from __future__ import annotations

import numpy as np

from fastbn_kernels.build.decorators import (
    Array,
    ReadNCS,
    ReadP,
    ReadRC,
    Table,
    WriteNCS,
    WriteP,
    WriteRC,
    kernel,
    scalar,
)
from fastbn_kernels.cpu.backward import block_gradient, block_sums, channel_gradient, wide_coefficients
from fastbn_kernels.cpu.loops.segments import run_gradient, run_normalize, run_scale, runs_gradient_sums, runs_sums
from fastbn_kernels.cpu.moments import as_pair, block_moments, channel_moments
from fastbn_kernels.cpu.normalize import normalize_block
from fastbn_kernels.cpu.simd.ops import value
from fastbn_kernels.cpu.tiles import block_tasks, rows_together, tile_count
from fastbn_kernels.cpu.wide_rows import empty_numbers, wide
from fastbn_kernels.formulas import (
    coefficients,
    finite_or_zero,
    gradient_coefficients,
    group,
    shift_is_off,
    sum_with_xhat,
)
from fastbn_kernels.saved import BIAS, INVSTD, M2, MEAN, MEAN_LO, VAR, WEIGHT

# What a kernel answers.
REFUSED, DONE, OVER_X = range(3)


@scalar
def apart(a: Array, b: Array) -> bool:
    """Return whether two contiguous arrays share no memory."""
    a0, b0 = a.ctypes.data, b.ctypes.data
    a1, b1 = a0 + a.size * a.itemsize, b0 + b.size * b.itemsize
    return a.size == 0 or b.size == 0 or a1 <= b0 or b1 <= a0


@scalar
def done(x: Array, y: Array) -> int:
    """Return what a kernel answers that wrote y."""
    return OVER_X if x.ctypes.data == y.ctypes.data else DONE


@scalar
def fits(
    count: int, x: Array, weight: Array, bias: Array, running_mean: Array, running_var: Array, correction: float,
    training: bool, y: Array, table: Array,
) -> bool:  # fmt: skip
    """Return whether the arrays of a forward pass fit together; an empty parameter stands for none."""
    C = table.shape[1]
    if (weight.size != C and weight.size != 0) or (bias.size != C and bias.size != 0):
        return False
    if running_mean.size != running_var.size or (running_mean.size != C and running_mean.size != 0):
        return False
    if training and running_mean.size != 0 and count <= correction:
        return False
    if not training and running_mean.size != C:
        return False
    if x.size != y.size or not (x.ctypes.data == y.ctypes.data or apart(x, y)):
        return False
    for written in (running_mean, running_var):
        if not (apart(written, x) and apart(written, y) and apart(written, weight) and apart(written, bias)):
            return False
    return apart(running_mean, running_var) and apart(y, weight) and apart(y, bias)


@scalar
def take(values: Array, row: Array, default: float) -> None:
    """Copy a parameter to its row of the table."""
    for c in range(row.size):
        row[c] = values[c] if values.size > 0 else default


@scalar
def take_all(
    x: Array, weight: Array, bias: Array, running_mean: Array, running_var: Array, training: bool, table: Array
) -> None:
    """Fill the rows of the table that are known before x is read."""
    take(weight, table[WEIGHT], 1.0)
    take(bias, table[BIAS], 0.0)
    if not training:
        for c in range(table.shape[1]):
            table[MEAN, c], table[MEAN_LO, c] = as_pair(x, running_mean[c], 0.0)
            table[VAR, c] = running_var[c]


@scalar
def update(
    count: int, running_mean: Array, running_var: Array, momentum: float, correction: float, table: Array
) -> None:
    """Move the running statistics towards the batch's."""
    for c in range(running_mean.size):
        mean = table[MEAN, c] + table[MEAN_LO, c]
        var = table[M2, c] / (count - correction)
        running_mean[c] = running_mean[c] * (1.0 - momentum) + mean * momentum
        running_var[c] = running_var[c] * (1.0 - momentum) + var * momentum


@scalar
def fold(count: int, training: bool, eps: float, table: Array) -> tuple[Array, Array]:
    """Return scale and shift (C,); fill invstd."""
    C = table.shape[1]
    scale, shift = np.empty(C), np.empty(C)
    for c in range(C):
        if training:
            table[VAR, c] = table[M2, c] / count
        scale[c], shift[c], table[INVSTD, c] = coefficients(
            table[MEAN_LO, c], table[VAR, c], table[WEIGHT, c], table[BIAS, c], eps
        )
    return scale, shift


@kernel
def enter(
    x: ReadNCS, weight: ReadP, bias: ReadP, running_mean: WriteP, running_var: WriteP, correction: float,
    training: bool, y: WriteNCS, table: Table,
) -> int:  # fmt: skip
    """Check the arrays of a forward pass and take its parameters."""
    if not fits(x.shape[0] * x.shape[2], x, weight, bias, running_mean, running_var, correction, training, y, table):
        return REFUSED
    take_all(x, weight, bias, running_mean, running_var, training, table)
    return done(x, y)


@kernel
def leave(
    x: ReadNCS, running_mean: WriteP, running_var: WriteP, momentum: float, correction: float, table: Table
) -> None:
    """Update the running statistics of a training forward pass."""
    update(x.shape[0] * x.shape[2], running_mean, running_var, momentum, correction, table)


@kernel
def call_forward_adjacent(
    x: ReadRC, weight: ReadP, bias: ReadP, running_mean: WriteP, running_var: WriteP,
    momentum: float, correction: float, eps: float, training: bool, y: WriteRC, table: Table,
) -> int:  # fmt: skip
    """Normalise to y, which may be x, in training with the batch's own statistics; refuse more than one tile."""
    R, C = x.shape
    if block_tasks(R, C)[1] != 1:
        return REFUSED
    if not fits(R, x, weight, bias, running_mean, running_var, correction, training, y, table):
        return REFUSED
    take_all(x, weight, bias, running_mean, running_var, training, table)
    if training:
        width = rows_together(C) * C
        offsets, squares = np.empty((1, width)), np.empty((1, width))
        shifts = empty_numbers(x, width).reshape((1, width))
        block_moments(x, 0, shifts, offsets, squares)
        for c in range(C):
            table[MEAN, c], table[MEAN_LO, c] = as_pair(x, finite_or_zero(value(x, c)), offsets[0, c])
            table[M2, c] = squares[0, c]
    scale, shift = fold(R, training, eps, table)
    normalize_block(x, 0, wide(x, table[MEAN]), wide(x, scale), wide(x, shift), y, False)
    if training:
        update(R, running_mean, running_var, momentum, correction, table)
    return done(x, y)


@kernel
def call_forward_apart(
    x: ReadNCS, weight: ReadP, bias: ReadP, running_mean: WriteP, running_var: WriteP,
    momentum: float, correction: float, eps: float, training: bool, y: WriteNCS, table: Table,
) -> int:  # fmt: skip
    """Normalise to y, which may be x, in training with the batch's own statistics."""
    N, C, S = x.shape
    if not fits(N * S, x, weight, bias, running_mean, running_var, correction, training, y, table):
        return REFUSED
    take_all(x, weight, bias, running_mean, running_var, training, table)
    if training:
        for c in range(C):
            # As `channel_moments`, without the calls, which cost more than 49 values, unless it will sum again.
            if x.itemsize < 8 and tile_count(N, S) == 1:
                k = finite_or_zero(value(x, c * S))
                sums, squares = runs_sums(x, c * S, C * S, N, S, k)
                if not shift_is_off(1.0 / (N * S), sums, squares):
                    offset, table[M2, c] = group(1.0 / (N * S), 0.0, sums, squares)
                    table[MEAN, c], table[MEAN_LO, c] = as_pair(x, k, offset)
                    continue
            table[MEAN, c], table[MEAN_LO, c], table[M2, c] = channel_moments(x, c)
    scale, shift = fold(N * S, training, eps, table)
    for run in range(N * C):
        c = run % C
        run_normalize(x, run * S, S, table[MEAN, c], scale[c], shift[c], y, False)
    if training:
        update(N * S, running_mean, running_var, momentum, correction, table)
    return done(x, y)


@scalar
def fits_backward(dy: Array, x: Array, dx: Array) -> bool:
    """Return whether dx is dy, or x, or apart from each."""
    return (
        dy.size == x.size
        and dx.size == x.size
        and (dx.ctypes.data == dy.ctypes.data or apart(dx, dy))
        and (dx.ctypes.data == x.ctypes.data or apart(dx, x))
    )


@kernel
def enter_backward(dy: ReadNCS, x: ReadNCS, dx: WriteNCS) -> int:
    """Check the arrays of a backward pass."""
    return done(x, dx) if fits_backward(dy, x, dx) else REFUSED


@kernel
def call_backward_adjacent(
    dy: ReadRC, x: ReadRC, table: Table, frozen: bool, dx: WriteRC, dweight: WriteP, dbias: WriteP
) -> int:
    """Write dx, which may be dy or x, and the gradients of the parameters; refuse more than one tile."""
    R, C = x.shape
    if block_tasks(R, C)[1] != 1 or not fits_backward(dy, x, dx):
        return REFUSED
    mean, low, invstd = table[MEAN], table[MEAN_LO], table[INVSTD]
    wide_mean = wide(x, mean)
    totals = np.empty((1, wide_mean.size))
    products = np.empty((1, wide_mean.size))
    block_sums(dy, x, 0, wide_mean, totals, products)
    for c in range(C):
        products[0, c] = sum_with_xhat(totals[0, c], products[0, c], low[c], invstd[c])
        dbias[c] = totals[0, c]
        dweight[c] = products[0, c]
    av, bv, cv = wide_coefficients(x, np.float64(R), low, invstd, table[WEIGHT], totals[0], products[0])
    block_gradient(dy, x, 0, wide_mean, av, bv, cv, frozen, dx, False)
    return done(x, dx)


@kernel
def call_backward_apart(
    dy: ReadNCS, x: ReadNCS, table: Table, frozen: bool, dx: WriteNCS, dweight: WriteP, dbias: WriteP
) -> int:
    """Write dx, which may be dy or x, and the gradients of the parameters."""
    if not fits_backward(dy, x, dx):
        return REFUSED
    N, C, S = x.shape
    for c in range(C):
        mean, low, invstd, weight = table[MEAN, c], table[MEAN_LO, c], table[INVSTD, c], table[WEIGHT, c]
        if tile_count(N, S) == 1:  # as `channel_gradient`, without the calls
            sums, products = runs_gradient_sums(dy, x, c * S, C * S, N, S, mean)
            products = sum_with_xhat(sums, products, low, invstd)
            a, b, k = gradient_coefficients(np.float64(N * S), low, invstd, weight, sums, products)
            for n in range(N):
                if frozen:
                    run_scale(dy, (n * C + c) * S, S, a, dx)
                else:
                    run_gradient(dy, x, (n * C + c) * S, S, mean, a, b, k, dx, False)
            dbias[c], dweight[c] = sums, products
        else:
            dbias[c], dweight[c] = channel_gradient(dy, x, c, weight, mean, low, invstd, frozen, dx, False)
    return done(x, dx)
