"""What the API does not offer, on the simulated GPU: relu after the normalization, rows of another arithmetic."""

import numpy as np
import pytest

import fastbn
import reference
from fastbn.arithmetic import seen
from fastbn_kernels.saved import MEAN, ROWS
from gpu_helpers import EXACT, SIMULATED, arithmetic_of
from gpu_tolerance import check_backward, check_forward
from grid import draw, poisoned, thinned

pytestmark = pytest.mark.skipif(not SIMULATED, reason="launches on NumPy's memory, as a simulated GPU alone can")

SHAPES = [(6, 3, 64), (6, 3, 49), (70, 12, 1)]


@pytest.mark.parametrize(("shape", "frozen", "dtype"), thinned(SHAPES, [False, True], [np.float32, EXACT]))
def test_relu(rng, shape, frozen, dtype):
    from fastbn.backends.cuda import launch
    from fastbn_kernels.cuda.element import RELU

    dtype, precision = arithmetic_of(dtype)
    exact = precision == "exact"
    x, dy = (seen(draw(rng, shape, dtype, mean=mean), precision) for mean in (3, 0))
    C = shape[1]
    weight, bias = draw(rng, C, np.float64), draw(rng, C, np.float64)
    mean, var = rng.normal(3, 0.5, C), rng.uniform(0.5, 2, C)
    given = {"mean": mean, "var": var} if frozen else {}
    results = []
    for tail in (None, RELU):
        y, saved = seen(poisoned(shape, dtype), precision), np.full((ROWS, C), np.nan)
        if frozen:
            launch.normalize(x, weight, bias, mean, var, 1e-5, y, saved, 0, tail)
        else:
            launch.forward(x, weight, bias, None, None, 0.1, 1.0, 1e-5, y, saved, 0, tail)
        results.append(y.view(dtype))
    plain, y = results
    np.testing.assert_array_equal(y, np.maximum(plain, 0))
    through = np.where(plain > 0, dy.view(dtype), np.float32(0))
    expected, f = reference.backward(through, x.view(dtype), weight, **given), reference.forward(x.view(dtype), **given)
    dx, dweight, dbias = poisoned(shape, dtype), np.empty(C), np.empty(C)
    launch.backward(dy, x, saved, frozen, seen(dx, precision), dweight, dbias, 0, RELU)
    check_backward(fastbn.Gradients(dx, dweight, dbias), expected, through, f, weight, exact=exact)
    sums, dx = np.empty((2, C)), poisoned(shape, dtype)
    launch.sums(dy, x, saved, sums, 0, RELU)
    launch.gradient(dy, x, saved, sums, shape[0] * shape[2], frozen, seen(dx, precision), 0, RELU)
    check_backward(fastbn.Gradients(dx, sums[1], sums[0]), expected, through, f, weight, exact=exact)


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_of_another_arithmetic(rng, shape):
    """What one precision or the CPU saves, a float64 or a float32 mean and what is rounded off it, any other takes."""
    from fastbn.backends.cuda import launch

    x, dy = draw(rng, shape, np.float32, mean=1e6), draw(rng, shape, np.float32)
    C = shape[1]
    weight, bias = draw(rng, C, np.float64), draw(rng, C, np.float64)
    f, expected = reference.forward(x, weight, bias), reference.backward(dy, x, weight)
    for first, second in (("fast", "exact"), ("exact", "fast")):
        y, dx, saved = poisoned(shape, np.float32), poisoned(shape, np.float32), np.full((ROWS, C), np.nan)
        launch.forward(seen(x, first), weight, bias, None, None, 0.1, 1.0, 1e-5, seen(y, first), saved, 0)
        held = saved[MEAN].astype(np.float32) == saved[MEAN]
        assert held.all() == (first == "fast")
        dweight, dbias = np.empty(C), np.empty(C)
        launch.backward(seen(dy, second), seen(x, second), saved, False, seen(dx, second), dweight, dbias, 0)
        check_backward(fastbn.Gradients(dx, dweight, dbias), expected, dy, f, weight)
        y[...] = np.nan
        launch.normalize(seen(x, second), weight, bias, None, None, 1e-5, seen(y, second), saved, 0)
        check_forward(y, f, weight, bias)
