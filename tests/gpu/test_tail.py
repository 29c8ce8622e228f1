"""What is done after the normalization, on the simulated GPU: relu, before the API offers it."""

import numpy as np
import pytest

import fastbn
import reference
from fastbn_kernels.saved import ROWS
from gpu_helpers import SIMULATED
from grid import draw, poisoned
from tolerance import check_backward

pytestmark = pytest.mark.skipif(not SIMULATED, reason="launches on NumPy's memory, as a simulated GPU alone can")

SHAPES = [(6, 3, 64), (6, 3, 49), (70, 12, 1)]


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_relu(rng, shape, frozen):
    from fastbn.backends.cuda import launch
    from fastbn_kernels.cuda.element import RELU

    x, dy = draw(rng, shape, np.float32, mean=3), draw(rng, shape, np.float32)
    C = shape[1]
    weight, bias = draw(rng, C, np.float64), draw(rng, C, np.float64)
    mean, var = rng.normal(3, 0.5, C), rng.uniform(0.5, 2, C)
    given = {"mean": mean, "var": var} if frozen else {}
    results = []
    for tail in (None, RELU):
        y, saved = poisoned(shape, np.float32), np.full((ROWS, C), np.nan)
        if frozen:
            launch.normalize(x, weight, bias, mean, var, 1e-5, y, saved, 0, tail)
        else:
            launch.forward(x, weight, bias, None, None, 0.1, 1.0, 1e-5, y, saved, 0, tail)
        results.append(y)
    plain, y = results
    np.testing.assert_array_equal(y, np.maximum(plain, 0))
    through = np.where(plain > 0, dy, np.float32(0))
    expected, f = reference.backward(through, x, weight, **given), reference.forward(x, **given)
    dx, dweight, dbias = poisoned(shape, np.float32), np.empty(C), np.empty(C)
    launch.backward(dy, x, saved, frozen, dx, dweight, dbias, 0, RELU)
    check_backward(fastbn.Gradients(dx, dweight, dbias), expected, through, f, weight)
    sums, dx = np.empty((2, C)), poisoned(shape, np.float32)
    launch.sums(dy, x, saved, sums, 0, RELU)
    launch.gradient(dy, x, saved, sums, shape[0] * shape[2], frozen, dx, 0, RELU)
    check_backward(fastbn.Gradients(dx, sums[1], sums[0]), expected, through, f, weight)
