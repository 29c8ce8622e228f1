"""fastbn's batch norm as PyTorch's dispatcher calls it: compiled code on the dispatcher's stack, without Python.

`forward` and `backward` take the place of the CPU's kernels of `aten::native_batch_norm` and its backward
(`native`), and PyTorch's own autograd stays around them. They compute a call if it is to be fastbn's: in forward, if
that is on for the process or for the calling thread at this moment; in backward, if forward was. All other calls, and
those that fastbn does not take, go to PyTorch's own kernels, which its dispatcher also knows under other names.

The stack holds a word an argument, and the callee owns them: a tensor's handle, an optional argument (0 or where its
word lies), a list's handle, a number. Results are written over them. What is returned is 0 or the address of a message.

The mean that PyTorch keeps for the backward pass is a view of the rows that fastbn keeps (`saved`), and so tells who
made it. Hooks on saved tensors may put a copy in its place; then the rows are made anew from it and from invstd. Both
are float64. With running statistics PyTorch keeps no mean, so this one has no elements, but memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import config

from fastbn.adapters.torch import shim as torch_shim
from fastbn.adapters.torch.shim import (
    CLONE,
    COPY,
    DATA,
    DELETE_LIST,
    DISPATCH,
    FLOAT32,
    FLOAT64,
    LIST_ITEM,
    MOST_DIMENSIONS,
    PARALLEL_FOR,
    STORAGE_SIZE,
    THREADS,
    UNDEFINED,
    WHAT,
    ask,
    axes_of,
    delete,
    dtype_of,
    empty,
    in_memory_order,
    part,
    seen,
    taken,
    vector,
)
from fastbn_kernels.build import cache
from fastbn_kernels.build.addresses import array, call_c, call_int, words
from fastbn_kernels.build.decorators import scalar
from fastbn_kernels.build.spread import CALLING_THREAD
from fastbn_kernels.cpu import flat_calls as flat
from fastbn_kernels.saved import INVSTD, MEAN, MEAN_LO, ROWS

# Words of the table behind those of `shim`: whether all calls are fastbn's; a function that tells whether the calling
# thread's are; whether this process keeps to one thread; `spread.exchange`; `native.resolve`, and what it has found;
# the C library's `madvise`; names of PyTorch's own kernels; messages.
ALL, MINE, SINGLE, EXCHANGE, RESOLVE, PLANS, ADVISE, VERSION = range(torch_shim.END, torch_shim.END + 8)
THEIRS, THEIRS_WITHOUT, THEIRS_BACK, NO_STATISTICS, NO_OVERLOAD, NO_MEMORY, ONE_STATISTIC, NO_KERNEL = range(
    VERSION + 1, VERSION + 9
)
LENGTH = VERSION + 9

# A plan: what it is for, and the addresses of a step and its kernel, and how they are called. ALL_KEYS are compared.
N, C, S, KIND, STEP, KERNEL, PAST_CACHE, GROUPS, PARALLEL = range(9)
KEYS, PLAN = 4, 9
PLANS_KEPT, PROBES = 4096, 16
# KIND is an operation, a dtype, a tail and the number of threads.
FORWARD, NORMALIZE, BACKWARD, RESTORE = range(4)
OPERATIONS, DTYPES = 4, 4
# A tail is an activation, 0 for none (`fused.ACTIVATIONS`), and RESIDUAL more if something is added before.
RESIDUAL, TAILS = 4, 8

NOT_OURS = 1  # not the address of a message

# Bytes from which new memory is advised to huge pages before it is written: 44 MB cost 10,805 page faults, then 585,
# and a forward pass 17 and 5 ms. NumPy does the same, from as many bytes.
HUGE = 1 << 22
PAGE, MADV_HUGEPAGE = 4096, 14

SAVED = ROWS + 1  # and the whole mean


# ---------------------------------------------------------------- what is common


@scalar
def kind_of(operation: int, dtype: int, tail: int, threads: int) -> int:
    """Return a KIND."""
    return operation + OPERATIONS * (dtype - FLOAT32 + DTYPES * (tail + TAILS * threads))


@scalar
def complete(table: Any, key: Any) -> bool:
    """Complete the plan for N, C, S and KIND; return whether there is one."""
    plans = words(table[PLANS], PLANS_KEPT * PLAN)
    first = (key[N] * 7919 + key[C] * 104729 + key[S] * 1299709 + key[KIND] * 15485863) & (PLANS_KEPT - 1)
    for probe in range(PROBES):
        at = ((first + probe) & (PLANS_KEPT - 1)) * PLAN
        plan = plans[at : at + PLAN]
        if plan[KIND] == key[KIND] and plan[N] == key[N] and plan[C] == key[C] and plan[S] == key[S]:
            key[:] = plan
            return True
    return call_c(table[RESOLVE], (key.ctypes.data,)) & 1 != 0


@scalar
def begun(table: Any, operation: int, dtype: int, tail: int, shape: tuple[int, int, int], answer: Any) -> Any:
    """Return the row of a step, with the plan's words, and the addresses of the step and of who runs its loops."""
    row = np.zeros(flat.WORDS, np.int64)
    threads = 1
    if table[SINGLE] == 0:
        answer[0] = 0
        call_c(table[THREADS], (answer.ctypes.data,))
        threads = answer[0]
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


