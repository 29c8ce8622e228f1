"""PyTorch's batch norm modules with another forward pass, and models changed to them and back."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import Tensor, nn

from fastbn.adapters.torch.functional import batch_norm

Module = TypeVar("Module", bound=nn.Module)


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """PyTorch's batch norm with another forward pass."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise a batch, as PyTorch's module does."""
        self._check_input_dim(input)
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the average over all batches
                momentum = 1.0 / float(self.num_batches_tracked)
        tracks = not self.training or self.track_running_stats
        mean, var = (self.running_mean, self.running_var) if tracks else (None, None)
        training = self.training or (mean is None and var is None)
        return batch_norm(input, mean, var, self.weight, self.bias, training, momentum, self.eps)


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d`, computed by fastbn."""


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, computed by fastbn."""


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d`, computed by fastbn."""


_OURS: dict[type, type] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
}
_THEIRS = {ours: theirs for theirs, ours in _OURS.items()}
_LAZY = nn.LazyBatchNorm1d, nn.LazyBatchNorm2d, nn.LazyBatchNorm3d


def _with_classes(module: Module, classes: dict[type, type], inplace: bool) -> Module:
    """Change the class of modules, which leaves them all else: parameters, buffers, hooks, mode."""
    model = module if inplace else copy.deepcopy(module)
    for part in model.modules():
        if type(part) in classes:
            part.__class__ = classes[type(part)]
    return model


def convert(module: Module, *, inplace: bool = False) -> Module:
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
    return _with_classes(module, _OURS, inplace)


def revert(module: Module, *, inplace: bool = False) -> Module:
    """Make PyTorch compute the batch norms of a model again: the reverse of `convert`.

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
    return _with_classes(module, _THEIRS, inplace)
