"""What hosts call has the precision of the process, and the bits of fastbn's functions in it."""

import importlib

import numpy as np
import pytest

import fastbn
from grid import draw
from processes import run

pytestmark = pytest.mark.frameworks

DATA = """
import numpy as np, fastbn
rng = np.random.default_rng()
x, dy = (rng.normal(mean, 1, {shape}).astype(np.float32) for mean in (3, 0))
weight, bias, mean = rng.normal(size=(3, {shape}[1])).astype(np.float32)
var = np.ones_like(mean)
def results(precision, training, relu):
    running = mean.copy(), var.copy()
    y, ctx = fastbn.batch_norm(x, weight, bias, running_mean=running[0], running_var=running[1], training=training,
                               precision=precision)
    grads = fastbn.batch_norm_backward(np.where(y > 0, dy, np.float32(0)) if relu else dy, ctx)
    return np.maximum(y, 0) if relu else y, *running, grads.dx, grads.dweight, grads.dbias
def check(found, training, relu=False):
    found = [np.asarray(a) for a in found]
    for precision in ("fast", "exact"):
        same = [a.tobytes() == b.tobytes() for a, b in zip(found, results(precision, training, relu), strict=True)]
        assert all(same) if precision == "exact" else not (same[0] or same[3]), (precision, same)
"""

TORCH = """
import torch
from fastbn.adapters import torch as adapter
from fastbn.adapters.torch.fused import BatchNormActFunction
from fastbn.adapters.torch.native import register
adapter.enable()

def fused(layer, leaf):
    parts = layer.running_mean, layer.running_var, layer.weight, layer.bias
    return BatchNormActFunction.apply(leaf, *parts, layer.training, layer.momentum, layer.eps, "relu", None)

for training in (True, False):
    for activation in (None, "relu") if register.works() else ():
        layer = torch.nn.BatchNorm2d(len(weight)).train(training)
        parts = layer.weight, layer.bias, layer.running_mean, layer.running_var
        with torch.no_grad():
            for tensor, values in zip(parts, (weight, bias, mean, var), strict=True):
                tensor.copy_(torch.from_numpy(values))
        leaf = torch.from_numpy(x).requires_grad_()
        y = layer(leaf) if activation is None else fused(layer, leaf)
        y.backward(torch.from_numpy(dy))
        check([y.detach(), *parts[2:], leaf.grad, *(p.grad for p in parts[:2])], training, activation == "relu")
"""

JAX = """
import jax
from fastbn.adapters.jax import batch_norm
for training in (True, False):
    def net(x, weight, bias):
        y, *running = batch_norm(x, weight, bias, mean, var, training=training, axis=1)
        return y, running
    y, back, running = jax.vjp(net, x, weight, bias, has_aux=True)
    check([y, *running, *back(dy)], training)
"""


def exactly(script, shape):
    run(DATA.format(shape=shape) + script, env={"FASTBN_PRECISION": "exact", "JAX_PLATFORMS": "cpu"})


def test_torchs_own_operators_and_what_follows():
    pytest.importorskip("torch", reason="PyTorch is not installed; make test-all installs it")
    exactly(TORCH, (6, 5, 3, 7))


@pytest.mark.parametrize("shape", [(6, 5, 3, 7), (700, 64)], ids=str)
def test_jax(shape):
    pytest.importorskip("jax", reason="JAX is not installed; make test-all installs it")
    exactly(JAX, shape)


def by_thinc(batch_norm, x, precision):
    model = batch_norm(x.shape[1], precision=precision)
    model.initialize()
    return model(x, True)[0]


HOSTS = {
    "autograd": ("batch_norm", lambda batch_norm, x, precision: batch_norm(x, precision=precision)),
    "mygrad": ("batch_norm", lambda batch_norm, x, precision: batch_norm(x, precision=precision).data),
    "jax": ("batch_norm", lambda batch_norm, x, precision: batch_norm(x, precision=precision)[0]),
    "thinc": ("BatchNorm", by_thinc),
}


@pytest.mark.parametrize("host", HOSTS)
def test_functions_pass_it_on(rng, host):
    pytest.importorskip(host, reason=f"{host} is not installed; make test-all installs it")
    name, call = HOSTS[host]
    function = getattr(importlib.import_module(f"fastbn.adapters.{host}"), name)
    x = draw(rng, (32, 6), np.float32, mean=3)
    for precision in (None, "fast", "exact"):
        np.testing.assert_array_equal(call(function, x, precision), fastbn.batch_norm(x, precision=precision)[0])
    with pytest.raises(ValueError, match="precision: expected None, 'fast' or 'exact', got 'double'"):
        call(function, x, "double")


def test_an_unknown_name_is_an_error_of_python():
    pytest.importorskip("torch", reason="PyTorch is not installed; make test-all installs it")
    script = """
from fastbn.adapters import torch as adapter
for _ in range(2):
    try:
        adapter.enable()
    except ValueError as error:
        print(error)
"""
    message = "FASTBN_PRECISION: expected 'fast' or 'exact' in the environment, got 'double'"
    assert run(script, env={"FASTBN_PRECISION": "double"}).splitlines() == [message] * 2
