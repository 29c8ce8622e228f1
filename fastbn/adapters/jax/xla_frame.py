"""XLA's foreign function interface from compiled code: what a call hands over, and kernels by their address.

XLA calls out with a pointer to a structure of C (xla/ffi/api/c_api.h, versions 0.x), whose fields are read here as
64-bit words. Handlers of this kind need neither Python nor its lock: XLA may call them from any thread at any moment,
and Python may end meanwhile.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.extending import intrinsic

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


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(_: Any, address: Any, like: Any) -> Any:
    """Return an address as a pointer to values of the type of `like`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like)(address, like), generate


@intrinsic  # type: ignore[untyped-decorator]
def _call_c(_: Any, function: Any, argument: Any) -> Any:
    """Call a function of C that takes a pointer and returns one."""

    def generate(_: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        word = ir.IntType(64)
        target = builder.inttoptr(arguments[0], ir.FunctionType(word, [word]).as_pointer())
        return builder.call(target, [arguments[1]])

    return types.int64(types.int64, types.int64), generate


@scalar
def array(address: int, shape: Any, like: Any) -> Any:
    """Return memory as a contiguous array of values of the type of `like`."""
    return carray(_pointer(address, like), shape)


@scalar
def words(address: int, count: int) -> Any:
    """Return the words of a structure, or of an array of pointers."""
    return array(address, (count,), np.int64(0))


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
    return _call_c(words(frame[API], NEW_ERROR + 1)[NEW_ERROR], NO_MEMORY)


def _calls(result: Any) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def call(_: Any, address: Any, arguments: Any) -> Any:
        given = arguments.types

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            kind = context.call_conv.get_function_type(result, given)
            target = builder.inttoptr(values[0], kind.as_pointer())
            each = [builder.extract_value(values[1], i) for i in range(len(given))]
            status, value = context.call_conv.call_function(builder, target, result, given, each)
            with builder.if_then(status.is_error, likely=False):
                context.call_conv.return_status_propagate(builder, status)
            return value

        return result(types.int64, arguments), generate

    return call


# Call a compiled function at an address with a tuple of exactly the types that it was compiled for. A call by name
# would link the function in, and LLVM would optimise all of it again, which takes seconds.
call_none = _calls(types.none)
call_int = _calls(types.intp)
call_bool = _calls(types.boolean)


def address_of(dispatcher: Any, signature: Any = None) -> int:
    """Return where a function is that was compiled, for one signature or the only one there is."""
    compiled = dispatcher.overloads[signature] if signature is not None else next(iter(dispatcher.overloads.values()))
    address: int = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    return address
