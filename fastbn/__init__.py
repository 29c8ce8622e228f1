"""Batch normalization for NumPy, as Numba kernels.

The functions are `batch_norm`, `batch_norm_inference`, `batch_norm_backward`, `batch_moments` and `backward_sums`;
the layer is `BatchNorm`. Importing fastbn imports NumPy alone: Numba comes, and kernels compile, with the first call.
"""

from fastbn import _checkout
from fastbn._version import __version__
from fastbn.functional import (
    backward_sums,
    batch_moments,
    batch_norm,
    batch_norm_backward,
    batch_norm_inference,
)
from fastbn.layer import BatchNorm
from fastbn.moments import BackwardSums, Moments
from fastbn.results import Context, Gradients

__all__ = [
    "BackwardSums",
    "BatchNorm",
    "Context",
    "Gradients",
    "Moments",
    "__version__",
    "backward_sums",
    "batch_moments",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_inference",
]

_checkout.use_its_kernels()
