"""Data sets made ready for training: features of mean 0 and variance 1, or decorrelated.

What normalization does to the inputs of layers inside a net, its own inputs should have too (LeCun, Bottou, Orr and
Müller 1998, "Efficient BackProp", section 4.3). Statistics are taken in one pass over pieces, which are merged, so data
may be larger than memory.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fastbn import functional, layout, zca
from fastbn.checks import arrays, datasets, scalars
from fastbn.moments import Moments, Statistic
from fastbn.pieces import Data, Gathered, Source
from fastbn.whitening import cpu

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Rescaling:
    """What `rescale` did to a data set, to be done to others: ``y = (x - mean) / std``.

    Attributes
    ----------
    axis : int
        The channel axis.
    mean, std : array of float64, shape (C,)
        Of the data set; `std` is 1 where all values were the same.
    """

    axis: int
    mean: Statistic
    std: Statistic

    def __call__(self, x: Array, *, out: Array | None = None) -> Array:
        """Return x rescaled, an array like x; `out`, which may be x, if that is given."""
        x = _checked(x, self.axis, self.mean.size)
        # There has to be an eps, and this one changes no variance above 1e-284.
        return functional.batch_norm_inference(
            x, self.mean, self.std**2, eps=1e-300, axis=self.axis, out=out, device="cpu"
        )


@dataclass(frozen=True, slots=True, eq=False)
class Decorrelation:
    """What `decorrelate` did to a data set, to be done to others: ``y = matrix (x - mean)``, group by group.

    Attributes
    ----------
    axis : int
        The channel axis.
    mean, mean_lo : array of float64, shape (C,)
        The mean of the data set, and what float64 rounds off it.
    matrix : array of float64, shape (groups, d, d)
        Symmetric of "zca"; of "pca", a row a component, by falling variance.
    variances : array of float64, shape (groups, d)
        Those of the components, falling: the eigenvalues of the covariance.
    """

    axis: int
    mean: Statistic
    mean_lo: Statistic
    matrix: Statistic
    variances: Statistic

    def __call__(self, x: Array, *, out: Array | None = None) -> Array:
        """Return x decorrelated, an array like x; `out`, which may be x, if that is given."""
        x = _checked(x, self.axis, self.mean.size)
        y = layout.empty(x) if out is None else arrays.output(out, x, {"x": x}, {})
        mean, matrix = np.stack([self.mean, self.mean_lo]), self.matrix.reshape(self.mean.size, -1)
        cpu().combined(x, arrays.axis(self.axis, x), mean, matrix, np.zeros(self.mean.size), y)
        return y if out is None else out


def _checked(x: Array, axis: int, channels: int) -> Array:
    x = arrays.data(x)
    arrays.channels(x, arrays.axis(axis, x), channels)
    return x


def rescale(data: Data, *, axis: int = 1, out: Array | None = None) -> tuple[Any, Rescaling]:
    """Bring every channel of a data set to mean 0 and variance 1: ``(x - mean) / std``.

    Parameters
    ----------
    data : array, or iterable of arrays
        Of float32, float64, float16 or bfloat16 (ml_dtypes), at least two axes, on the CPU. A memory-mapped array is
        read piece by piece. Batches of an iterable have the same channels and any count; they are gone through twice,
        so it may be a list or a data loader, but no generator.
    axis : int, default 1
        The channel axis: 1 for samples by features, and for images as (N, C, H, W).
    out : array, optional
        Where the result goes, if `data` is an array: its shape and dtype, memory apart from it or the data themselves.
        For a result larger than memory, a writable memory-mapped array.

    Returns
    -------
    prepared : array or iterator
        Shape, dtype and memory order of the data; `out` if that was given. Of batches, an iterator that prepares one
        after the other.
    transform : Rescaling
        Does the same to other data, such as a test set: ``transform(x)``.

    Raises
    ------
    TypeError, ValueError
        For anything that does not fit, and for data without a value.

    Notes
    -----
    The standard deviation is that of these values, divided by their count, merged from pieces by Chan's formula. A
    channel of one value over and over has none: it becomes 0, and is not divided.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> train = np.array([[1.0, 5.0], [3.0, 5.0], [5.0, 5.0]])
    >>> prepared, transform = fastbn.rescale(train)
    >>> prepared.round(3)
    array([[-1.225,  0.   ],
           [ 0.   ,  0.   ],
           [ 1.225,  0.   ]])
    >>> transform(np.array([[3.0, 6.0]]))
    array([[0., 1.]])
    """
    axis = scalars.integer("axis", axis)
    source = Source.of(data, axis, out)
    moments: Moments | None = None
    for piece in source.pieces():
        own = functional.batch_moments(piece, axis=axis, device="cpu")
        moments = own if moments is None else moments.merge(own)
    datasets.some(0 if moments is None else moments.count)
    assert moments is not None
    std = np.sqrt(moments.var())
    transform = Rescaling(axis, moments.mean, np.where(std == 0.0, 1.0, std))
    return source.prepared(transform), transform


def decorrelate(
    data: Data, *, axis: int = 1, method: str = "zca", groups: int = 1, eps: float = 0.0, out: Array | None = None
) -> tuple[Any, Decorrelation]:
    """Whiten a data set: channels of mean 0, variance 1 and without correlations, ``W (x - mean)``.

    With the covariance U diag(l) U^T of a group of channels, W = U diag(s) U^T for "zca" and diag(s) U^T for "pca",
    where s = 1 / sqrt(l + eps).

    Parameters
    ----------
    data, axis, out
        As for `rescale`.
    method : "zca" or "pca", default "zca"
        "zca" changes the data as little as whitening can, and features stay what they were; "pca" makes them principal
        components, by falling variance, the largest coefficient of each positive.
    groups : int, default 1
        Channels are decorrelated in so many groups of as many neighbours; a divisor of their number.
    eps : float, default 0
        Added to the variances l of components, so that those of little are not blown up to that of all others.

    Returns
    -------
    prepared, transform
        As for `rescale`; the transform is a `Decorrelation`.

    Raises
    ------
    TypeError, ValueError
        For anything that does not fit, and for data without a value.

    Notes
    -----
    A component whose variance is no more than rounding makes is not divided, s = 1: the larger of d 2^-52 of the
    group's largest variance, which float64 arithmetic may leave where there is none, and u^2 of a channel's largest
    mean square, u being half a unit in the last place of the dtype, which rounding the data to it may have added.
    Without eps, that is; with one, s is as above.

    Covariances are summed in float64 and merged from pieces by Chan's formula for two variables. Bits are as those of
    `DecorrelatedBatchNorm`.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> rng = np.random.default_rng(0)
    >>> train = rng.normal(size=(1000, 3)) @ rng.normal(size=(3, 3)) + 7
    >>> prepared, transform = fastbn.decorrelate(train)
    >>> bool(np.allclose(prepared.T @ prepared / 1000, np.eye(3)))
    True
    >>> transform(train[:5]).shape
    (5, 3)
    """
    axis, method, eps = scalars.integer("axis", axis), datasets.method(method), datasets.regularization(eps)
    source = Source.of(data, axis, out)
    gathered: Gathered | None = None
    rounding = 0.0
    for piece in source.pieces():
        at = arrays.axis(axis, piece)
        if gathered is None:
            gathered = Gathered(piece.shape[at], datasets.groups(groups, piece.shape[at], "the channels"))
        gathered.add(piece, at)
        rounding = max(rounding, _half_unit(piece.dtype))
    datasets.some(0 if gathered is None else gathered.count)
    assert gathered is not None
    cov = gathered.products / gathered.count
    mean, mean_lo = gathered.mean()
    squares = np.diagonal(cov, axis1=1, axis2=2) + (mean**2).reshape(cov.shape[:2])
    values, vectors = (np.flip(each, axis=-1) for each in zca.eigenvalues(cov))
    with np.errstate(divide="ignore", invalid="ignore"):
        noise = np.maximum(values[:, :1] * (values.shape[1] * 2.0**-52), squares.max(1, keepdims=True) * rounding**2)
        scale = np.where((values <= noise) & (eps == 0.0), 1.0, 1.0 / np.sqrt(values + eps))
    scaled = scale[:, :, None] * vectors.swapaxes(1, 2)
    if method == "zca":
        matrix = vectors @ scaled
    else:
        largest = np.take_along_axis(scaled, np.abs(scaled).argmax(2)[:, :, None], axis=2)
        matrix = np.where(largest < 0, -scaled, scaled)
    transform = Decorrelation(axis, mean, mean_lo, matrix, values)
    return source.prepared(transform), transform


def _half_unit(dtype: np.dtype[Any]) -> float:
    """Return half a unit in the last place of 1."""
    return 2.0 ** -{8: 53, 4: 24}[dtype.itemsize] if dtype.itemsize > 2 else 2.0 ** -(11 if dtype.kind == "f" else 8)
