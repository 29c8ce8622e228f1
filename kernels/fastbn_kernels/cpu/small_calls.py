"""A whole call in one kernel, for tensors so small that the Python around a kernel is the cost.

Parameters and running statistics come as the caller holds them and are checked here: their lengths, and that what is
written shares no memory with anything else. A kernel that refuses has written nothing; the caller then takes the long
way, whose checks say what is wrong. What a refusal does not cover, dtypes and memory orders, Numba's dispatcher checks
when it is called.
"""

from __future__ import annotations

import numpy as np

from fastbn_kernels.build.decorators import (
    Array,
    ReadNCS,
    ReadP,
    ReadRC,
    Saved,
    Tail,
    WriteNCS,
    WriteP,
    WriteRC,
    kernel,
    scalar,
)
from fastbn_kernels.cpu.backward import (
    channel_sums,
    wide_gradient_params,
    wide_sums_params,
    write_block_gradient,
)
from fastbn_kernels.cpu.columns import (
    all_params,
    fill_forward,
    fill_gradient,
    fill_sums,
    save_channel_moments,
    save_moments,
    save_sums,
)
from fastbn_kernels.cpu.loops.segments import segments_sums, write_segment
from fastbn_kernels.cpu.moments import block_moments, channel_group, channel_origin, sum_again, tile_shift, unit_again
from fastbn_kernels.cpu.params import FORWARD_ROWS, GRADIENT_ROWS, as_pair
from fastbn_kernels.cpu.simd.ops import address
from fastbn_kernels.cpu.simd.tails import FROZEN
from fastbn_kernels.cpu.sweeps import block_sums, empty_params, empty_wide, repeat_rows, write_block
from fastbn_kernels.cpu.tiles import block_tasks, rows_together, tile_count
from fastbn_kernels.formulas import group, running_average
from fastbn_kernels.saved import BIAS, M2, MEAN, MEAN_LO, VAR, WEIGHT

# What a kernel answers: an argument does not fit, and nothing was written; y was written; y was written over x.
REFUSED, DONE, OVER_X = range(3)


@scalar
def apart(a: int, a_bytes: int, b: int, b_bytes: int) -> bool:
    """Return whether two stretches of memory, given by address and size, share nothing."""
    return a_bytes == 0 or b_bytes == 0 or a + a_bytes <= b or b + b_bytes <= a


@scalar
def answer(x: Array, y: Array) -> int:
    """Return what a kernel answers that wrote y."""
    return OVER_X if address(x) == address(y) else DONE


@scalar
def forward_fits(
    count: int, x: Array, weight: Array, bias: Array, running_mean: Array, running_var: Array, correction: float,
    training: bool, y: Array, saved: Array,
) -> bool:  # fmt: skip
    """Return whether the arrays of a forward pass fit together; an empty parameter stands for none."""
    C = saved.shape[1]
    if (weight.size != C and weight.size != 0) or (bias.size != C and bias.size != 0):
        return False
    if running_mean.size != running_var.size or (running_mean.size != C and running_mean.size != 0):
        return False
    if training and running_mean.size != 0 and count <= correction:
        return False
    if not training and running_mean.size != C:
        return False
    at_x, at_y, data = address(x), address(y), x.size * x.itemsize
    if x.size != y.size or not (at_x == at_y or apart(at_x, data, at_y, data)):
        return False
    at_weight, at_bias, size = address(weight), address(bias), weight.itemsize
    for at, values in ((address(running_mean), running_mean.size), (address(running_var), running_var.size)):
        own = values * size
        if not (apart(at, own, at_x, data) and apart(at, own, at_y, data)):
            return False
        if not (apart(at, own, at_weight, weight.size * size) and apart(at, own, at_bias, bias.size * size)):
            return False
    statistics = running_mean.size * size
    return (
        apart(address(running_mean), statistics, address(running_var), statistics)
        and apart(at_y, data, at_weight, weight.size * size)
        and apart(at_y, data, at_bias, bias.size * size)
    )


@scalar
def backward_fits(dy: Array, x: Array, dx: Array) -> bool:
    """Return whether dx is dy, or x, or shares no memory with either."""
    if dy.size != x.size or dx.size != x.size:
        return False
    at, size = address(dx), x.size * x.itemsize
    return (at == address(dy) or apart(at, size, address(dy), size)) and (
        at == address(x) or apart(at, size, address(x), size)
    )


@scalar
def copy_parameter(values: Array, row: Array, default: float) -> None:
    """Copy a parameter to its row; an empty one stands for its default."""
    for c in range(row.size):
        row[c] = values[c] if values.size > 0 else default


@scalar
def begin_saved(
    x: Array, weight: Array, bias: Array, running_mean: Array, running_var: Array, training: bool, saved: Array
) -> None:
    """Fill the rows that are known before x is read."""
    copy_parameter(weight, saved[WEIGHT], 1.0)
    copy_parameter(bias, saved[BIAS], 0.0)
    if not training:
        for c in range(saved.shape[1]):
            saved[MEAN, c], saved[MEAN_LO, c] = as_pair(x, running_mean[c], 0.0)
            saved[VAR, c] = running_var[c]


@scalar
def move_running(
    count: int, running_mean: Array, running_var: Array, momentum: float, correction: float, saved: Array
) -> None:
    """Move the running statistics, if there are any, towards the batch's."""
    for c in range(running_mean.size):
        mean, var = saved[MEAN, c] + saved[MEAN_LO, c], saved[M2, c] / (count - correction)
        running_mean[c] = running_average(running_mean[c], mean, momentum)
        running_var[c] = running_average(running_var[c], var, momentum)


