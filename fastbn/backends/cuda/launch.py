"""Launches on a GPU.

Every array is a shadow (see `arrays`), data as (N, C, S), contiguous, and as `arithmetic.seen` has made it: float32 to
be computed in float64 as its bits, an int32. `saved` is (ROWS, C) as in `fastbn_kernels.saved`. One launch forward, one
backward; nothing is allocated but workspace, once a stream.

`tail` is what is done after the normalization: None, an activation of `fastbn_kernels.cuda.tails.named`, or a tuple of
an activation or None, a residual that is added before and, where dx is written, an array that its gradient is written
to; both are stored as x is, and the latter shares memory with nothing. What comes back to a residual without an
activation is dy itself, and no tail.
"""

from __future__ import annotations

import functools
import threading
from typing import Any, TypeAlias

import numpy as np

from fastbn.backends.cuda import plan as cuda_plan
from fastbn.backends.cuda.arrays import bits, own_stream
from fastbn_kernels.cuda import backward as backward_kernels
from fastbn_kernels.cuda import copy as copy_kernels
from fastbn_kernels.cuda import gpu, memory, tails
from fastbn_kernels.cuda import moments as moments_kernels
from fastbn_kernels.cuda import normalize as normalize_kernels
from fastbn_kernels.cuda.build.decorators import Kernel, Variant
from fastbn_kernels.cuda.normalize import GIVEN_BIAS, GIVEN_RUNNING, GIVEN_WEIGHT

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

# Streams that are given workspace by one allocation, so that those after the first are not held up by theirs: a stream
# that is being captured into a graph may not allocate at all.
SLAB = 8

_gpu: int | None = None  # the one that this process uses


@functools.cache
def device() -> cuda_plan.Device:
    """Return what plans need to know of the GPU that is there."""
    return cuda_plan.Device(**gpu.properties())


def check_gpu() -> None:
    """Raise if another GPU is current than at the first call: plans, workspace and kernels are that one's."""
    global _gpu
    current = gpu.index()
    if _gpu is None:
        _gpu = current
    if current != _gpu:
        raise ValueError(
            f"x: expected an array on GPU {_gpu}, where this process computed before, got one on GPU {current}; "
            "use one process a GPU"
        )


class Workspace:
    """What the blocks of a launch write for each other: float64 slots, and the words of their barriers.

    A stream runs one launch at a time, so each has one. The words are zero between launches.
    """

    def __init__(self) -> None:
        self._free: list[tuple[Any, Any]] = []
        self._of: dict[Any, tuple[Any, Any]] = {}
        self._keep: list[Any] = []
        self._lock = threading.Lock()

    def of(self, stream: Any) -> tuple[Any, Any]:
        """Return (slots, barriers) of a stream, as kernels take them; `stream` is what `own_stream` returns."""
        try:
            return self._of[stream]
        except KeyError:
            with self._lock:
                if not self._free:
                    self._allocate()
                return self._of.setdefault(stream, self._free.pop())

    def _allocate(self) -> None:
        slots, words = cuda_plan.workspace(device())
        nbytes = 8 * slots + 4 * words
        slab = memory.zeros(SLAB * nbytes)
        self._keep.append(slab)
        for start in range(0, SLAB * nbytes, nbytes):
            of_launch = memory.piece(slab, start, slots, np.float64)
            self._free.append((of_launch, memory.piece(slab, start + 8 * slots, words, np.uint32)))


workspace = Workspace()


def _as_bits(array: Array) -> Array:
    """Return data as a kernel takes it, 16-bit floats as the integers of their bits."""
    return array.view(bits(array.dtype))


def plan(data: tuple[Array, ...], operands: int, cooperative: bool) -> cuda_plan.Plan:
    """Return how a call on these arrays (N, C, S) is launched."""
    N, C, S = data[0].shape
    aligned = all(array.__array_interface__["data"][0] % cuda_plan.VECTOR == 0 for array in data)
    return cuda_plan.make(N, C, S, data[0].itemsize, aligned, operands, cooperative, device())


