"""Syntax trees: where a variable is read, what a statement does besides, and nodes in place of others."""

from __future__ import annotations

import ast
from typing import Any, TypeAlias

# What may be done while a batch norm waits; nothing that leaves the block.
_BETWEEN = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.If, ast.Pass)
_LEAVING = (ast.Await, ast.Yield, ast.YieldFrom, ast.NamedExpr)

Edits: TypeAlias = dict[ast.AST, ast.AST]  # what takes the place of a node


def names(node: ast.AST, name: str) -> list[ast.Name]:
    """Return where a variable is mentioned."""
    return [n for n in ast.walk(node) if isinstance(n, ast.Name) and n.id == name]


def loads(node: ast.AST, name: str) -> list[ast.Name]:
    """Return where a variable is loaded."""
    return [n for n in names(node, name) if isinstance(n.ctx, ast.Load)]


def reads(node: ast.AST, name: str) -> int:
    """Return how often a variable is read; `name += x` reads it too."""
    changes = [n for n in ast.walk(node) if isinstance(n, ast.AugAssign) and names(n.target, name)]
    return len(loads(node, name)) + sum(isinstance(n.target, ast.Name) for n in changes)


def has_call(node: ast.AST) -> bool:
    """Return whether anything is called."""
    return any(isinstance(n, ast.Call) for n in ast.walk(node))


def stays(statement: ast.stmt) -> bool:
    """Return whether a batch norm may wait while a statement runs: it assigns variables, and the next one runs then."""
    inside = list(ast.walk(statement))
    if any(isinstance(n, _LEAVING) or (isinstance(n, ast.stmt) and not isinstance(n, _BETWEEN)) for n in inside):
        return False
    stores = [n for n in inside if isinstance(n, ast.Attribute | ast.Subscript) and not isinstance(n.ctx, ast.Load)]
    return not stores


def target(statement: ast.AST | None) -> str | None:
    """Return the one variable that a statement assigns."""
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
            return name
        case ast.AugAssign(target=ast.Name(id=name)):
            return name
    return None


def is_method(call: ast.AST | None, attribute: ast.AST, arguments: int) -> bool:
    """Return whether a node calls an attribute with so many arguments."""
    if not isinstance(call, ast.Call) or call.func is not attribute or call.keywords or len(call.args) != arguments:
        return False
    return not any(isinstance(a, ast.Starred) for a in call.args)


def call_of(name: str, *args: ast.expr, keywords: list[ast.keyword] | None = None) -> ast.Call:
    """Return a call of a function of `deferred`."""
    function = ast.Attribute(ast.Name("_fastbn", ast.Load()), name, ast.Load())
    return ast.Call(function, list(args), keywords or [])


class Editor(ast.NodeTransformer):
    """Makes edits."""

    def __init__(self, edits: Edits):
        self.edits = edits

    def visit(self, node: ast.AST) -> Any:
        """Put what takes the place of a node there, with its lines; it has parts of the node, which change too."""
        new = self.edits.get(node, node)
        for part in ast.walk(new):  # what is new in it
            if not hasattr(part, "lineno"):
                ast.copy_location(part, node)
        return self.generic_visit(new)
