"""Machine code that is neither a kernel nor compiled by Numba: what `spread` and `blas` write it with."""

from __future__ import annotations

import ctypes
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir

byte = ir.IntType(8).as_pointer()
flag = ir.IntType(32)
word = ir.IntType(8 * ctypes.sizeof(ctypes.c_void_p))  # Numba's `intp`
NONE = ir.VoidType()
RUN = ir.FunctionType(NONE, [word, word, byte])  # what a host calls


def at(builder: Any, address: int | None, kind: Any) -> Any:
    """Return an address of this process as a pointer."""
    return builder.inttoptr(word(address), kind.as_pointer())


def call(builder: Any, address: int | None, result: Any, *arguments: Any) -> Any:
    """Call a function of C."""
    kind = ir.FunctionType(result, [argument.type for argument in arguments])
    return builder.call(at(builder, address, kind), arguments)


def kept(thing: Any) -> Any:
    """Return an object that is never freed: a host's threads may be in a loop while Python ends, and later."""
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
    return thing


def finished(module: Any) -> Any:
    """Compile a module, for good."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple().create_target_machine(opt=2, jit=True)
    module.triple = target.triple
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(module)), target)
    engine.finalize_object()
    return kept(engine)
