"""Modules whose batch norms do what follows them: their class becomes a subclass in which these calls are one."""

from __future__ import annotations

import abc
import inspect
from functools import cache
from itertools import pairwise
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from fastbn.adapters.torch import deferred
from fastbn.adapters.torch.rewrite import rewritten

_BASE = "_fastbn_base"  # the class that a class of ours was made from
_MADE: dict[tuple[type, tuple[tuple[str, str], ...]], type] = {}


def base_of(kind: type) -> type:
    """Return the class that a class of ours was made from; any other class itself."""
    base: type = kind.__dict__.get(_BASE, kind)
    return base


def _can_be_derived(base: type) -> bool:
    """Return whether a subclass changes nothing: nobody is told of it, and objects are copied as `object` does it."""
    return (
        type(base) in (type, abc.ABCMeta)
        and inspect.getattr_static(base, "__init_subclass__") is object.__dict__["__init_subclass__"]
        and all(inspect.getattr_static(base, n) is object.__dict__[n] for n in ("__reduce__", "__reduce_ex__"))
        and not issubclass(base, (torch.jit.ScriptModule, torch.fx.GraphModule))
    )


def _derived(base: type, methods: dict[str, Any]) -> type:
    own = {"__module__": base.__module__, "__qualname__": base.__qualname__, "__doc__": base.__doc__, _BASE: base}
    made: type = type(base)(base.__name__, (base,), own | methods)
    return made


def _reduce(self: Any, protocol: Any) -> Any:
    """Copy and pickle a module as one of its own class, which is fused again: classes of ours cannot be found."""
    reduced: Any = object.__reduce_ex__(self, max(int(protocol), 2))
    made, (_, *given), *state = reduced
    return _revived, (made, base_of(type(self)), *given), *state


def _set_state(self: Any, state: Any) -> None:
    self.__class__ = base_of(type(self))
    self.__setstate__(state)
    fuse_module(self)


@cache
def _unfinished(base: type) -> type:
    return _derived(base, {"__setstate__": _set_state})


def _revived(make: Any, base: type, *given: Any) -> Any:
    return make(_unfinished(base), *given) if _can_be_derived(base) else make(base, *given)


def _methods(module: nn.Module) -> dict[str, tuple[str, Any]]:
    """Return the methods in which something is found, with their new source."""
    kind = type(module)
    if deferred.is_sequence(module):
        pairs = pairwise(module._modules.values())
        if any(deferred.last_norm(a, quiet=False) and type(b) in deferred.MODULES for a, b in pairs):
            return {"forward": ("", deferred.forward)}
        return {}
    found: dict[str, tuple[str, Any]] = {}
    for owner in reversed(kind.__mro__):
        if owner.__module__.partition(".")[0] == "torch" or not issubclass(owner, nn.Module):
            continue
        for name, method in vars(owner).items():
            if name.startswith("__") and name.endswith("__"):
                continue
            found.pop(name, None)
            new = rewritten(module, method) if isinstance(method, FunctionType) else None
            if new is not None:
                found[name] = new
    return found


def fuse_module(module: nn.Module) -> None:
    """Let the batch norms that a module calls do what follows them."""
    unfuse_module(module)
    base = type(module)
    if "forward" in module.__dict__ or not any(deferred.last_norm(m, quiet=False) for m in module.modules()):
        return
    if not _can_be_derived(base) or is_parametrized(module):
        return
    methods = _methods(module)
    if not methods:
        return
    key = base, tuple(sorted((name, source) for name, (source, _) in methods.items()))
    if key not in _MADE:
        new = {name: method for name, (_, method) in methods.items()}
        _MADE[key] = _derived(base, {**new, "__reduce_ex__": _reduce})
    module.__class__ = _MADE[key]


def unfuse_module(module: nn.Module) -> None:
    """Give a module its own class back."""
    if base_of(type(module)) is not type(module):
        module.__class__ = base_of(type(module))
