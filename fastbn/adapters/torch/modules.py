"""PyTorch's batch norm modules with another forward pass."""

from __future__ import annotations

from torch import Tensor, nn

from fastbn.adapters.torch.activations import batch_norm_act
from fastbn.adapters.torch.functional import batch_norm
from fastbn.adapters.torch.fused import Activation


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """PyTorch's batch norm with another forward pass."""

    def forward(self, input: Tensor, residual: Tensor | None = None, activation: Activation = None) -> Tensor:
        """Normalise a batch, as PyTorch's module does; then add a residual and apply an activation, if there are any.

        What follows is an argument of the call and no attribute of the module: whoever else calls the module gets the
        batch norm alone.
        """
        self._check_input_dim(input)
        momentum = 0.0 if self.momentum is None else self.momentum
        if self.training and self.track_running_stats and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if self.momentum is None:  # the average over all batches
                momentum = 1.0 / float(self.num_batches_tracked)
        tracks = not self.training or self.track_running_stats
        mean, var = (self.running_mean, self.running_var) if tracks else (None, None)
        training = self.training or (mean is None and var is None)
        given = input, mean, var, self.weight, self.bias, training, momentum, self.eps
        if residual is None and activation is None:
            return batch_norm(*given)
        return batch_norm_act(*given, activation, residual)


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d`, computed by fastbn."""


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d`, computed by fastbn."""


class BatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d`, computed by fastbn."""


OURS: dict[type, type] = {
    nn.BatchNorm1d: BatchNorm1d,
    nn.BatchNorm2d: BatchNorm2d,
    nn.BatchNorm3d: BatchNorm3d,
}
THEIRS = {ours: theirs for theirs, ours in OURS.items()}
