"""A layer as a model of ONNX, and a layer from a node of one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
import onnx
from onnx import helper, numpy_helper

import fastbn
from fastbn.adapters.onnx.node import options

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

OLDEST = 7  # in which a node without further attributes infers
STATE = ("weight", "bias", "running_mean", "running_var")
HALVES = ("float16", "bfloat16")


def to_onnx(layer: fastbn.BatchNorm, *, ndim: int = 4, dtype: Any = None, opset: int = 15) -> Any:
    """Return a model that does what a layer does in inference: one node BatchNormalization.

    Parameters
    ----------
    layer : BatchNorm
        With running statistics.
    ndim : int, default 4
        How many axes x has: 4 for images, 2 for (N, C). Their sizes are open, but for that of the channels. ONNX has
        the channels on axis 1; for a layer with others there is a node Transpose before and one behind.
    dtype : dtype, optional
        Of x and y: float32, float64, float16 or, from opset 14 on, bfloat16 (ml_dtypes). Default: the layer's.
        Parameters and statistics keep the layer's from opset 15 on, and have this one before.
    opset : int, default 15
        From 7 to the newest that the package onnx knows.

    Returns
    -------
    onnx.ModelProto
        With the input ``x``, the output ``y``, and initializers by the names of the layer's state. A layer without a
        weight and bias has ones and zeros there.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit.

    Examples
    --------
    >>> import fastbn
    >>> from fastbn.adapters.onnx import from_onnx, to_onnx
    >>> model = to_onnx(fastbn.BatchNorm(8, axis=-1))
    >>> [node.op_type for node in model.graph.node]
    ['Transpose', 'BatchNormalization', 'Transpose']
    >>> from_onnx(model).num_features
    8
    """
    if not isinstance(layer, fastbn.BatchNorm):
        raise TypeError(f"layer: expected a fastbn.BatchNorm, got a {type(layer).__name__}")
    if layer.activation is not None or isinstance(layer.axis, tuple):
        got = f"activation={layer.activation!r}, axis={layer.axis}"
        raise ValueError(f"layer: expected one without activation and with one axis, as ONNX's operator is, got {got}")
    if layer.running_mean is None:
        raise ValueError("layer: expected running statistics, which inference needs, got track_running_stats=False")
    newest = onnx.defs.onnx_opset_version()
    if isinstance(opset, bool) or not isinstance(opset, int) or not OLDEST <= opset <= newest:
        raise ValueError(f"opset: expected an integer from {OLDEST} to {newest}, got {opset!r}")
    data = np.dtype(layer.dtype if dtype is None else dtype)
    if data.name not in ("float32", "float64", *HALVES) or (data.name == "bfloat16" and opset < 14):
        known = "float32, float64, float16" + (" or bfloat16 (ml_dtypes)" if opset >= 14 else "")
        raise TypeError(f"dtype: expected {known} in opset {opset}, got {data}")
    axis = _axis(layer.axis, ndim)
    parameters = dict(zip(STATE, _parameters(layer, layer.dtype if opset >= 15 else data), strict=True))

    attributes: dict[str, Any] = {"epsilon": layer.eps}
    if layer.momentum is not None:
        attributes["momentum"] = 1 - layer.momentum
    inside = ("x", "y") if axis == 1 else ("x_channels_first", "y_channels_first")
    nodes = [helper.make_node("BatchNormalization", [inside[0], *STATE], [inside[1]], name="batch_norm", **attributes)]
    shape: list[Any] = ["N", *(f"D{i}" for i in range(1, ndim))]
    shape[axis] = layer.num_features
    if axis != 1:
        order = list(range(ndim))
        order.insert(1, order.pop(axis))
        back = np.argsort(order).tolist()
        nodes.insert(0, helper.make_node("Transpose", ["x"], [inside[0]], name="channels_to_1", perm=order))
        nodes.append(helper.make_node("Transpose", [inside[1]], ["y"], name="channels_back", perm=back))
    element = helper.np_dtype_to_tensor_dtype(data)
    x, y = (helper.make_tensor_value_info(name, element, shape) for name in "xy")
    initializers = [numpy_helper.from_array(value, name) for name, value in parameters.items()]
    graph = helper.make_graph(nodes, "batch_norm", [x], [y], initializers)
    opsets = [helper.make_opsetid("", opset)]
    # The oldest format that holds it, so that older runtimes take it; since 4, initializers are no inputs.
    version = max(4, helper.find_min_ir_version_for(opsets))
    return helper.make_model(
        graph, opset_imports=opsets, ir_version=version, producer_name="fastbn", producer_version=fastbn.__version__
    )


def _axis(axis: int, ndim: object) -> int:
    """Return the layer's channel axis, counted from the front of so many axes."""
    if isinstance(ndim, bool) or not isinstance(ndim, int) or ndim < 2 or not -ndim <= axis < ndim:
        raise ValueError(
            f"ndim: expected an integer >= 2 of axes of which the layer's axis {axis} is one, got {ndim!r}"
        )
    return axis % ndim


