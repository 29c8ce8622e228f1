"""Batch normalization for NumPy, as Numba kernels.

The functions are `batch_norm`, `batch_norm_inference`, `batch_norm_backward`, `batch_moments` and `backward_sums`;
`batch_norm_double_backward` and `batch_norm_jvp` are derivatives beyond the gradients; the layer is `BatchNorm`, whose
state `save` and `load` keep in files. They compute on the CPU, and, but for these derivatives, arrays on an NVIDIA GPU
where they are: `explain` says which, `to_device` and `to_host` copy. `DecorrelatedBatchNorm` is a layer that whitens;
`rescale` and `decorrelate` prepare data sets. Importing fastbn imports NumPy alone: Numba comes, and kernels
compile, with the first call.
"""

from fastbn import _checkout as _checkout  # first: it makes `fastbn_kernels` importable
from fastbn._version import __version__
from fastbn.checkpoint import load, save
from fastbn.context import Context, Gradients
from fastbn.derivatives import batch_norm_double_backward, batch_norm_jvp
from fastbn.dispatch import Choice, explain, to_device, to_host
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
from fastbn.whitening import DecorrelatedBatchNorm

__all__ = [
    "BackwardSums",
    "BatchNorm",
    "Choice",
    "Context",
    "DecorrelatedBatchNorm",
    "Gradients",
    "Moments",
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
    "load",
    "rescale",
    "save",
    "to_device",
    "to_host",
]
