"""A batch norm that waits for what follows it: what fused modules call instead of batch norms and activations.

``activate(act, begin(norm, x))`` is ``act(norm(x))``. `begin` does not call a batch norm of fastbn but returns what is
to be called; `activate` calls it with the activation, or, if that is none that fastbn knows, one after the other. All
is decided when the call is made, by the modules that are there then: hooks that were added since, modules that were
replaced and models that were taken apart are seen. Everything else passes through to the calls that it stands for.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from fastbn.adapters.torch.activations import is_like
from fastbn.adapters.torch.functional import PLAIN, is_traced
from fastbn.adapters.torch.fused import Activation
from fastbn.adapters.torch.modules import THEIRS

MODULES: dict[type, str] = {
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.LeakyReLU: "leaky_relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
}
FUNCTIONS: dict[Any, str] = {
    nn.functional.relu: "relu",
    torch.relu: "relu",
    torch.relu_: "relu",
    nn.functional.relu6: "relu6",
    nn.functional.tanh: "tanh",
    torch.tanh: "tanh",
    torch.tanh_: "tanh",
    nn.functional.sigmoid: "sigmoid",
    torch.sigmoid: "sigmoid",
    torch.sigmoid_: "sigmoid",
    nn.functional.silu: "silu",
}
# Those with other arguments.
OTHERS = nn.functional.hardtanh, nn.functional.leaky_relu, nn.functional.gelu
METHODS = {name + end: name for name in ("relu", "tanh", "sigmoid") for end in ("", "_")}
ADDITIONS: dict[str, Callable[[Any, Any], Any]] = {
    "a + b": operator.add,
    "a += b": operator.iadd,
    "torch.add(a, b)": torch.add,
    "a.add(b)": lambda a, b: a.add(b),
    "a.add_(b)": lambda a, b: a.add_(b),
}
# Their result is a tensor of its own, which nothing else refers to: it stays as it is while a batch norm waits.
FRESH = (nn.modules.conv._ConvNd, nn.Linear)


class Waiting(NamedTuple):
    """A call of a batch norm, and an addition to its result, that have not been made yet."""

    norm: nn.Module
    input: Tensor
    residual: Tensor | None = None
    addition: str = ""
    is_second: bool = False  # whether the batch norm is b in a + b


def is_quiet(module: nn.Module) -> bool:
    """Return whether nobody looks at the calls of a module, nor replaced its forward pass alone."""
    return not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or hooks._has_any_global_hook()
        or "forward" in module.__dict__
    )


def is_sequence(module: Any) -> bool:
    """Return whether a module calls its parts one after the other and does nothing else."""
    if not isinstance(module, nn.Sequential) or not module._modules:
        return False
    kind = type(module)
    if kind.__call__ is not nn.Module.__call__ or kind.__iter__ is not nn.Sequential.__iter__:
        return False
    return kind.forward in (nn.Sequential.forward, forward)


def last_norm(module: Any, quiet: bool = True) -> nn.Module | None:
    """Return the batch norm of fastbn that a module is, or ends in."""
    while is_sequence(module) and (is_quiet(module) or not quiet):
        module = next(reversed(module._modules.values()))
    return module if type(module) in THEIRS and (is_quiet(module) or not quiet) else None


def _until_last(norm: Any, input: Any, source: Any = None) -> tuple[Any, Any, Any]:
    """Call what stands before the last batch norm; return it, its input, and the module that this comes from."""
    while type(norm) not in THEIRS:
        *head, norm = norm._modules.values()
        input = run(head, input)
        source = head[-1] if head else None
    return norm, input, source


def _may_wait(input: Any) -> bool:
    return type(input) in PLAIN and (torch.compiler.is_compiling() or not is_traced())


def begin(norm: Any, input: Any) -> Any:
    """Call a module, or put it off if it is a batch norm of fastbn or ends in one."""
    if last_norm(norm) is None:
        return norm(input)
    norm, input, _ = _until_last(norm, input)
    return Waiting(norm, input) if _may_wait(input) else norm(input)


def begin_early(norm: Any, input: Any, source: Any) -> Any:
    """Do the same where something else runs before `activate`: put off only what that cannot change.

    source is the module whose result the input is, if known.
    """
    if last_norm(norm) is None:
        return norm(input)
    norm, input, source = _until_last(norm, input, source)
    is_fresh = isinstance(source, FRESH) and is_quiet(source)
    return Waiting(norm, input) if is_fresh and _may_wait(input) else norm(input)


def finish(value: Any) -> Any:
    """Make the calls of which nothing more is known."""
    if not isinstance(value, Waiting):
        return value
    y = value.norm(value.input)
    if not value.addition:
        return y
    add = ADDITIONS[value.addition]
    return add(value.residual, y) if value.is_second else add(y, value.residual)


def add(a: Any, b: Any, addition: str) -> Any:
    """Add, or put that off too."""
    for value, residual in (a, b), (b, a):
        if isinstance(value, Waiting) and not value.addition and is_like(residual, value.input):
            return Waiting(value.norm, value.input, residual, addition, value is b)
    return ADDITIONS[addition](finish(a), finish(b))


def through(module: Any, value: Any) -> Any:
    """Call a module that may be an `nn.Identity`, which has no need to know the value."""
    if isinstance(value, Waiting) and type(module) is nn.Identity and is_quiet(module):
        return value
    return module(finish(value))


def name_of(act: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None) -> Activation:
    """Return the activation that a module, or a function with arguments beyond the first, is."""
    kwargs = kwargs or {}
    if type(act) in MODULES:
        return _name_of_module(act) if is_quiet(act) and not args and not kwargs else None
    if any(act is function for function in OTHERS):
        return _name_of_other(act, args, kwargs)
    if len(args) + len(kwargs) <= 1 and all(name == "inplace" for name in kwargs):
        for function, name in FUNCTIONS.items():
            if function is act:
                return name
    return None


def _name_of_module(act: Any) -> Activation:
    if type(act) is nn.LeakyReLU:
        return _leaky(act.negative_slope)
    return None if getattr(act, "approximate", "none") != "none" else MODULES[type(act)]


def _name_of_other(act: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Activation:
    if act is nn.functional.hardtanh:
        given = dict(zip(("min_val", "max_val", "inplace"), args, strict=False)) | kwargs
        return "relu6" if (given.get("min_val"), given.get("max_val")) == (0, 6) else None
    if act is nn.functional.leaky_relu:
        given = dict(zip(("negative_slope", "inplace"), args, strict=False)) | kwargs
        return _leaky(given.get("negative_slope", 0.01)) if len(args) <= 2 else None
    return "gelu" if not args and kwargs in ({}, {"approximate": "none"}) else None


def _leaky(slope: Any) -> Activation:
    return ("leaky_relu", float(slope)) if type(slope) in (float, int) else None


def activate(act: Any, value: Any, *args: Any, **kwargs: Any) -> Any:
    """Call an activation, and what has been put off with it."""
    if isinstance(value, Waiting):
        name = name_of(act, args, kwargs)
        if name is not None:
            return value.norm(value.input, value.residual, name)
        value = finish(value)
    return act(value, *args, **kwargs)


def activate_method(value: Any, method: str) -> Any:
    """Call an activation that is a method of a tensor."""
    if isinstance(value, Waiting):
        return value.norm(value.input, value.residual, METHODS[method])
    return getattr(value, method)()


def run(modules: Iterable[nn.Module], input: Any) -> Any:
    """Call modules one after the other, batch norms with their activations."""
    modules = list(modules)
    for module, following in zip(modules, [*modules[1:], None], strict=True):
        if isinstance(input, Waiting):
            input = activate(module, input)
        elif type(following) in MODULES:
            input = begin(module, input)
        else:
            input = module(input)
    return input


def forward(self: nn.Sequential, input: Any) -> Any:
    """Do what `torch.nn.Sequential.forward` does."""
    return run(self._modules.values(), input)
