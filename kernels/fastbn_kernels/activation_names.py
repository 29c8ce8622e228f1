"""The activations that kernels know, by their names, on every processor; needs no Numba.

In float64 and float32, with z what was normalised, and scaled and shifted:

    relu         max(z, 0)                              relu6    min(max(z, 0), 6)
    leaky_relu   z if z > 0 else slope * z              tanh     tanh(z)
    sigmoid      1 / (1 + exp(-z))                      silu     z * sigmoid(z)
    gelu         z * (1 + erf(z / sqrt(2))) / 2: the exact form, not the one by tanh
"""

from __future__ import annotations

NAMES = "relu", "relu6", "leaky_relu", "tanh", "sigmoid", "silu", "gelu"

# What PyTorch takes where no slope is said.
SLOPE = 0.01
