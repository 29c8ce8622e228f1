"""fastbn as PyTorch's own batch norm on the CPU: what the dispatcher is told, and whose calls are meant.

The first need registers compiled code (`forward`, `backward`) as the CPU's kernels of `aten::native_batch_norm` and its
backward. Calls stay PyTorch's until somebody says otherwise: `enable` for the process, `mine` for the calling thread,
which `functional.batch_norm` says around one call.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import config

from fastbn import arithmetic
from fastbn.adapters.torch.native import entries, plans, shim, table
from fastbn_kernels.build import interrupts, spread
from fastbn_kernels.build.machine import kept

log = logging.getLogger("fastbn")

_MESSAGES = {
    table.NO_MEMORY: b"fastbn: no memory for the results of batch norm",
    table.ONE_STATISTIC: b"batch_norm: expected running_mean and running_var both or neither, got one",
    table.NO_KERNEL: b"fastbn: a kernel could not be made, see the message before this",
}
_NAMES = {
    table.THEIRS: b"aten::_native_batch_norm_legit",
    table.THEIRS_WITHOUT: b"aten::_native_batch_norm_legit",
    table.NO_STATISTICS: b"no_stats",
    table.NO_OVERLOAD: b"",
    table.THEIRS_BACK: b"aten::batch_norm_backward",
}

_OPERATORS = {
    "aten": {"native_batch_norm": "forward", "native_batch_norm_backward": "backward"},
    "fastbn": {"batch_norm_act": "forward_act", "batch_norm_act_backward": "backward_act"},
}
_THREE = "(Tensor, Tensor, Tensor)"

_table: Any = kept(np.zeros(table.LENGTH, np.int64))

mine: Callable[[], None]
not_mine: Callable[[], None]


@functools.cache
def works() -> bool:
    """Tell PyTorch about fastbn's kernels, once; return whether that worked.

    It does with the releases that say why a call failed (2.13 and later), where parallel loops can be led to PyTorch's
    pool (`fastbn_kernels.build.spread`).
    """
    arithmetic.own()  # raises what is wrong with it here, where it is a Python error
    with interrupts.held_back():
        try:
            return _register()
        except Exception as error:
            log.warning("fastbn: PyTorch's batch norm goes by Python: %s: %s", type(error).__name__, error)
            return False


def _register() -> bool:
    global mine, not_mine
    thrower = entries.thrower()
    if config.DISABLE_JIT or config.BOUNDSCHECK or thrower is None or shim.library() is None or not spread.works():
        return False
    _table[: shim.END] = shim.addresses()
    for place, text in (_MESSAGES | _NAMES).items():
        _table[place] = ctypes.addressof(kept(ctypes.create_string_buffer(text)))
    resolve = kept(ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(plans.resolve))
    _table[table.RESOLVE] = entries.address(resolve)
    _table[table.EXCHANGE] = spread.exchange_address()
    _table[table.PLANS] = plans.KEPT.ctypes.data
    _table[table.VERSION] = shim.version()
    if sys.platform == "linux":
        _table[table.ADVISE] = entries.address(ctypes.CDLL(None).madvise)
    engine = entries.machine(_table, thrower)
    _table[table.MINE] = engine.get_function_address("is_mine")
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
    _table[table.SINGLE] = 1


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
    options = "Tensor? invstd, bool training, float eps, bool[3] mask, Tensor? bias, int activation, Tensor? residual"
    library.define(f"batch_norm_act_backward({backward}, {options}) -> (Tensor, Tensor, Tensor, Tensor)")
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
    _table[table.ALL] = 1


def disable() -> None:
    """Give batch norms back to PyTorch; of what went forward before, the backward pass stays fastbn's."""
    _table[table.ALL] = 0
