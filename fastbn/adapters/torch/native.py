"""fastbn as PyTorch's own batch norm on the CPU: what the dispatcher is told, and whose calls are meant.

The first need registers compiled code (`native_calls`) as the kernels of `aten::native_batch_norm` and its backward.
Calls stay PyTorch's until somebody says otherwise: `enable` for the process, `mine` for the calling thread, which
`functional.batch_norm` says around one call.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import cfunc, config, types

from fastbn.adapters.torch import native_calls as calls
from fastbn.adapters.torch import shim
from fastbn.backends.cpu import plan
from fastbn_kernels.build import interrupts, spread
from fastbn_kernels.build.addresses import address_of, call_int
from fastbn_kernels.build.decorators import RESIDUAL
from fastbn_kernels.build.machine import NONE, at, call, finished, kept, word
from fastbn_kernels.cpu import flat_calls, kernel
from fastbn_kernels.cpu.simd.tails import RELU, RELU6, SILU

log = logging.getLogger("fastbn")

_MESSAGES = {
    calls.NO_MEMORY: b"fastbn: no memory for the results of batch norm",
    calls.ONE_STATISTIC: b"batch_norm: expected running_mean and running_var both or neither, got one",
    calls.NO_KERNEL: b"fastbn: a kernel could not be made, see the message before this",
}
_NAMES = {
    calls.THEIRS: b"aten::_native_batch_norm_legit",
    calls.THEIRS_WITHOUT: b"aten::_native_batch_norm_legit",
    calls.NO_STATISTICS: b"no_stats",
    calls.NO_OVERLOAD: b"",
    calls.THEIRS_BACK: b"aten::batch_norm_backward",
}

_OPERATORS = {
    "aten": {"native_batch_norm": "forward", "native_batch_norm_backward": "backward"},
    "fastbn": {"batch_norm_act": "forward_act", "batch_norm_act_backward": "backward_act"},
}
_THREE = "(Tensor, Tensor, Tensor)"

# What follows a batch norm, by its number in compiled code.
ACTIVATIONS = None, RELU, RELU6, SILU

_plans: Any = kept(np.zeros(calls.PLANS_KEPT * calls.PLAN, np.int64))
_table: Any = kept(np.zeros(calls.LENGTH, np.int64))
_lock = threading.Lock()

# ---------------------------------------------------------------- plans


def _resolve(address: int) -> int:
    """Complete a plan whose keys are given, and keep it; return whether that worked."""
    found = np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_int64)), (calls.PLAN,))
    try:
        with interrupts.held_back():
            _complete(found)
    except Exception:
        log.exception("fastbn: no kernel for a batch norm of PyTorch's")
        return 0
    _keep(found)
    return 1


def _complete(found: Any) -> None:
    N, C, S, kind = (int(n) for n in found[: calls.KEYS])
    operation, kind = kind % calls.OPERATIONS, kind // calls.OPERATIONS
    dtype, kind = shim.DTYPES[kind % calls.DTYPES], kind // calls.DTYPES
    code, threads = kind % calls.TAILS, kind // calls.TAILS
    activation = ACTIVATIONS[code % calls.RESIDUAL]
    tail = (activation, RESIDUAL) if code >= calls.RESIDUAL else activation
    like = flat_calls.LIKE[dtype].dtype
    own = plan.make(N, C, S, like.itemsize, threads if N * C * S >= plan.PARALLEL_FROM else 1)
    back = operation == calls.BACKWARD
    if operation == calls.RESTORE:
        step, name = "restore", None
    elif own.call_forward is not None:
        step, name = ("whole_backward", own.call_backward) if back else ("whole_forward", own.call_forward)
    else:
        step = "backward" if back else "forward"
        name = {calls.FORWARD: own.forward, calls.NORMALIZE: own.normalize, calls.BACKWARD: own.backward}[operation]
    found[calls.STEP] = flat_calls.step(step, dtype, own.family == "channels_last", tail)
    found[calls.KERNEL] = 0 if name is None else address_of(kernel(name).get(like, own.parallel, tail))
    found[calls.PAST_CACHE], found[calls.GROUPS], found[calls.PARALLEL] = own.past_cache[back], own.groups, own.parallel


def _keep(found: Any) -> None:
    """Put a plan where compiled code looks for it, if there is room; its KIND, which nobody takes for 0, goes last."""
    with _lock:
        N, C, S, kind = (int(n) for n in found[: calls.KEYS])
        first = N * 7919 + C * 104729 + S * 1299709 + kind * 15485863
        for probe in range(calls.PROBES):
            start = (first + probe) % calls.PLANS_KEPT * calls.PLAN
            entry = _plans[start : start + calls.PLAN]
            if entry[calls.KIND] == 0:
                for i in (i for i in range(calls.PLAN) if i != calls.KIND):
                    entry[i] = found[i]
                entry[calls.KIND] = kind
                return
            if (entry[: calls.KEYS] == found[: calls.KEYS]).all():
                return


# ---------------------------------------------------------------- machine code around the compiled code


def _caller() -> int:
    """Return the address of ``intptr_t run(intptr_t operator, intptr_t stack)``, which returns 0 or a message."""
    body: Any = calls.call
    body.compile(types.int64(types.int64, types.int64, types.int64))
    compiled, table = address_of(body), _table.ctypes.data

    @cfunc(types.int64(types.int64, types.int64))  # type: ignore[untyped-decorator]
    def run(operator: int, stack: int) -> int:
        return call_int(compiled, (operator, stack, table))

    return int(kept(run).address)


def _entries(module: Any, run: int, thrower: int) -> None:
    """Write what the dispatcher calls: it throws a C++ exception with the message that the compiled code returns.

    The throwing function is jumped to, in the place of this one, so no frame of ours is unwound.
    """
    kind = ir.FunctionType(NONE, [word] * 3)
    for number, name in enumerate(calls.OPERATORS):
        entry = ir.Function(module, kind, name)
        builder = ir.IRBuilder(entry.append_basic_block())
        said = call(builder, run, word, word(number), entry.args[0])
        with builder.if_then(builder.icmp_unsigned("!=", said, word(0)), likely=False):
            builder.call(at(builder, thrower, kind), [said, *entry.args[1:]], tail="musttail")
            builder.ret_void()
        builder.ret_void()


def _choosing(module: Any, key: int) -> None:
    """Write what a thread says whose calls are meant with, and what asks it."""
    for name, function, values in (
        ("mine", "PyThread_tss_set", (1,)), ("not_mine", "PyThread_tss_set", (0,)), ("is_mine", "PyThread_tss_get", ()),
    ):  # fmt: skip
        builder = ir.IRBuilder(ir.Function(module, ir.FunctionType(word, []), name).append_basic_block())
        address = _address(getattr(ctypes.pythonapi, function))
        builder.ret(call(builder, address, word, word(key), *(word(value) for value in values)))


def _machine(thrower: int) -> Any:
    """Compile what has to be no function of Numba's."""
    module = ir.Module("fastbn_torch")
    _entries(module, _caller(), thrower)
    _choosing(module, spread._new_key())
    return finished(module)


