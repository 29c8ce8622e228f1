"""The kernels for processors.

Five layers, each made of those above it:

    simd/                 vector operations: load, store, add, fma, ... on 16 lanes, as LLVM IR
    element               what is computed of an element: all arithmetic of batch normalization on vectors, and the tail
                          with its `activations`
    loops/                what walks memory: segments of one channel, or streams of rows of all channels
    sweeps, moments, ...  tiles (`tiles`): the sums or the results of one, and how the sums of several are merged
    the kernels           a `prange` over tiles; one an operation and family, all with the same arguments

A family is a way to cut a tensor: `channels_first`, x (N, C, S); `channels_last`, x (R, C); and for x (N, C, S) also
`short_segments`, `overlapped` and `tiles`, for x (R, C) `columns`. `kernel` finds a kernel by its name,
operation_family.

For a caller's own `@njit` code: `batch_norm_forward`, `batch_norm_backward` and `batch_norm_inference`, and for a loop
over channels `batch_norm_forward_channel` and `batch_norm_backward_channel`; what they may do after the normalization:
RELU, RELU6, TANH, SIGMOID, SILU, GELU and `leaky_relu`; see `jitted`.
"""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any

import fastbn_kernels.build  # noqa: F401  # Numba, while Ctrl-C waits

if TYPE_CHECKING:
    from fastbn_kernels.build.decorators import Kernel
    from fastbn_kernels.cpu.jitted import (
        batch_norm_backward,
        batch_norm_backward_channel,
        batch_norm_forward,
        batch_norm_forward_channel,
        batch_norm_inference,
    )
    from fastbn_kernels.cpu.jitted_tails import leaky_relu
    from fastbn_kernels.cpu.simd.tails import GELU, RELU, RELU6, SIGMOID, SILU, TANH

__all__ = [
    "GELU",
    "RELU",
    "RELU6",
    "SIGMOID",
    "SILU",
    "TANH",
    "batch_norm_backward",
    "batch_norm_backward_channel",
    "batch_norm_forward",
    "batch_norm_forward_channel",
    "batch_norm_inference",
    "leaky_relu",
]

# The module of each kernel; importing one imports Numba.
MODULES = {
    "moments": ("moments_channels_first", "moments_channels_last"),
    "normalize": (
        "forward_channels_first", "forward_tiles", "forward_channels_last",
        "normalize_channels_first", "normalize_channels_last",
    ),
    "backward": (
        "sums_channels_first", "sums_channels_last", "gradient_channels_first", "gradient_channels_last",
        "backward_channels_first", "backward_tiles", "backward_channels_last",
    ),
    "short_segments": ("forward_short_segments", "backward_short_segments"),
    "column_groups": ("forward_columns", "backward_columns"),
    "overlapped": ("forward_overlapped", "backward_overlapped"),
    "jvp": ("jvp_channels_first", "jvp_tiles", "jvp_channels_last"),
    "double_backward": ("double_backward_channels_first", "double_backward_tiles", "double_backward_channels_last"),
    "whitening": ("products", "combine"),
    "small_calls": (
        "call_forward_channels_first", "call_forward_channels_last",
        "call_backward_channels_first", "call_backward_channels_last",
    ),
    "ghosts": (
        "ghosts_forward_channels_first", "ghosts_forward_channels_last",
        "ghosts_backward_channels_first", "ghosts_backward_channels_last",
    ),
    "large_calls": (
        "large_forward_channels_first", "large_forward_channels_last",
        "large_backward_channels_first", "large_backward_channels_last",
    ),
    "masks": ("pack_mask",),
    "masked": (
        "masked_moments_channels_first", "masked_forward_channels_first", "masked_normalize_channels_first",
        "masked_sums_channels_first", "masked_gradient_channels_first", "masked_backward_channels_first",
    ),
    "masked_rows": (
        "masked_moments_channels_last", "masked_normalize_channels_last", "masked_sums_channels_last",
        "masked_gradient_channels_last",
    ),
}  # fmt: skip
MODULE_OF = {name: module for module, names in MODULES.items() for name in names}


@functools.cache
def kernel(name: str) -> Kernel:
    """Return the kernel of a name, which imports its module."""
    found: Kernel = getattr(importlib.import_module(f"{__name__}.{MODULE_OF[name]}"), name)
    return found


def __getattr__(name: str) -> Any:
    """Import `jitted` when one of its functions is asked for: fastbn itself does not need it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fastbn_kernels.cpu import jitted

    return getattr(jitted, name)
