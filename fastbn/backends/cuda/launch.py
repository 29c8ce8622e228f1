"""Launches on a GPU.

Every array is a shadow (see `device_array`), data as (N, C, S) and contiguous. The table of a call is the one of
`backends.cpu`, on the GPU. One launch forward, one backward; nothing is allocated but workspace, once a stream.
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
from fastbn_kernels.cuda import moments as moments_kernels
from fastbn_kernels.cuda import normalize as normalize_kernels
from fastbn_kernels.cuda import toolkit

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

# What a call came with; see `fastbn_kernels/cuda/normalize.py`.
WEIGHT, BIAS, RUNNING = 1, 2, 4

# Streams that are given workspace by one allocation, so that those after the first are not held up by theirs: a stream
# that is being captured into a graph may not allocate at all.
SLAB = 8

_gpu: int | None = None  # the one that this process uses


@functools.cache
def device() -> cuda_plan.Device:
    """Return what plans need to know of the GPU that is there."""
    return cuda_plan.Device(**toolkit.properties())


def check_gpu() -> None:
    """Raise if another GPU is current than at the first call: plans, workspace and kernels are that one's."""
    global _gpu
    current = toolkit.gpu_index()
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
        """Return (slots, words) of a stream, as kernels take them; `stream` is what `own_stream` returns."""
        try:
            return self._of[stream]
        except KeyError:
            with self._lock:
                if not self._free:
                    self._allocate()
                return self._of.setdefault(stream, self._free.pop())

    def _allocate(self) -> None:
        own = device()
        slots, words = cuda_plan.workspace(own)
        memory = toolkit.zeros(SLAB * (8 * slots + 4 * words))
        self._keep.append(memory)
        for i in range(SLAB):
            start = i * (8 * slots + 4 * words)
            middle = start + 8 * slots
            self._free.append(
                (
                    toolkit.piece(memory, start, slots, np.float64),
                    toolkit.piece(memory, middle, words, np.uint32),
                )
            )


workspace = Workspace()


def _bits(dtype: np.dtype[Any]) -> str:
    """Return the character that kernels know data of a dtype by: that of its bits for the 16-bit floats."""
    return bits(dtype).char if dtype.itemsize == 2 else dtype.char


def _as_bits(array: Array) -> Array:
    """Return data as a kernel takes it, 16-bit floats as the integers of their bits."""
    return array.view(bits(array.dtype)) if array.itemsize == 2 else array


def plan(data: tuple[Array, ...], operands: int, waits: bool) -> cuda_plan.Plan:
    """Return how a call on these arrays (N, C, S) is launched."""
    N, C, S = data[0].shape
    aligned = all(array.__array_interface__["data"][0] % cuda_plan.VECTOR == 0 for array in data)
    return cuda_plan.make(N, C, S, data[0].itemsize, aligned, operands, waits, device())


def _launch(
    kernels: tuple[Any, Any],
    own: cuda_plan.Plan,
    data: tuple[Array, ...],
    parameters: str,
    stream: int,
    arguments: tuple[Any, ...],
) -> tuple[Any, list[Any]]:
    """Launch the kernel of the plan's family with the arguments and, behind them, what the plan says.

    Return what launches it again, and the arguments for that.
    """
    kernel = kernels[own.family == "adjacent"]
    kind = _bits(data[0].dtype), parameters, own.scalars, own.resident
    given = *arguments, *own.geometry, own.blocks, own.teams
    if kernel.waits:
        given = *given, own.room, *workspace.of(own_stream(stream))
    return kernel.launch(kind, own.grid, own.threads, stream, own.shared, given)  # type: ignore[no-any-return]


def _given(weight: Array | None, bias: Array | None, running: Array | None) -> int:
    return WEIGHT * (weight is not None) + BIAS * (bias is not None) + RUNNING * (running is not None)


def _char(*parameters: Array | None) -> str:
    """Return the one dtype of the parameters of a call."""
    return next((p.dtype.char for p in parameters if p is not None), "f")


def _pass(own: cuda_plan.Plan, *data: Array) -> tuple[Any, ...]:
    return tuple(toolkit.argument(_as_bits(array), own.scalars) for array in data)


def _numbers(*arrays: Array | None) -> tuple[Any, ...]:
    return tuple(toolkit.number_argument(array) for array in arrays)


def moments(x: Array, table: Array, stream: int) -> None:
    """Fill mean, low and m2 in the table."""
    own = plan((x,), 1, True)
    kernels = moments_kernels.moments_apart, moments_kernels.moments_adjacent
    _launch(kernels, own, (x,), "f", stream, (*_pass(own, x), *_numbers(table)))