def _launch(
    module: Any,
    operation: str,
    planned: cuda_plan.Plan,
    data: Array,
    params: str,
    stream: int,
    arguments: tuple[Any, ...],
    tail: Any = None,
    arrays: int = 0,
) -> tuple[Any, list[Any]]:
    """Launch an operation's kernel of the plan's family with the arguments and, behind them, what the plan says.

    The kernel takes so many `arrays` of a tail behind the arguments.

    Return what launches it again, and the arguments for that.
    """
    kernel: Kernel = getattr(module, f"{operation}_{planned.family}")
    activation, beside = tail[0] if isinstance(tail, tuple) else tail, _beside(tail)
    after = tails.beside(activation, len(beside) > 1) if beside else activation
    variant = Variant(bits(data.dtype).char, params, planned.scalars, planned.blocks_per_sm, after)
    absent = _params(*[None] * (arrays - len(beside)))
    given = *arguments, *_data(planned, *beside), *absent, *planned.geometry, planned.blocks, planned.block_groups
    if kernel.cooperative:
        given = *given, planned.smem_vectors, *workspace.of(own_stream(stream))
    return kernel.launch(variant, planned.grid, planned.threads, stream, planned.shared, given)


def _beside(tail: Any) -> tuple[Array, ...]:
    """Return the arrays of a tail."""
    return tail[1:] if isinstance(tail, tuple) else ()


def _given(weight: Array | None, bias: Array | None, running: Array | None) -> int:
    return GIVEN_WEIGHT * (weight is not None) + GIVEN_BIAS * (bias is not None) + GIVEN_RUNNING * (running is not None)


def _char(*params: Array | None) -> str:
    """Return the one dtype of the parameters of a call."""
    return next((p.dtype.char for p in params if p is not None), "f")


def _data(planned: cuda_plan.Plan, *data: Array) -> tuple[Any, ...]:
    return tuple(memory.argument(_as_bits(array), planned.scalars) for array in data)


def _params(*arrays: Array | None) -> tuple[Any, ...]:
    return tuple(memory.params_argument(array) for array in arrays)


def moments(x: Array, saved: Array, stream: int) -> None:
    """Save mean, mean_lo and m2."""
    planned = plan((x,), 1, True)
    _launch(moments_kernels, "moments", planned, x, "f", stream, (*_data(planned, x), *_params(saved)))


def forward(
    x: Array, weight: Array | None, bias: Array | None, running_mean: Array | None, running_var: Array | None,
    momentum: float, correction: float, eps: float, y: Array, saved: Array, stream: int, tail: Any = None,
) -> tuple[Any, list[Any]]:  # fmt: skip
    """Normalise with the batch's own statistics, which are saved and move the running ones."""
    planned = plan((x, y, *_beside(tail)), 1, True)
    arguments = (
        *_data(planned, x), *_params(saved, weight, bias, running_mean, running_var), momentum, correction, eps,
        *_data(planned, y), _given(weight, bias, running_mean),
    )  # fmt: skip
    params = _char(weight, bias, running_mean)
    return _launch(normalize_kernels, "forward", planned, x, params, stream, arguments, tail, 1)


def normalize(
    x: Array, weight: Array | None, bias: Array | None, running_mean: Array | None, running_var: Array | None,
    eps: float, y: Array, saved: Array, stream: int, tail: Any = None,
) -> tuple[Any, list[Any]]:  # fmt: skip
    """Normalise with running statistics or, without, with the saved mean, mean_lo and var; save the rest."""
    planned = plan((x, y, *_beside(tail)), 1, False)
    arguments = (
        *_data(planned, x), *_params(saved, weight, bias, running_mean, running_var), eps, *_data(planned, y),
        _given(weight, bias, running_mean),
    )  # fmt: skip
    params = _char(weight, bias, running_mean)
    return _launch(normalize_kernels, "normalize", planned, x, params, stream, arguments, tail, 1)


def sums(dy: Array, x: Array, saved: Array, result: Array, stream: int, tail: Any = None) -> None:
    """Fill result, (2, C), with the sums of dy and of dy * xhat."""
    planned = plan((dy, x, *_beside(tail)), 2, True)
    arguments = *_data(planned, dy, x), *_params(saved, result)
    _launch(backward_kernels, "sums", planned, x, "f", stream, arguments, tail, 1)


