"""Ghost batches: parts of x along its first axis, each with statistics of its own, in one launch.

Each part goes to the kernel that its plan names, at its address: one after the other, spread over the threads inside,
or if parts are small, a whole part a thread (`small_calls`). So a part has the bits that it would have by itself.
Running statistics are moved at the end, part after part. Nothing is checked here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

from fastbn_kernels.build.addresses import call_kernel, call_whole
from fastbn_kernels.build.decorators import (
    Array,
    ReadNCS,
    ReadP,
    Saved,
    Sums,
    Tail,
    WriteNCS,
    WriteP,
    in_rows,
    kernel,
    prange,
    scalar,
)
from fastbn_kernels.cpu.small_calls import begin_saved, move_running
from fastbn_kernels.saved import ROWS


def tail_part(tail: Any, n0: int, n1: int) -> Any:
    """Return a tail whose arrays are those of a part."""
    if not isinstance(tail, tuple):
        return tail
    return tuple(each[n0:n1] if isinstance(each, np.ndarray) else each for each in tail)


@overload(tail_part, strict=False)  # type: ignore[untyped-decorator]
def _tail_part(tail: Any, n0: Any, n1: Any) -> Any:
    if not isinstance(tail, types.BaseTuple):
        return lambda tail, n0, n1: tail
    if len(tail) == 2:
        return lambda tail, n0, n1: (tail[0], tail[1][n0:n1])
    return lambda tail, n0, n1: (tail[0], tail[1][n0:n1], tail[2][n0:n1])


@scalar
def rows_of(saved: Array, g: int) -> Array:
    """Return what is saved of ghost batch g, of (G * ROWS, C)."""
    return saved[g * ROWS : (g + 1) * ROWS]


@scalar
def move_all(
    N: int, S: int, step: int, running_mean: Array, running_var: Array, momentum: float, correction: float, saved: Array
) -> None:
    """Move the running statistics, if there are any, once for each part, in order."""
    for g in range((N + step - 1) // step):
        values = (min(N, (g + 1) * step) - g * step) * S
        move_running(values, running_mean, running_var, momentum, correction, rows_of(saved, g))


@kernel
def ghosts_forward_channels_first(
    x: ReadNCS, weight: ReadP, bias: ReadP, running_mean: WriteP, running_var: WriteP, none: WriteP, momentum: float,
    correction: float, eps: float, training: bool, y: WriteNCS, saved: Saved, step: int, small: bool, at: int,
    past_cache: bool, groups: int, last_at: int, last_past_cache: bool, last_groups: int, tail: Tail,
) -> None:  # fmt: skip
    """Normalise parts of `step` samples to y, which may be x; the last by a kernel of its own."""
    N = x.shape[0]
    parts = (N + step - 1) // step
    if small:
        for g in prange(0, parts):
            n0 = g * step
            n1 = min(N, n0 + step)
            given = weight, bias, none, none, momentum, correction, eps, training
            call_whole(at, (x[n0:n1], *given, y[n0:n1], rows_of(saved, g), tail_part(tail, n0, n1)))
    else:
        for g in range(parts):
            n0 = g * step
            n1 = min(N, n0 + step)
            own = rows_of(saved, g)
            begin_saved(x, weight, bias, none, none, training, own)
            if n1 - n0 == step:
                call_kernel(at, (x[n0:n1], own, eps, past_cache, groups, y[n0:n1], tail_part(tail, n0, n1)))
            else:
                last = last_past_cache, last_groups
                call_kernel(last_at, (x[n0:n1], own, eps, *last, y[n0:n1], tail_part(tail, n0, n1)))
    move_all(N, x.size // (N * x.shape[1]), step, running_mean, running_var, momentum, correction, saved)


@kernel
def ghosts_backward_channels_first(
    dy: ReadNCS, x: ReadNCS, saved: Saved, frozen: bool, dx: WriteNCS, dweight: WriteP, dbias: WriteP, sums: Sums,
    step: int, small: bool, at: int, past_cache: bool, groups: int, last_at: int, last_past_cache: bool,
    last_groups: int, tail: Tail,
) -> None:  # fmt: skip
    """Write dx, which may be dy or x, and of each part two rows of sums; `dweight` and `dbias` are where to work."""
    N, C = x.shape[:2]
    parts = (N + step - 1) // step
    if small:
        for g in prange(0, parts):
            n0 = g * step
            n1 = min(N, n0 + step)
            by = dweight[g * C : (g + 1) * C], dbias[g * C : (g + 1) * C]
            given = dy[n0:n1], x[n0:n1], rows_of(saved, g), frozen, dx[n0:n1]
            call_whole(at, (*given, *by, tail_part(tail, n0, n1)))
            for c in range(C):
                sums[2 * g, c], sums[2 * g + 1, c] = by[1][c], by[0][c]
    else:
        for g in range(parts):
            n0 = g * step
            n1 = min(N, n0 + step)
            read = dy[n0:n1], x[n0:n1], rows_of(saved, g), frozen
            results = dx[n0:n1], sums[2 * g : 2 * g + 2], tail_part(tail, n0, n1)
            if n1 - n0 == step:
                call_kernel(at, (*read, past_cache, groups, *results))
            else:
                call_kernel(last_at, (*read, last_past_cache, last_groups, *results))


ghosts_forward_channels_last = in_rows(ghosts_forward_channels_first)
ghosts_backward_channels_last = in_rows(ghosts_backward_channels_first)
