"""JAX on the CPU: batch norm under jit, grad, vmap, and grad of grad, as calls of fastbn on XLA's own buffers.

XLA calls out through its foreign function interface, whose C structures are read with ctypes here
(xla/ffi/api/c_api.h, API version 0.3), so nothing is copied or converted on the way. A forward call of 32 x 64 through
`jax.pure_callback` takes 3 to 4 times as long.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import json
import math
import operator
import threading
import time
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_int, c_int64, c_size_t, c_void_p
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import fastbn

# XLA_FFI_DataType; tables of float64 travel as pairs of uint32, since JAX has no float64 unless it is switched on.
DTYPES = {
    10: np.dtype(np.float16), 11: np.dtype(np.float32), 12: np.dtype(np.float64), 16: np.dtype(jnp.bfloat16),
    8: np.dtype(np.uint32),
}  # fmt: skip
DATA, PARAMETERS = ("float32", "float64", "float16", "bfloat16"), ("float32", "float64")
ROWS = 6  # of a context's table


class _Buffer(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t), ("extension", c_void_p),
        ("dtype", c_int), ("data", c_void_p), ("rank", c_int64), ("dims", POINTER(c_int64)),
    )  # fmt: skip


class _Buffers(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t), ("extension", c_void_p),
        ("count", c_int64), ("types", c_void_p), ("items", POINTER(POINTER(_Buffer))),
    )  # fmt: skip


class _Text(ctypes.Structure):
    _fields_ = (("data", c_void_p), ("length", c_size_t))


class _Attributes(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t), ("extension", c_void_p),
        ("count", c_int64), ("types", c_void_p), ("names", c_void_p), ("items", POINTER(POINTER(_Text))),
    )  # fmt: skip


class _Version(ctypes.Structure):
    _fields_ = (("size", c_size_t), ("extension", c_void_p), ("major", c_int), ("minor", c_int))


class _Metadata(ctypes.Structure):
    _fields_ = (("size", c_size_t), ("version", _Version), ("traits", ctypes.c_uint32))


class _Extension(ctypes.Structure):  # of the only type there is: a question for metadata
    _fields_ = (("size", c_size_t), ("type", c_int), ("next", c_void_p), ("metadata", POINTER(_Metadata)))


class _Error(ctypes.Structure):
    _fields_ = (("size", c_size_t), ("extension", c_void_p), ("message", c_char_p), ("code", c_int))


class _Api(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t), ("extension", c_void_p), ("version", _Version), ("internal", c_void_p),
        ("new_error", ctypes.CFUNCTYPE(c_void_p, POINTER(_Error))),
    )  # fmt: skip


class _Frame(ctypes.Structure):
    _fields_ = (
        ("size", c_size_t), ("extension", POINTER(_Extension)), ("api", POINTER(_Api)), ("context", c_void_p),
        ("stage", c_int), ("arguments", _Buffers), ("results", _Buffers), ("attributes", _Attributes),
    )  # fmt: skip


class _Options(NamedTuple):
    """What a call is traced with."""

    axis: int
    eps: float
    momentum: float
    correction: float
    training: bool
    running: bool
    weight: str | None  # its dtype
    bias: str | None


@functools.cache
def _parsed(text: bytes) -> _Options:
    return _Options(*json.loads(text))


def _arrays(buffers: _Buffers) -> list[Any]:
    """Return XLA's buffers as arrays of NumPy, without a copy."""
    arrays = []
    for i in range(buffers.count):
        buffer = buffers.items[i].contents
        dtype, shape = DTYPES[buffer.dtype], tuple(buffer.dims[: buffer.rank])
        memory = (ctypes.c_char * (math.prod(shape) * dtype.itemsize)).from_address(buffer.data)
        array = np.ndarray(shape, dtype, memory)
        arrays.append(array.view(np.float64) if dtype == np.uint32 else array)
    return arrays


KEPT: list[Any] = []  # what XLA has the addresses of
METADATA, INTERNAL = 1, 13  # a type of extension, a code of errors
RUNNING: set[int] = set()  # threads that are in a call now
PAUSE = 0.5  # seconds
_last = [-math.inf]  # when a call ended


@atexit.register
def _finish() -> None:
    """Wait for calls under way: while Python ends, XLA waits for its threads, and they for Python's lock, for ever.

    Results that somebody holds are waited for. Those that were dropped unread cannot be: as long as calls of theirs
    follow one another within a pause, they are.
    """
    if _last[0] > -math.inf:
        for array in jax.live_arrays():
            with contextlib.suppress(Exception):  # of a call that failed
                array.block_until_ready()
    while RUNNING or time.monotonic() - _last[0] < PAUSE:
        time.sleep(0.01)