# ---------------------------------------------------------------- forward


@scalar
def forward(pointer: int, table_pointer: int) -> int:
    """Do ``native_batch_norm(x, weight?, bias?, running_mean?, running_var?, training, momentum, eps)``."""
    table = words(table_pointer, LENGTH)
    stack = words(pointer, 8)
    answer = np.empty(1, np.int64)
    if table[ALL] != 0 or call_c(table[MINE], ()) != 0:
        said = our_forward(table, stack, 0, 0, answer)
        if said != NOT_OURS:
            return said
    mean, var = seen(table, stack[3], answer), seen(table, stack[4], answer)
    if (mean == 0) != (var == 0):
        return table[ONE_STATISTIC]
    if mean == 0:
        delete(table, taken(table, stack[3]))
        delete(table, taken(table, stack[4]))
        stack[3], stack[4], stack[5] = stack[5], stack[6], stack[7]
        return call_theirs(table, THEIRS_WITHOUT, NO_STATISTICS, stack)
    stack[3], stack[4] = taken(table, stack[3]), taken(table, stack[4])
    return call_theirs(table, THEIRS, NO_OVERLOAD, stack)


@scalar
def our_forward(table: Any, stack: Any, added: int, tail: int, answer: Any) -> int:
    """Compute the call, with a residual that is added and a tail; NOT_OURS has written nothing."""
    given = stack[0]
    weight, bias, mean, var = (
        seen(table, stack[1], answer),
        seen(table, stack[2], answer),
        seen(table, stack[3], answer),
        seen(table, stack[4], answer),
    )
    training, numbers = stack[5] & 255, stack.view(np.float64)
    momentum, eps = numbers[6], numbers[7]
    dtype = dtype_of(table, given, answer)
    sizes, strides = axes_of(table, given, answer)
    if dtype == 0 or not 2 <= sizes.size <= MOST_DIMENSIONS or (mean == 0) != (var == 0):
        return NOT_OURS
    count = 1
    for i in range(sizes.size):
        count *= sizes[i]
    channels = sizes[1]
    if count == 0 or (training != 0 and count == channels) or (training == 0 and mean == 0):
        return NOT_OURS
    if not (eps > 0.0 and 0.0 <= momentum <= 1.0):
        return NOT_OURS
    for parameter in (weight, bias, mean, var):
        if not fits(table, parameter, channels, dtype, answer):
            return NOT_OURS
    x = given
    shape = in_memory_order(sizes, strides)
    if shape[0] == 0:  # gaps, or a broadcast axis: a copy without
        answer[0] = 0
        call_c(table[CLONE], (given, answer.ctypes.data))
        x = answer[0]
        if x == 0:
            return NOT_OURS
        sizes, strides = axes_of(table, x, answer)
        shape = in_memory_order(sizes, strides)
    row, step, runner = begun(table, FORWARD if training != 0 else NORMALIZE, dtype, tail, shape, answer)
    y, kept, residual = 0, 0, added
    if step != 0:
        y, row[flat.OUT] = new_like(table, sizes, strides, dtype, answer)
        kept = vector(table, SAVED * channels, FLOAT64, answer)
        if added != 0:
            residual = stored_like(table, added, dtype, sizes, strides, answer)
            row[flat.RESIDUAL] = data_of(table, residual, answer)
    failed = True
    if y != 0 and kept != 0 and (added == 0 or residual != 0):
        row[flat.X], row[flat.SAVED] = ask(table[DATA], x, answer), ask(table[DATA], kept, answer)
        row[flat.WEIGHT], row[flat.BIAS] = data_of(table, weight, answer), data_of(table, bias, answer)
        row[flat.FIRST], row[flat.SECOND] = data_of(table, mean, answer), data_of(table, var, answer)
        row[flat.FLAG] = training
        values = row.view(np.float64)
        values[flat.EPS], values[flat.MOMENTUM], values[flat.CORRECTION] = eps, momentum, 1.0
        failed = run(table, step, row, runner)
    if x != given:
        delete(table, x)
    if residual != added:
        delete(table, residual)
    if failed:
        delete(table, y)
        delete(table, kept)
        return NOT_OURS
    if training != 0:
        saved = array(row[flat.SAVED], (SAVED, channels), np.float64(0))
        for c in range(channels):
            saved[ROWS, c] = saved[MEAN, c] + saved[MEAN_LO, c]
    size = channels if training != 0 else 0
    delete(table, given)
    for i in range(1, 5):
        delete(table, taken(table, stack[i]))
    stack[0] = y
    stack[1] = part(table, kept, ROWS * channels, size, answer)
    stack[2] = part(table, kept, INVSTD * channels, size, answer)
    delete(table, kept)
    return 0


