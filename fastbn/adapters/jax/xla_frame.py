"""XLA's foreign function interface from compiled code: what a call hands over.

XLA calls out with a pointer to a structure of C (xla/ffi/api/c_api.h, versions 0.x), whose fields are read here as
64-bit words. Handlers of this kind need neither Python nor its lock: XLA may call them from any thread at any moment,
and Python may end meanwhile.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np

from fastbn_kernels.build.addresses import array, call_c, words
from fastbn_kernels.build.decorators import scalar

# Words of XLA_FFI_CallFrame: its extension, its API, and the pointers to arguments, results and attributes.
LENGTH, EXTENSION, API, ARGUMENTS, RESULTS, ATTRIBUTES = 21, 1, 2, 9, 14, 20
# Words of other structures: the pointers in XLA_FFI_Buffer, XLA_FFI_Array and XLA_FFI_Metadata_Extension, the version
# (two `int`) in XLA_FFI_Metadata, the first function in XLA_FFI_Api.
BUFFER_DATA, ARRAY_DATA, METADATA, VERSION, NEW_ERROR = 3, 2, 3, 3, 6

RESOURCE_EXHAUSTED = 8  # XLA_FFI_Error_Code
_MESSAGE = ctypes.create_string_buffer(b"fastbn: no memory left")
_NO_MEMORY = (ctypes.c_int64 * 4)(32, 0, ctypes.addressof(_MESSAGE), RESOURCE_EXHAUSTED)  # XLA_FFI_Error_Create_Args
NO_MEMORY = ctypes.addressof(_NO_MEMORY)


@scalar
def buffer(frame: Any, section: int, i: int) -> Any:
    """Return the address of the data of argument or result i."""
    return words(words(frame[section], i + 1)[i], BUFFER_DATA + 1)[BUFFER_DATA]


@scalar
def numbers(frame: Any, count: int) -> Any:
    """Return the only attribute, an array of float64."""
    attribute = words(words(frame[ATTRIBUTES], 1)[0], ARRAY_DATA + 1)
    return array(attribute[ARRAY_DATA], (count,), np.float64(0))


@scalar
def tell_version(frame: Any, version: int) -> None:
    """Answer the question that a frame with an extension is: which version of the interface this was made for."""
    metadata = words(frame[EXTENSION], METADATA + 1)[METADATA]
    words(metadata, VERSION + 1)[VERSION] = version


@scalar
def no_memory(frame: Any) -> Any:
    """Return a new error, which XLA destroys."""
    return call_c(words(frame[API], NEW_ERROR + 1)[NEW_ERROR], (NO_MEMORY,))
