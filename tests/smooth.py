"""Smooth activations in the widest float, beside those of the kernels."""

import numpy as np


def sigmoids(z):
    """Return sigmoid(z) and sigmoid(-z)."""
    e = np.exp(-np.abs(z))
    small, large = e / (1 + e), 1 / (1 + e)
    return np.where(z < 0, small, large), np.where(z < 0, large, small)


def normal(z):
    """Return the normal distribution and its density: of a series near 0, beyond 2 of a continued fraction."""
    a, density = np.abs(z), np.exp(-z * z / 2) / np.sqrt(2 * np.longdouble(np.pi))
    near = np.minimum(a, 2)
    term, series = near, near
    for k in range(1, 60):
        term = term * near * near / (2 * k + 1)
        series = series + term
    far, ratio = np.maximum(a, 2), np.longdouble(0)
    for k in range(500, 0, -1):
        ratio = k / (far + ratio)
    beyond = np.where(a < 2, np.longdouble(0.5) - density * series, density / (far + ratio))
    return np.where(z < 0, beyond, 1 - beyond), density


def smooth(name, z):
    """Return an activation of z in the widest float, its derivative, and the larger of what that is the sum of."""
    z = z.astype(np.longdouble)
    s, other = sigmoids(z)
    if name == "sigmoid":
        return s, s * other, 0
    if name == "tanh":
        s, other = sigmoids(2 * z)
        return np.tanh(z), 4 * s * other, 0
    if name == "silu":
        return z * s, s * (1 + z * other), s * np.abs(z) * other
    phi, density = normal(z)
    return z * phi, phi + z * density, np.abs(z) * density
