"""Activations in autograd's own NumPy, for derivatives beyond the first ones."""

from __future__ import annotations

import math
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd.extend import defjvp, defvjp, primitive

# Of the standard library, a number at a time: autograd's own needs SciPy, which fastbn does not.
_erf = primitive(lambda z: np.vectorize(math.erf, otypes=[np.float64])(z).astype(z.dtype))
_SLOPE = 2 / math.sqrt(math.pi)
defvjp(_erf, lambda ans, z: lambda g: g * (_SLOPE * anp.exp(-(z**2))))
defjvp(_erf, lambda g, ans, z: g * (_SLOPE * anp.exp(-(z**2))))


def activated(z: Any, name: str, slope: float | None) -> Any:
    """Return an activation of z; where a derivative jumps, it is that of the lower side, as fastbn has it."""
    if name == "relu":
        return anp.where(z > 0, z, 0 * z)
    if name == "relu6":
        return anp.where((z > 0) & (z < 6), z, anp.where(z > 0, 6 + 0 * z, 0 * z))
    if name == "leaky_relu":
        return anp.where(z > 0, z, slope * z)
    if name == "tanh":
        return anp.tanh(z)
    if name == "sigmoid":
        return _sigmoid(z)
    if name == "silu":
        return z * _sigmoid(z)
    assert name == "gelu", name
    return z * (0.5 + 0.5 * _erf(z * math.sqrt(0.5)))


def _sigmoid(z: Any) -> Any:
    return 0.5 + 0.5 * anp.tanh(0.5 * z)
