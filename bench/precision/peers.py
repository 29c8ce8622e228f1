"""What the frameworks give for the same numbers: forward in training, and backward by their own autograd.

A peer that is not installed, or does not do a dtype, raises `Unavailable`. Everyone gets float32 parameters with 16-bit
data, and eps as they take it.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from peers.torch_eager import array, module, tensor
from problem import Unavailable, parameter_dtype

from .data import Problem, axis, restore

Found = dict[str, np.ndarray]


def torch_in(layout: str) -> Callable[[Problem], Found]:
    """PyTorch eager, its tensors stored as in a layout."""

    def run(problem: Problem) -> Found:
        torch, channel_axis = module(), axis(layout)
        x = tensor(problem.arrange(problem.x, layout), channel_axis).requires_grad_()
        weight, bias = (tensor(p.copy(), 0).requires_grad_() for p in (problem.weight, problem.bias))
        mean, var = torch.zeros_like(weight), torch.ones_like(weight)
        try:
            y = torch.nn.functional.batch_norm(
                x, mean, var, weight, bias, training=True, momentum=1.0, eps=problem.case.eps
            )
            y.backward(tensor(problem.arrange(problem.dy, layout), channel_axis))
        except (RuntimeError, ValueError) as error:
            raise Unavailable(f"PyTorch: {error}") from error
        return {
            "mean": mean.numpy(), "unbiased_var": var.numpy(), "y": restore(array(y.detach()), 1),
            "dx": restore(array(x.grad), 1), "dweight": weight.grad.numpy(), "dbias": bias.grad.numpy(),
        }  # fmt: skip

    return run


def numpy_plain(problem: Problem) -> Found:
    """Return what the formulas give as they stand, in the dtype of the data."""
    x, dy, weight, bias, n = problem.x, problem.dy, problem.weight, problem.bias, problem.x.shape[1]
    x, dy = problem.arrange(x, "NCHW"), problem.arrange(dy, "NCHW")
    along = {"axis": (0, 2, 3), "keepdims": True}
    weight, bias = (p.reshape(1, -1, 1, 1) for p in (weight, bias))
    with np.errstate(all="ignore"):
        mean, var = x.mean(**along), x.var(**along)
        invstd = 1 / np.sqrt(var + x.dtype.type(problem.case.eps))
        xhat = (x - mean) * invstd
        y = (xhat * weight + bias).astype(x.dtype)
        dbias, dweight = dy.sum(**along), (dy * xhat).sum(**along)
        dx = (weight * invstd * (dy - dbias / x.dtype.type(n) - xhat * (dweight / x.dtype.type(n)))).astype(x.dtype)
    found = {"mean": mean, "var": var, "dweight": dweight, "dbias": dbias}
    return {key: value.ravel() for key, value in found.items()} | {"y": restore(y, 1), "dx": restore(dx, 1)}


def _jax() -> Any:
    try:
        import jax
    except ImportError as error:
        raise Unavailable("JAX is not installed") from error
    return jax


# Each of these makes forward(x, weight, bias) -> (y, (mean, var)) for channels last.


def _formula(x: np.ndarray, eps: float) -> Any:
    jax = _jax()
    jnp = jax.numpy

    def forward(x: Any, weight: Any, bias: Any) -> Any:
        mean, var = jnp.mean(x, (0, 1, 2)), jnp.var(x, (0, 1, 2))
        return ((x - mean) * jax.lax.rsqrt(var + eps) * weight + bias).astype(x.dtype), (mean, var)

    return forward


def _flax(x: np.ndarray, eps: float) -> Any:
    try:
        from flax import linen
    except ImportError as error:
        raise Unavailable("Flax is not installed") from error
    layer = linen.BatchNorm(use_running_average=False, momentum=0.0, epsilon=eps, dtype=x.dtype)
    old = {name: np.zeros(x.shape[-1], np.float32) for name in ("mean", "var")}

    def forward(x: Any, weight: Any, bias: Any) -> Any:
        variables = {"params": {"scale": weight, "bias": bias}, "batch_stats": old}
        y, state = layer.apply(variables, x, mutable=["batch_stats"])
        return y, (state["batch_stats"]["mean"], state["batch_stats"]["var"])

    return forward


def _keras(x: np.ndarray, eps: float) -> Any:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    try:
        import keras
    except ImportError as error:
        raise Unavailable("Keras is not installed") from error
    policy = x.dtype.name if x.dtype.itemsize > 2 else f"mixed_{x.dtype.name}"
    layer = keras.layers.BatchNormalization(momentum=0.0, epsilon=eps, dtype=policy)
    layer.build(x.shape)
    old = [np.zeros(x.shape[-1], np.float32)] * 2

    def forward(x: Any, weight: Any, bias: Any) -> Any:
        y, statistics = layer.stateless_call([weight, bias], old, x, training=True)
        return y, tuple(statistics)

    return forward


@functools.lru_cache(maxsize=4)  # the same shape comes several times in a row
def _compiled(make: Any, shape: tuple[int, ...], dtype: Any, eps: float) -> Any:
    jax = _jax()
    forward = make(np.empty(shape, dtype), eps)

    def both(x: Any, weight: Any, bias: Any, dy: Any) -> Any:
        y, back, statistics = jax.vjp(forward, x, weight, bias, has_aux=True)
        return y, statistics, back(dy)

    return jax.jit(both)


def by_jax(make: Any) -> Callable[[Problem], Found]:
    """Return what a function of JAX gives, compiled, and its gradients."""

    def run(problem: Problem) -> Found:
        if problem.x.dtype == np.float64:
            raise Unavailable("JAX computes in float32 unless its process is told otherwise")
        x, dy = problem.arrange(problem.x, "NHWC"), problem.arrange(problem.dy, "NHWC")
        compiled = _compiled(make, x.shape, x.dtype, problem.case.eps)
        y, statistics, gradients = compiled(x, problem.weight, problem.bias, dy)
        (mean, var), (dx, dweight, dbias) = (map(np.asarray, values) for values in (statistics, gradients))
        found = {"mean": mean, "var": var, "dweight": dweight, "dbias": dbias}
        return found | {"y": restore(y, -1), "dx": restore(dx, -1)}

    return run


TRAINING: dict[str, Callable[[Problem], Found]] = {
    "PyTorch NCHW": torch_in("NCHW"),
    "PyTorch NHWC": torch_in("NHWC"),
    "Flax": by_jax(_flax),
    "Keras (JAX)": by_jax(_keras),
    "JAX formula": by_jax(_formula),
    "NumPy": numpy_plain,
}


@functools.lru_cache(maxsize=8)
def _session(dtype: str, eps: float, training: bool) -> Any:
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise Unavailable("ONNX Runtime, or ONNX, is not installed") from error
    kind = {"float32": onnx.TensorProto.FLOAT, "float64": onnx.TensorProto.DOUBLE}.get(dtype)
    if kind is None:
        raise Unavailable(f"ONNX Runtime has no {dtype} batch normalization on the processor")
    names = ["x", "weight", "bias", "mean", "var"]
    results = ["y", "new_mean", "new_var"][: 3 if training else 1]
    settings = {"momentum": 0.0, "training_mode": 1} if training else {}
    node = onnx.helper.make_node("BatchNormalization", names, results, epsilon=eps, **settings)
    inputs = [onnx.helper.make_tensor_value_info(n, kind, "NCHW" if n == "x" else ["C"]) for n in names]
    outputs = [onnx.helper.make_tensor_value_info(n, kind, None) for n in results]
    graph = onnx.helper.make_graph([node], "batch_norm", inputs, outputs)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 15)], ir_version=10)
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    except Exception as error:
        raise Unavailable(f"ONNX Runtime: {error}") from error


def onnx_runtime(problem: Problem, mean: np.ndarray, var: np.ndarray) -> Found:
    """Return the y of given statistics."""
    own = parameter_dtype(problem.x.dtype)
    given = {"x": problem.arrange(problem.x, "NCHW"), "weight": problem.weight, "bias": problem.bias}
    session = _session(problem.x.dtype.name, problem.case.eps, False)
    return {"y": restore(session.run(None, given | {"mean": mean.astype(own), "var": var.astype(own)})[0], 1)}


def onnx_training(problem: Problem) -> Found:
    """ONNX Runtime with `training_mode`; it has no gradients."""
    old = np.zeros(problem.case.channels, problem.x.dtype)
    given = {"x": problem.arrange(problem.x, "NCHW"), "weight": problem.weight, "bias": problem.bias}
    session = _session(problem.x.dtype.name, problem.case.eps, True)
    y, mean, var = session.run(None, given | {"mean": old, "var": old})
    return {"y": restore(y, 1), "mean": mean, "var": var}
