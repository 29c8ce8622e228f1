"""The oracle of whitening: no eigenvectors, so that equal eigenvalues are nothing special, and nothing of fastbn.

The inverse square root comes by the coupled Newton iteration in the widest float (Higham 2008, "Functions of Matrices",
section 6.7), its gradient by the equation that it satisfies: from W W = inv(S), W dW + dW W = -inv(S) dS inv(S).
"""

from dataclasses import dataclass

import numpy as np

WIDE = np.longdouble


@dataclass
class Whitened:
    """A forward pass, unrounded: data as (groups, d, values)."""

    y: np.ndarray
    z: np.ndarray
    mean: np.ndarray
    cov: np.ndarray
    root: np.ndarray


def as_groups(x, axis, groups):
    """Return x as (groups, d, values), in the widest float."""
    x = np.moveaxis(np.asarray(x, WIDE), axis, 0)
    return x.reshape(groups, x.shape[0] // groups, -1)


def like(values, x, axis):
    """Return (groups, d, values) in the shape of x."""
    moved = np.moveaxis(np.asarray(x), axis, 0)
    return np.moveaxis(values.reshape(moved.shape), 0, axis)


def inverse_root(S):
    """Return the inverse square root of symmetric positive matrices, (groups, d, d)."""
    identity = np.eye(S.shape[1], dtype=WIDE)
    size = np.trace(S, axis1=1, axis2=2)[:, None, None]
    Y, Z = S / size, np.broadcast_to(identity, S.shape)
    for _ in range(60):  # eigenvalues grow by 9/4 at a time until they are near 1
        T = (3 * identity - Z @ Y) / 2
        Y, Z = Y @ T, T @ Z
    return Z / np.sqrt(size)


def forward(x, axis=1, groups=1, eps=1e-5, weight=None, bias=None, mean=None, cov=None):
    """Whiten with the batch's own statistics, or with those given."""
    X = as_groups(x, axis, groups)
    if mean is None:
        mean = X.mean(2)
        z = X - mean[:, :, None]
        cov = z @ z.swapaxes(1, 2) / X.shape[2]
    else:
        mean = np.asarray(mean, WIDE).reshape(groups, -1)
        z = X - mean[:, :, None]
    cov = np.asarray(cov, WIDE)
    root = inverse_root(cov + WIDE(eps) * np.eye(cov.shape[1], dtype=WIDE))
    y = root @ z
    if weight is not None:
        y = y * as_column(weight, y)
    if bias is not None:
        y = y + as_column(bias, y)
    return Whitened(like(y, x, axis), z, mean, cov, root)


def as_column(values, y):
    return np.asarray(values, WIDE).reshape(*y.shape[:2], 1)


def backward(dy, x, axis=1, groups=1, eps=1e-5, weight=None, mean=None, cov=None):
    """Return dx, dweight, dbias; given statistics are constants."""
    f = forward(x, axis, groups, eps, mean=mean, cov=cov)
    DY = as_groups(dy, axis, groups)
    W, n, d = f.root, DY.shape[2], DY.shape[1]
    dweight, dbias = (DY * (W @ f.z)).sum(2).reshape(-1), DY.sum(2).reshape(-1)
    g = DY if weight is None else DY * as_column(weight, DY)
    dx = W @ g
    if mean is None:
        by_root = g @ f.z.swapaxes(1, 2)
        by_cov = np.empty_like(by_root)
        for k, (root, A) in enumerate(zip(W, (by_root + by_root.swapaxes(1, 2)) / 2, strict=True)):
            one = np.eye(d)
            operator = np.kron(root, one) + np.kron(one, root)
            X = np.linalg.solve(operator.astype(float), A.astype(float).reshape(-1)).reshape(d, d)
            by_cov[k] = -root @ root @ X @ root @ root
        dx = dx - dx.mean(2, keepdims=True) + 2 / WIDE(n) * (by_cov @ f.z)
    return like(dx, x, axis), dweight, dbias