def _address(function: Any) -> int:
    """Return where a function of C is."""
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def _thrower() -> int | None:
    """Return the address of the C++ library's function that throws a `std::runtime_error` with a message."""
    names = {
        "linux": ("libstdc++.so.6", "_ZSt21__throw_runtime_errorPKc"),
        "darwin": ("libc++.1.dylib", "_ZNSt3__121__throw_runtime_errorEPKc"),
    }
    try:
        library, function = names[sys.platform]
        return _address(getattr(ctypes.CDLL(library), function))
    except (KeyError, OSError, AttributeError):
        return None


# ---------------------------------------------------------------- registration

mine: Callable[[], None]
not_mine: Callable[[], None]


@functools.cache
def works() -> bool:
    """Tell PyTorch about fastbn's kernels, once; return whether that worked.

    It does with the releases that say why a call failed (2.13 and later), where parallel loops can be led to PyTorch's
    pool (`fastbn_kernels.build.spread`).
    """
    with interrupts.held_back():
        try:
            return _register()
        except Exception as error:
            log.warning("fastbn: PyTorch's batch norm goes by Python: %s: %s", type(error).__name__, error)
            return False


def _register() -> bool:
    global mine, not_mine
    thrower = _thrower()
    if config.DISABLE_JIT or config.BOUNDSCHECK or thrower is None or shim.library() is None or not spread.works():
        return False
    _table[: shim.END] = shim.addresses()
    for place, text in (_MESSAGES | _NAMES).items():
        _table[place] = ctypes.addressof(kept(ctypes.create_string_buffer(text)))
    resolve = kept(ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(_resolve))
    _table[calls.RESOLVE] = _address(resolve)
    _table[calls.EXCHANGE] = spread.exchange_address()
    _table[calls.PLANS] = _plans.ctypes.data
    _table[calls.VERSION] = shim.version()
    if sys.platform == "linux":
        _table[calls.ADVISE] = _address(ctypes.CDLL(None).madvise)
    engine = _machine(thrower)
    _table[calls.MINE] = engine.get_function_address("is_mine")
    signature = ctypes.PYFUNCTYPE(None)
    mine, not_mine = (signature(engine.get_function_address(name)) for name in ("mine", "not_mine"))
    kept(_define())
    for space, operators in _OPERATORS.items():
        _tell(space, {name: engine.get_function_address(entry) for name, entry in operators.items()})
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_after_fork)
    return True


