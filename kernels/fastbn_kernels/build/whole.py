"""A kernel is optimised and turned into machine code once, as a whole.

Numba makes a library of every function, and so of each that a kernel calls: optimised by itself, with copies of all
that it calls, translated to machine code, and given entries for Python and for C. Then it is copied into the library of
whoever calls it, which is optimised again. Of the functions of a kernel nobody needs any of that. While one of our
kernels compiles, the functions that it is made of stay as Numba wrote them; the kernel takes each once, directly or
not, and only the kernel is optimised, translated and given an entry. The first forward and backward pass of 256 x 1024
float32 take 8 s of a processor that way, instead of 18, and compute the same bits in the same time.

What stays unfinished is finished when somebody else needs it: a caller's own `@njit` code that calls the same function
gets it with what it calls, and Python gets one that is compiled again, as Numba does.

This replaces, while a kernel compiles, what is private to Numba; where it is not what this was made for, `known` says
so and functions are compiled as Numba does.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Iterator
from typing import Any

from numba.core import codegen, cpu, dispatcher
from numba.core.registry import cpu_target

# Private to Numba. Where they are not, `known` says so.
Library: Any = getattr(codegen, "JITCodeLibrary", object)
Context: Any = getattr(cpu, "CPUContext", object)
Dispatcher: Any = getattr(dispatcher, "Dispatcher", object)

# What is replaced or relied upon, its parameters, and what it must still refer to.
KNOWN = (
    (Library, "finalize", ["self"], {"_linking_libraries", "_get_module_for_linking", "_optimize_final_module"}),
    (Library, "_get_module_for_linking", ["self"], {"_ensure_finalized", "_shared_module", "_final_module"}),
    (Library, "_ensure_finalized", ["self"], {"_finalized", "finalize"}),
    (Library, "add_llvm_module", ["self", "ll_module"], {"_optimize_functions", "link_in"}),
    (Library, "add_linking_library", ["self", "library"], {"_ensure_finalized", "_linking_libraries"}),
    (Library, "_finalize_final_module", ["self"], {"_add_module", "_finalize_specific", "_finalized"}),
    (Library, "get_pointer_to_function", ["self", "name"], {"_ensure_finalized"}),
    (Context, "get_executable", ["self", "library", "fndesc", "env"], {"llvm_cpython_wrapper_name"}),
    (
        Context,
        "create_cpython_wrapper",
        ["self", "library", "fndesc", "env", "call_helper", "release_gil"],
        {"add_ir_module"},
    ),
    (Context, "create_cfunc_wrapper", ["self", "library", "fndesc", "env", "call_helper"], {"add_ir_module"}),
    (Dispatcher, "add_overload", ["self", "cres"], {"_insert", "overloads", "entry_point"}),
)


@functools.cache
def known() -> bool:
    """Return whether this Numba makes libraries as those do that this was made for."""
    for owner, name, parameters, names in KNOWN:
        found: Any = getattr(owner, name, None)
        code = getattr(found, "__code__", None)
        if code is None or list(inspect.signature(found).parameters) != parameters or not names <= set(code.co_names):
            return False
    return callable(getattr(cpu_target.target_context.codegen(), "create_library", None))


class _Part(Library):  # type: ignore[misc]
    """The library of a function that a kernel is made of, or of the kernel: nothing in it is optimised by itself."""

    # Whether it is final as far as its callers care, but lacks what it calls, and has no machine code.
    raw = False

    def add_llvm_module(self, module: Any) -> None:
        """Take what Numba wrote, without the passes over each function."""
        module.data_layout = self._codegen._data_layout
        self._final_module.link_in(module)

    def finalize(self) -> None:
        """Be done, and leave everything to the kernel."""
        self._raise_if_finalized()
        self._finalized = self.raw = True

    def finish(self) -> None:
        """Link all that this calls, directly or not, once each; optimise and translate the whole."""
        self._link()
        self._optimize_final_module()
        self._final_module.verify()
        self._finalized = self.raw = False
        self._shared_module = None
        self._finalize_final_module()

    def _link(self) -> None:
        """Link all that this calls, directly or not, once each."""
        for library in _all_of(self):
            if hasattr(library, "_reload_init"):  # not in Numba 0.61
                self._reload_init.update(library._reload_init)
            self._final_module.link_in(Library._get_module_for_linking(library), preserve=True)
        self._linking_libraries.clear()

    def _get_module_for_linking(self) -> Any:
        """Return the module for a library of somebody else's, which does not look for what this calls."""
        if self.raw and self._linking_libraries:
            self._link()
            self._shared_module = None
        return super()._get_module_for_linking()

    def get_pointer_to_function(self, name: str) -> Any:
        """Return the address of a function."""
        self._ensure_finalized()
        if self.raw:
            self.finish()
        return super().get_pointer_to_function(name)

    def get_llvm_str(self) -> str:
        """Return what LLVM made of this, for whoever wants to see it."""
        if self.raw:
            self.finish()
        text: str = super().get_llvm_str()
        return text

    def get_asm_str(self) -> str:
        """Return the machine code of this, for whoever wants to see it."""
        if self.raw:
            self.finish()
        text: str = super().get_asm_str()
        return text


