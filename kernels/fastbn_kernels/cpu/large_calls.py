"""A whole call around a kernel, for tensors that are not small: one trip from Python to compiled code.

Every trip through Numba's dispatcher looks at the types of 6 to 14 arguments and unpacks them. After a matrix product,
whose data have pushed Python's and Numba's out of the caches, a call of 256 x 1024 float32 takes 189 us this way, and
227 with three trips (checks, kernel, running statistics) and Python between them; backward 214 and 252.

The kernel that the plan of the tensor names is called at its address, so that these are compiled once for all kernels
and add nothing to their sizes; `flat_calls` does the same with a row of words. What is checked, what is not, and what
is answered: see `small_calls`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastbn_kernels.build.addresses import call_kernel
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
from fastbn_kernels.cpu.small_calls import REFUSED, answer, backward_fits, begin_saved, forward_fits, move_running


@scalar
def forward_by(
    at: int, past_cache: bool, groups: int, count: int, x: Array, weight: Array, bias: Array, running_mean: Array,
    running_var: Array, momentum: float, correction: float, eps: float, training: bool, y: Array, saved: Array,
    tail: Any,
) -> int:  # fmt: skip
    """Check, normalise by a kernel, with the batch's own statistics or running ones, and move the running ones."""
    if not forward_fits(count, x, weight, bias, running_mean, running_var, correction, training, y, saved):
        return REFUSED
    begin_saved(x, weight, bias, running_mean, running_var, training, saved)
    call_kernel(at, (x, saved, eps, past_cache, groups, y, tail))
    if training:
        move_running(count, running_mean, running_var, momentum, correction, saved)
    return answer(x, y)


@scalar
def backward_by(
    at: int, past_cache: bool, groups: int, dy: Array, x: Array, saved: Array, frozen: bool, dx: Array, dweight: Array,
    dbias: Array, tail: Any,
) -> int:  # fmt: skip
    """Check, sum and write dx by a kernel, and write the gradients of the parameters."""
    if not backward_fits(dy, x, dx):
        return REFUSED
    sums = np.empty((2, saved.shape[1]))
    call_kernel(at, (dy, x, saved, frozen, past_cache, groups, dx, sums, tail))
    for c in range(dbias.size):  # an assignment of slices would compile 25 functions of strings, for its message
        dbias[c], dweight[c] = sums[0, c], sums[1, c]
    return answer(x, dx)


@kernel
def large_forward_channels_last(
    x: ReadRC, weight: ReadP, bias: ReadP, running_mean: WriteP, running_var: WriteP, momentum: float,
    correction: float, eps: float, training: bool, y: WriteRC, saved: Saved, at: int, past_cache: bool, groups: int,
    tail: Tail,
) -> int:  # fmt: skip
    """Do a forward pass by the kernel at an address."""
    parameters = weight, bias, running_mean, running_var
    options = momentum, correction, eps, training
    return forward_by(at, past_cache, groups, x.shape[0], x, *parameters, *options, y, saved, tail)


@kernel
def large_forward_channels_first(
    x: ReadNCS, weight: ReadP, bias: ReadP, running_mean: WriteP, running_var: WriteP, momentum: float,
    correction: float, eps: float, training: bool, y: WriteNCS, saved: Saved, at: int, past_cache: bool, groups: int,
    tail: Tail,
) -> int:  # fmt: skip
    """Do a forward pass by the kernel at an address."""
    parameters = weight, bias, running_mean, running_var
    options = momentum, correction, eps, training
    return forward_by(at, past_cache, groups, x.shape[0] * x.shape[2], x, *parameters, *options, y, saved, tail)


@kernel
def large_backward_channels_last(
    dy: ReadRC, x: ReadRC, saved: Saved, frozen: bool, dx: WriteRC, dweight: WriteP, dbias: WriteP, at: int,
    past_cache: bool, groups: int, tail: Tail,
) -> int:  # fmt: skip
    """Do a backward pass by the kernel at an address."""
    return backward_by(at, past_cache, groups, dy, x, saved, frozen, dx, dweight, dbias, tail)


@kernel
def large_backward_channels_first(
    dy: ReadNCS, x: ReadNCS, saved: Saved, frozen: bool, dx: WriteNCS, dweight: WriteP, dbias: WriteP, at: int,
    past_cache: bool, groups: int, tail: Tail,
) -> int:  # fmt: skip
    """Do a backward pass by the kernel at an address."""
    return backward_by(at, past_cache, groups, dy, x, saved, frozen, dx, dweight, dbias, tail)
