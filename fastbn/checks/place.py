"""Where an array lives: in NumPy's memory or on a GPU. Told without importing anybody's library."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np


def on_gpu(value: object) -> bool:
    """Return whether a value is an array on a GPU."""
    if type(value) is np.ndarray:
        return False
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        return bool(value.is_cuda)
    return hasattr(type(value), "__cuda_array_interface__") or bool(getattr(value, "__cuda_ndarray__", False))


def beside(name: str, value: Any, x: Any) -> None:
    """Check that an array of data lives where x does; parameters may come from anywhere."""
    if on_gpu(value) is on_gpu(x):
        return
    if on_gpu(x):
        raise TypeError(f"{name}: expected an array on the GPU, where x is, got a numpy.ndarray")
    raise TypeError(f"{name}: expected a numpy.ndarray, as x is, got an array on a GPU; fetch it with fastbn.to_host")
