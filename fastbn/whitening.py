"""The layer that whitens: channels are not only scaled but decorrelated, in groups."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from fastbn import layout, zca
from fastbn.checks import aliasing, arrays, datasets, scalars
from fastbn.moments import Statistic
from fastbn.stateful import Stateful

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


@functools.cache
def cpu() -> Any:
    """Return the launches; the import of Numba is what this is not done earlier for."""
    from fastbn.backends.cpu import whitening

    return whitening


class _Saved(NamedTuple):
    """What a call leaves for the backward pass; matrices and statistics in float64."""

    x: Array | None  # None after it was overwritten
    axis: int
    mean: Statistic  # (2, C)
    root: zca.Root
    weight: Statistic  # (C,)
    frozen: bool


class DecorrelatedBatchNorm(Stateful):
    """Decorrelated batch normalization: ZCA whitening of groups of channels, a weight, a bias, running statistics.

    `BatchNorm` scales every channel by itself and leaves features correlated. This layer gives those of a group the
    covariance I::

        y = W (x - mean) * weight + bias        W = (cov + eps I)^(-1/2)

    with mean and covariance of the d = num_features / groups channels over the batch in training, and running ones in
    inference. With ``groups=num_features`` it computes what `BatchNorm` does.

    Parameters
    ----------
    num_features : int
        Channels, C.
    groups : int, default 1
        Channels are whitened in so many groups of as many neighbours; a divisor of C. A value costs d multiplications,
        and a covariance of d channels is well estimated from many times d values alone: the paper takes groups of 16.
    axis : int, default 1
        The channel axis of x.
    eps : float, default 1e-5
        Added to the eigenvalues of the covariance; > 0. The default is that of `BatchNorm`, whose layer this is for
        groups of one channel, and float64 arithmetic needs no larger one. Directions without variance, which there are
        in a batch of no more than d values a channel, are multiplied by 1 / sqrt(eps), and so are their gradients and
        what inference finds there: raise it, to 1e-3 say, where that is too much.
    momentum : float or None, default 0.1
        The weight of the new value in the running statistics; None averages over all batches so far.
    correction : float, default 1
        The batch covariance that enters `running_cov` is divided by ``count - correction``.
    affine : bool, default True
        Whether there are a weight and a bias.
    track_running_stats : bool, default True
        Whether there are running statistics; without them, inference too uses the batch's own.
    dtype : float32 or float64, default float32
        Of the parameters and running statistics.

    Attributes
    ----------
    weight, bias : array of `dtype`, shape (C,), or None
        Ones and zeros at first.
    running_mean : array of `dtype`, shape (C,), or None
        Zeros at first.
    running_cov : array of `dtype`, shape (groups, d, d), or None
        Identity matrices at first.
    num_batches_tracked : int
        Batches that entered the running statistics.
    training : bool
        Changed by `train` and `eval`.
    dweight, dbias : array of `dtype`, shape (C,), or None
        Set (not accumulated) by `backward`.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Notes
    -----
    All is computed in float64 and rounded once to the dtype of x. The gradient goes through the eigenproblem, without a
    division by differences of eigenvalues, and is right where some are equal. The covariance is kept, not W, as
    Huang et al. do: the mean of covariances of batches estimates that of the population without bias, that of their
    inverse roots does not, and it is `running_var` for groups of one channel. W is made of it when it has changed.

    The bits do not depend on the number of threads, as far as LAPACK's eigenvalues do not: up to 128 channels a group.
    A group with a NaN or an infinity is NaN in all its channels. Arrays are NumPy's, on the CPU.

    Huang, Yang, Lang and Deng (2018), "Decorrelated Batch Normalization", arXiv:1804.08450.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> layer = fastbn.DecorrelatedBatchNorm(4)
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(256, 4)) @ rng.normal(size=(4, 4)) + 3
    >>> y = layer(x)
    >>> bool(np.allclose(y.T @ y / 256, np.eye(4), atol=1e-3))
    True
    >>> dx = layer.backward(np.ones_like(y))
    >>> layer.eval()(x).shape
    (256, 4)
    """

    STATE = "weight", "bias", "running_mean", "running_cov"

    def __init__(
        self,
        num_features: int,
        *,
        groups: int = 1,
        axis: int = 1,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        correction: float = 1,
        affine: bool = True,
        track_running_stats: bool = True,
        dtype: Any = np.float32,
    ) -> None:
        self.num_features = scalars.features(num_features)
        self.groups = datasets.groups(groups, self.num_features)
        self.axis = scalars.integer("axis", axis)
        self.eps = scalars.eps(eps)
        self.momentum = None if momentum is None else scalars.momentum(momentum)
        self.correction = scalars.correction(correction)
        self.affine = scalars.flag("affine", affine)
        self.track_running_stats = scalars.flag("track_running_stats", track_running_stats)
        self.dtype = scalars.parameter_dtype(dtype)
        self.training = True
        C, d = self.num_features, self.num_features // self.groups
        self.weight: Array | None = np.ones(C, self.dtype) if affine else None
        self.bias: Array | None = np.zeros(C, self.dtype) if affine else None
        self.running_mean: Array | None = None
        self.running_cov: Array | None = None
        if track_running_stats:
            self.running_mean = np.zeros(C, self.dtype)
            self.running_cov = np.tile(np.eye(d, dtype=self.dtype), (self.groups, 1, 1))
        self.num_batches_tracked = 0
        self.dweight: Array | None = None
        self.dbias: Array | None = None
        self._saved: _Saved | None = None
        self._known: tuple[Array, zca.Root] | None = None  # a running covariance, and its root

    def __call__(self, x: Array, *, out: Array | None = None) -> Array:
        """Whiten x.

        Parameters
        ----------
        x : array of float32, float64, float16 or bfloat16 (ml_dtypes)
            With `num_features` channels along `axis`.
        out : array, optional
            Where y goes; x itself only if there is no backward pass.

        Returns
        -------
        y : array
            Shape, dtype and memory order of x; `out` if that was given.

        Raises
        ------
        TypeError, ValueError
            If x or `out` does not fit, or there is no batch or, for running statistics, not more than `correction`
            values a channel. Nothing is written then, and no batch is counted.
        """
        x = arrays.data(x)
        axis = arrays.axis(self.axis, x)
        arrays.channels(x, axis, self.num_features)
        count = x.size // self.num_features
        own = self.training or not self.track_running_stats
        tracking = self.training and self.track_running_stats
        if own:
            arrays.batch(count, x)
        if tracking:
            arrays.degrees_of_freedom(count, self.correction)
        others = {"weight": self.weight, "bias": self.bias, "running_mean": self.running_mean}
        others["running_cov"] = self.running_cov
        y = layout.empty(x) if out is None else arrays.output(out, x, {"x": x}, others)
        d = self.num_features // self.groups
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite gives NaN, without a warning
            if own:
                mean, products = cpu().comoments(x, axis, d)
                root = zca.inverse_root((products / count).reshape(self.groups, d, d), self.eps)
            else:
                mean, root = self._running()
            weight = _row(self.weight, 1.0, self.num_features)
            matrix = weight[:, None] * root.matrix.reshape(-1, d)
            cpu().combined(x, axis, mean, matrix, _row(self.bias, 0.0, self.num_features), y)
            if tracking:
                self._move(mean[0] + mean[1], products / (count - self.correction))
        overwritten = out is not None and x.size > 0 and aliasing.same(x, y)
        self._saved = _Saved(None if overwritten else x, axis, mean, root, weight, not own)
        return y if out is None else out

    def _running(self) -> tuple[Statistic, zca.Root]:
        """Return the running mean, and the root of the running covariance, made again if that has changed."""
        assert self.running_mean is not None
        assert self.running_cov is not None
        if self._known is None or not np.array_equal(self._known[0], self.running_cov):
            self._known = self.running_cov.copy(), zca.inverse_root(self.running_cov.astype(np.float64), self.eps)
        mean = self.running_mean.astype(np.float64)
        return np.stack([mean, np.zeros_like(mean)]), self._known[1]

    def _move(self, mean: Statistic, cov: Statistic) -> None:
        """Move the running statistics towards a batch's, and count it."""
        assert self.running_mean is not None
        assert self.running_cov is not None
        new = 1.0 / (self.num_batches_tracked + 1) if self.momentum is None else self.momentum
        self.running_mean[...] = self.running_mean * np.float64(1.0 - new) + mean * new
        self.running_cov[...] = self.running_cov * np.float64(1.0 - new) + cov.reshape(self.running_cov.shape) * new
        self.num_batches_tracked += 1

    def backward(self, dy: Array, *, out: Array | None = None) -> Array:
        """Return the gradient by x of the last call, and set `dweight` and `dbias`.

        With g = dy * weight, z = x - mean and n values a channel, sums over values and means of them::

            dbias = sum(dy)        dweight = rows of (W * sum(dy z^T)), summed
            dx    = W (g - mean(g)) + 2 / n * D z

        where D is the gradient by the covariance, of the one by W, ``sum(g z^T)``; or ``dx = W g`` through running
        statistics.

        Parameters
        ----------
        dy : array, shape and dtype of x
            The gradient of the loss by y.
        out : array, optional
            Where dx goes; may be dy.

        Returns
        -------
        dx : array
            Shape and dtype of x; `out` if that was given.

        Raises
        ------
        RuntimeError
            If the layer has not been called.
        TypeError, ValueError
            If dy or `out` does not fit, or x was overwritten by ``out=x``.
        """
        saved = self._saved
        if saved is None:
            raise RuntimeError("backward: expected a call of the layer before it, there was none")
        x = saved.x
        if x is None:
            raise ValueError(
                "backward: expected x as it was, but it was overwritten (out=x); "
                "give the call another out, or none, to go back through it"
            )
        dy = arrays.gradient(dy, x)
        dx = layout.empty(x) if out is None else arrays.output(out, x, {"dy": dy, "x": x}, {})
        C, d = self.num_features, self.num_features // self.groups
        count = x.size // C
        W = saved.root.matrix.reshape(C, d)
        products, sums = np.zeros((C, d)), np.zeros(C)
        matrix = W * np.repeat(saved.weight.reshape(-1, d), d, axis=0)  # W diag(weight)
        with np.errstate(over="ignore", invalid="ignore"):
            if x.size:
                given = cpu().pair(dy, x, saved.axis)
                products, sums = cpu().products(given, saved.mean, d)
                dy_mean = np.zeros((2, C))
                if not saved.frozen:
                    by_matrix = (saved.weight[:, None] * products).reshape(-1, d, d)
                    by_cov = zca.root_gradient(saved.root, by_matrix).reshape(C, d)
                    matrix = np.concatenate([matrix, by_cov * (2.0 / count)], axis=1)
                    dy_mean[0] = sums / count
                cpu().gradient(given, dy_mean, saved.mean, matrix, d, saved.axis, dx)
            if self.affine:
                self.dweight, self.dbias = (W * products).sum(axis=1).astype(self.dtype), sums.astype(self.dtype)
        if out is not None and x.size > 0 and aliasing.same(x, dx):
            self._saved = saved._replace(x=None)
        return dx if out is None else out

    @property
    def running_whitening(self) -> Statistic | None:
        """The matrix W of inference, a copy of float64 and shape (groups, d, d); None without running statistics."""
        return self._running()[1].matrix.copy() if self.track_running_stats else None

    def __repr__(self) -> str:
        return (
            f"DecorrelatedBatchNorm({self.num_features}, groups={self.groups}, axis={self.axis}, eps={self.eps:g}, "
            f"momentum={self.momentum}, correction={self.correction:g}, affine={self.affine}, "
            f"track_running_stats={self.track_running_stats}, dtype={self.dtype})"
        )


def _row(parameter: Array | None, default: float, channels: int) -> Statistic:
    """Return a parameter in float64."""
    return np.full(channels, default) if parameter is None else parameter.astype(np.float64)