def _after_fork() -> None:
    """Keep to one thread: GNU's OpenMP, which PyTorch's pool is, does not start threads in a child."""
    _table[calls.SINGLE] = 1


class _Scope:
    """What makes PyTorch's own code call a function, so that its warnings come as Python's."""

    def __init__(self, function: Callable[[], None]) -> None:
        self.function = function

    def __torch_function__(self, *_: Any) -> None:
        self.function()


def _define() -> Any:
    """Define the operators that do what follows a batch norm too; PyTorch's own code has none."""
    library = torch.library.Library("fastbn", "FRAGMENT")
    forward = "Tensor x, Tensor? weight, Tensor? bias, Tensor? running_mean, Tensor? running_var, bool training"
    library.define(
        f"batch_norm_act({forward}, float momentum, float eps, Tensor? residual, int activation) -> {_THREE}"
    )
    backward = "Tensor dy, Tensor x, Tensor? weight, Tensor? running_mean, Tensor? running_var, Tensor? mean"
    options = "Tensor? invstd, bool training, float eps, bool[3] mask, Tensor? bias, int activation"
    library.define(f"batch_norm_act_backward({backward}, {options}) -> {_THREE}")
    return library


def _tell(space: str, operators: dict[str, int]) -> None:
    """Register kernels of the CPU for operators, without PyTorch's warning that its own had others."""
    library = shim.library()
    failed = []

    def register() -> None:
        handle = ctypes.c_void_p()
        call = ctypes.PyDLL(library._name)
        failed.append(call.aoti_torch_library_init_impl(space.encode(), b"CPU", b"fastbn", ctypes.c_uint32(1),
                                                        ctypes.byref(handle)))  # fmt: skip
        for name, address in operators.items():
            failed.append(call.torch_library_impl(handle, name.encode(), ctypes.c_void_p(address),
                                                  ctypes.c_uint64(shim.version())))  # fmt: skip

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with contextlib.suppress(TypeError):  # what `add` says to a result that is no tensor, if it does
            torch.add(_Scope(register), 1)
    if not failed or any(failed):
        raise RuntimeError(f"PyTorch did not take fastbn's kernels: {failed}")


def enable() -> None:
    """Let fastbn compute every batch norm of this process on the CPU, whatever model it is in.

    `torch.nn.BatchNorm1d`, `BatchNorm2d`, `BatchNorm3d`, `torch.nn.functional.batch_norm` and all else that calls
    `aten::native_batch_norm` on the CPU, forward and backward; no model is changed. What fastbn does not take stays
    PyTorch's (`fastbn.adapters.torch`), and so do compiled models, whose batch norm the compiler writes itself.

    Raises
    ------
    RuntimeError
        If this release of PyTorch has no interface for that; `convert` works there.
    """
    if not works():
        raise RuntimeError(
            f"enable: expected PyTorch 2.13 or later on Linux or macOS, and compiled kernels; got {torch.__version__} "
            f"on {sys.platform}; use convert(model)"
        )
    _table[calls.ALL] = 1


def disable() -> None:
    """Give batch norms back to PyTorch; of what went forward before, the backward pass stays fastbn's."""
    _table[calls.ALL] = 0
