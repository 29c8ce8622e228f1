"""Launches on a GPU of what a mask chooses: the functions of `launch`, with a mask behind x and how much it chooses.

Arrays come as for `launch`, shadows of data as (N, C, S). The mask is one of booleans (N, S), contiguous, for the
positions of all channels; where it is False, nothing is read, and zeros are written. `count` is how many positions
count, which the host knows. A forward pass and a backward pass are two launches each.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import numpy as np

from fastbn.backends.cuda import launch
from fastbn.backends.cuda import plan as cuda_plan
from fastbn_kernels.cuda import masked as segments_kernels
from fastbn_kernels.cuda import masked_rows as rows_kernels
from fastbn_kernels.cuda import memory

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


def _plan(data: tuple[Array, ...], operands: int, cooperative: bool) -> cuda_plan.Plan:
    """Return how a call is launched: as without a mask, but nothing is kept on the chip."""
    return dataclasses.replace(launch.plan(data, operands, cooperative), smem_vectors=0, shared=0)


def _launch(
    operation: str, planned: cuda_plan.Plan, data: Array, params: str, stream: int, arguments: tuple[Any, ...],
    tail: Any = None, arrays: int = 0,
) -> None:  # fmt: skip
    """Launch the kernel of an operation, which takes so many arrays of a tail."""
    module = rows_kernels if planned.family == "channels_last" else segments_kernels
    launch._launch(module, f"masked_{operation}", planned, data, params, stream, arguments, tail, arrays)


def _mask(mask: Array) -> Any:
    """Return a mask as kernels take it, a byte a position."""
    return memory.params_argument(mask.view(np.uint8))


def moments(x: Array, mask: Array, count: float, saved: Array, stream: int) -> None:
    """Save mean, mean_lo and m2; what else a forward pass saves is filled too."""
    _statistics(x, mask, count, None, None, None, None, 0.0, 0.0, 0.0, saved, stream)


def _statistics(
    x: Array, mask: Array, count: float, weight: Array | None, bias: Array | None, running_mean: Array | None,
    running_var: Array | None, momentum: float, correction: float, eps: float, saved: Array, stream: int,
) -> None:  # fmt: skip
    planned = _plan((x,), 1, True)
    arguments = (
        *launch._data(planned, x), _mask(mask), *launch._params(saved, weight, bias, running_mean, running_var),
        momentum, correction, eps, launch._given(weight, bias, running_mean), float(count),
    )  # fmt: skip
    _launch("moments", planned, x, launch._char(weight, bias, running_mean), stream, arguments)


def forward(
    x: Array, mask: Array, count: float, weight: Array | None, bias: Array | None, running_mean: Array | None,
    running_var: Array | None, momentum: float, correction: float, eps: float, y: Array, saved: Array, stream: int,
    tail: Any = None,
) -> None:  # fmt: skip
    """Normalise with the statistics of what counts, which are saved and move the running ones."""
    running = running_mean, running_var, momentum, correction
    _statistics(x, mask, count, weight, bias, *running, eps, saved, stream)
    normalize(x, mask, weight, bias, None, None, eps, y, saved, stream, tail)


def normalize(
    x: Array, mask: Array, weight: Array | None, bias: Array | None, running_mean: Array | None,
    running_var: Array | None, eps: float, y: Array, saved: Array, stream: int, tail: Any = None,
) -> None:  # fmt: skip
    """Normalise with running statistics or, without, with the saved mean, mean_lo and var; save the rest."""
    planned = _plan((x, y, *launch._beside(tail)), 1, False)
    arguments = (
        *launch._data(planned, x), _mask(mask), *launch._params(saved, weight, bias, running_mean, running_var), eps,
        *launch._data(planned, y), launch._given(weight, bias, running_mean),
    )  # fmt: skip
    _launch("normalize", planned, x, launch._char(weight, bias, running_mean), stream, arguments, tail, 1)


def sums(
    dy: Array, x: Array, mask: Array, saved: Array, result: Array, stream: int, tail: Any = None,
    dweight: Array | None = None, dbias: Array | None = None,
) -> None:  # fmt: skip
    """Fill result, (2, C), with the sums of dy and of dy * xhat, and gradients as far as they are not None."""
    planned = _plan((dy, x, *launch._beside(tail)), 2, True)
    arguments = (
        *launch._data(planned, dy, x), _mask(mask), *launch._params(saved, result, dweight, dbias),
        launch._given(dweight, dbias, None),
    )  # fmt: skip
    _launch("sums", planned, x, launch._char(dweight, dbias), stream, arguments, tail, 1)


def gradient(
    dy: Array, x: Array, mask: Array, saved: Array, sums: Array, count: float, frozen: bool, dx: Array, stream: int,
    tail: Any = None,
) -> None:  # fmt: skip
    """Write dx from sums, (2, C), over `count` values a channel."""
    planned = _plan((dy, x, dx, *launch._beside(tail)), 2, False)
    arguments = (
        *launch._data(planned, dy, x), _mask(mask), *launch._params(saved, sums), float(count), int(frozen),
        *launch._data(planned, dx),
    )  # fmt: skip
    _launch("gradient", planned, x, "f", stream, arguments, tail, 2)


def backward(
    dy: Array, x: Array, mask: Array, count: float, saved: Array, frozen: bool, dx: Array, dweight: Array | None,
    dbias: Array | None, result: Array, stream: int, tail: Any = None,
) -> None:  # fmt: skip
    """Write dx, result as `sums` does and, as far as they are not None, the gradients of weight and bias."""
    summed = tail[:2] if isinstance(tail, tuple) else tail  # what was added gets its gradient where dx is written
    sums(dy, x, mask, saved, result, stream, summed, dweight, dbias)
    gradient(dy, x, mask, saved, result, count, frozen, dx, stream, tail)
