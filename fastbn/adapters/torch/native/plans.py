"""Which kernels take a tensor of PyTorch's: asked by compiled code the first time, found by itself from then on."""

from __future__ import annotations

import ctypes
import logging
import threading
from typing import Any

import numpy as np
from numba.core.compiler_lock import global_compiler_lock

from fastbn import arithmetic
from fastbn.adapters.torch.native import shim, table
from fastbn.backends.cpu import plan
from fastbn_kernels.build import interrupts
from fastbn_kernels.build.addresses import address_of
from fastbn_kernels.build.decorators import RESIDUAL
from fastbn_kernels.build.machine import kept
from fastbn_kernels.cpu import flat_calls, kernel

log = logging.getLogger("fastbn")

_barrier = threading.Lock()
KEPT: Any = kept(np.zeros(table.PLANS_KEPT * table.PLAN, np.int64))


def resolve(address: int) -> int:
    """Complete a plan whose keys are given, and keep it; return whether that worked."""
    found = np.ctypeslib.as_array(ctypes.cast(address, ctypes.POINTER(ctypes.c_int64)), (table.PLAN,))
    try:
        with interrupts.held_back():
            _complete(found)
    except Exception:
        log.exception("fastbn: no kernel for a batch norm of PyTorch's")
        return 0
    _keep(found)
    return 1


def _complete(found: Any) -> None:
    N, C, S, kind = (int(n) for n in found[: table.KEYS])
    operation, kind = kind % table.OPERATIONS, kind // table.OPERATIONS
    dtype, kind = shim.DTYPES[kind % table.DTYPES], kind // table.DTYPES
    dtype = flat_calls.seen_as(dtype, arithmetic.own())
    code, threads = kind % table.TAILS, kind // table.TAILS
    activation = flat_calls.ACTIVATIONS[code % table.RESIDUAL]
    like = flat_calls.LIKE[dtype].dtype
    own = plan.make(N, C, S, like.char, threads if N * C * S >= plan.PARALLEL_FROM else 1)
    back = operation == table.BACKWARD
    tail = (activation, *[RESIDUAL] * (1 + back)) if code >= table.RESIDUAL else activation
    if operation == table.RESTORE:
        step, name = "restore", None
    elif own.call_forward is not None:
        step, name = ("whole_backward", own.call_backward) if back else ("whole_forward", own.call_forward)
    else:
        step = "backward" if back else "forward"
        name = {table.FORWARD: own.forward, table.NORMALIZE: own.normalize, table.BACKWARD: own.backward}[operation]
    found[table.STEP] = flat_calls.step(step, dtype, own.in_rows, tail)
    found[table.KERNEL] = 0 if name is None else address_of(kernel(name).get(like, own.parallel, tail))
    found[table.PAST_CACHE], found[table.GROUPS], found[table.PARALLEL] = own.past_cache[back], own.groups, own.parallel


def _keep(found: Any) -> None:
    """Put a plan where compiled code looks for it, if there is room; its KIND, which nobody takes for 0, goes last."""
    with global_compiler_lock:  # which a fork waits for
        for probe in range(table.PROBES):
            start = (int(found[table.FIRST]) + probe) % table.PLANS_KEPT * table.PLAN
            entry = KEPT[start : start + table.PLAN]
            if entry[table.KIND] == 0:
                for i in (i for i in range(table.PLAN) if i != table.KIND):
                    entry[i] = found[i]
                for _ in range(2):  # a release and an acquire: processors that reorder stores see KIND last too
                    with _barrier:
                        pass
                entry[table.KIND] = found[table.KIND]
                return
            if (entry[: table.KEYS] == found[: table.KEYS]).all():
                return