def _register(function: Callable[[_Options, list[Any], list[Any]], None]) -> str:
    """Make a function of options, arguments and results known to XLA; return its name there."""

    def handle(pointer: Any) -> int | None:
        frame = pointer.contents
        if frame.extension and frame.extension.contents.type == METADATA:
            version = frame.extension.contents.metadata.contents.version
            version.major, version.minor = 0, 3
            return None
        RUNNING.add(threading.get_ident())
        try:
            text = frame.attributes.items[0].contents
            options = _parsed(ctypes.string_at(text.data, text.length))
            function(options, _arrays(frame.arguments), _arrays(frame.results))
        except BaseException as error:  # must not pass through C
            message = f"{type(error).__name__}: {error}".encode()
            created: int = frame.api.contents.new_error(_Error(ctypes.sizeof(_Error), None, message, INTERNAL))
            return created
        finally:
            _last[0] = time.monotonic()
            RUNNING.discard(threading.get_ident())
        return None

    name = f"fastbn{function.__name__}"
    handler = ctypes.CFUNCTYPE(c_void_p, POINTER(_Frame))(handle)
    KEPT.append(handler)
    jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(ctypes.cast(handler, c_void_p).value), platform="cpu")
    return name


def _run_forward(options: _Options, arguments: list[Any], results: list[Any]) -> None:
    given = iter(arguments)
    x = next(given)
    weight, bias = (None if dtype is None else next(given) for dtype in (options.weight, options.bias))
    y, table, *running = results
    statistics = list(given)
    if running:  # new ones, which begin as the old ones
        for new, old in zip(running, statistics, strict=True):
            new[...] = old
        statistics = running
    mean, var = statistics or (None, None)
    _, ctx = fastbn.batch_norm(
        x, weight, bias, running_mean=mean, running_var=var, training=options.training, momentum=options.momentum,
        correction=options.correction, eps=options.eps, axis=options.axis, out=y,
    )  # fmt: skip
    table[...] = ctx.table


def _context(options: _Options, x: Any, table: Any) -> fastbn.Context:
    weight, bias = (None if name is None else np.dtype(name) for name in (options.weight, options.bias))
    return fastbn.Context(x, options.axis, x.size // x.shape[options.axis], table, weight, bias, not options.training)


def _store(results: list[Any], *values: Any) -> None:
    for result, value in zip(results, (v for v in values if v is not None), strict=True):
        result[...] = value


def _run_backward(options: _Options, arguments: list[Any], results: list[Any]) -> None:
    x, table, dy = arguments
    grads = fastbn.batch_norm_backward(dy, _context(options, x, table), out=results[0])
    _store(results[1:], grads.dweight, grads.dbias)


def _run_double_backward(options: _Options, arguments: list[Any], results: list[Any]) -> None:
    x, table, dy, ddx, *rest = arguments
    given = iter(rest)
    ddweight, ddbias = (None if dtype is None else next(given) for dtype in (options.weight, options.bias))
    ctx = _context(options, x, table)
    _store(results, *fastbn.batch_norm_double_backward(ddx, ddweight, ddbias, dy, ctx))


FORWARD, BACKWARD, DOUBLE = map(_register, (_run_forward, _run_backward, _run_double_backward))


def _call(name: str, options: _Options, results: list[Any], arguments: list[Any]) -> Any:
    """Call a registered function; absent arguments and results are left out."""
    shapes = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in results if dtype is not None]
    call = jax.ffi.ffi_call(name, shapes, vmap_method="sequential")
    return call(*(a for a in arguments if a is not None), options=json.dumps(options))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _forward(options: _Options, x: Any, weight: Any, bias: Any, running: Any) -> Any:
    channels = (x.shape[options.axis],)
    new = [(channels, r.dtype) for r in running if options.training]
    results = [(x.shape, x.dtype), ((ROWS, 2 * channels[0]), np.uint32), *new]
    y, table, *updated = _call(FORWARD, options, results, [x, weight, bias, *running])
    return y, table, updated or list(running)


def _forward_kept(options: _Options, x: Any, weight: Any, bias: Any, running: Any) -> Any:
    results = _forward(options, x, weight, bias, running)
    return results, (x, weight, results[1])


def _forward_vjp(options: _Options, kept: Any, cotangents: Any) -> Any:
    return *_backward(options, *kept, cotangents[0]), None


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _backward(options: _Options, x: Any, weight: Any, table: Any, dy: Any) -> Any:
    channels = (x.shape[options.axis],)
    results = [(x.shape, x.dtype), (channels, options.weight), (channels, options.bias)]
    dx, *rest = _call(BACKWARD, options, results, [x, table, dy])
    return dx, *_or_none(options, rest)


