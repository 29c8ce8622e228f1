"""Machine code between PyTorch's dispatcher and compiled code, which cannot throw what C++ catches."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from llvmlite import ir
from numba import cfunc, types

from fastbn.adapters.torch.native import calls
from fastbn_kernels.build import spread
from fastbn_kernels.build.addresses import address_of, call_int
from fastbn_kernels.build.machine import NONE, at, call, finished, kept, word


def _caller(table: Any) -> int:
    """Return the address of ``intptr_t run(intptr_t operator, intptr_t stack)``, which returns 0 or a message."""
    body: Any = calls.call
    body.compile(types.int64(types.int64, types.int64, types.int64))
    compiled, place = address_of(body), table.ctypes.data

    @cfunc(types.int64(types.int64, types.int64))  # type: ignore[untyped-decorator]
    def run(operator: int, stack: int) -> int:
        return call_int(compiled, (operator, stack, place))

    return int(kept(run).address)


def _entries(module: Any, run: int, thrower: int) -> None:
    """Write what the dispatcher calls: it throws a C++ exception with the message that the compiled code returns.

    The throwing function is jumped to, in the place of this one, so no frame of ours is unwound.
    """
    kind = ir.FunctionType(NONE, [word] * 3)
    for number, name in enumerate(calls.OPERATORS):
        entry = ir.Function(module, kind, name)
        builder = ir.IRBuilder(entry.append_basic_block())
        said = call(builder, run, word, word(number), entry.args[0])
        with builder.if_then(builder.icmp_unsigned("!=", said, word(0)), likely=False):
            builder.call(at(builder, thrower, kind), [said, *entry.args[1:]], tail="musttail")
            builder.ret_void()
        builder.ret_void()


def _choosing(module: Any, key: int) -> None:
    """Write what a thread says whose calls are meant with, and what asks it."""
    for name, function, values in (
        ("mine", "PyThread_tss_set", (1,)), ("not_mine", "PyThread_tss_set", (0,)), ("is_mine", "PyThread_tss_get", ()),
    ):  # fmt: skip
        builder = ir.IRBuilder(ir.Function(module, ir.FunctionType(word, []), name).append_basic_block())
        called = address(getattr(ctypes.pythonapi, function))
        builder.ret(call(builder, called, word, word(key), *(word(value) for value in values)))


def machine(table: Any, thrower: int) -> Any:
    """Compile an entry an operator, by its name, and `mine`, `not_mine` and `is_mine`."""
    module = ir.Module("fastbn_torch")
    _entries(module, _caller(table), thrower)
    _choosing(module, spread._new_key())
    return finished(module)


def address(function: Any) -> int:
    """Return where a function of C is."""
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def thrower() -> int | None:
    """Return the address of the C++ library's function that throws a `std::runtime_error` with a message."""
    names = {
        "linux": ("libstdc++.so.6", "_ZSt21__throw_runtime_errorPKc"),
        "darwin": ("libc++.1.dylib", "_ZNSt3__121__throw_runtime_errorEPKc"),
    }
    try:
        library, function = names[sys.platform]
        return address(getattr(ctypes.CDLL(library), function))
    except (KeyError, OSError, AttributeError):
        return None