def gradient(
    dy: Array, x: Array, saved: Array, sums: Array, count: float, frozen: bool, dx: Array, stream: int,
    tail: Any = None,
) -> None:  # fmt: skip
    """Write dx from sums, (2, C), over `count` values a channel."""
    planned = plan((dy, x, dx, *_beside(tail)), 2, False)
    arguments = (*_data(planned, dy, x), *_params(saved, sums), float(count), int(frozen), *_data(planned, dx))
    _launch(backward_kernels, "gradient", planned, x, "f", stream, arguments, tail, 2)


def backward(
    dy: Array, x: Array, saved: Array, frozen: bool, dx: Array, dweight: Array | None, dbias: Array | None,
    stream: int, tail: Any = None,
) -> tuple[Any, list[Any]]:  # fmt: skip
    """Write dx and, as far as they are not None, the gradients of weight and bias."""
    planned = plan((dy, x, dx, *_beside(tail)), 2, True)
    arguments = (
        *_data(planned, dy, x), *_params(saved), int(frozen), *_data(planned, dx), *_params(dweight, dbias),
        _given(dweight, dbias, None),
    )  # fmt: skip
    return _launch(backward_kernels, "backward", planned, x, _char(dweight, dbias), stream, arguments, tail, 2)


# Blocks of a copy, which is no hot path: a few for every multiprocessor of a large GPU.
COPYING = 1024


def _window(array: Array) -> tuple[Array, int]:
    """Return all that lies between an array's lowest and highest address, and where in that the array begins."""
    lowest = array[tuple(slice(None, None, -1 if stride < 0 else 1) for stride in array.strides)]
    span = sum((n - 1) * stride for n, stride in zip(lowest.shape, lowest.strides, strict=True)) // array.itemsize
    start = array.__array_interface__["data"][0] - lowest.__array_interface__["data"][0]
    return np.lib.stride_tricks.as_strided(lowest, (span + 1,), (array.itemsize,)), start // array.itemsize


def copy(source: Array, target: Array, stream: int) -> None:
    """Copy an array to another of its shape, both of any strides and of float32, float64 or a 16-bit float."""
    if source.size == 0:
        return
    source, target = _as_bits(source), _as_bits(target)
    item = source.itemsize
    pairs = [
        (n, a // item, b // item)
        for n, a, b in sorted(zip(source.shape, source.strides, target.strides, strict=True), key=lambda axis: -axis[2])
        if n > 1
    ]
    axes: list[tuple[int, int, int]] = []  # slowest first; an axis that goes on where the one inside it ends joins it
    for n, a, b in pairs:
        if axes and axes[-1][1] == n * a and axes[-1][2] == n * b:
            axes[-1] = axes[-1][0] * n, a, b
        else:
            axes.append((n, a, b))
    outer, inner = axes[:-4], axes[-4:]
    inner = [(1, 0, 0)] * (4 - len(inner)) + inner
    threads = device().threads
    grid = min(COPYING, -(-int(np.prod([n for n, _, _ in inner])) // threads))
    windows, first = zip(_window(source), _window(target), strict=True)
    base = [memory.argument(window, True) for window in windows]
    variant = Variant(source.dtype.char, "f", True, cuda_plan.BLOCKS_PER_SM[False])
    for place in np.ndindex(*(n for n, _, _ in outer)):
        starts = [first[k - 1] + sum(i * axis[k] for i, axis in zip(place, outer, strict=True)) for k in (1, 2)]
        sizes = [axis[k] for k in range(3) for axis in inner]
        copy_kernels.copy_strided.launch(variant, grid, threads, stream, 0, (*base, *starts, *sizes))


def convert(source: Array, target: Array, stream: int) -> None:
    """Copy numbers of channels, (C,), between float32 and float64, of any strides."""
    if source.size == 0:
        return
    windows, first = zip(_window(source), _window(target), strict=True)
    steps = [array.strides[0] // array.itemsize for array in (source, target)]
    variant = Variant(source.dtype.char, target.dtype.char, True, cuda_plan.BLOCKS_PER_SM[False])
    threads = device().threads
    grid = min(COPYING, -(-source.size // threads))
    arguments = (
        memory.argument(windows[0], True), memory.params_argument(windows[1]), source.size, *first, *steps,
    )  # fmt: skip
    copy_kernels.convert_strided.launch(variant, grid, threads, stream, 0, arguments)