def _all_of(library: Any) -> list[Any]:
    """Return the libraries that one calls, directly or not, each once and after all that call it.

    In this order, because LLVM drops a function of a linked module that nothing refers to yet.
    """
    found: dict[Any, None] = {}

    def visit(each: Any) -> None:
        if each not in found:
            if getattr(each, "raw", False):
                for called in each._linking_libraries:
                    visit(called)
            found[each] = None

    for called in library._linking_libraries:
        visit(called)
    return list(reversed(found))


class _Later:
    """The entry, for Python, of a function that has none: compiles it once more, as Numba does, when it is called."""

    def __init__(self) -> None:
        self.dispatcher: Any = None
        self._compiled: Any = None

    def __call__(self, *arguments: Any) -> Any:
        if self._compiled is None:
            own = self.dispatcher
            self._compiled = type(own)(own.py_func, own.locals, own.targetoptions)
        return self._compiled(*arguments)


@contextlib.contextmanager
def whole(name: str) -> Iterator[None]:
    """Compile the kernel with a `__qualname__` as a whole; for whoever holds Numba's compiler lock."""
    if not known():
        yield
        return
    own = cpu_target.target_context.codegen()
    executable, add = Context.get_executable, Dispatcher.add_overload
    for_python = Context.create_cpython_wrapper

    def get_executable(self: Any, library: Any, fndesc: Any, env: Any) -> Any:
        library._ensure_finalized()
        if fndesc.qualname != name and getattr(library, "raw", False):
            return _Later()
        return executable(self, library, fndesc, env)  # the kernel, or what the cache had

    def create_cpython_wrapper(self: Any, library: Any, fndesc: Any, *more: Any, **named: Any) -> None:
        if fndesc.qualname == name:
            for_python(self, library, fndesc, *more, **named)

    def add_overload(self: Any, compiled: Any) -> None:
        if isinstance(compiled.entry_point, _Later):  # C calls what it knows without a look
            compiled.entry_point.dispatcher = self
            self.overloads[tuple(compiled.signature.args)] = compiled
        else:
            add(self, compiled)

    changed = {
        "get_executable": get_executable,
        "create_cpython_wrapper": create_cpython_wrapper,
        "create_cfunc_wrapper": lambda *_, **__: None,
    }
    with contextlib.ExitStack() as stack:
        for owner, names in ((Context, changed), (Dispatcher, {"add_overload": add_overload})):
            for each, value in names.items():
                stack.callback(setattr, owner, each, getattr(owner, each))
                setattr(owner, each, value)
        own.create_library = lambda name, **named: _Part(own, name, **named)
        stack.callback(delattr, own, "create_library")
        yield