# ---------------------------------------------------------------- backward


@scalar
def backward(pointer: int, table_pointer: int) -> int:
    """Do ``native_batch_norm_backward(dy, x, w?, running_mean?, running_var?, mean?, invstd?, training, eps, ...)``."""
    table = words(table_pointer, LENGTH)
    stack = words(pointer, 10)
    answer = np.empty(1, np.int64)
    dtype = dtype_of(table, stack[1], answer)
    kept = seen(table, stack[5], answer)
    if kept != 0 and dtype != 0 and dtype_of(table, kept, answer) == FLOAT64:
        # PyTorch's own has no memory in inference, and is float64 if x is.
        space = ask(table[STORAGE_SIZE], kept, answer)
        if space > 0 and (dtype != FLOAT64 or stack[7] & 255 == 0 or holds_rows(table, stack, space, answer)):
            return our_backward(table, stack, dtype, space, 0, 0, answer)
    theirs = np.empty(11, np.int64)
    theirs[:10] = stack
    theirs[2] = taken(table, stack[2])
    for i in (2, 10):
        if i == 10 or theirs[i] == 0:
            answer[0] = 0
            call_c(table[UNDEFINED], (answer.ctypes.data,))
            theirs[i] = answer[0]
    said = call_theirs(table, THEIRS_BACK, NO_OVERLOAD, theirs)
    stack[:3] = theirs[:3]
    return said


@scalar
def holds_rows(table: Any, stack: Any, space: int, answer: Any) -> bool:
    """Return whether the mean and invstd that were kept are views of all rows, and so still lie where they were."""
    kept, invstd = seen(table, stack[5], answer), seen(table, stack[6], answer)
    if invstd == 0:
        return False
    sizes, _ = axes_of(table, stack[1], answer)
    channels = sizes[1]
    apart = ask(table[DATA], kept, answer) - ask(table[DATA], invstd, answer)
    holds: bool = space == 8 * SAVED * channels and apart == 8 * (ROWS - INVSTD) * channels
    return holds


@scalar
def rows_of(table: Any, stack: Any, dtype: int, shape: Any, space: int, bias: int, answer: Any) -> tuple[int, int]:
    """Return the address of the rows of a call, 0 if there are none, and a tensor that holds them if they are new."""
    training = stack[7] & 255
    channels = shape[1]
    if training != 0 and holds_rows(table, stack, space, answer):
        return ask(table[DATA], seen(table, stack[5], answer), answer) - 8 * ROWS * channels, 0
    row, step, _ = begun(table, RESTORE, dtype, 0, shape, answer)
    first, second = (5, 6) if training != 0 else (3, 4)
    mean, var = seen(table, stack[first], answer), seen(table, stack[second], answer)
    saved = vector(table, ROWS * channels, FLOAT64, answer)
    if step == 0 or mean == 0 or var == 0 or saved == 0:
        return 0, saved
    row[flat.SAVED] = ask(table[DATA], saved, answer)
    row[flat.WEIGHT] = data_of(table, seen(table, stack[2], answer), answer)
    row[flat.BIAS] = data_of(table, bias, answer)
    row[flat.FIRST], row[flat.SECOND] = ask(table[DATA], mean, answer), ask(table[DATA], var, answer)
    row[flat.FLAG] = 1 - training
    row.view(np.float64)[flat.EPS] = stack.view(np.float64)[8]
    failed = run(table, step, row, CALLING_THREAD)
    return 0 if failed else row[flat.SAVED], saved


