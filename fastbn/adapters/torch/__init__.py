"""PyTorch's batch norm, computed by fastbn: a model's, or all of a process.

    from fastbn.adapters.torch import convert, enable, fold

    model = convert(model)  # or convert(model, inplace=True)
    model = convert(model, fuse=True)  # with the activations and additions that follow batch norms
    enable()  # every batch norm of the process, and no model is changed
    model, folded, left = fold(model)  # for inference: batch norms in the layers before them

`BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d` are PyTorch's own classes with another forward pass: options, state
dicts, checkpoints, `isinstance` and `repr` are unchanged. `batch_norm` is `torch.nn.functional.batch_norm`.

On the CPU, with PyTorch 2.13 and later, fastbn is PyTorch's own operator (`native`): no Python on the way forward or
back, loops on PyTorch's threads, derivatives by PyTorch's autograd. Older releases, and tensors on a GPU, go by Python
(`function`). So do calls under `torch.func` (`transforms`): grad, jvp, vmap and any of them over others.

Tensors of float32, float64, float16 and bfloat16, with parameters and statistics of float32 or float64, are fastbn's
(those that PyTorch would not take together go by Python too). Everything else is computed by PyTorch's own batch norm:
parameters of 16 bits, the other devices, subclasses of `Tensor`, calls that somebody traces, and calls that PyTorch
refuses, so that the error is PyTorch's.
"""

from fastbn.adapters.torch.folding import fold
from fastbn.adapters.torch.functional import batch_norm
from fastbn.adapters.torch.models import convert, revert
from fastbn.adapters.torch.modules import BatchNorm1d, BatchNorm2d, BatchNorm3d
from fastbn.adapters.torch.native.register import disable, enable

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "batch_norm", "convert", "disable", "enable", "fold", "revert"]