def _parameters(layer: fastbn.BatchNorm, dtype: np.dtype[Any]) -> Iterable[Array]:
    """Return weight, bias and statistics of a layer as a node has them."""
    absent = {"weight": np.ones(layer.num_features), "bias": np.zeros(layer.num_features)}
    for name in STATE:
        value = getattr(layer, name)
        value = absent[name] if value is None else value
        with np.errstate(over="ignore"):
            new = value.astype(dtype)
        if not np.array_equal(np.isinf(new), np.isinf(value)):
            raise ValueError(f"dtype: expected one that holds the layer's {name}, got {dtype}")
        yield new


def from_onnx(model: Any, name: str | None = None) -> fastbn.BatchNorm:
    """Return a layer that computes what a node BatchNormalization of a model does.

    Parameters
    ----------
    model : onnx.ModelProto, str or path
        Of any opset.
    name : str, optional
        The node's name, or that of its first output. Default: the only one there is.

    Returns
    -------
    BatchNorm
        With ``axis=1``, ``correction=0``, the node's epsilon, one minus its momentum, and copies of its numbers:
        float64 if they are that, float32 otherwise. It is in the node's mode: of inference, mostly.

    Raises
    ------
    TypeError, ValueError
        If there is no such node, or more than one; if its parameters are not constants of the model, or it has a
        statistic for every activation (``spatial=0``).
    OSError
        If the file cannot be read.
    """
    if isinstance(model, str | os.PathLike):
        model = onnx.load(model)
    if not isinstance(model, onnx.ModelProto):
        raise TypeError(f"model: expected an onnx.ModelProto or a path, got a {type(model).__name__}")
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 1)
    node = _node(model, name)
    how = options(node, opset)
    label = f"node {node.name or node.output[0]!r}"
    constants = _constants(model)
    values = []
    for what, key in zip(STATE, node.input[1:], strict=True):
        if key not in constants:
            raise ValueError(f"model: expected a constant for the {what} of {label}, got {key!r}, which is computed")
        values.append(constants[key])
    mean = values[2]
    if not how.spatial and mean.ndim != 1:
        raise ValueError(
            f"model: expected statistics of channels in {label}, got spatial=0 and statistics of shape {mean.shape}; "
            "fastbn.adapters.onnx.batch_normalization computes it"
        )
    layer = fastbn.BatchNorm(
        mean.size,
        eps=_decimal(how.eps),
        momentum=round(1 - _decimal(1 - how.momentum), 9),
        correction=0,
        dtype=np.float64 if mean.dtype == np.float64 else np.float32,
    )
    state = dict(zip(STATE, (value.astype(layer.dtype) for value in values), strict=True))
    layer.load_state_dict({**state, "num_batches_tracked": np.array(0)})
    return layer.train(how.training)


def _node(model: Any, name: str | None) -> Any:
    """Return the node of a name, or the only one."""
    nodes = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    if name is None and len(nodes) == 1:
        return nodes[0]
    found = [node for node in nodes if name is not None and name in (node.name, node.output[0])]
    if len(found) == 1:
        return found[0]
    names = [node.name or node.output[0] for node in nodes]
    shown = f"{names[:8]}{' and more' if len(names) > 8 else ''}"
    raise ValueError(f"name: expected one BatchNormalization of this model, which has {shown}, got {name!r}")


def _constants(model: Any) -> dict[str, Array]:
    """Return the arrays of a model: initializers, and the results of nodes Constant."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            found[node.output[0]] = node.attribute[0].t
    return {name: numpy_helper.to_array(tensor) for name, tensor in found.items()}


def _decimal(value: float) -> float:
    """Return the shortest decimal with a value's float32, in which attributes are stored: 1e-5, not 9.9999997e-6."""
    return float(str(np.float32(value)))