@scalar
def our_backward(table: Any, stack: Any, dtype: int, space: int, bias: int, tail: int, answer: Any) -> int:
    """Compute the gradients; a tail computes again what was normalised, with the bias."""
    given_dy, given = stack[0], stack[1]
    sizes, strides = axes_of(table, given, answer)
    x = given
    shape = in_memory_order(sizes, strides)
    if shape[0] == 0:
        answer[0] = 0
        call_c(table[CLONE], (given, answer.ctypes.data))
        x = answer[0]
        if x == 0:
            return table[NO_MEMORY]
        sizes, strides = axes_of(table, x, answer)
        shape = in_memory_order(sizes, strides)
    channels = sizes[1]
    said = table[NO_MEMORY]
    row, step, runner = begun(table, BACKWARD, dtype, tail, shape, answer)
    row[flat.SAVED], saved = rows_of(table, stack, dtype, shape, space, bias, answer)
    dx, dweight, dbias, dy = 0, 0, 0, 0
    if step == 0 or row[flat.SAVED] == 0:
        said = table[NO_KERNEL]
    else:
        dy = stored_like(table, given_dy, dtype, sizes, strides, answer)
        dx, row[flat.OUT] = new_like(table, sizes, strides, dtype, answer)
        dweight = vector(table, channels, parameter_dtype(dtype), answer)
        dbias = vector(table, channels, parameter_dtype(dtype), answer)
    if dy != 0 and dx != 0 and dweight != 0 and dbias != 0:
        row[flat.X], row[flat.DY] = ask(table[DATA], x, answer), ask(table[DATA], dy, answer)
        row[flat.FIRST], row[flat.SECOND] = ask(table[DATA], dweight, answer), ask(table[DATA], dbias, answer)
        row[flat.FLAG] = 1 - (stack[7] & 255)
        if not run(table, step, row, runner):
            said = 0
    delete(table, saved)
    if x != given:
        delete(table, x)
    if dy != given_dy:
        delete(table, dy)
    wanted = mask_of(table, stack[9])
    delete(table, given_dy)
    delete(table, given)
    for i in range(2, 7):
        delete(table, taken(table, stack[i]))
    stack[0] = given_or_nothing(table, dx, wanted[0], answer)
    stack[1] = given_or_nothing(table, dweight, wanted[1], answer)
    stack[2] = given_or_nothing(table, dbias, wanted[2], answer)
    return said


@scalar
def mask_of(table: Any, handle: int) -> tuple[bool, bool, bool]:
    """Return the three values of a list, which is no more."""
    answer = np.zeros(3, np.int64)
    for i in range(3):
        call_c(table[LIST_ITEM], (handle, i, answer[i:].ctypes.data))
    call_c(table[DELETE_LIST], (handle,))
    return answer[0] & 255 != 0, answer[1] & 255 != 0, answer[2] & 255 != 0


@scalar
def given_or_nothing(table: Any, tensor: int, wanted: bool, answer: Any) -> int:
    """Return a result, or the undefined tensor in the place of one that nobody wants."""
    if wanted and tensor != 0:
        return tensor
    delete(table, tensor)
    answer[0] = 0
    call_c(table[UNDEFINED], (answer.ctypes.data,))
    return answer[0]


# ---------------------------------------------------------------- with what follows


@scalar
def forward_act(pointer: int, table_pointer: int) -> int:
    """Do ``forward(x, w?, b?, running_mean?, running_var?, training, momentum, eps, residual?, activation)``."""
    table = words(table_pointer, LENGTH)
    stack = words(pointer, 10)
    answer = np.empty(1, np.int64)
    added = seen(table, stack[8], answer)
    said = our_forward(table, stack, added, stack[9] + (RESIDUAL if added != 0 else 0), answer)
    delete(table, taken(table, stack[8]))
    return table[NO_KERNEL] if said == NOT_OURS else said


@scalar
def backward_act(pointer: int, table_pointer: int) -> int:
    """Do ``backward(dy, x, w?, running_mean?, running_var?, mean?, invstd?, training, eps, mask, b?, activation)``."""
    table = words(table_pointer, LENGTH)
    stack = words(pointer, 12)
    answer = np.empty(1, np.int64)
    dtype = dtype_of(table, stack[1], answer)
    kept = seen(table, stack[5], answer)
    space = 0 if kept == 0 else ask(table[STORAGE_SIZE], kept, answer)
    said = our_backward(table, stack, dtype, space, seen(table, stack[10], answer), stack[11], answer)
    delete(table, taken(table, stack[10]))
    return said


OPERATORS = "forward", "backward", "forward_act", "backward_act"


@scalar
def call(operator: int, pointer: int, table_pointer: int) -> int:
    """Do one of OPERATORS: one function, because each of its own would be compiled with all that it calls."""
    if operator == 0:
        return forward(pointer, table_pointer)
    if operator == 1:
        return backward(pointer, table_pointer)
    if operator == 2:
        return forward_act(pointer, table_pointer)
    return backward_act(pointer, table_pointer)


if not config.DISABLE_JIT:  # compiled once a machine, then loaded
    cache.enable(call)
