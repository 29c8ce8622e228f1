"""Batch renormalization: what a training batch is corrected by so that it agrees with inference."""

from __future__ import annotations

from dataclasses import dataclass

from fastbn.checks import scalars


@dataclass(frozen=True, slots=True)
class Renorm:
    """Limits of the corrections of batch renormalization, for `batch_norm` and `BatchNorm`.

    With running statistics mu and sigma = sqrt(running_var + eps), from before they are moved::

        r = clip(sqrt(var + eps) / sigma, 1 / r_max, r_max)        d = clip((mean - mu) / sigma, -d_max, d_max)
        y = (xhat * r + d) * weight + bias

    No gradient flows through r and d. With ``r_max=1, d_max=0`` this is batch normalization; without limits, training
    normalises with the running statistics. Small batches, and batches that are not drawn at random, gain by it. The
    paper starts at 1 and 0 and widens to 3 and 5 while training goes on.

    Parameters
    ----------
    r_max : float, default 3
        The largest correction of the scale, >= 1.
    d_max : float, default 5
        The largest correction of the shift, in standard deviations, >= 0.

    Raises
    ------
    TypeError, ValueError
        If a limit is no finite number in its range.

    Notes
    -----
    Ioffe (2017), "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models",
    arXiv:1702.03275; the corrections are those of Keras 2's ``BatchNormalization(renorm=True)``.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> layer = fastbn.BatchNorm(4, renorm=fastbn.Renorm(r_max=3, d_max=5))
    >>> y = layer(np.random.default_rng(0).normal(2, 3, size=(16, 4)).astype(np.float32))
    """

    r_max: float = 3.0
    d_max: float = 5.0

    def __post_init__(self) -> None:
        expected = "a number >= 1"
        r_max = scalars.number("r_max", self.r_max, expected)
        if r_max < 1.0:
            raise ValueError(f"r_max: expected {expected}, got {r_max}; at 1 the scale is not corrected")
        expected = "a number >= 0"
        d_max = scalars.number("d_max", self.d_max, expected)
        if d_max < 0.0:
            raise ValueError(f"d_max: expected {expected}, got {d_max}; at 0 the shift is not corrected")
        object.__setattr__(self, "r_max", r_max)
        object.__setattr__(self, "d_max", d_max)