@kernel
def call_forward_channels_last(
    x: ReadRC, weight: ReadP, bias: ReadP, running_mean: WriteP, running_var: WriteP,
    momentum: float, correction: float, eps: float, training: bool, y: WriteRC, saved: Saved, tail: Tail,
) -> int:  # fmt: skip
    """Normalise to y, which may be x, in training with the batch's own statistics; x has less than a block's rows."""
    R, C = x.shape
    if not forward_fits(R, x, weight, bias, running_mean, running_var, correction, training, y, saved):
        return REFUSED
    begin_saved(x, weight, bias, running_mean, running_var, training, saved)
    _, tasks = block_tasks(R, C)
    if training:
        width = rows_together(C) * C
        sums = np.empty((1, 2, width))
        shifts = empty_params(x, 2, width).reshape((1, 2, width))
        for task in range(tasks):
            block_moments(x, task, shifts, sums)
        save_moments(x, np.float64(R), sums[0], 0, 0, C, saved)
    params = empty_wide(x, FORWARD_ROWS)
    fill_forward(x, saved, eps, 0, C, params, 0)
    repeat_rows(params, C)
    for task in range(tasks):
        write_block(None, x, task, params, y, False, tail)
    if training:
        move_running(R, running_mean, running_var, momentum, correction, saved)
    return answer(x, y)


@kernel
def call_forward_channels_first(
    x: ReadNCS, weight: ReadP, bias: ReadP, running_mean: WriteP, running_var: WriteP,
    momentum: float, correction: float, eps: float, training: bool, y: WriteNCS, saved: Saved, tail: Tail,
) -> int:  # fmt: skip
    """Normalise to y, which may be x, in training with the batch's own statistics."""
    N, C, S = x.shape
    if not forward_fits(N * S, x, weight, bias, running_mean, running_var, correction, training, y, saved):
        return REFUSED
    begin_saved(x, weight, bias, running_mean, running_var, training, saved)
    if training:
        numbers = np.empty((3, C))
        share = 1.0 / (N * S)
        for c in range(C):
            origin = channel_origin(x, c)
            numbers[0, c] = origin
            # As `channel_group`, without the calls, which cost more than 49 values, unless it will sum again.
            if x.itemsize < 8 and tile_count(N, S) == 1:
                k = tile_shift(x, c, 0)
                sums, squares = segments_sums(None, x, c * S, C * S, N, S, (-k, 1.0), None)
                if not (sum_again(x, share, sums, squares) or unit_again(x, share, squares, k) != 1.0):
                    numbers[1, c], numbers[2, c] = group(share, k - origin, sums, squares)
                    continue
            numbers[1, c], numbers[2, c] = channel_group(x, c)
        save_channel_moments(x, np.float64(N * S), numbers, saved)
    params = all_params(x, saved, eps)
    for segment in range(N * C):
        c = segment % C
        given = params[0, c], params[1, c], params[2, c], params[3, c]
        write_segment(None, x, segment * S, S, given, y, False, tail)
    if training:
        move_running(N * S, running_mean, running_var, momentum, correction, saved)
    return answer(x, y)


@kernel
def call_backward_channels_last(
    dy: ReadRC, x: ReadRC, saved: Saved, frozen: bool, dx: WriteRC, dweight: WriteP, dbias: WriteP, tail: Tail
) -> int:
    """Write dx, which may be dy or x, and the gradients of the parameters; x has less than a block's rows."""
    if not backward_fits(dy, x, dx):
        return REFUSED
    R, C = x.shape
    _, tasks = block_tasks(R, C)
    params = wide_sums_params(x, saved)
    sums = np.empty((2, params.shape[1]))
    for task in range(tasks):
        block_sums(dy, x, task, params, sums, tail)
    save_sums(x, saved, 0, C, sums, 0, sums)
    for c in range(C):
        dbias[c] = sums[0, c]
        dweight[c] = sums[1, c]
    written = wide_gradient_params(x, np.float64(R), saved, sums)
    for task in range(tasks):
        write_block_gradient(dy, x, task, written, frozen, dx, False, tail)
    return answer(x, dx)


@kernel
def call_backward_channels_first(
    dy: ReadNCS, x: ReadNCS, saved: Saved, frozen: bool, dx: WriteNCS, dweight: WriteP, dbias: WriteP, tail: Tail
) -> int:
    """Write dx, which may be dy or x, and the gradients of the parameters."""
    if not backward_fits(dy, x, dx):
        return REFUSED
    N, C, S = x.shape
    params, sums = np.empty((GRADIENT_ROWS, C)), np.empty((2, C))
    fill_sums(x, saved, 0, C, params, 0)
    for c in range(C):
        given = params[0, c], params[1, c], params[2, c], params[3, c]
        if tile_count(N, S) == 1:  # as `channel_sums`, without the calls
            sums[0, c], sums[1, c] = segments_sums(dy, x, c * S, C * S, N, S, given, tail)
        else:
            sums[0, c], sums[1, c] = channel_sums(dy, x, c, given, tail)
    save_sums(x, saved, 0, C, sums, 0, sums)
    fill_gradient(x, np.float64(N * S), saved, sums, 0, C, params, 0)
    for segment in range(N * C):
        c, start = segment % C, segment * S
        if frozen and tail is None:
            write_segment(dy, None, start, S, (params[6, c],), dx, False, None)
            continue
        made = params[0, c], params[1, c], params[2, c], params[3, c], params[4, c], params[5, c], params[6, c]
        if frozen:
            write_segment(dy, x, start, S, made, dx, False, (tail, FROZEN))
        else:
            write_segment(dy, x, start, S, made, dx, False, tail)
    for c in range(C):
        dbias[c], dweight[c] = sums[0, c], sums[1, c]
    return answer(x, dx)