def forward(
    x: Array, weight: Array | None, bias: Array | None, running_mean: Array | None, running_var: Array | None,
    momentum: float, correction: float, eps: float, y: Array, table: Array, stream: int,
) -> tuple[Any, list[Any]]:  # fmt: skip
    """Normalise with the batch's own statistics, which fill the table and move the running ones."""
    own = plan((x, y), 1, True)
    kernels = normalize_kernels.forward_apart, normalize_kernels.forward_adjacent
    arguments = (
        *_pass(own, x), *_numbers(weight, bias, running_mean, running_var), momentum, correction, eps,
        *_pass(own, y), *_numbers(table), _given(weight, bias, running_mean),
    )  # fmt: skip
    return _launch(kernels, own, (x,), _char(weight, bias, running_mean), stream, arguments)


def normalize(
    x: Array, weight: Array | None, bias: Array | None, running_mean: Array | None, running_var: Array | None,
    eps: float, y: Array, table: Array, stream: int,
) -> tuple[Any, list[Any]]:  # fmt: skip
    """Normalise with running statistics or, without, with mean, low and (as m2) var in the table; fill the rest."""
    own = plan((x, y), 1, False)
    kernels = normalize_kernels.normalize_apart, normalize_kernels.normalize_adjacent
    arguments = (
        *_pass(own, x), *_numbers(weight, bias, running_mean, running_var), eps,
        *_pass(own, y), *_numbers(table), _given(weight, bias, running_mean),
    )  # fmt: skip
    return _launch(kernels, own, (x,), _char(weight, bias, running_mean), stream, arguments)


def sums(dy: Array, x: Array, table: Array, result: Array, stream: int) -> None:
    """Fill result, (2, C), with the sums of dy and of dy * xhat."""
    own = plan((dy, x), 2, True)
    kernels = backward_kernels.sums_apart, backward_kernels.sums_adjacent
    _launch(kernels, own, (x,), "f", stream, (*_pass(own, dy, x), *_numbers(table, result)))


def gradient(
    dy: Array, x: Array, table: Array, sums: Array, count: float, frozen: bool, dx: Array, stream: int
) -> None:
    """Write dx from sums, (2, C), over `count` values a channel."""
    own = plan((dy, x, dx), 2, False)
    kernels = backward_kernels.gradient_apart, backward_kernels.gradient_adjacent
    arguments = (*_pass(own, dy, x), *_numbers(table, sums), float(count), int(frozen), *_pass(own, dx))
    _launch(kernels, own, (x,), "f", stream, arguments)


def backward(
    dy: Array, x: Array, table: Array, frozen: bool, dx: Array, dweight: Array | None, dbias: Array | None, stream: int
) -> tuple[Any, list[Any]]:
    """Write dx and, as far as they are not None, the gradients of weight and bias."""
    own = plan((dy, x, dx), 2, True)
    kernels = backward_kernels.backward_apart, backward_kernels.backward_adjacent
    arguments = (
        *_pass(own, dy, x), *_numbers(table), int(frozen), *_pass(own, dx), *_numbers(dweight, dbias),
        _given(dweight, dbias, None),
    )  # fmt: skip
    return _launch(kernels, own, (x,), _char(dweight, dbias), stream, arguments)


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
    base = [toolkit.argument(window, True) for window in windows]
    for place in np.ndindex(*(n for n, _, _ in outer)):
        starts = [first[k - 1] + sum(i * axis[k] for i, axis in zip(place, outer, strict=True)) for k in (1, 2)]
        sizes = [axis[k] for k in range(3) for axis in inner]
        kind = source.dtype.char, "f", True, cuda_plan.RESIDENT[False]
        copy_kernels.copy_strided.launch(kind, grid, threads, stream, 0, (*base, *starts, *sizes))


def convert(source: Array, target: Array, stream: int) -> None:
    """Copy numbers of channels, (C,), between float32 and float64, of any strides."""
    if source.size == 0:
        return
    windows, first = zip(_window(source), _window(target), strict=True)
    steps = [array.strides[0] // array.itemsize for array in (source, target)]
    kind = source.dtype.char, target.dtype.char, True, cuda_plan.RESIDENT[False]
    threads = device().threads
    grid = min(COPYING, -(-source.size // threads))
    arguments = (
        toolkit.argument(windows[0], True), toolkit.number_argument(windows[1]), source.size, *first, *steps,
    )  # fmt: skip
    copy_kernels.convert_strided.launch(kind, grid, threads, stream, 0, arguments)
