"""fastbn's kernels under names that XLA knows: which one takes a tensor; made and told when it is first needed."""

from __future__ import annotations

import functools
import math
import re
import threading
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from numba import cfunc, config, typeof, types

from fastbn.adapters.jax import xla_calls as calls
from fastbn.adapters.jax import xla_frame as frame
from fastbn.backends.cpu import plan
from fastbn_kernels.build import interrupts, regions, threads
from fastbn_kernels.build.decorators import Kernel
from fastbn_kernels.cpu import backward as backward_kernels
from fastbn_kernels.cpu import moments as moments_kernels
from fastbn_kernels.cpu import normalize as normalize_kernels
from fastbn_kernels.cpu import overlapped as overlap_kernels
from fastbn_kernels.cpu import short_segments as short_kernels
from fastbn_kernels.cpu import small_calls as call_kernels
from fastbn_kernels.cpu import tiles

# A value of what kernels see of a dtype; 16-bit floats are their bits, told apart by the sign.
LIKE: dict[str, Any] = {
    "float32": np.float32(0),
    "float64": np.float64(0),
    "float16": np.int16(0),
    "bfloat16": np.uint16(0),
}

_lock = threading.Lock()
_handlers: dict[str, Any] = {}  # what XLA knows, and has the addresses of


@functools.cache
def version() -> tuple[int, int]:
    """Return the version of XLA's interface that this JAX comes with; (-1, -1) if it does not say."""
    try:
        header = (Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h").read_text()
        major, minor = (int(n) for n in re.findall(r"#define XLA_FFI_API_(?:MAJOR|MINOR) (\d+)", header))
    except (AttributeError, OSError, ValueError):
        return -1, -1
    return major, minor


def parameter_dtype(dtype: str) -> str:
    """Return the dtype of the parameters that kernels take with data of a dtype."""
    return "float64" if dtype == "float64" else "float32"


def takes(dtype: str, parameters: set[str | None]) -> bool:
    """Return whether XLA can call kernels for data and parameters of these dtypes, on the processor that it uses."""
    ready = version()[0] == 0 and regions.known() and not config.DISABLE_JIT
    return ready and parameters <= {parameter_dtype(dtype), None} and jax.default_backend() == "cpu"


def _plan(shape: tuple[int, int, int], itemsize: int) -> plan.Plan:
    """Return the plan of a tensor. XLA calls from several threads at once, which `workqueue` does not stand."""
    count = threads.count() if math.prod(shape) >= plan.PARALLEL_FROM else 1
    return plan.make(*shape, itemsize, 1 if threads.layer() == "workqueue" else count)


def _register(name: str, body: Any, dtype: str, form: tuple[int, ...], kernels: list[int]) -> None:
    """Tell XLA a call of kernels at addresses."""
    told = version()[0] | version()[1] << 32
    like, own = LIKE[dtype], LIKE[parameter_dtype(dtype)]
    signature = (types.int64[::1], types.int64, types.int64, *(typeof(value) for value in (like, own, form)))
    body.compile(signature)
    address, first, last = frame.address_of(body, signature), kernels[0], kernels[-1]

    @cfunc(types.int64(types.int64))  # type: ignore[untyped-decorator]
    def handler(pointer: int) -> int:
        given = frame.words(pointer, frame.LENGTH)
        if given[frame.EXTENSION] != 0:
            frame.tell_version(given, told)
            return 0
        failed = True
        try:
            failed = frame.call_bool(address, (given, first, last, like, own, form))
        except Exception:  # no memory; kernels raise nothing else
            failed = True
        return frame.no_memory(given) if failed else 0

    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler.address), platform="cpu")
    _handlers[name] = handler


def _small(shape: tuple[int, int, int]) -> bool:
    """Return whether one kernel does a whole call."""
    rows, channels, run = shape
    return math.prod(shape) < plan.PARALLEL_FROM and (run > 1 or tiles.block_tasks(rows, channels)[1] == 1)


class Target(NamedTuple):
    """A name that XLA knows, and what the numbers of its calls (`cpu/xla_calls.py`) say of the plan."""

    name: str
    past_cache: bool
    groups: int


def forward(shape: tuple[int, int, int], dtype: str, train: bool) -> Target:
    """Return what takes a forward pass of data (N, C, S), as `fastbn.backends.cpu` chooses."""
    own = _plan(shape, LIKE[dtype].dtype.itemsize)
    rows, short = own.family == "adjacent", own.family == "short"
    if _small(shape):
        body, kernels = calls.whole, [call_kernels.call_forward_adjacent if rows else call_kernels.call_forward_apart]
    elif not train and short:
        body, kernels = calls.inference_short, [short_kernels.normalize_short]
    elif not train:
        body = calls.inference
        kernels = [normalize_kernels.normalize_adjacent if rows else normalize_kernels.normalize_apart]
    elif short:
        body, kernels = calls.training_short, [short_kernels.forward_short]
    elif not rows and not own.whole:
        body, kernels = calls.training_in_two, [moments_kernels.moments_apart, normalize_kernels.normalize_apart]
    elif own.stretches and own.past_cache[0]:
        body, kernels = calls.training_overlapped, [overlap_kernels.forward_overlapped]
    else:
        body = calls.training
        kernels = [normalize_kernels.forward_adjacent if rows else normalize_kernels.forward_apart]
    return Target(_known(body, dtype, own, kernels), own.past_cache[0], own.groups or own.stretches)


def backward(shape: tuple[int, int, int], dtype: str, frozen: bool) -> Target:
    """Return what takes a backward pass of data (N, C, S), as `fastbn.backends.cpu` chooses."""
    own = _plan(shape, LIKE[dtype].dtype.itemsize)
    rows = own.family == "adjacent"
    if _small(shape):
        body = calls.whole_back
        kernels = [call_kernels.call_backward_adjacent if rows else call_kernels.call_backward_apart]
    elif own.family == "short":
        body, kernels = calls.gradients_short, [short_kernels.backward_short]
    elif not rows and not own.whole:
        body, kernels = calls.gradients_in_two, [backward_kernels.sums_apart, backward_kernels.gradient_apart]
    elif own.stretches and own.past_cache[1] and not frozen:
        body, kernels = calls.gradients_overlapped, [overlap_kernels.backward_overlapped]
    else:
        body = calls.gradients
        kernels = [backward_kernels.backward_adjacent if rows else backward_kernels.backward_apart]
    return Target(_known(body, dtype, own, kernels), own.past_cache[1], own.groups or own.stretches)


def _known(body: Any, dtype: str, own: plan.Plan, kernels: list[Kernel]) -> str:
    """Return the name of a call with kernels, which XLA is told now if it does not know it yet."""
    name = f"fastbn_{body.__name__}_{kernels[-1].name}_{dtype}_{'parallel' if own.parallel else 'serial'}"
    with _lock, interrupts.held_back():  # XLA must not know what is not kept, nor be told twice
        if name not in _handlers:
            form = calls.ROWS if own.family == "adjacent" else calls.RUNS
            functions = [kernel.get(LIKE[dtype].dtype, own.parallel) for kernel in kernels]
            _register(name, body, dtype, form, [frame.address_of(function) for function in functions])
    return name
