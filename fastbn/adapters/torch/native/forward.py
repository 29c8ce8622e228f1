"""`aten::native_batch_norm` on the CPU in compiled code, and `fastbn::batch_norm_act`: on the dispatcher's stack.

The stack holds a word an argument, and the callee owns them: a tensor's handle, an optional argument (0 or where its
word lies), a list's handle, a number. Results are written over them. What is returned is 0 or the address of a message.

The mean that PyTorch keeps for the backward pass is a view of the rows that fastbn keeps (`saved`), and so tells who
made it. Hooks on saved tensors may put a copy in its place; then the rows are made anew from it and from invstd. Both
are float64. With running statistics PyTorch keeps no mean, so this one has no elements, but memory.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastbn.adapters.torch.native.shim import (
    CLONE,
    DATA,
    FLOAT64,
    MOST_DIMENSIONS,
    ask,
    axes_of,
    delete,
    dtype_of,
    in_memory_order,
    part,
    seen,
    taken,
    vector,
)
from fastbn.adapters.torch.native.table import (
    ALL,
    FORWARD,
    LENGTH,
    MINE,
    NO_KERNEL,
    NO_OVERLOAD,
    NO_STATISTICS,
    NORMALIZE,
    ONE_STATISTIC,
    RESIDUAL,
    THEIRS,
    THEIRS_WITHOUT,
    begun,
    call_theirs,
    data_of,
    fits,
    new_like,
    run,
    stored_like,
)
from fastbn_kernels.build.addresses import array, call_c, words
from fastbn_kernels.build.decorators import scalar
from fastbn_kernels.cpu import flat_calls as flat
from fastbn_kernels.saved import INVSTD, MEAN, MEAN_LO, ROWS

NOT_OURS = 1  # not the address of a message
SAVED = ROWS + 1  # and the whole mean


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
        x = ask(table[CLONE], given, answer)
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
