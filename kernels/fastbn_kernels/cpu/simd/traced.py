"""Functions of vectors that are run, as Python, while a kernel is compiled.

Numba takes some 50 ms for a function, however small, and again for every combination of types. A traced function costs
next to nothing: called from compiled code, it is run once, with operations of `ops` that write LLVM IR in the place of
the call. What is None in a call is None to it, and an activation that activation, so an `if` in it decides while the
kernel is compiled, and the branch that is not taken leaves no trace.
"""

from __future__ import annotations

import inspect
import types as python_types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from numba import config, types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.extending import intrinsic

from fastbn_kernels.cpu.simd.tails import Activation, ActivationType

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Value:
    """A value in compiled code: its Numba type and, once code is generated, its LLVM value."""

    type: Any
    value: Any


def _names(code: python_types.CodeType) -> set[str]:
    """Return the names that a function, and generators in it, may look up."""
    inner = [_names(constant) for constant in code.co_consts if isinstance(constant, python_types.CodeType)]
    return set(code.co_names).union(*inner)


class Run:
    """One run of a traced function: for the types alone without a builder, or to generate code."""

    def __init__(self, context: Any = None, builder: Any = None) -> None:
        self.context = context
        self.builder = builder

    def taken(self, type_: Any, value: Any) -> Any:
        """Return an argument as the function sees it."""
        if isinstance(type_, types.NoneType):
            return None
        if isinstance(type_, ActivationType):
            return type_.activation
        if isinstance(type_, types.BaseTuple):
            values = cgutils.unpack_tuple(self.builder, value) if self.builder else [None] * type_.count
            return tuple(map(self.taken, type_, values))
        return Value(type_, value)

    def type_of(self, item: Any) -> Any:
        """Return the Numba type of what a traced function works with."""
        if item is None:
            return types.none
        if isinstance(item, int):
            return types.intp
        if isinstance(item, float):
            return types.float64
        return types.Tuple([self.type_of(each) for each in item]) if isinstance(item, tuple) else item.type

    def value_of(self, item: Any) -> Any:
        """Return the LLVM value of what a traced function works with."""
        if item is None or isinstance(item, Activation):
            return self.context.get_dummy_value()
        if isinstance(item, int):
            return self.context.get_constant(types.intp, item)
        if isinstance(item, float):
            return self.context.get_constant(types.float64, item)
        if isinstance(item, tuple):
            return self.context.make_tuple(self.builder, self.type_of(item), [self.value_of(each) for each in item])
        return item.value

    def operation(self, operation: Any) -> Callable[..., Value]:
        """Return an operation of `ops` as the function calls it."""

        def call(*items: Any) -> Value:
            given = [self.type_of(item) for item in items]
            signature, codegen = operation._defn(None, *given)
            for kind, expected in zip(given, signature.args, strict=True):
                if kind != expected and not isinstance(kind, types.Integer):
                    raise TypingError(f"fastbn: expected {expected}, got {kind}")
            if self.builder is None:
                return Value(signature.return_type, None)
            values = [self.value_of(item) for item in items]
            return Value(signature.return_type, codegen(self.context, self.builder, signature, values))

        return call

    def function(self, source: Any) -> Callable[..., Any]:
        """Return a function whose operations, and those of the traced functions that it calls, are of this run."""
        names = dict(source.__globals__)
        for name in _names(source.__code__):
            called: Any = names.get(name)
            if hasattr(called, "traced"):
                names[name] = self.function(called.traced)
            elif hasattr(called, "_defn"):
                names[name] = self.operation(called)
        return python_types.FunctionType(source.__code__, names)


def traced(source: Function) -> Function:
    """Make a function of vectors that compiled functions can call; see above."""
    if config.DISABLE_JIT:
        return source

    def definition(typing: Any, *given: Any) -> Any:
        kinds = [types.intp if isinstance(kind, types.Integer) else kind for kind in given]
        run = Run()
        result = run.type_of(run.function(source)(*(run.taken(kind, None) for kind in kinds)))

        def codegen(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            run = Run(context, builder)
            taken = [run.taken(*pair) for pair in zip(signature.args, arguments, strict=True)]
            return run.value_of(run.function(source)(*taken))

        return result(*kinds), codegen

    signature = inspect.signature(source)
    first = inspect.Parameter("typing", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    definition.__signature__ = signature.replace(parameters=[first, *signature.parameters.values()])  # type: ignore[attr-defined]
    definition.__name__ = source.__name__
    definition.__doc__ = source.__doc__
    found: Any = intrinsic(definition)
    found.traced = source
    return found  # type: ignore[no-any-return]
