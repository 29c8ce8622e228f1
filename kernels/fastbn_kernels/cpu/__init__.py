"""The kernels for processors: channels apart, x (N, C, S), and channels adjacent, x (R, C).

For a caller's own `@njit` code: `batch_norm_forward`, `batch_norm_backward` and `batch_norm_inference`, and for a loop
over channels `batch_norm_forward_channel` and `batch_norm_backward_channel`; see `inline`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fastbn_kernels.cpu.jitted import (
        batch_norm_backward,
        batch_norm_backward_channel,
        batch_norm_forward,
        batch_norm_forward_channel,
        batch_norm_inference,
    )

__all__ = [
    "batch_norm_backward",
    "batch_norm_backward_channel",
    "batch_norm_forward",
    "batch_norm_forward_channel",
    "batch_norm_inference",
]


def __getattr__(name: str) -> Any:
    """Import `inline` when one of its functions is asked for: fastbn itself does not need it."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from fastbn_kernels.cpu import jitted as inline

    return getattr(inline, name)
