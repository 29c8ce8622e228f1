"""In which order a model calls its modules, as far as `torch.fx` can tell without running it.

A part that it cannot follow, such as one that branches on values, is a single call in the trace of what contains it,
and its own parts are traced by themselves: a sequence in it shows its order still.
"""

from __future__ import annotations

import inspect
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch.fx
from torch import nn

_Trace: TypeAlias = tuple[nn.Module, list[torch.fx.Graph]]


@dataclass
class Order:
    """What is known of the calls in a model; modules are told apart by identity.

    Attributes
    ----------
    graphs : list of Counter
        How often a module is called, in each trace.
    calls : Counter
        The same of all together: the most of all traces of a part, and those of all parts added.
    sources : dict
        For a module, what hands it its input, in each trace: a module, or in words what else, and how many use that.
    read : set
        Modules of which an attribute, such as the weight, is read by another's forward pass.
    unknown : dict
        For a module that could not be traced, why.
    """

    graphs: list[Counter[int]] = field(default_factory=list)
    calls: Counter[int] = field(default_factory=Counter)
    sources: dict[int, list[tuple[Any, int]]] = field(default_factory=dict)
    read: set[int] = field(default_factory=set)
    unknown: dict[int, str] = field(default_factory=dict)


class _Tracer(torch.fx.Tracer):  # type: ignore[misc]
    def __init__(self, opaque: set[int]) -> None:
        super().__init__()
        self.opaque = opaque

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return id(m) in self.opaque or super().is_leaf_module(m, module_qualified_name)


def _graphs(module: nn.Module, opaque: set[int]) -> list[torch.fx.Graph]:
    """Trace a module: with all arguments unknown and, if some have defaults, with these too.

    An argument that is unknown is not None either, so one trace would not see what is done without it.
    """
    parameters = inspect.signature(module.forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    variants = [None, defaults] if defaults else [None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of assertions about defaults that a graph would lack
        return [_Tracer(opaque).trace(module, concrete_args=variant) for variant in variants]


def _attempt(module: nn.Module, order: Order, opaque: set[int]) -> list[torch.fx.Graph]:
    try:
        graphs = _graphs(module, opaque)
    except Exception as error:  # whatever a forward pass does with what stands for a tensor
        text = str(error).strip() or repr(error)
        order.unknown[id(module)] = text.splitlines()[0]
        return []
    order.unknown.pop(id(module), None)
    return graphs


def _visit(module: nn.Module, order: Order, opaque: set[int]) -> tuple[list[_Trace], bool]:
    """Return the traces of a module, and whether it was traced itself, and not its parts alone."""
    if graphs := _attempt(module, order, opaque):
        return [(module, graphs)], True
    traced: list[_Trace] = []
    apart: list[_Trace] = []
    for child in module.children():
        if id(child) in opaque:
            continue
        traces, is_traced = _visit(child, order, opaque)
        (traced if is_traced else apart).extend(traces)
        if not is_traced:
            opaque.add(id(child))
    if opaque & {id(child) for child in module.children()} and (graphs := _attempt(module, order, opaque)):
        return [(module, graphs), *apart], True
    return traced + apart, False


def _source(node: torch.fx.Node, root: nn.Module) -> Any:
    """Return the module that a value is the result of, or say what else it is."""
    if node.op == "call_module":
        return root.get_submodule(node.target)
    if node.op == "placeholder":
        return "the input"
    return getattr(node.target, "__name__", str(node.target))


def _owners(root: nn.Module, target: str) -> Iterator[nn.Module]:
    """Yield the modules on the way to an attribute."""
    for name in target.split(".")[:-1]:
        root = getattr(root, name)
        if isinstance(root, nn.Module):
            yield root


def order_of(model: nn.Module, kind: type) -> Order:
    """Trace a model, as far as modules of one kind are in it."""
    order = Order()
    opaque = {id(m) for m in model.modules() if not any(isinstance(part, kind) for part in m.modules())}
    opaque |= {id(m) for m in model.modules() if isinstance(m, kind)}
    for root, graphs in _visit(model, order, opaque)[0]:
        counts: Counter[int] = Counter()
        for graph in graphs:
            in_graph: Counter[int] = Counter()
            for node in graph.nodes:
                if node.op == "get_attr":
                    order.read |= {id(owner) for owner in _owners(root, node.target)}
                if node.op != "call_module":
                    continue
                module = root.get_submodule(node.target)
                in_graph[id(module)] += 1
                given = node.args[0] if len(node.args) == 1 and not node.kwargs else None
                if isinstance(given, torch.fx.Node):
                    order.sources.setdefault(id(module), []).append((_source(given, root), len(given.users)))
                else:
                    order.sources.setdefault(id(module), []).append(("other arguments", 1))
            order.graphs.append(in_graph)
            counts |= in_graph
        order.calls += counts
    return order
