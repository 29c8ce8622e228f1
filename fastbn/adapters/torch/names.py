"""What a name in a method means, as far as it is known before the method runs."""

from __future__ import annotations

import ast
import builtins
import inspect
from collections.abc import Mapping
from types import FunctionType, ModuleType
from typing import Any

from torch import nn

UNKNOWN = object()


def _attribute(owner: Any, name: str) -> Any:
    """Return an attribute, without running a property or `__getattr__`."""
    if isinstance(owner, ModuleType):
        return getattr(owner, name, UNKNOWN)
    if not isinstance(owner, nn.Module):
        return UNKNOWN
    for place in (owner.__dict__, owner.__dict__.get("_modules", {})):
        if name in place:
            return place[name]
    found = inspect.getattr_static(type(owner), name, UNKNOWN)
    return found.__func__ if isinstance(found, staticmethod) else UNKNOWN


def _global(function: FunctionType, name: str) -> Any:
    code = function.__code__
    if name in code.co_varnames or name in code.co_cellvars:
        return UNKNOWN
    if name in code.co_freevars:
        try:
            return (function.__closure__ or ())[code.co_freevars.index(name)].cell_contents
        except ValueError:  # not assigned yet
            return UNKNOWN
    known: Mapping[str, Any] = function.__globals__
    return known[name] if name in known else getattr(builtins, name, UNKNOWN)


def meaning(expression: ast.expr, function: FunctionType, module: nn.Module) -> Any:
    """Return what an expression in a method of a module is, or UNKNOWN."""
    match expression:
        case ast.Name(id=name):
            code = function.__code__
            is_self = code.co_argcount > 0 and name == code.co_varnames[0]
            return module if is_self else _global(function, name)
        case ast.Attribute(value=value, attr=name):
            return _attribute(meaning(value, function, module), name)
        case ast.Subscript(value=value, slice=ast.Constant(value=int(i))):
            items = meaning(value, function, module)
            if isinstance(items, (nn.ModuleList, nn.Sequential)) and 0 <= i < len(items):
                return items[i]
    return UNKNOWN
