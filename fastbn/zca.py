"""Whitening of a covariance: its inverse square root, and the gradient through that.

With S = U diag(l) U^T, of the covariance of d channels, ``W = U diag(f(l)) U^T`` with f(l) = 1 / sqrt(l + eps) is the
one root that is symmetric and positive: zero-phase component analysis, ZCA. It does not depend on which eigenvectors of
equal eigenvalues there are, nor on their signs, and has a derivative everywhere:

    dW = U (F * (U^T dS U)) U^T        F_ij = (f(l_i) - f(l_j)) / (l_i - l_j), and f'(l_i) where they are equal

(Daleckii and Krein 1951; Higham 2008, "Functions of Matrices", theorem 3.11). With r_i = sqrt(l_i + eps) that is
F_ij = -1 / (r_i r_j (r_i + r_j)), in which nothing cancels and nothing is divided by a difference of eigenvalues, as
differentiating the eigenvectors one by one would have it: it holds for equal ones as it is.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fastbn.moments import Statistic


@dataclass(frozen=True, slots=True, eq=False)
class Root:
    """The inverse square root of the covariances of several groups, and what its gradient needs.

    Attributes
    ----------
    matrix : array of float64, shape (groups, d, d)
        W, symmetric; NaN for a group whose covariance is not finite.
    vectors : array of float64, shape (groups, d, d)
        U, a column an eigenvector.
    roots : array of float64, shape (groups, d)
        r, the square roots of eigenvalues + eps.
    """

    matrix: Statistic
    vectors: Statistic
    roots: Statistic


def eigenvalues(covariance: Statistic) -> tuple[Statistic, Statistic]:
    """Return eigenvalues, not below zero, and eigenvectors of symmetric matrices, NaN for those that are not finite.

    LAPACK's, in float64. Up to 128 channels a group the bits were the same for one and two threads of OpenBLAS 0.3.31;
    for 256 and more LAPACK lets several work at it, and those bits are its own.
    """
    finite = np.isfinite(covariance).all(axis=(1, 2))
    values, vectors = np.full(covariance.shape[:2], np.nan), np.full(covariance.shape, np.nan)
    values[finite], vectors[finite] = np.linalg.eigh(covariance[finite])
    return np.maximum(values, 0.0), vectors


def inverse_root(covariance: Statistic, eps: float) -> Root:
    """Return (covariance + eps)^(-1/2) of every group, (groups, d, d)."""
    values, vectors = eigenvalues(covariance)
    roots = np.sqrt(values + eps)
    return Root(_symmetric((vectors / roots[:, None, :]) @ vectors.swapaxes(1, 2)), vectors, roots)


def root_gradient(root: Root, by_matrix: Statistic) -> Statistic:
    """Return the gradient by the covariance, symmetric, given that by the matrix."""
    r, U = root.roots, root.vectors
    divided = -1.0 / (r[:, :, None] * r[:, None, :] * (r[:, :, None] + r[:, None, :]))
    inner = divided * (U.swapaxes(1, 2) @ _symmetric(by_matrix) @ U)
    return _symmetric(U @ inner @ U.swapaxes(1, 2))


def _symmetric(matrices: Statistic) -> Statistic:
    return (matrices + matrices.swapaxes(1, 2)) * 0.5
