"""Several channel axes, and a layer with everything."""

import numpy as np
import pytest

import fastbn
from beyond import F4, F8, cases, close, passes

AXES = (1, 2, 3), (1, 2), (0, 2), (1,), (-1, 1)


@pytest.mark.parametrize(("axis", "order"), cases(AXES, "CF", compiled=[(axis, "C") for axis in AXES]))
def test_several_axes(axis, order):
    rng = np.random.default_rng(13)
    shape = (8, 3, 4, 5)
    places = tuple(sorted(i % 4 for i in axis))
    channels = tuple(shape[i] for i in places)
    along = tuple(i for i in range(4) if i not in places)
    x, dy, residual = (rng.standard_normal(shape).astype(F4).copy(order=order) for _ in range(3))
    weight, bias = rng.standard_normal((2, *channels)).astype(F4)
    running = np.asfortranarray(np.zeros(channels, F4)), np.ones(channels, F4)
    given = {"running_mean": running[0], "running_var": running[1], "axis": axis, "activation": "relu"}
    y, ctx = fastbn.batch_norm(x, weight, bias, residual=residual, **given)
    grads = fastbn.batch_norm_backward(dy, ctx)

    def rows(array):
        return array.transpose(*along, *places).reshape(-1, weight.size)

    flat = rows(x), rows(dy), weight.reshape(-1), bias.reshape(-1)
    expected, (dx, dweight, dbias, dresidual) = passes(*flat, "relu", rows(residual))
    close(rows(y), expected, F4)
    close(rows(grads.dx), dx, F4)
    close(rows(grads.dresidual), dresidual, F4)
    assert grads.dweight.shape == grads.dbias.shape == channels
    close(grads.dweight.reshape(-1), dweight, F4, 40.0)
    close(grads.dbias.reshape(-1), dbias, F4, 40.0)
    mean = rows(x).mean(0, dtype=F8)
    close(running[0].reshape(-1), 0.1 * mean, F4)
    sums = fastbn.backward_sums(dy, ctx)
    close(fastbn.batch_norm_backward(dy, ctx, sums=sums, out=dy).dx, grads.dx, F4)
    moments = fastbn.batch_moments(x, axis=axis)
    close(moments.mean, mean, F4)
    inference = fastbn.batch_norm_inference(x, *running, weight, bias, axis=axis, out=x)
    assert inference is x


def test_layer_with_everything():
    rng = np.random.default_rng(14)
    x, dy, residual = (rng.standard_normal((8, 3, 4, 5)).astype(F4) for _ in range(3))
    layer = fastbn.BatchNorm((4, 5), axis=(2, 3), weight=False, activation="relu", ghost_batch_size=3, momentum=None)
    assert layer.weight is None
    assert layer.bias.shape == (4, 5)
    layer(x, residual=residual)
    assert layer.num_batches_tracked == 3
    dx = layer.backward(dy)
    assert dx.shape == layer.dresidual.shape == x.shape
    parts = [x[:3], x[3:6], x[6:]]
    close(layer.running_mean, np.mean([part.mean((0, 1)) for part in parts], axis=0), F4)
    close(layer.running_var, np.mean([part.var((0, 1), ddof=1) for part in parts], axis=0), F4)
    layer(x, mask=np.arange(8)[:, None] > 1)
    assert layer.num_batches_tracked == 6
