"""Batch norms folded into the linear layers beside them, for a net that is trained and from now on only serves.

With running statistics a batch norm is ``y = scale * x + shift`` in every channel, and a linear layer or a convolution
before it (`fold`) or after it (`fold_next`) can do that at no cost.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np

from fastbn.checks import scalars

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

NEEDED = ("running_mean", "running_var", "weight", "bias", "eps")


def fold(
    weight: Array, bias: Array | None, bn: Any, axis: int = 0, *, groups: int = 1, in_axis: int | None = None
) -> tuple[Array, Array]:
    """Return the weight and bias of one layer that does what a linear layer and the batch norm after it do.

    Arguments are in the order in which the layers run. Per output channel, with ``scale = bn.weight /
    sqrt(bn.running_var + bn.eps)``: ``weight * scale`` and ``(bias - bn.running_mean) * scale + bn.bias``. The bias of
    a layer before a batch norm adds nothing: training leaves it where it was, and here it goes into the new one.

    Parameters
    ----------
    weight : array of float32, float64, float16 or bfloat16 (ml_dtypes), any rank
        Of a linear layer, or of a convolution with any padding, stride and dilation.
    bias : array of those, shape (C,), or None
        Its bias, if it has one.
    bn : BatchNorm
        Of C channels. Anything will do that has `running_mean`, `running_var`, `weight`, `bias` and `eps`, as
        PyTorch's modules have, if `numpy.asarray` takes them; weight and bias may be None.
    axis : int, default 0
        The axis of the weight with the output channels: 0 for PyTorch's linear layers and convolutions, 1 for its
        transposed convolutions and for ``x @ weight``, -1 for Keras's kernels, -2 for those of its transposed
        convolutions.
    groups : int, default 1
        Needed where `axis` has the C / groups output channels of a group: grouped transposed convolutions of PyTorch,
        (in, out / groups, ...), and Keras's depthwise kernels, (..., in, out / in) with ``groups=in, axis=-1``. A
        grouped convolution, (out, in / groups, ...), has all C of them on `axis` and needs nothing.
    in_axis : int, optional
        With such groups, the axis of the input channels, which are those of one group after the other. Default: the
        other one of the first two axes, or, for an axis that is counted from the end, of the last two.

    Returns
    -------
    weight : array, shape and dtype of weight
    bias : array, shape (C,)
        Of the dtype of bias, or, if there was none, of weight. Both are new: computed in float64, rounded once.

    Raises
    ------
    TypeError, ValueError
        If anything does not fit: the channels of weight, bias and bn, a batch norm without running statistics, a
        variance that is negative or, with eps, zero, values beyond what the dtype holds.

    See Also
    --------
    fold_next : Into the layer after a batch norm.

    Notes
    -----
    Jacob et al. (2018), "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", section 3.2, arXiv:1712.05877.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> rng = np.random.default_rng(0)
    >>> weight, bn = rng.normal(size=(8, 4)), fastbn.BatchNorm(4, dtype=np.float64)
    >>> _ = bn(rng.normal(3, 2, size=(32, 8)) @ weight)
    >>> x = rng.normal(size=(5, 8))
    >>> w, b = fastbn.fold(weight, None, bn, axis=1)
    >>> bool(np.allclose(x @ w + b, bn.eval()(x @ weight)))
    True
    """
    array = _floats("weight", weight)
    index = _axis("axis", axis, array)
    groups = _groups(groups)
    mean, scale, shift = _affine(bn)
    if array.shape[index] == mean.size:
        factors = scale.reshape(*(1 for _ in range(index)), -1, *(1 for _ in range(index + 1, array.ndim)))
    else:
        _grouped(array, index, groups, mean.size, "output")
        beside = _beside("in_axis", in_axis, axis, array)
        factors = _repeated(scale, groups, array.shape[beside], beside)
        factors = factors.reshape(*factors.shape, *(1 for _ in range(array.ndim - 2)))
        factors = np.moveaxis(factors, (0, 1), (beside, index))
    _bias(bias, mean.size)
    with np.errstate(over="ignore", invalid="ignore"):  # what is infinite stays so, without a warning
        folded = array.astype(np.float64) * factors
        given = 0.0 if bias is None else _floats("bias", bias).astype(np.float64)
        constant = (given - mean) * scale + shift
    return _rounded("weight", folded, array.dtype), _rounded("bias", constant, _dtype(bias, array))


def fold_next(
    bn: Any, weight: Array, bias: Array | None, axis: int = 1, *, groups: int = 1, out_axis: int | None = None
) -> tuple[Array, Array]:
    """Return the weight and bias of one layer that does what a batch norm and the linear layer after it do.

    Arguments are in the order in which the layers run. Per input channel, with ``scale = bn.weight /
    sqrt(bn.running_var + bn.eps)`` and ``shift = bn.bias - bn.running_mean * scale``: ``weight * scale``, and to the
    bias of an output channel comes the sum of its ``weight * shift``.

    Parameters
    ----------
    bn : BatchNorm
        Of C channels; or anything that `fold` takes.
    weight : array of float32, float64, float16 or bfloat16 (ml_dtypes), at least two axes
        Of a linear layer, or of a convolution **without padding**: see the notes.
    bias : array of those, shape (O,), or None
        Its bias, if it has one, of O output channels.
    axis : int, default 1
        The axis of the weight with the input channels: 1 for PyTorch's linear layers and convolutions, 0 for its
        transposed convolutions and for ``x @ weight``, -2 for Keras's kernels.
    groups : int, default 1
        Those of the convolution. `axis` has all C input channels (transposed convolutions), or the C / groups of one
        group.
    out_axis : int, optional
        The axis of the output channels. Default: the other one of the first two axes, or, for an axis that is counted
        from the end, of the last two.

    Returns
    -------
    weight : array, shape and dtype of weight
    bias : array, shape (O,)
        Of the dtype of bias, or, if there was none, of weight. Both are new: computed in float64, rounded once.

    Raises
    ------
    TypeError, ValueError
        As `fold`.

    Notes
    -----
    Zero padding puts zeros behind the batch norm, which `shift` never reached: folded, the border of the result is
    another. Pad the input of the folded layer instead, with what the batch norm makes zeros of, ``bn.running_mean -
    bn.bias / scale`` (of channels with a weight that is not 0), and let the layer itself pad nothing; or fold the batch
    norm into the layer before it. A transposed convolution is one of these without padding if its stride is 1 and its
    `padding` ``dilation * (kernel_size - 1)``; with others, outputs differ in how much of the kernel they see, and no
    bias is right for all. Where a linear layer takes C channels of an image as one row of C * H * W numbers, its weight
    of PyTorch is ``weight.reshape(O, C, H * W)``, with which all of this is exact.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> rng = np.random.default_rng(0)
    >>> weight, bn = rng.normal(size=(8, 4)), fastbn.BatchNorm(8, dtype=np.float64)
    >>> x = rng.normal(3, 2, size=(32, 8))
    >>> _ = bn(x)
    >>> w, b = fastbn.fold_next(bn, weight, None, axis=0)
    >>> bool(np.allclose(x @ w + b, bn.eval()(x) @ weight))
    True
    """
    array = _floats("weight", weight)
    if array.ndim < 2:
        raise ValueError(f"weight: expected at least two axes, those of inputs and outputs, got shape {array.shape}")
    index = _axis("axis", axis, array)
    beside = _beside("out_axis", out_axis, axis, array)
    groups = _groups(groups)
    mean, scale, shift = _affine(bn)
    inputs, outputs = array.shape[index], array.shape[beside]
    is_whole = inputs == mean.size  # all inputs stand on their axis, and the outputs of a group on the other
    if not is_whole:
        _grouped(array, index, groups, mean.size, "input")
    elif inputs % groups:
        raise ValueError(f"groups: expected a divisor of the {inputs} input channels, got {groups}")
    _bias(bias, outputs * groups if is_whole else outputs)
    with np.errstate(over="ignore", invalid="ignore"):
        tables = scale, shift - mean * scale
        rows, shifts = (t[np.newaxis] if is_whole else _repeated(t, groups, outputs, beside) for t in tables)
        wide = np.moveaxis(array, (beside, index), (0, 1)).astype(np.float64)
        rest = tuple(range(2, array.ndim))
        folded = wide * rows.reshape(*rows.shape, *(1 for _ in rest))
        sums = wide.sum(rest) * shifts
        if is_whole:  # (out / groups, groups, in / groups) to (groups, out / groups)
            sums = sums.reshape(outputs, groups, inputs // groups).swapaxes(0, 1)
        constant = sums.sum(-1).reshape(-1)
        if bias is not None:
            constant = constant + _floats("bias", bias).astype(np.float64)
    folded = np.moveaxis(folded, (0, 1), (beside, index))
    return _rounded("weight", folded, array.dtype), _rounded("bias", constant, _dtype(bias, array))


def _detached(value: Any) -> Any:
    """Return a parameter of PyTorch, which does not hand itself to NumPy, as a tensor that does."""
    return value.detach() if hasattr(value, "detach") else value


def _floats(name: str, value: object) -> Array:
    """Check a weight or bias: an array of a dtype that fastbn computes with."""
    array = scalars.as_array(name, _detached(value))
    masked = isinstance(value, np.ma.MaskedArray)
    if masked or not (array.dtype in scalars.DTYPES or scalars.is_half(array.dtype)):
        got = "a MaskedArray, whose mask would be lost" if masked else scalars.described(value)
        raise TypeError(
            f"{name}: expected real numbers of float32, float64, float16 or bfloat16 (ml_dtypes), got {got}"
        )
    return array


def _dtype(bias: object, weight: Array) -> np.dtype[Any]:
    return weight.dtype if bias is None else _floats("bias", bias).dtype


def _bias(value: object, channels: int) -> None:
    """Check the bias of a layer with so many output channels."""
    if value is not None and (shape := _floats("bias", value).shape) != (channels,):
        raise ValueError(f"bias: expected shape ({channels},), one value an output channel, got shape {shape}")


def _axis(name: str, value: object, weight: Array) -> int:
    """Check an axis of a weight and return it counted from the front."""
    index = scalars.integer(name, value)
    if not -weight.ndim <= index < weight.ndim:
        raise ValueError(
            f"{name}: expected an integer from {-weight.ndim} to {weight.ndim - 1} for a weight of shape "
            f"{weight.shape}, got {index}"
        )
    return index % weight.ndim


def _beside(name: str, value: object, axis: int, weight: Array) -> int:
    """Return the other axis of channels: the one given, or the one that stands beside `axis`."""
    if value is None:
        value = {0: 1, 1: 0, -1: -2, -2: -1}.get(axis)
    if value is None:
        raise ValueError(
            f"{name}: expected the axis of the weight's other channels, which axis={axis} leaves open, got None"
        )
    index = _axis(name, value, weight)
    if index == axis % weight.ndim:
        raise ValueError(f"{name}: expected another axis than axis={axis}, got {value}")
    return index


def _groups(value: object) -> int:
    result = scalars.integer("groups", value)
    if result < 1:
        raise ValueError(f"groups: expected an integer >= 1, got {result}")
    return result


def _grouped(weight: Array, axis: int, groups: int, channels: int, kind: str) -> None:
    """Check that an axis has the channels of one group."""
    if weight.shape[axis] * groups == channels:
        return
    own = f"{channels} {kind} channels" + (f", or {channels} / {groups} = those of a group," if groups > 1 else "")
    hint = ""
    if channels in weight.shape:
        hint = f"; axis={weight.shape.index(channels)} has as many"
    elif weight.shape[axis] and channels % weight.shape[axis] == 0:
        hint = f"; if these are the channels of a group, pass groups={channels // weight.shape[axis]}"
    raise ValueError(f"weight: expected the {own} of bn along axis {axis}, got shape {weight.shape}{hint}")


def _repeated(values: Array, groups: int, count: int, axis: int) -> Array:
    """Return a row for each of `count` channels on the other axis: the values of its group."""
    if count % groups:
        raise ValueError(f"groups: expected a divisor of the {count} channels along axis {axis}, got {groups}")
    return np.repeat(values.reshape(groups, -1), count // groups, 0)


def _affine(bn: Any) -> tuple[Array, Array, Array]:
    """Return a batch norm in inference as numbers of every channel: ``(x - mean) * scale + shift``."""
    if not all(hasattr(bn, name) for name in NEEDED):
        raise TypeError(
            f"bn: expected a fastbn.BatchNorm, or what has {', '.join(NEEDED)}, got {scalars.described(bn)}"
        )
    if getattr(bn, "activation", None) is not None:
        raise ValueError(
            f"bn: expected a layer without an activation, which no weight can hold, got {bn.activation!r}; "
            "fold a BatchNorm without it, and do it after the folded layer"
        )
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError(
            "bn: expected running statistics, because a batch norm that uses the batch's own is no fixed scale and "
            "shift, got None; make it with track_running_stats=True"
        )
    mean, var = (scalars.per_channel(f"bn.{name}", _detached(getattr(bn, name))) for name in NEEDED[:2])
    scalars.as_many("bn.running_var", var, "bn.running_mean", mean)
    eps = scalars.number("bn.eps", bn.eps, "a number >= 0")
    if eps < 0:
        raise ValueError(f"bn.eps: expected a number >= 0, got {eps}")
    bad = (var < 0) | (var + eps <= 0)
    if bad.any():
        channel = int(bad.argmax())
        raise ValueError(
            f"bn.running_var: expected variances >= 0 and, with eps = {eps:g}, > 0, "
            f"got {var[channel]:g} in channel {channel}"
        )
    parameters = {"weight": np.ones_like(mean), "bias": np.zeros_like(mean)}
    for name in parameters:
        if getattr(bn, name) is not None:
            parameters[name] = scalars.per_channel(f"bn.{name}", _detached(getattr(bn, name)))
            scalars.as_many(f"bn.{name}", parameters[name], "bn.running_mean", mean)
    with np.errstate(over="ignore", invalid="ignore"):
        return mean, parameters["weight"] / np.sqrt(var + eps), parameters["bias"]


def _rounded(name: str, wide: Array, dtype: np.dtype[Any]) -> Array:
    with np.errstate(over="ignore", invalid="ignore"):
        new = wide.astype(dtype)
    if (lost := np.isinf(new) & np.isfinite(wide)).any():
        raise ValueError(
            f"{name}: expected folded values that {dtype} can hold, got {wide[lost][0]:g}; "
            f"pass {name}.astype(numpy.float32)"
        )
    return new