def _or_none(options: _Options, values: list[Any]) -> Any:
    given = iter(values)
    return tuple(None if dtype is None else next(given) for dtype in (options.weight, options.bias))


def _backward_kept(options: _Options, x: Any, weight: Any, table: Any, dy: Any) -> Any:
    return _backward(options, x, weight, table, dy), (x, table, dy)


def _backward_vjp(options: _Options, kept: Any, cotangents: Any) -> Any:
    ddy, dx, dweight = _double_backward(options, *kept, *cotangents)
    return dx, dweight, None, ddy


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _double_backward(options: _Options, x: Any, table: Any, dy: Any, ddx: Any, ddweight: Any, ddbias: Any) -> Any:
    results = [(x.shape, x.dtype), (x.shape, x.dtype), ((x.shape[options.axis],), options.weight)]
    ddy, dx, *rest = _call(DOUBLE, options, results, [x, table, dy, ddx, ddweight, ddbias])
    return ddy, dx, rest[0] if rest else None


def _double_backward_kept(options: _Options, *arguments: Any) -> Any:
    return _double_backward(options, *arguments), None


def _double_backward_vjp(options: _Options, kept: Any, cotangents: Any) -> Any:
    raise NotImplementedError("batch_norm: fastbn has first and second derivatives, a third one was asked for")


_forward.defvjp(_forward_kept, _forward_vjp)
_backward.defvjp(_backward_kept, _backward_vjp)
_double_backward.defvjp(_double_backward_kept, _double_backward_vjp)


def _parameter(name: str, value: Any, channels: int) -> Any:
    if value is None:
        return None
    value = jnp.asarray(value)
    if value.dtype.name not in PARAMETERS:
        raise TypeError(f"{name}: expected float32 or float64, got {value.dtype}")
    if value.shape != (channels,):
        raise ValueError(f"{name}: expected shape ({channels},), got {value.shape}")
    return value


def batch_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    running_mean: Any = None,
    running_var: Any = None,
    *,
    training: bool = True,
    momentum: float = 0.1,
    correction: float = 1,
    eps: float = 1e-5,
    axis: int = -1,
) -> tuple[Any, Any, Any]:
    """Normalise every channel of a batch, then scale and shift it: `fastbn.batch_norm` for arrays of JAX.

    Parameters
    ----------
    x : jax.Array of float32, float64, float16 or bfloat16, at least two axes
    weight, bias : jax.Array of float32 or float64, shape (C,), optional
    running_mean, running_var : jax.Array of float32 or float64, shape (C,), optional
        No gradient flows through them, neither in nor out. ``momentum=1, correction=0`` returns the batch's own
        mean and variance.
    training, momentum, correction, eps
        As for `fastbn.batch_norm`, and fixed under `jax.jit`. Momentum is the weight of the new value: 0.01 where Flax
        has 0.99.
    axis : int, default -1
        The channel axis; the last one, as in Flax.

    Returns
    -------
    y : jax.Array
        Shape and dtype of x.
    running_mean, running_var : jax.Array or None
        The next ones.

    Raises
    ------
    TypeError, ValueError
        While tracing, if anything does not fit.
    """
    x = jnp.asarray(x)
    if x.dtype.name not in DATA:
        raise TypeError(f"x: expected one of {', '.join(DATA)}, got {x.dtype}")
    index = operator.index(axis)
    if x.ndim < 2 or not -x.ndim <= index < x.ndim:
        raise ValueError(f"x, axis: expected at least 2 dimensions and an axis among them, got {x.shape} and {axis}")
    index %= x.ndim
    channels = x.shape[index]
    parameters = {"weight": weight, "bias": bias, "running_mean": running_mean, "running_var": running_var}
    weight, bias, *running = (_parameter(name, value, channels) for name, value in parameters.items())
    if (running[0] is None) != (running[1] is None) or not (training or running[0] is not None):
        raise ValueError("running_mean, running_var: expected both, or neither and training=True")
    if not (0 < eps < math.inf and 0 <= momentum <= 1 and 0 <= correction < math.inf):
        raise ValueError(
            f"eps, momentum, correction: expected eps > 0, momentum from 0 to 1, correction >= 0, "
            f"got {eps}, {momentum}, {correction}"
        )
    running = [r for r in running if r is not None]
    if x.size == 0 or (training and running and x.size // channels <= correction):
        raise ValueError(f"x: expected more values a channel than have a variance, got shape {x.shape}")
    dtypes = (None if p is None else p.dtype.name for p in (weight, bias))
    options = _Options(
        index, float(eps), float(momentum), float(correction), bool(training), bool(running), *dtypes
    )  # fmt: skip
    y, _, running = _forward(options, x, weight, bias, tuple(running))
    return y, *(running or (None, None))
