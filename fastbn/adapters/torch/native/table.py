"""What compiled code is given besides the dispatcher's stack: a table of words, by which it finds plans and calls.

`table` is the words of `shim`, and behind them those here. `row` is a row of a step's (`flat_calls`), `answer` an array
of one word that functions of C write to.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastbn.adapters.torch.native import shim
from fastbn.adapters.torch.native.shim import (
    COPY,
    DATA,
    DISPATCH,
    FLOAT32,
    FLOAT64,
    PARALLEL_FOR,
    THREADS,
    WHAT,
    ask,
    axes_of,
    delete,
    dtype_of,
    empty,
    made,
)
from fastbn_kernels.build.addresses import acquire, call_c, call_int, words
from fastbn_kernels.build.decorators import scalar
from fastbn_kernels.build.spread import CALLING_THREAD
from fastbn_kernels.cpu import flat_calls as flat

# Words of the table behind those of `shim`: whether all calls are fastbn's; a function that tells whether the calling
# thread's are; whether this process keeps to one thread; `spread.exchange`; `plans.resolve`, and what it has found;
# the C library's `madvise`; names of PyTorch's own kernels; messages.
ALL, MINE, SINGLE, EXCHANGE, RESOLVE, PLANS, ADVISE, VERSION = range(shim.END, shim.END + 8)
THEIRS, THEIRS_WITHOUT, THEIRS_BACK, NO_STATISTICS, NO_OVERLOAD, NO_MEMORY, ONE_STATISTIC, NO_KERNEL = range(
    VERSION + 1, VERSION + 9
)
LENGTH = VERSION + 9

# A plan: what it is for, and the addresses of a step and its kernel, and how they are called; and where
# it is looked for first. The KEYS are compared.
N, C, S, KIND, STEP, KERNEL, PAST_CACHE, GROUPS, PARALLEL, FIRST = range(10)
KEYS, PLAN = 4, 10
PLANS_KEPT, PROBES = 4096, 16
# KIND is an operation, a dtype, a tail and the number of threads.
FORWARD, NORMALIZE, BACKWARD, RESTORE = range(4)
OPERATIONS, DTYPES = 4, 4
# A tail is the number of an activation (`flat_calls.ACTIVATIONS`), and RESIDUAL more if something is added before.
RESIDUAL, TAILS = flat.MOST_ACTIVATIONS, 2 * flat.MOST_ACTIVATIONS

# Bytes from which new memory is advised to huge pages before it is written: 44 MB cost 10,805 page faults, then 585,
# and a forward pass 17 and 5 ms. NumPy does the same, from as many bytes.
HUGE = 1 << 22
PAGE, MADV_HUGEPAGE = 4096, 14


@scalar
def kind_of(operation: int, dtype: int, tail: int, threads: int) -> int:
    """Return a KIND."""
    return operation + OPERATIONS * (dtype - FLOAT32 + DTYPES * (tail + TAILS * threads))


@scalar
def complete(table: Any, key: Any) -> bool:
    """Complete the plan for N, C, S and KIND; return whether there is one."""
    plans = words(table[PLANS], PLANS_KEPT * PLAN)
    key[FIRST] = (key[N] * 7919 + key[C] * 104729 + key[S] * 1299709 + key[KIND] * 15485863) & (PLANS_KEPT - 1)
    for probe in range(PROBES):
        at = ((key[FIRST] + probe) & (PLANS_KEPT - 1)) * PLAN
        plan = plans[at : at + PLAN]
        if plan[KIND] == key[KIND]:
            acquire()
            if plan[N] == key[N] and plan[C] == key[C] and plan[S] == key[S]:
                key[:] = plan
                return True
    return call_c(table[RESOLVE], (key.ctypes.data,)) & 1 != 0


@scalar
def begun(table: Any, operation: int, dtype: int, tail: int, shape: tuple[int, int, int], answer: Any) -> Any:
    """Return the row of a step, with the plan's words, and the addresses of the step and of who runs its loops."""
    row = np.zeros(flat.WORDS, np.int64)
    threads = 1 if table[SINGLE] != 0 else made(table[THREADS], answer)
    plan = np.zeros(PLAN, np.int64)
    plan[N], plan[C], plan[S] = shape
    plan[KIND] = kind_of(operation, dtype, tail, threads)
    if not complete(table, plan):
        return row, 0, 0
    row[flat.KERNEL], row[flat.PAST_CACHE], row[flat.GROUPS] = plan[KERNEL], plan[PAST_CACHE], plan[GROUPS]
    row[flat.N], row[flat.C], row[flat.S] = shape
    return row, plan[STEP], table[PARALLEL_FOR] if plan[PARALLEL] != 0 else CALLING_THREAD


