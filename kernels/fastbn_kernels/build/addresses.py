"""Memory and functions by their addresses, in compiled code that other programs call: XLA, PyTorch.

Such code needs neither Python nor its lock, so hosts may call it from any thread at any moment, and Python may end
meanwhile. What it gets are words of 64 bits: structures of C, pointers and numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import carray, config, types
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic, overload

from fastbn_kernels.build.decorators import scalar


@intrinsic  # type: ignore[untyped-decorator]
def _pointer(_: Any, address: Any, like: Any) -> Any:
    """Return an address as a pointer to values of the type of `like`."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like)(address, like), generate


@scalar
def array(address: int, shape: Any, like: Any) -> Any:
    """Return memory as a contiguous array of values of the type of `like`."""
    return carray(_pointer(address, like), shape)


@scalar
def words(address: int, count: int) -> Any:
    """Return the words of a structure, or of an array of pointers."""
    return array(address, (count,), np.int64(0))


@intrinsic  # type: ignore[untyped-decorator]
def call_c(_: Any, function: Any, arguments: Any) -> Any:
    """Call a function of C with a tuple of words; return a word, of which a 32-bit result is the lower half."""
    count = len(arguments)

    def generate(_: Any, builder: Any, signature: Any, values: Any) -> Any:
        word = ir.IntType(64)
        target = builder.inttoptr(values[0], ir.FunctionType(word, [word] * count).as_pointer())
        return builder.call(target, [builder.extract_value(values[1], i) for i in range(count)])

    return types.int64(types.int64, types.UniTuple(types.int64, count)), generate


@intrinsic  # type: ignore[untyped-decorator]
def acquire(_: Any) -> Any:
    """Read nothing after this before what was read before it: what somebody else has published is whole then."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        builder.fence("acquire")
        return context.get_dummy_value()

    return types.none(), generate


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


def call_kernel(at: Any, arguments: Any) -> None:
    """Call a kernel that `callable_at` found with a tuple of exactly the types that it was compiled for."""
    at(*arguments)


@overload(call_kernel)  # type: ignore[untyped-decorator]
def _call_kernel(at: Any, arguments: Any) -> Any:
    def at_its_address(at: Any, arguments: Any) -> None:
        call_none(at, arguments)

    return at_its_address


def call_whole(at: Any, arguments: Any) -> int:
    """Call likewise a kernel that does a whole call; return its answer."""
    answer: int = at(*arguments)
    return answer


@overload(call_whole)  # type: ignore[untyped-decorator]
def _call_whole(at: Any, arguments: Any) -> Any:
    def at_its_address(at: Any, arguments: Any) -> Any:
        return call_int(at, arguments)

    return at_its_address


def callable_at(compiled: Any) -> Any:
    """Return the address of what `Kernel.get` returned, or itself with ``NUMBA_DISABLE_JIT=1``, when it has none."""
    return compiled if config.DISABLE_JIT else address_of(compiled)


def address_of(dispatcher: Any, signature: Any = None) -> int:
    """Return where a function is that was compiled, for one signature or the only one there is."""
    compiled = dispatcher.overloads[signature] if signature is not None else next(iter(dispatcher.overloads.values()))
    with global_compiler_lock:  # LLVM may be told of another function at this moment, and be half way
        address: int = compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name)
    return address
