"""The source of a function as a syntax tree, and functions made from changed trees."""

from __future__ import annotations

import ast
import linecache
from collections.abc import Iterator
from functools import lru_cache
from types import CellType, CodeType, FunctionType
from typing import Any, NamedTuple

_FUTURE = annotations.compiler_flag  # all else of __future__ is the present


@lru_cache(maxsize=16)
def _parse(text: str) -> ast.Module | None:
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError):
        return None


class Source(NamedTuple):
    """A function as it is written, and what its names depend on."""

    tree: ast.FunctionDef
    owner: str | None  # the class
    imports: tuple[str, ...]  # names that the file imports: their attributes are called by other bytecode


def _imports(node: ast.AST) -> Iterator[str]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield from (a.asname or a.name.partition(".")[0] for a in child.names if a.name != "*")
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.expr):
            yield from _imports(child)


def _with_classes(node: ast.AST, owner: str | None = None) -> Iterator[tuple[ast.FunctionDef, str | None]]:
    """Yield the functions of a tree with the names of their classes."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            yield child, owner
        yield from _with_classes(child, child.name if isinstance(child, ast.ClassDef) else owner)


def _compiled(source: Source, function: FunctionType, extra: tuple[str, ...]) -> CodeType:
    """Compile a function where its names mean what they meant: in a class, in a function with its free variables."""
    code = function.__code__
    tree, owner, imports = source
    free = [name for name in code.co_freevars if name != "__class__"]
    body: list[ast.stmt] = [tree]
    if owner is not None:  # private names are mangled, super() has its class
        body = [ast.ClassDef(owner, [], [], [tree], [])]
        if owner not in free:
            body.insert(0, ast.Global([owner]))
    arguments = ast.arguments([], [ast.arg(name) for name in (*free, *extra)], None, [], [], None, [])
    outer = ast.FunctionDef("_", arguments, body, [])
    top = [ast.Import([ast.alias("sys", name)]) for name in imports]
    for node in (*top, outer, *body, *arguments.args):
        if node is not tree:
            ast.copy_location(node, tree)
    module = ast.fix_missing_locations(ast.Module([*top, outer], []))
    made = compile(module, code.co_filename, "exec", flags=code.co_flags & _FUTURE, dont_inherit=True)
    for _ in range(2 if owner is None else 3):  # the code of a function is a constant of what it stands in
        made = next(c for c in made.co_consts if isinstance(c, CodeType))
    return made.replace(co_flags=code.co_flags, co_qualname=code.co_qualname)


@lru_cache(maxsize=256)
def source_of(function: FunctionType) -> Source | None:
    """Return the source of a function; None unless it compiles to the very code that runs.

    It does not where the file was changed since it was imported, where a decorator made the function, and where there
    is no file at all.
    """
    code = function.__code__
    parsed = _parse("".join(linecache.getlines(code.co_filename, function.__globals__)))
    if parsed is None:
        return None
    for tree, owner in _with_classes(parsed):
        if tree.name == code.co_name and tree.lineno == code.co_firstlineno and not tree.decorator_list:
            source = Source(tree, owner, tuple(_imports(parsed)))
            try:
                return source if _compiled(source, function, ()) == code else None
            except (SyntaxError, ValueError):
                return None
    return None


def with_source(function: FunctionType, source: Source, **names: Any) -> FunctionType:
    """Return a function with another source, in which some names mean given values.

    Everything else is the function's own: its file and lines, globals, closure, defaults and annotations.
    """
    cells = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    cells |= {name: CellType(value) for name, value in names.items()}
    code = _compiled(source, function, tuple(names))
    made = FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__,
        tuple(cells[name] for name in code.co_freevars),
    )  # fmt: skip
    for name in ("__kwdefaults__", "__annotations__", "__doc__", "__module__", "__qualname__"):
        setattr(made, name, getattr(function, name))
    made.__dict__.update(function.__dict__)
    return made
