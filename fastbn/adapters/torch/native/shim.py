"""PyTorch's stable C interface (torch/csrc/stable/c/shim.h): its functions' addresses, and tensors in compiled code.

A tensor is a handle, a word. Whoever makes one deletes it. Functions of C answer 0, or that they failed. Arrays whose
address they get are arguments of the function that calls: Numba frees a local one after its last use, which may be
where its address was taken.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fastbn_kernels.build.addresses import call_c, words
from fastbn_kernels.build.decorators import scalar

# The functions that compiled code calls, all there since PyTorch 2.13: older ones do not say why a call failed.
FUNCTIONS = (
    "torch_get_mutable_data_ptr", "aoti_torch_get_dim", "aoti_torch_get_sizes", "aoti_torch_get_strides",
    "aoti_torch_get_dtype", "aoti_torch_get_storage_size", "aoti_torch_empty_strided", "aoti_torch__reinterpret_tensor",
    "aoti_torch_new_uninitialized_tensor", "aoti_torch_clone", "aoti_torch_copy_", "aoti_torch_delete_tensor_object",
    "torch_delete_stable_ivalue", "torch_list_get_item", "torch_delete_list", "torch_call_dispatcher",
    "torch_exception_get_what_without_backtrace", "torch_get_num_threads", "torch_parallel_for",
    "aoti_torch_is_defined",
)  # fmt: skip
(
    DATA, DIM, SIZES, STRIDES, DTYPE, STORAGE_SIZE, EMPTY, REINTERPRET, UNDEFINED, CLONE, COPY, DELETE, DELETE_WORD,
    LIST_ITEM, DELETE_LIST, DISPATCH, WHAT, THREADS, PARALLEL_FOR, DEFINED,
) = range(len(FUNCTIONS))  # fmt: skip
# And the numbers that stand for dtypes.
DTYPES = "float32", "float64", "float16", "bfloat16"
FLOAT32, FLOAT64, FLOAT16, BFLOAT16 = range(len(FUNCTIONS), len(FUNCTIONS) + len(DTYPES))
END = len(FUNCTIONS) + len(DTYPES)

MOST_DIMENSIONS = 16


@functools.cache
def library() -> Any:
    """Return PyTorch's library, None if it lacks a function or is none of the kind that was tried."""
    name = {"linux": "libtorch_cpu.so", "darwin": "libtorch_cpu.dylib"}.get(sys.platform)
    if name is None:
        return None
    try:
        found = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / name))
    except OSError:
        return None
    registering = "aoti_torch_library_init_impl", "torch_library_impl"
    return found if all(hasattr(found, function) for function in (*FUNCTIONS, *registering)) else None


def addresses() -> list[int]:
    """Return the words of FUNCTIONS and DTYPES."""
    found = library()
    functions = [ctypes.cast(getattr(found, name), ctypes.c_void_p).value or 0 for name in FUNCTIONS]
    return functions + [getattr(found, f"aoti_torch_dtype_{name}")() for name in DTYPES]


def version() -> int:
    """Return the version of PyTorch as its interface takes it."""
    major, minor = (int(n) for n in torch.__version__.split(".")[:2])
    return major << 56 | minor << 48


# ---------------------------------------------------------------- in compiled code; `shim` is the words above


@scalar
def ask(function: int, tensor: int, answer: Any) -> Any:
    """Call a function that writes one word, and return that."""
    answer[0] = 0
    call_c(function, (tensor, answer.ctypes.data))
    return answer[0]


@scalar
def made(function: int, answer: Any) -> Any:
    """Call a function that is given nothing and writes one word, and return that."""
    answer[0] = 0
    call_c(function, (answer.ctypes.data,))
    return answer[0]


@scalar
def dtype_of(shim: Any, tensor: int, answer: Any) -> Any:
    """Return the place in `shim` of the dtype of a tensor, 0 if it is none of DTYPES."""
    dtype = ask(shim[DTYPE], tensor, answer)
    for at in range(FLOAT32, FLOAT32 + 4):
        if shim[at] == dtype:
            return at
    return 0


@scalar
def axes_of(shim: Any, tensor: int, answer: Any) -> Any:
    """Return the sizes and strides of a tensor."""
    dim = ask(shim[DIM], tensor, answer)
    return words(ask(shim[SIZES], tensor, answer), dim), words(ask(shim[STRIDES], tensor, answer), dim)


@scalar
def in_memory_order(sizes: Any, strides: Any) -> tuple[int, int, int]:
    """Return (N, C, S) as `fastbn.layout` does; N is 0 if there are gaps, or no elements."""
    order = np.empty(MOST_DIMENSIONS, np.int64)
    dim = sizes.size
    for i in range(dim):  # by size > 1, then the strides downwards, then as they come
        at = i
        while at > 0:
            j = order[at - 1]
            if sizes[j] == 1 or (sizes[i] > 1 and strides[j] >= strides[i]):
                break
            order[at] = j
            at -= 1
        order[at] = i
    expected, inner, outer, seen = 1, 1, 1, False
    for at in range(dim - 1, -1, -1):
        i = order[at]
        if sizes[i] == 0 or (sizes[i] > 1 and strides[i] != expected):
            return 0, 0, 0
        expected *= sizes[i]
        if i == 1:
            seen = True
        elif seen:
            outer *= sizes[i]
        else:
            inner *= sizes[i]
    return outer, sizes[1], inner


@scalar
def empty(shim: Any, sizes: Any, strides: Any, dtype: int, answer: Any) -> Any:
    """Return a new tensor on the CPU, 0 if there is no memory; `dtype` as `dtype_of` returns it."""
    answer[0] = 0
    place = sizes.ctypes.data, strides.ctypes.data, shim[dtype], 0, 0, answer.ctypes.data
    call_c(shim[EMPTY], (sizes.size, *place))
    return answer[0]


@scalar
def vector(shim: Any, size: int, dtype: int, answer: Any) -> Any:
    """Return a new tensor of one axis."""
    axis = np.empty(2, np.int64)
    axis[0], axis[1] = size, 1
    return empty(shim, axis[:1], axis[1:], dtype, answer)


@scalar
def part(shim: Any, tensor: int, start: int, size: int, answer: Any) -> Any:
    """Return a stretch of the memory of a tensor as a tensor of one axis."""
    axis = np.empty(2, np.int64)
    axis[0], axis[1] = size, 1
    return _part(shim, tensor, start, axis[:1], axis[1:], answer)


@scalar
def _part(shim: Any, tensor: int, start: int, sizes: Any, strides: Any, answer: Any) -> Any:
    answer[0] = 0
    place = sizes.ctypes.data, strides.ctypes.data, start, answer.ctypes.data
    call_c(shim[REINTERPRET], (tensor, sizes.size, *place))
    return answer[0]


@scalar
def delete(shim: Any, tensor: int) -> None:
    """Delete a tensor, if it is one."""
    if tensor != 0:
        call_c(shim[DELETE], (tensor,))


@scalar
def seen(shim: Any, word: int, answer: Any) -> Any:
    """Return the handle in an optional argument, which keeps it; 0 if it is absent, or holds the undefined tensor."""
    if word == 0:
        return 0
    handle = words(word, 1)[0]
    return handle if ask(shim[DEFINED], handle, answer) & 255 != 0 else 0


@scalar
def taken(shim: Any, word: int) -> Any:
    """Return the handle in an optional argument, 0 if it is absent; the argument is no more."""
    if word == 0:
        return 0
    handle = words(word, 1)[0]
    call_c(shim[DELETE_WORD], (word,))
    return handle
