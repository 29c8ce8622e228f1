"""Batch norms with their activations in the source of a method, and the method in which they are one call.

`self.relu(self.bn(x) + y)` becomes `_fastbn.activate(self.relu, _fastbn.add(_fastbn.begin(self.bn, x), y, "a + b"))`;
see `deferred` for what that does. The same goes for a value that is kept in a variable between the three calls, if
nobody else can see it: each statement that mentions the variable is one of them, they stand in one block, and after the
last the variable is assigned anew, the function returns, or the variable is read nowhere else.

Control flow, other calls and their order stay, except that a batch norm runs later: past other calls only if its input
is the new result of a convolution or of a linear layer, which they cannot change, and if it is called in this place
alone.
"""

from __future__ import annotations

import ast
import copy
import operator
from types import FunctionType
from typing import Any, NamedTuple

import torch
from torch import nn

from fastbn.adapters.torch import deferred
from fastbn.adapters.torch.names import UNKNOWN, meaning
from fastbn.adapters.torch.source import source_of, with_source
from fastbn.adapters.torch.trees import Editor, Edits, call_of, has_call, is_method, loads, names, reads, stays, target

# What lies between a value in a variable and the statement that reads it: evaluated once, whenever the statement is.
_STRICT = (ast.Call, ast.Attribute, ast.BinOp, ast.UnaryOp, ast.Tuple, ast.List, ast.keyword, ast.Subscript)
_SEES_VARIABLES = {"locals", "vars", "dir", "eval", "exec", "_getframe"}


class _Use(NamedTuple):
    """Where a value is read from a variable."""

    node: ast.Name | ast.AugAssign
    is_early: bool  # whether something else is done before, or may be
    finished: Edits  # what reads it instead in branches before, and assigns the variable


def _is_activation(new: ast.AST) -> bool:
    match new:
        case ast.Call(func=ast.Attribute(attr="activate" | "activate_method")):
            return True
    return False


