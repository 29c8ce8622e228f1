"""Derivatives beyond the gradients agree with the oracle and with central differences."""

import numpy as np
import pytest

import fastbn
import reference
from grid import LARGE, SMALL, STORED, affine, draw
from tolerance import check_differences, check_double_backward, check_jvp


def given_statistics(rng, channels, dtype, frozen):
    """What the oracle and batch_norm are given to normalise with running statistics, or nothing."""
    if not frozen:
        return {}, {}
    mean, var = draw(rng, channels, dtype), rng.uniform(0.1, 3, channels).astype(dtype)
    return {"mean": mean, "var": var}, {"running_mean": mean, "running_var": var, "training": False}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("shape", "axis"), SMALL + LARGE)
@pytest.mark.parametrize("frozen", [False, True])
def test_against_the_oracle(rng, shape, axis, dtype, frozen):
    x, dy, v = draw(rng, shape, dtype, mean=3), draw(rng, shape, dtype, mean=0.5), draw(rng, shape, dtype, mean=-0.5)
    weight, bias = affine(rng, shape[axis], dtype)
    ddweight, ddbias = affine(rng, shape[axis], dtype)
    statistics, running = given_statistics(rng, shape[axis], dtype, frozen)
    _, ctx = fastbn.batch_norm(x, weight, bias, axis=axis, **running)
    f = reference.forward(x, axis=axis, **statistics)
    results = fastbn.batch_norm_double_backward(v, ddweight, ddbias, dy, ctx)
    expected = reference.double_backward(v, ddweight, ddbias, dy, x, weight, axis=axis, **statistics)
    check_double_backward(results, expected, v, ddweight, ddbias, dy, f, weight)
    ty = fastbn.batch_norm_jvp(v, ddweight, ddbias, ctx)
    check_jvp(
        ty, reference.jvp(v, ddweight, ddbias, x, weight, axis=axis, **statistics), v, ddweight, ddbias, f, weight
    )
    assert {a.dtype for a in (*results, ty)} == {np.dtype(dtype)}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("shape", "axis"), [((5, 3), 1), ((4, 2, 3), 1), ((3, 2, 2, 2), -1), ((2, 3, 2, 2), 0)])
def test_against_central_differences(rng, shape, axis, training):
    x, dy, v = (draw(rng, shape, np.float64) for _ in range(3))
    weight, bias = affine(rng, shape[axis], np.float64)
    ddweight, ddbias = affine(rng, shape[axis], np.float64)
    _, running = given_statistics(rng, shape[axis], np.float64, not training)

    def forward():
        return fastbn.batch_norm(x, weight, bias, axis=axis, **running)

    def loss():
        grads = fastbn.batch_norm_backward(dy, forward()[1])
        return float((v * grads.dx).sum() + ddweight @ grads.dweight + ddbias @ grads.dbias)

    ddy, dx, dweight = fastbn.batch_norm_double_backward(v, ddweight, ddbias, dy, forward()[1])
    for values, gradient in ((dy, ddy), (x, dx), (weight, dweight)):
        check_differences(loss, values, gradient)

    ty = fastbn.batch_norm_jvp(v, ddweight, ddbias, forward()[1])
    starts = x.copy(), weight.copy(), bias.copy()

    def along(step):
        for values, start, tangent in zip((x, weight, bias), starts, (v, ddweight, ddbias), strict=True):
            values[...] = start + step * tangent
        return forward()[0]

    slope = (along(1e-5) - along(-1e-5)) / 2e-5
    np.testing.assert_allclose(ty, slope, rtol=1e-6, atol=1e-6)
