"""The operator BatchNormalization of ONNX, as each opset defines it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import onnx

import fastbn

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

INPUTS = ("X", "scale", "B", "mean", "var")


class Options(NamedTuple):
    """What a node asks for, whatever its opset calls it.

    Attributes
    ----------
    training : bool
        Whether the statistics are those of the batch.
    spatial : bool
        Whether they are those of channels; otherwise each activation, (C, D1, ..., Dn), has its own.
    eps : float
    momentum : float
        The weight of the new value, which is one minus ONNX's.
    """

    training: bool
    spatial: bool
    eps: float
    momentum: float


def options(node: Any, opset: int) -> Options:
    """Read the attributes of a node BatchNormalization.

    Parameters
    ----------
    node : onnx.NodeProto
    opset : int
        The version of the default domain that the node's model imports: 1 to 5 and 6 know `is_test`, which is 0 unless
        given; 7 to 13 train if there are outputs beyond Y; from 14 on there is `training_mode`. Up to 8 there is
        `spatial`. `consumed_inputs`, of opset 1, says nothing of what is computed.

    Returns
    -------
    Options
    """
    if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx"):
        raise ValueError(f"node: expected a BatchNormalization of ONNX, got {node.domain or 'ai.onnx'}.{node.op_type}")
    if opset < 1:
        raise ValueError(f"opset: expected an integer >= 1, got {opset}")
    given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    if opset >= 14:
        training = bool(given.get("training_mode", 0))
    elif opset >= 7:
        training = any(node.output[1:])
    else:
        training = not given.get("is_test", 0)
    if not training and any(node.output[1:]):
        raise ValueError(f"node: expected one output in inference, got {list(node.output)}")
    spatial = opset >= 9 or bool(given.get("spatial", 1))
    return Options(training, spatial, given.get("epsilon", 1e-5), 1 - given.get("momentum", 0.9))


def batch_normalization(node: Any, inputs: Sequence[Array], opset: int) -> tuple[Array | None, ...]:
    """Compute a node BatchNormalization.

    Parameters
    ----------
    node : onnx.NodeProto
    inputs : sequence of five arrays of float32, float64, float16 or bfloat16 (ml_dtypes)
        X, scale, B, mean and var. X is (N, C, D1, ..., Dn); from opset 9 on also (N,), which is one channel. The
        others are (C,), or, with ``spatial=0``, (C, D1, ..., Dn). None is changed.
    opset : int
        As for `options`.

    Returns
    -------
    tuple of arrays
        As many as the node has outputs, with None for those without a name: Y; in training the new running mean and
        variance; up to opset 13 also the mean and variance of the batch. The variances are biased ones.

    Raises
    ------
    TypeError, ValueError
        If the node is another operator, or something does not fit.

    Notes
    -----
    The definitions: https://onnx.ai/onnx/operators/onnx__BatchNormalization.html. Opsets before 14 do not say whether
    the variance in the running one is biased; here it is, as in onnx's own reference implementation.
    """
    training, spatial, eps, momentum = options(node, opset)
    if len(inputs) != 5:
        raise ValueError(f"inputs: expected five, {', '.join(INPUTS)}, got {len(inputs)}")
    x, *parameters = (np.asarray(value) for value in inputs)
    shape, statistics = x.shape, parameters[2].shape
    if x.ndim == 1 and opset >= 9:
        x = x.reshape(-1, 1)
    if not spatial:
        if parameters[2].size == int(np.prod(shape[1:])):
            x = x.reshape(len(x), -1)
        elif training:
            raise ValueError(
                f"inputs: expected a mean of shape {shape[1:]}, one for every activation, with spatial=0 in training, "
                f"got shape {statistics}"
            )
    # fastbn takes parameters of float32 and float64, in which the halves are exact.
    wide = [
        np.array(value, value.dtype if value.dtype in (np.float32, np.float64) else np.float32).reshape(-1)
        for value in parameters
    ]
    scale, bias, mean, var = wide
    y, context = fastbn.batch_norm(
        x, scale, bias, running_mean=mean, running_var=var, training=training, momentum=momentum, correction=0, eps=eps
    )
    results: list[Array] = [y.reshape(shape)]
    if training:
        results += [mean.astype(parameters[2].dtype), var.astype(parameters[3].dtype)]
        moments = context.moments
        assert moments is not None
        if opset < 14:
            results += [moments.mean.astype(x.dtype), moments.var().astype(x.dtype)]
        results[1:] = [value.reshape(statistics) for value in results[1:]]
    if len(node.output) > len(results):
        raise ValueError(f"node: expected at most {len(results)} outputs in opset {opset}, got {list(node.output)}")
    return tuple(value if name else None for name, value in zip(node.output, results, strict=False))