class _Finder:
    """Finds what can be one call in a method of a module."""

    def __init__(self, module: nn.Module, function: FunctionType, tree: ast.FunctionDef):
        self.module, self.function, self.tree = module, function, tree
        self.parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}
        self.edits: Edits = {}
        code = function.__code__
        # A handler would see a variable between the calls, and so does who looks at all variables.
        self.has_variables = not _SEES_VARIABLES & {*code.co_names} and not any(
            isinstance(n, ast.Try | ast.TryStar) for n in ast.walk(tree)
        )
        self.variables = {*code.co_varnames} - {*code.co_cellvars}

    def find(self) -> Edits:
        """Return what takes the place of which node."""
        calls = [n for n in ast.walk(self.tree) if isinstance(n, ast.Call) and self._is_norm(n)]
        # What is known to be a batch norm comes first; of two that are added, the later one, which waits for less.
        for call in sorted(calls, key=lambda n: (self._is_known(n), n.lineno, n.col_offset), reverse=True):
            edits = self._fused(call)
            taken = [self.edits[node] for node in edits or {} if node in self.edits]
            if edits is not None and all(_is_activation(new) for new in taken):  # which branches may share
                self.edits |= edits
        return self.edits

    def _meaning(self, expression: ast.expr) -> Any:
        return meaning(expression, self.function, self.module)

    def _is_known(self, call: ast.Call) -> bool:
        return self._meaning(call.func) is not UNKNOWN

    def _is_norm(self, call: ast.Call) -> bool:
        """Return whether a call may be one of a batch norm: `self.bn(x)`, `self.norms[i](x)`, `bn(x)`."""
        if len(call.args) != 1 or call.keywords or isinstance(call.args[0], ast.Starred):
            return False
        if isinstance(call.func, ast.Call):
            return False
        callee = self._meaning(call.func)
        return callee is UNKNOWN or deferred.last_norm(callee, quiet=False) is not None

    def _is_activation(self, call: ast.Call, is_norm_known: bool) -> bool:
        rest = [*call.args[1:], *(keyword.value for keyword in call.keywords)]
        if not all(isinstance(value, ast.Constant | ast.UnaryOp) for value in rest):
            return False
        if any(keyword.arg is None for keyword in call.keywords):
            return False
        callee = self._meaning(call.func)
        if callee is UNKNOWN:  # decided when it is called; but not every f(g(x)) can be one
            return is_norm_known and isinstance(call.func, ast.Name | ast.Subscript) and not rest
        if type(callee) in deferred.MODULES:
            return not rest
        return any(callee is function for function in (*deferred.OTHERS, *deferred.FUNCTIONS))

    def _fused(self, norm: ast.Call) -> Edits | None:
        """Return what takes the place of a call and of those that follow it, if they can be one."""
        node: ast.expr = norm
        edits: Edits = {}
        between: Edits = {}
        is_early = False  # whether something else is done before the activation
        while (last := self._activation(node, norm)) is None:
            addition = None if edits else self._addition(node)
            through = self.parents[node]
            if isinstance(through, ast.Call) and type(self._meaning(through.func)) is nn.Identity and not edits:
                if through.args != [node] or through.keywords:
                    return None
                between[through] = call_of("through", through.func, node)
                node = through
                continue
            if addition is not None:
                place, a, b, how = addition
                is_early |= a is node and has_call(b)
                node = place
                edits[node] = call_of("add", a, b, ast.Constant(how))
                continue
            statement = self.parents[node]
            if not isinstance(statement, ast.Assign | ast.AnnAssign):
                return None
            use = self._use(statement)
            if use is not None and isinstance(use.node, ast.AugAssign):
                reader = use.node
                if edits or not isinstance(reader.op, ast.Add):
                    return None
                between |= use.finished
                is_early |= use.is_early or has_call(reader.value)
                name = target(reader) or ""
                sum_ = call_of("add", ast.Name(name, ast.Load()), reader.value, ast.Constant("a += b"))
                edits[reader] = ast.Assign([ast.Name(name, ast.Store())], sum_)
                use = self._use(reader)
            if use is None or isinstance(use.node, ast.AugAssign) or (edits and use.is_early):
                return None  # what was added must not change before the activation
            node = use.node
            between |= use.finished
            is_early |= use.is_early
        if is_early and not self._runs_once(norm):
            return None
        edits |= between
        edits[last[0]] = last[1]
        edits[norm] = self._begin(norm, is_early)
        return edits

    def _activation(self, node: ast.expr, norm: ast.Call) -> tuple[ast.AST, ast.Call] | None:
        """Return the activation that a value goes into: its place and what takes it."""
        parent = self.parents[node]
        match parent:
            case ast.Call(func=func, args=[first, *rest], keywords=keywords) if first is node:
                if self._is_activation(parent, self._is_known(norm)):
                    return parent, call_of("activate", func, first, *rest, keywords=keywords)
            case ast.Attribute(value=value, attr=name) if name in deferred.METHODS:
                call = self.parents[parent]
                if is_method(call, parent, 0):
                    return call, call_of("activate_method", value, ast.Constant(name))
        return None

    def _runs_once(self, norm: ast.Call) -> bool:
        """Return whether a batch norm cannot run while it waits: its statistics would move in another order."""
        layer = deferred.last_norm(self._meaning(norm.func), quiet=False)
        paths = [part for _, part in self.module.named_modules(remove_duplicate=False) if part is layer]
        callees = [self._meaning(n.func) for n in ast.walk(self.tree) if isinstance(n, ast.Call)]
        calls = [c for c in callees if deferred.last_norm(c, quiet=False) is layer]
        return layer is not None and len(paths) == len(calls) == 1

    def _addition(self, node: ast.expr) -> tuple[ast.expr, ast.expr, ast.expr, str] | None:
        """Return the addition that a value goes into: its place, its two values, its name."""
        parent = self.parents[node]
        match parent:
            case ast.BinOp(left=a, op=ast.Add(), right=b):
                return parent, a, b, "a + b"
            case ast.Call(func=func, args=[a, b], keywords=[]) if node in (a, b) and not isinstance(b, ast.Starred):
                if self._meaning(func) is torch.add:
                    return parent, a, b, "torch.add(a, b)"
                if self._meaning(func) is operator.add or (self._meaning(func) is operator.iadd and node is a):
                    return parent, a, b, "a + b" if self._meaning(func) is operator.add else "a += b"
            case ast.Attribute(value=a, attr=("add" | "add_") as name):
                call = self.parents[parent]
                if isinstance(call, ast.Call) and is_method(call, parent, 1):
                    return call, a, call.args[0], f"a.{name}(b)"
        return None

    def _use(self, statement: ast.stmt) -> _Use | None:
        """Return where alone the value that a statement puts into a variable is read."""
        name, block = target(statement), self._block(statement)
        if name is None or block is None or not self.has_variables or name not in self.variables:
            return None
        passed: list[ast.stmt] = []
        finished: Edits = {}
        node: ast.AST = statement
        while True:
            after = block[block.index(node) + 1 :]  # type: ignore[arg-type]
            at = next((i for i, s in enumerate(after) if not self._passes(s, name, finished)), len(after))
            passed += after[:at]
            if at < len(after):
                break
            node = self.parents[node]  # on from the end of a branch
            if not isinstance(node, ast.If) or (block := self._block(node)) is None:
                return None
        if not all(stays(s) for s in passed):
            return None
        reader = after[at]
        uses = loads(reader, name)
        if isinstance(reader, ast.AugAssign) and target(reader) == name:
            return None if uses else _Use(reader, bool(passed), finished)
        if len(uses) != 1 or not isinstance(reader, ast.Assign | ast.AnnAssign | ast.Return):
            return None
        above = self._above(uses[0], reader)
        is_dead = isinstance(reader, ast.Return) or target(reader) == name or reads(self.tree, name) == 1
        if above is None or not is_dead:
            return None
        others = [n for n in ast.walk(reader) if isinstance(n, ast.Call) and n not in above]
        return _Use(uses[0], bool(passed or others), finished)

    def _passes(self, statement: ast.stmt, name: str, finished: Edits) -> bool:
        """Return whether a value may wait while a statement runs which does not read it, or replaces it in a branch."""
        if not names(statement, name):
            return True
        if not isinstance(statement, ast.If) or names(statement.test, name):
            return False
        for branch in statement.body, statement.orelse:
            mentions = [s for s in branch if names(s, name)]
            if not mentions:
                continue
            uses = loads(mentions[0], name)
            is_new = isinstance(mentions[0], ast.Assign) and target(mentions[0]) == name
            if not is_new or len(uses) != 1 or self._above(uses[0], mentions[0]) is None or len(mentions) > 1:
                return False
            finished[uses[0]] = call_of("finish", ast.Name(name, ast.Load()))
        return True

    def _block(self, statement: ast.stmt) -> list[ast.stmt] | None:
        """Return the statements beside a statement of the function itself."""
        node: ast.AST = statement
        while node is not self.tree:
            node = self.parents[node]
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node is not self.tree:
                return None
        parent = self.parents[statement]
        for field in ("body", "orelse"):
            block = getattr(parent, field, None)
            if isinstance(block, list) and statement in block:
                return block
        return None

    def _above(self, node: ast.AST, statement: ast.stmt) -> list[ast.AST] | None:
        """Return what a value goes through in its statement, unless that is not evaluated once and for sure."""
        above: list[ast.AST] = []
        while (node := self.parents[node]) is not statement:
            if not isinstance(node, _STRICT):
                return None
            above.append(node)
        return above

    def _begin(self, norm: ast.Call, is_early: bool) -> ast.Call:
        if not is_early:
            return call_of("begin", norm.func, norm.args[0])
        return call_of("begin_early", norm.func, norm.args[0], self._source(norm) or ast.Constant(None))

    def _source(self, norm: ast.Call) -> ast.expr | None:
        """Return the module whose result a batch norm takes, if nobody else has that result."""
        value: ast.AST = norm.args[0]
        statement = self.parents[norm]
        if isinstance(value, ast.Name) and isinstance(statement, ast.stmt):
            name, block = value.id, self._block(statement)
            at = block.index(statement) if block is not None else 0
            if not at or block is None or name not in self.variables or target(block[at - 1]) != name:
                return None
            if target(statement) != name and reads(self.tree, name) != 1:
                return None
            value = getattr(block[at - 1], "value", value)
        if not isinstance(value, ast.Call) or not isinstance(self._meaning(value.func), nn.Module):
            return None
        return copy.deepcopy(value.func)


def rewritten(module: nn.Module, function: FunctionType) -> tuple[str, FunctionType] | None:
    """Return a method of a module in which batch norms wait, and its source; None if there are none."""
    source = source_of(function)
    if source is None:
        return None
    tree = copy.deepcopy(source.tree)
    edits = _Finder(module, function, tree).find()
    if not edits:
        return None
    tree = Editor(edits).visit(tree)
    return ast.unparse(tree), with_source(function, source._replace(tree=tree), _fastbn=deferred)
