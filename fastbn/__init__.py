"""Batch normalization for NumPy, as Numba kernels.

The functions are `batch_norm`, `batch_norm_inference`, `batch_norm_backward`, `batch_moments` and `backward_sums`;
`batch_norm_double_backward` and `batch_norm_jvp` are derivatives beyond the gradients; the layer is `BatchNorm`, whose
state `save` and `load` keep in files, whose statistics `recalibrate` takes anew after training, and which `fold` and
`fold_next` put into the linear layers beside it. `DecorrelatedBatchNorm` is a layer that whitens; `rescale` and
`decorrelate` prepare data sets. They compute on the CPU, and plain and fused batch norm on arrays on an NVIDIA GPU
where they are: `explain` says which, `to_device` and `to_host` copy. Importing fastbn imports NumPy alone: Numba comes,
and kernels compile, with the first call.
"""

from fastbn import _checkout as _checkout  # first: it makes `fastbn_kernels` importable
from fastbn._version import __version__
from fastbn.checkpoint import load, save
from fastbn.context import Context, Gradients
from fastbn.derivatives import batch_norm_double_backward, batch_norm_jvp
from fastbn.dispatch import Choice, explain, to_device, to_host
from fastbn.folding import fold, fold_next
from fastbn.functional import (
    backward_sums,
    batch_moments,
    batch_norm,
    batch_norm_backward,
    batch_norm_inference,
)
from fastbn.layer import BatchNorm
from fastbn.moments import BackwardSums, Moments
from fastbn.prepare import decorrelate, rescale
from fastbn.recalibration import recalibrate
from fastbn.renorm import Renorm
from fastbn.whitening import DecorrelatedBatchNorm

__all__ = [
    "BackwardSums",
    "BatchNorm",
    "Choice",
    "Context",
    "DecorrelatedBatchNorm",
    "Gradients",
    "Moments",
    "Renorm",
    "__version__",
    "backward_sums",
    "batch_moments",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_double_backward",
    "batch_norm_inference",
    "batch_norm_jvp",
    "decorrelate",
    "explain",
    "fold",
    "fold_next",
    "load",
    "recalibrate",
    "rescale",
    "save",
    "to_device",
    "to_host",
]
