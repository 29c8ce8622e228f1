"""`aten::native_batch_norm_backward` on the CPU in compiled code, and `fastbn::batch_norm_act_backward`.

The stack as in `forward`, which says what tells whose call it was.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastbn.adapters.torch.native.forward import SAVED
from fastbn.adapters.torch.native.shim import (
    CLONE,
    DATA,
    DELETE_LIST,
    FLOAT64,
    LIST_ITEM,
    STORAGE_SIZE,
    UNDEFINED,
    ask,
    axes_of,
    delete,
    dtype_of,
    in_memory_order,
    made,
    seen,
    taken,
    vector,
)
from fastbn.adapters.torch.native.table import (
    BACKWARD,
    LENGTH,
    NO_KERNEL,
    NO_MEMORY,
    NO_OVERLOAD,
    RESIDUAL,
    RESTORE,
    THEIRS_BACK,
    begun,
    call_theirs,
    data_of,
    new_like,
    parameter_dtype,
    run,
    stored_like,
)
from fastbn_kernels.build.addresses import call_c, words
from fastbn_kernels.build.decorators import scalar
from fastbn_kernels.build.spread import CALLING_THREAD
from fastbn_kernels.cpu import flat_calls as flat
from fastbn_kernels.saved import INVSTD, ROWS


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
        rows = rows_behind(table, stack, kept, space, answer)
        if rows != 0 or (space > 0 and (dtype != FLOAT64 or stack[7] & 255 == 0)):
            return our_backward(table, stack, dtype, rows, 0, 0, 0, 3, answer)
    theirs = np.empty(11, np.int64)
    theirs[:10] = stack
    theirs[2] = taken(table, stack[2])
    for i in (2, 10):
        if i == 10 or theirs[i] == 0:
            theirs[i] = made(table[UNDEFINED], answer)
    said = call_theirs(table, THEIRS_BACK, NO_OVERLOAD, theirs)
    stack[:3] = theirs[:3]
    return said


@scalar
def rows_behind(table: Any, stack: Any, kept: int, space: int, answer: Any) -> int:
    """Return the address of the rows that the mean and invstd that were kept are views of, 0 if they are copies."""
    invstd = seen(table, stack[6], answer)
    if invstd == 0 or stack[7] & 255 == 0:
        return 0
    sizes, _ = axes_of(table, stack[1], answer)
    channels, place = sizes[1], ask(table[DATA], kept, answer)
    apart = place - ask(table[DATA], invstd, answer)
    if space != 8 * SAVED * channels or apart != 8 * (ROWS - INVSTD) * channels:
        return 0
    return place - 8 * ROWS * channels


@scalar
def new_rows(table: Any, stack: Any, dtype: int, shape: Any, bias: int, answer: Any) -> tuple[int, int]:
    """Return the address of rows that are made anew, 0 if that failed, and a tensor that holds them."""
    training = stack[7] & 255
    row, step, _ = begun(table, RESTORE, dtype, 0, shape, answer)
    first, second = (5, 6) if training != 0 else (3, 4)
    mean, var = seen(table, stack[first], answer), seen(table, stack[second], answer)
    saved = vector(table, ROWS * shape[1], FLOAT64, answer)
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
def our_backward(
    table: Any, stack: Any, dtype: int, rows: int, bias: int, added: int, tail: int, results: int, answer: Any
) -> int:
    """Compute the gradients, from rows if they are known; a tail computes again what was normalised, with the bias.

    There are 3 results, or 4, with that of what was added.
    """
    given_dy, given = stack[0], stack[1]
    sizes, strides = axes_of(table, given, answer)
    x = given
    shape = in_memory_order(sizes, strides)
    if shape[0] == 0:
        x = ask(table[CLONE], given, answer)
        if x == 0:
            return table[NO_MEMORY]
        sizes, strides = axes_of(table, x, answer)
        shape = in_memory_order(sizes, strides)
    channels = sizes[1]
    said = table[NO_MEMORY]
    row, step, runner = begun(table, BACKWARD, dtype, tail, shape, answer)
    row[flat.SAVED], saved = rows, 0
    if rows == 0:
        row[flat.SAVED], saved = new_rows(table, stack, dtype, shape, bias, answer)
    dx, dweight, dbias, dy, residual, dresidual = 0, 0, 0, 0, added, 0
    if step == 0 or row[flat.SAVED] == 0:
        said = table[NO_KERNEL]
    else:
        dy = stored_like(table, given_dy, dtype, sizes, strides, answer)
        dx, row[flat.OUT] = new_like(table, sizes, strides, dtype, answer)
        dweight = vector(table, channels, parameter_dtype(dtype), answer)
        dbias = vector(table, channels, parameter_dtype(dtype), answer)
        if added != 0:
            residual = stored_like(table, added, dtype, sizes, strides, answer)
            dresidual, row[flat.DRESIDUAL] = new_like(table, sizes, strides, dtype, answer)
            row[flat.RESIDUAL] = data_of(table, residual, answer)
    complete = added == 0 or (residual != 0 and dresidual != 0)
    if complete and dy != 0 and dx != 0 and dweight != 0 and dbias != 0:
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
    if residual != added:
        delete(table, residual)
    wanted = mask_of(table, stack[9])
    delete(table, given_dy)
    delete(table, given)
    for i in range(2, 7):
        delete(table, taken(table, stack[i]))
    stack[0] = given_or_nothing(table, dx, wanted[0], answer)
    stack[1] = given_or_nothing(table, dweight, wanted[1], answer)
    stack[2] = given_or_nothing(table, dbias, wanted[2], answer)
    if results == 4:
        stack[3] = given_or_nothing(table, dresidual, True, answer)
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
    return made(table[UNDEFINED], answer)


@scalar
def backward_act(pointer: int, table_pointer: int) -> int:
    """Do ``backward(dy, x, w?, mean?, var?, mean?, invstd?, training, eps, mask, b?, activation, residual?)``."""
    table = words(table_pointer, LENGTH)
    stack = words(pointer, 13)
    answer = np.empty(1, np.int64)
    dtype = dtype_of(table, stack[1], answer)
    kept = seen(table, stack[5], answer)
    rows = 0
    if kept != 0:
        rows = rows_behind(table, stack, kept, ask(table[STORAGE_SIZE], kept, answer), answer)
    bias, added = seen(table, stack[10], answer), seen(table, stack[12], answer)
    tail = stack[11] + (RESIDUAL if added != 0 else 0)
    said = our_backward(table, stack, dtype, rows, bias, added, tail, 4, answer)
    delete(table, taken(table, stack[10]))
    delete(table, taken(table, stack[12]))
    return said
