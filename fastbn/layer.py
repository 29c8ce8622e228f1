"""The layer: parameters, running statistics, training and inference, a state that PyTorch's checkpoints fit."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from fastbn import functional
from fastbn.checks import arrays, beyond, scalars
from fastbn.checks.place import on_gpu
from fastbn.context import Context
from fastbn.dispatch import checked
from fastbn.moments import Moments
from fastbn.renorm import Renorm
from fastbn.stateful import Stateful

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class BatchNorm(Stateful):
    """Batch normalization with a weight, a bias and running statistics.

    In training, ``layer(x)`` normalises with the statistics of x and moves the running statistics towards them; in
    inference it normalises with the running statistics. ``layer.backward(dy)`` returns dx and sets `dweight` and
    `dbias`, which an optimiser subtracts from `weight` and `bias` in place.

    Parameters
    ----------
    num_features : int or tuple of int
        Channels, C; of several channel axes, their sizes, which is the shape of the parameters.
    axis : int or tuple of int, default 1
        The channel axis of x, or several, in the order of `num_features`, which is that of x.
    eps : float, default 1e-5
        Added to the variance; > 0.
    momentum : float or None, default 0.1
        The weight of the new value in the running statistics; None averages over all batches so far.
    correction : float, default 1
        The batch variance that enters `running_var` is divided by ``count - correction``.
    affine : bool, default True
        Whether there are a weight and a bias.
    weight, bias : bool, optional
        Whether there is that one of them, whatever `affine` says of both.
    track_running_stats : bool, default True
        Whether there are running statistics; without them, inference too uses the batch's own.
    activation : str, optional
        What is done after that, as for `batch_norm`.
    ghost_batch_size : int, optional
        How many samples have statistics together in training, as for `batch_norm`.
    renorm : Renorm, optional
        Batch renormalization, as for `batch_norm`; needs running statistics.
    dtype : float32 or float64, default float32
        Of the parameters and running statistics.
    precision : "fast" or "exact", optional
        In which arithmetic float32 x is computed, as for `batch_norm`.
    device : "cpu" or "cuda", optional
        Where to compute, as for `batch_norm`. The parameters and running statistics are arrays of NumPy in any case.

    Attributes
    ----------
    weight, bias : array of `dtype`, shape (C,), or None
        Ones and zeros at first.
    running_mean, running_var : array of `dtype`, shape (C,), or None
        Zeros and ones at first.
    num_batches_tracked : int
        Batches that entered the running statistics; ghost batches count one each.
    training : bool
        Changed by `train` and `eval`.
    frozen : bool
        Changed by `freeze` and `unfreeze`; while it is True, `training` has no effect.
    dweight, dbias : array of `dtype`, shape (C,), or None
        Set (not accumulated) by `backward`.
    dresidual : array, shape and dtype of x, or None
        Set by `backward`, if the call had a residual.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> layer = fastbn.BatchNorm(4)
    >>> x = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
    >>> y = layer(x)
    >>> dx = layer.backward(np.ones_like(y))
    >>> layer.weight -= 0.1 * layer.dweight
    >>> layer.eval()(x).shape
    (16, 4)
    """

    _frozen = False
    _observer: Callable[[Moments], None] | None = None  # `recalibrate`, while it runs

    STATE = "weight", "bias", "running_mean", "running_var"

    def __init__(
        self,
        num_features: int | tuple[int, ...],
        *,
        axis: int | tuple[int, ...] = 1,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        correction: float = 1,
        affine: bool = True,
        weight: bool | None = None,
        bias: bool | None = None,
        track_running_stats: bool = True,
        activation: str | tuple[str, float] | None = None,
        ghost_batch_size: int | None = None,
        renorm: Renorm | None = None,
        dtype: Any = np.float32,
        precision: str | None = None,
        device: str | None = None,
    ) -> None:
        self.num_features = shape = scalars.shape(num_features)
        self.axis = scalars.layer_axis(axis, shape)
        self.eps = scalars.eps(eps)
        self.momentum = None if momentum is None else scalars.momentum(momentum)
        self.correction = scalars.correction(correction)
        self.affine = scalars.flag("affine", affine)
        self.track_running_stats = scalars.flag("track_running_stats", track_running_stats)
        with_weight = self.affine if weight is None else scalars.flag("weight", weight)
        with_bias = self.affine if bias is None else scalars.flag("bias", bias)
        scalars.activation(activation)
        self.activation = activation
        self.ghost_batch_size = scalars.ghost_batch_size(ghost_batch_size)
        self.renorm = beyond.tracked(renorm, self.track_running_stats)
        self.dtype = scalars.parameter_dtype(dtype)
        self.precision = None if precision is None else scalars.precision(precision)
        self.device = checked(device)
        self.training = True
        self.weight: Array | None = np.ones(shape, self.dtype) if with_weight else None
        self.bias: Array | None = np.zeros(shape, self.dtype) if with_bias else None
        self.running_mean: Array | None = np.zeros(shape, self.dtype) if track_running_stats else None
        self.running_var: Array | None = np.ones(shape, self.dtype) if track_running_stats else None
        self.num_batches_tracked = 0
        self.dweight: Array | None = None
        self.dbias: Array | None = None
        self.dresidual: Array | None = None
        self._ctx: Context | None = None

    def __call__(
        self,
        x: Array,
        *,
        residual: Array | None = None,
        mask: Array | None = None,
        update_stats: bool = True,
        out: Array | None = None,
    ) -> Array:
        """Normalise x.

        Parameters
        ----------
        x : array of float32, float64, float16 or bfloat16 (ml_dtypes)
            With `num_features` channels along `axis`.
        residual, mask, update_stats
            As for `batch_norm`. With ``update_stats=False`` no batch is counted.
        out : array, optional
            Where y goes; x itself if the backward pass can do without x, as `batch_norm` says.

        Returns
        -------
        y : array
            Shape, dtype and memory order of x; `out` if that was given.

        Raises
        ------
        TypeError, ValueError
            As `batch_norm`; nothing is written then, and no batch is counted.
        """
        if not on_gpu(x):
            x = arrays.data(x)
        arrays.channels(x, self.axis, self.num_features)
        update_stats = scalars.flag("update_stats", update_stats)
        training = self.training and not self.frozen
        tracking = training and self.track_running_stats and update_stats
        averaging = self.momentum is None and tracking and self.ghost_batch_size is not None
        momentum = 1.0 / (self.num_batches_tracked + 1) if self.momentum is None else self.momentum
        y, self._ctx = functional.batch_norm(
            x,
            self.weight,
            self.bias,
            running_mean=self.running_mean,
            running_var=self.running_var,
            training=training or not self.track_running_stats,
            momentum=momentum,
            correction=self.correction,
            eps=self.eps,
            axis=self.axis,
            activation=self.activation,
            residual=residual,
            mask=mask,
            ghost_batch_size=self.ghost_batch_size,
            renorm=self.renorm if training and self._observer is None else None,
            update_stats=update_stats and not averaging,
            precision=self.precision,
            out=out,
            device=self.device,
        )
        if self._observer is not None and not self._ctx.frozen:
            for part in self._ctx.parts():
                if part.moments is not None:
                    self._observer(part.moments)
        if averaging:
            self._average(self._ctx)
        elif tracking:
            self.num_batches_tracked += self._ctx.batches
        return y

    def _average(self, ctx: Context) -> None:
        """Move the running statistics towards those of every ghost batch, each with the same weight."""
        assert self.running_mean is not None
        assert self.running_var is not None
        for part in ctx.parts():
            batch = part.moments
            assert batch is not None
            self.num_batches_tracked += 1
            new = 1.0 / self.num_batches_tracked
            for running, value in ((self.running_mean, batch.mean), (self.running_var, batch.var(self.correction))):
                running[...] = running * (1.0 - new) + value.reshape(running.shape) * new

    def backward(self, dy: Array, *, out: Array | None = None) -> Array:
        """Return the gradient by x of the last call, and set `dweight`, `dbias` and `dresidual`.

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
            As `batch_norm_backward`.
        """
        if self._ctx is None:
            raise RuntimeError("backward: expected a call of the layer before it, there was none")
        grads = functional.batch_norm_backward(dy, self._ctx, out=out)
        self.dweight, self.dbias, self.dresidual = grads.dweight, grads.dbias, grads.dresidual
        return grads.dx

    @property
    def frozen(self) -> bool:
        """Whether the layer normalises with its running statistics in training too."""
        return self._frozen

    def freeze(self) -> BatchNorm:
        """Normalise with the running statistics from now on, and leave them as they are, whatever the mode is.

        For fine-tuning with small batches, where the statistics that a net came with are better than those of a batch
        (torchvision's `FrozenBatchNorm2d`, Keras's ``trainable = False``). `train` and `eval`, which a trainer calls on
        all layers, set the mode that `unfreeze` goes back to. `backward` takes the statistics for constants and still
        sets `dweight` and `dbias`: an optimiser that is not given them leaves the layer as it is.

        A state dict does not hold it; copies and pickles do.

        Returns
        -------
        BatchNorm
            This layer.

        Raises
        ------
        ValueError
            If the layer has no running statistics.

        Examples
        --------
        >>> import numpy as np, fastbn
        >>> layer = fastbn.BatchNorm(4).freeze().train()
        >>> _ = layer(np.full((16, 4), 3, np.float32))
        >>> layer.training, layer.frozen, layer.running_mean.tolist()
        (True, True, [0.0, 0.0, 0.0, 0.0])
        """
        if not self.track_running_stats:
            raise ValueError("freeze: expected running statistics to normalise with, got track_running_stats=False")
        self._frozen = True
        return self

    def unfreeze(self) -> BatchNorm:
        """End what `freeze` began: from now on the mode, which `train` and `eval` set, decides; return the layer."""
        self._frozen = False
        return self

    def to_onnx(self, *, ndim: int = 4, dtype: Any = None, opset: int = 15) -> Any:
        """Return an ``onnx.ModelProto`` that does what this layer does in inference; needs the package onnx.

        This is `fastbn.adapters.onnx.to_onnx`; `fastbn.adapters.onnx.from_onnx` is the way back. The layer's mode does
        not matter.

        Parameters
        ----------
        ndim : int, default 4
            How many axes x has.
        dtype : dtype, optional
            Of x and y. Default: the layer's.
        opset : int, default 15
            The version of ONNX's operators.

        Returns
        -------
        onnx.ModelProto
            One node BatchNormalization, from ``x`` to ``y``, every size but that of the channels open.

        Raises
        ------
        ModuleNotFoundError
            If the package onnx is missing.
        TypeError, ValueError
            If an argument does not fit, or the layer has no running statistics.
        """
        # By its name: the API imports no adapter, and so no host, that nobody asks for.
        return importlib.import_module("fastbn.adapters.onnx").to_onnx(self, ndim=ndim, dtype=dtype, opset=opset)

    def __repr__(self) -> str:
        return (
            f"BatchNorm({self.num_features}, axis={self.axis}, eps={self.eps:g}, momentum={self.momentum}, "
            f"correction={self.correction:g}, weight={self.weight is not None}, bias={self.bias is not None}, "
            f"track_running_stats={self.track_running_stats}, activation={self.activation!r}, "
            f"ghost_batch_size={self.ghost_batch_size}, renorm={self.renorm}, dtype={self.dtype}, "
            f"precision={self.precision!r}{', frozen' if self.frozen else ''})"
        )
