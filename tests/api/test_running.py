"""Running statistics, step by step."""

import numpy as np
import pytest

import fastbn
import reference
from grid import STORED, draw
from tolerance import check, statistics


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("momentum", [0.0, 0.1, 0.37, 1.0])
@pytest.mark.parametrize("correction", [0, 1, 1.5])
def test_every_step(rng, dtype, momentum, correction):
    mean, var = draw(rng, 4, dtype), rng.uniform(0.5, 2, 4).astype(dtype)
    for _ in range(5):
        x = draw(rng, (6, 4, 5), dtype, mean=2, std=3)
        old_mean, old_var = mean.copy(), var.copy()
        fastbn.batch_norm(x, running_mean=mean, running_var=var, momentum=momentum, correction=correction)
        batch_mean, batch_var = reference.moments(x)
        for new, old, batch in (
            (mean, old_mean, batch_mean),
            (var, old_var, batch_var * 30 / (30 - correction)),
        ):
            want = reference.running(old, batch, momentum)
            size = np.abs(old) + np.abs(batch) + np.sqrt(batch_var)  # a mean is off by a part of a standard deviation
            check(new, want, statistics(30, 8, dtype) * size.max())


def test_momentum_is_the_weight_of_the_new_value():
    mean, var = np.array([10.0]), np.array([10.0])
    fastbn.batch_norm(np.array([[1.0], [3.0]]), running_mean=mean, running_var=var, momentum=0.1)
    np.testing.assert_allclose(mean, 0.9 * 10 + 0.1 * 2)
    np.testing.assert_allclose(var, 0.9 * 10 + 0.1 * 2)  # ((1 - 2)^2 + (3 - 2)^2) / (2 - 1)


def test_inference_leaves_them_alone(rng):
    mean, var = np.zeros(3), np.ones(3)
    fastbn.batch_norm(draw(rng, (5, 3), np.float32), running_mean=mean, running_var=var, training=False)
    np.testing.assert_array_equal(mean, 0)
    np.testing.assert_array_equal(var, 1)


@pytest.mark.parametrize("stored", ["sliced", "reversed"])
def test_of_any_strides(rng, stored):
    x = draw(rng, (5, 3), np.float32)
    plain = np.zeros(3, np.float32), np.ones(3, np.float32)
    strided = tuple(STORED[stored](array) for array in plain)
    fastbn.batch_norm(x, running_mean=plain[0], running_var=plain[1])
    fastbn.batch_norm(x, running_mean=strided[0], running_var=strided[1])
    for a, b in zip(plain, strided, strict=True):
        np.testing.assert_array_equal(a, b)


def test_cumulative_average_is_the_mean_of_all_batches(rng):
    layer = fastbn.BatchNorm(3, momentum=None, dtype=np.float64)
    batches = [draw(rng, (10, 3), np.float64, mean=i) for i in range(6)]
    for x in batches:
        layer(x)
    np.testing.assert_allclose(layer.running_mean, np.mean([x.mean(0) for x in batches], 0), rtol=1e-13)
    np.testing.assert_allclose(layer.running_var, np.mean([x.var(0, ddof=1) for x in batches], 0), rtol=1e-13)
    assert layer.num_batches_tracked == 6
