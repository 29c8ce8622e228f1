"""Models changed to fastbn's modules and back."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import nn

from fastbn.adapters.torch.fuse import fuse_module, unfuse_module
from fastbn.adapters.torch.modules import OURS, THEIRS

Module = TypeVar("Module", bound=nn.Module)
_LAZY = nn.LazyBatchNorm1d, nn.LazyBatchNorm2d, nn.LazyBatchNorm3d


def _with_classes(module: nn.Module, classes: dict[type, type]) -> None:
    """Change the class of modules, which leaves them all else: parameters, buffers, hooks, mode."""
    for part in module.modules():
        if type(part) in classes:
            part.__class__ = classes[type(part)]


def convert(module: Module, *, inplace: bool = False, fuse: bool = False) -> Module:
    """Make fastbn compute the batch norms of a model.

    Modules of the classes `torch.nn.BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d` themselves change their class and
    nothing else: parameters, buffers, hooks and training mode stay. `SyncBatchNorm` and subclasses of users are left
    as they are.

    Parameters
    ----------
    module : torch.nn.Module
        A model, or a batch norm itself.
    inplace : bool, default False
        Whether to change this model; otherwise a copy of it is changed and returned.
    fuse : bool, default False
        Whether a batch norm also does what follows it, where that is a ReLU, ReLU6 or SiLU, or an addition and one of
        these. Modules in which such are found change their class to a subclass of it with the same forward pass, in
        which these calls are one; all else stays, as above. What cannot be told for sure stays as it is.

    Returns
    -------
    torch.nn.Module
        The model.

    Raises
    ------
    ValueError
        If a `LazyBatchNorm` has not seen a batch yet: it would become PyTorch's own then.
    """
    for name, part in module.named_modules():
        if isinstance(part, _LAZY):
            raise ValueError(
                f"module: expected every batch norm to know its channels, got {type(part).__name__} at {name!r}; "
                "pass a batch through the model first"
            )
    model = module if inplace else copy.deepcopy(module)
    _with_classes(model, OURS)
    if fuse:
        for part in model.modules():
            fuse_module(part)
    return model


def revert(module: Module, *, inplace: bool = False) -> Module:
    """Make PyTorch compute the batch norms of a model again: the reverse of `convert`, fused or not.

    Parameters
    ----------
    module : torch.nn.Module
        A model, or a batch norm itself.
    inplace : bool, default False
        Whether to change this model; otherwise a copy of it is changed and returned.

    Returns
    -------
    torch.nn.Module
        The model.
    """
    model = module if inplace else copy.deepcopy(module)
    for part in model.modules():
        unfuse_module(part)
    _with_classes(model, THEIRS)
    return model
