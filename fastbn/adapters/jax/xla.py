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
from numba import cfunc, config, types

from fastbn.activations import Activation
from fastbn.adapters.jax import xla_calls as calls
from fastbn.adapters.jax import xla_frame as frame
from fastbn.backends.cpu import plan
from fastbn_kernels.build import interrupts, regions, threads
from fastbn_kernels.build.addresses import address_of, call_bool, words
from fastbn_kernels.build.decorators import RESIDUAL
from fastbn_kernels.cpu import flat_calls, kernel
from fastbn_kernels.cpu.flat_calls import LIKE, parameter_dtype, seen_as
from fastbn_kernels.cpu.simd import tails

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


def takes(dtype: str, parameters: set[str | None]) -> bool:
    """Return whether XLA can call kernels for data and parameters of these dtypes, on the processor that it uses."""
    ready = version()[0] == 0 and regions.known() and not config.DISABLE_JIT
    return ready and parameters <= {parameter_dtype(dtype), None} and jax.default_backend() == "cpu"


def _plan(shape: tuple[int, int, int], dtype: str) -> plan.Plan:
    """Return the plan of a tensor."""
    return plan.make(*shape, LIKE[dtype].dtype.char, threads.count() if math.prod(shape) >= plan.PARALLEL_FROM else 1)


def _register(name: str, body: Any, step: int, kernel: int, itemsize: int) -> None:
    """Tell XLA a call of a step with a kernel, both at their addresses."""
    told = version()[0] | version()[1] << 32
    signature = (types.int64[::1], types.int64, types.int64, types.int64)
    body.compile(signature)
    entry = address_of(body, signature)

    @cfunc(types.int64(types.int64))  # type: ignore[untyped-decorator]
    def handler(pointer: int) -> int:
        given = words(pointer, frame.LENGTH)
        if given[frame.EXTENSION] != 0:
            frame.tell_version(given, told)
            return 0
        failed = True
        try:
            failed = call_bool(entry, (given, step, kernel, itemsize))
        except Exception:  # no memory; kernels raise nothing else
            failed = True
        return frame.no_memory(given) if failed else 0

    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handler.address), platform="cpu")
    _handlers[name] = handler


class Target(NamedTuple):
    """A name that XLA knows, and what the numbers of its calls (`xla_calls`) say of the plan."""

    name: str
    past_cache: bool
    groups: int


def tail(activation: Activation | None, arrays: int) -> Any:
    """Return the key of a kernel's tail: an activation, and how many arrays go with it."""
    named = None if activation is None else tails.named(activation.name, activation.slope)
    return (named, *(RESIDUAL for _ in range(arrays))) if arrays else named


def forward(shape: tuple[int, int, int], dtype: str, precision: str, train: bool, tail: Any = None) -> Target:
    """Return what takes a forward pass of data (N, C, S): the kernel that the plan names."""
    dtype = seen_as(dtype, precision)
    own = _plan(shape, dtype)
    if own.call_forward is not None:
        name = _known("whole_forward", dtype, own, own.call_forward, tail)
    else:
        name = _known("forward", dtype, own, own.forward if train else own.normalize, tail)
    return Target(name, own.past_cache[0], own.groups)


def backward(shape: tuple[int, int, int], dtype: str, precision: str, tail: Any = None) -> Target:
    """Return what takes a backward pass of data (N, C, S): the kernel that the plan names."""
    dtype = seen_as(dtype, precision)
    own = _plan(shape, dtype)
    if own.call_backward is not None:
        name = _known("whole_backward", dtype, own, own.call_backward, tail)
    else:
        name = _known("backward", dtype, own, own.backward, tail)
    return Target(name, own.past_cache[1], own.groups)


def _known(step: str, dtype: str, own: plan.Plan, kernel_name: str, tail: Any) -> str:
    """Return the name of a call of a kernel by a step, which XLA is told now if it does not know it yet."""
    then = "" if tail is None else "_".join(["", *map(str, tail if isinstance(tail, tuple) else (tail,))])
    name = f"fastbn_{kernel_name}_{dtype}{then}"
    with _lock, interrupts.held_back():  # XLA must not know what is not kept, nor be told twice
        if name not in _handlers:
            at = flat_calls.step(step, dtype, own.in_rows, tail)
            function = address_of(kernel(kernel_name).get(LIKE[dtype].dtype, own.parallel, tail))
            body = calls.forward if step.endswith("forward") else calls.backward
            _register(name, body, at, function, np.dtype(parameter_dtype(dtype)).itemsize)
    return name
