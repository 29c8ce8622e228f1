"""ONNX: layers to models of one node and back, and the operator BatchNormalization, of every opset, by fastbn.

    from fastbn.adapters.onnx import from_onnx, to_onnx

    bn = from_onnx("net.onnx", "/features/bn1/BatchNormalization")  # a fastbn.BatchNorm
    model = to_onnx(bn)  # the same as bn.to_onnx()

ONNX weighs the old value of running statistics where fastbn weighs the new one (momentum 0.9 there is 0.1 here), keeps
the biased variance (``correction=0``), and has the channels on axis 1.
"""

try:
    import onnx as _onnx  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError('fastbn.adapters.onnx needs onnx: pip install "fastbn[onnx]"', name=error.name) from error

from fastbn.adapters.onnx.models import from_onnx, to_onnx
from fastbn.adapters.onnx.node import batch_normalization

__all__ = ["batch_normalization", "from_onnx", "to_onnx"]
