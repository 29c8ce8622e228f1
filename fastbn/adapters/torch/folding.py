"""A model whose batch norms have gone into the linear layers and convolutions before them."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

import fastbn
from fastbn.adapters.torch.deferred import is_quiet
from fastbn.adapters.torch.models import revert
from fastbn.adapters.torch.order import Order, order_of

BASE = nn.modules.batchnorm._BatchNorm
# Which batch norm is over the channels that a layer puts out. A linear layer's are on the last axis, and a
# BatchNorm2d's on the second of four.
NORMS: dict[type, type] = {
    nn.Linear: nn.BatchNorm1d,
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.ConvTranspose1d: nn.BatchNorm1d,
    nn.ConvTranspose2d: nn.BatchNorm2d,
    nn.ConvTranspose3d: nn.BatchNorm3d,
}
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class Folded(NamedTuple):
    """What `fold` did with a model.

    Attributes
    ----------
    model : torch.nn.Module
        A copy, in evaluation mode.
    folded : dict
        The name of every batch norm that is gone, with the name of the layer that does its work.
    left : dict
        The name of every other batch norm, with the reason why it stays.
    """

    model: nn.Module
    folded: dict[str, str]
    left: dict[str, str]


def fold(module: nn.Module) -> Folded:
    """Fold the batch norms of a model into the linear layers and convolutions directly before them, for inference.

    Folded are `torch.nn.BatchNorm1d` to `3d`, PyTorch's own or converted ones, and `SyncBatchNorm`, after `Linear`,
    `Conv1d` to `3d` and `ConvTranspose1d` to `3d`, grouped or not. An `nn.Identity` takes the place of each, and the
    layer gets new parameters, so that code, names and `nn.Sequential`'s numbers stay. The order of calls comes from
    `torch.fx`, and where that cannot follow a module (it branches on values, say), from the modules in it.

    Parameters
    ----------
    module : torch.nn.Module
        Trained; in any mode. It is not changed.

    Returns
    -------
    Folded
        The new model in evaluation mode, what was folded, and what was left and why.

    Notes
    -----
    Left alone is what cannot be told for sure: a layer whose result or whose weight is used elsewhere too, modules that
    are called several times or that somebody watches by hooks, parametrized layers, subclasses of users, batch norms
    without running statistics.

    Two things no trace tells. A `BatchNorm1d` after a `Linear` is taken to see (N, C); on (N, C, L), its channels are
    not those of the linear layer. And an `nn.Sequential` in a module that cannot be followed is taken to be called as a
    whole, not part by part.

    The arithmetic is that of `fastbn.fold`: float64, rounded once to the dtype of the layer.

    Examples
    --------
    >>> import torch
    >>> from fastbn.adapters.torch import fold
    >>> net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU())
    >>> model, folded, left = fold(net)
    >>> folded, left
    ({'1': '0'}, {})
    """
    traced = revert(module).eval()
    order = order_of(traced, BASE)
    layers = {name: _layer(part, order) for name, part in traced.named_modules() if isinstance(part, BASE)}
    names = {id(part): name for name, part in traced.named_modules()}
    places = {name: str(names.get(id(layer), "")) for name, layer in layers.items()}
    unknown = _unknown(traced, order)
    del traced
    model = copy.deepcopy(module).eval()
    folded: dict[str, str] = {}
    left: dict[str, str] = {}
    parts = dict(model.named_modules())
    for name, layer in layers.items():
        if isinstance(layer, str):
            reason = layer or unknown.get(name) or "it is not called"
        else:
            reason = _fold_pair(parts[places[name]], parts[name])
        if reason:
            left[name] = reason
            continue
        folded[name] = places[name]
        for alias, part in list(model.named_modules(remove_duplicate=False)):
            if part is parts[name]:
                parent, _, last = alias.rpartition(".")
                setattr(model.get_submodule(parent), last, nn.Identity())
    return Folded(model, folded, left)


def _unknown(model: nn.Module, order: Order) -> dict[str, str]:
    """Return, for the modules in those that could not be traced, why not."""
    reasons: dict[str, str] = {}
    for name, part in model.named_modules():
        if id(part) in order.unknown:
            where = f"module {name!r}" if name else "the model"
            reason = f"the order of calls in {where} is not known: {order.unknown[id(part)]}"
            reasons.update({inner: reason for inner, _ in part.named_modules(prefix=name)})
    return reasons


def _layer(norm: nn.Module, order: Order) -> Any:
    """Return the layer that a batch norm can be folded into, or why there is none; "" if it is in no trace."""
    if type(norm) not in (*NORMS.values(), nn.SyncBatchNorm):
        return f"its class is {type(norm).__name__}, which may compute something else"
    if not order.calls[id(norm)]:
        return ""
    sources = order.sources[id(norm)]
    layer, _ = sources[0]
    if any(source is not layer for source, _ in sources):
        return "what it normalises is not always the same"
    if not isinstance(layer, nn.Module):
        return f"it follows {layer}, no linear layer or convolution"
    if type(layer) not in NORMS:
        return f"it follows a {type(layer).__name__}, no linear layer or convolution of PyTorch's own class"
    if type(norm) not in (NORMS[type(layer)], nn.SyncBatchNorm):
        return f"it follows a {type(layer).__name__}, whose channels are on another axis"
    for part, who in ((norm, "it"), (layer, "the layer before it")):
        if order.calls[id(part)] > 1:
            return f"{who} is called {order.calls[id(part)]} times"
        if not is_quiet(part):
            return f"{who} has hooks, or a forward pass of its own"
        if id(part) in order.read:
            return f"a parameter of {'it' if part is norm else who} is used apart from its call"
    if any(users > 1 for _, users in sources) or any(g[id(layer)] != g[id(norm)] for g in order.graphs):
        return "the result of the layer before it is used elsewhere too"
    return layer


def _wide(tensor: Any) -> Any:
    return None if tensor is None else tensor.detach().to("cpu", torch.float64).numpy()


def _fold_pair(layer: nn.Module, norm: nn.Module) -> str:
    """Give a layer the parameters that it needs to do a batch norm's work; return why that is not possible, or ""."""
    if not layer.weight.is_floating_point() or layer.weight.is_meta:
        return f"the weight before it is of {layer.weight.dtype} on {layer.weight.device}"
    names = "running_mean", "running_var", "weight", "bias"
    like = SimpleNamespace(**{name: _wide(getattr(norm, name)) for name in names}, eps=norm.eps)
    axis, groups = (1, layer.groups) if isinstance(layer, TRANSPOSED) else (0, 1)
    try:
        wide = fastbn.fold(_wide(layer.weight), _wide(layer.bias), like, axis, groups=groups)
    except ValueError as error:
        return str(error)
    new = {}
    for name, values, own in zip(("weight", "bias"), wide, (layer.weight, layer.bias), strict=True):
        old = layer.weight if own is None else own
        new[name] = nn.Parameter(torch.from_numpy(values).to(old.device, old.dtype), old.requires_grad)
        if (new[name].isinf().cpu().numpy() & np.isfinite(values)).any():
            return f"the {name} of the layer before it would have values that {old.dtype} cannot hold"
    for name, parameter in new.items():
        setattr(layer, name, parameter)
    return ""
