"""PyTorch's batch norm modules, computed by fastbn.

    from fastbn.adapters.torch import convert

    model = convert(model)  # or convert(model, inplace=True)

`BatchNorm1d`, `BatchNorm2d` and `BatchNorm3d` are PyTorch's own classes with another forward pass: options, state
dicts, checkpoints, `isinstance` and `repr` are unchanged. `batch_norm` is `torch.nn.functional.batch_norm`.

Tensors of float32, float64, float16 and (with `ml_dtypes`) bfloat16, on the CPU or a GPU, with parameters and
statistics of float32 or float64, are fastbn's. Everything else is computed by PyTorch's own batch norm: parameters of
16 bits, the other devices, subclasses of `Tensor`, calls under the transforms of `torch.func`, and calls that PyTorch
refuses, so that the error is PyTorch's.
"""

from fastbn.adapters.torch.functional import batch_norm
from fastbn.adapters.torch.models import convert, revert
from fastbn.adapters.torch.modules import BatchNorm1d, BatchNorm2d, BatchNorm3d
from fastbn.adapters.torch.native.register import disable, enable

__all__ = ["BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "batch_norm", "convert", "disable", "enable", "revert"]