@scalar
def run(table: Any, step: int, row: Any, runner: int) -> bool:
    """Call a step, with its loops where they are to run; return whether it failed, having written nothing."""
    before = call_c(table[EXCHANGE], (runner,))
    failed = True
    try:
        failed = call_int(step, (row.ctypes.data,)) != 0
    except Exception:  # no memory; kernels raise nothing else
        failed = True
    call_c(table[EXCHANGE], (before,))
    return failed


@scalar
def advise(table: Any, address: int, size: int) -> None:
    """Ask for huge pages for new memory that is about to be written."""
    if size >= HUGE and table[ADVISE] != 0:
        start = (address + PAGE - 1) // PAGE * PAGE
        call_c(table[ADVISE], (start, (address + size - start) // PAGE * PAGE, MADV_HUGEPAGE))


@scalar
def new_like(table: Any, sizes: Any, strides: Any, dtype: int, answer: Any) -> tuple[int, int]:
    """Return a new tensor and the address of its data."""
    tensor = empty(table, sizes, strides, dtype, answer)
    if tensor == 0:
        return 0, 0
    data = ask(table[DATA], tensor, answer)
    size = 8 if dtype == FLOAT64 else 4 if dtype == FLOAT32 else 2
    for i in range(sizes.size):
        size *= sizes[i]
    advise(table, data, size)
    return tensor, data


@scalar
def stored_like(table: Any, tensor: int, dtype: int, sizes: Any, strides: Any, answer: Any) -> int:
    """Return a tensor with the dtype and strides of x: itself, or a new one; 0 if there is no memory."""
    _, own = axes_of(table, tensor, answer)
    same = dtype_of(table, tensor, answer) == dtype
    for i in range(sizes.size):
        same = same and (sizes[i] == 1 or own[i] == strides[i])
    if same:
        return tensor
    copy = empty(table, sizes, strides, dtype, answer)
    if copy != 0 and call_c(table[COPY], (copy, tensor, 0)) & 0xFFFFFFFF != 0:
        delete(table, copy)
        copy = 0
    return copy


@scalar
def parameter_dtype(dtype: int) -> int:
    """Return the dtype of the parameters that kernels take with data of a dtype."""
    return FLOAT64 if dtype == FLOAT64 else FLOAT32


@scalar
def fits(table: Any, parameter: int, channels: int, dtype: int, answer: Any) -> bool:
    """Return whether kernels take a parameter, or it is absent."""
    if parameter == 0:
        return True
    if dtype_of(table, parameter, answer) != parameter_dtype(dtype):
        return False
    sizes, strides = axes_of(table, parameter, answer)
    fitting: bool = sizes.size == 1 and sizes[0] == channels and (channels == 1 or strides[0] == 1)
    return fitting


@scalar
def data_of(table: Any, tensor: int, answer: Any) -> int:
    """Return the address of the data of a tensor, 0 if it is absent."""
    return 0 if tensor == 0 else ask(table[DATA], tensor, answer)


@scalar
def call_theirs(table: Any, name: int, overload: int, stack: Any) -> int:
    """Let PyTorch compute a call; the stack is that of the operator with that name."""
    place = table[name], table[overload], stack.ctypes.data, table[VERSION]
    if call_c(table[DISPATCH], place) & 0xFFFFFFFF != 0:
        return call_c(table[WHAT], ())
    return 0
