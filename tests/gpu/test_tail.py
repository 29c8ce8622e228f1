"""Launches on the simulated GPU: what is done after the normalization, rows of another arithmetic."""

import numpy as np
import pytest

import fastbn
import reference
from fastbn.arithmetic import seen
from fastbn_kernels.saved import MEAN, ROWS
from gpu_helpers import EXACT, SIMULATED, arithmetic_of
from gpu_tolerance import check_backward, check_forward
from grid import draw, poisoned, thinned
from tolerance import check_backward as check_off

pytestmark = pytest.mark.skipif(not SIMULATED, reason="launches on NumPy's memory, as a simulated GPU alone can")

SHAPES = [(6, 3, 64), (6, 3, 49), (70, 12, 1)]
SMOOTH = "tanh", "sigmoid", "silu", "gelu"
EVERY = [("relu", True), ("relu", False), ("relu6", False), ("leaky_relu", True), *((name, True) for name in SMOOTH)]


CASES = thinned(SHAPES, [False, True], [np.float32, EXACT, np.float16], [(None, True), *EVERY])


class Tensors:
    """A tensor, its parameters and statistics, and launches of it."""

    def __init__(self, rng, shape, frozen, dtype):
        self.shape, self.frozen = shape, frozen
        self.dtype, self.precision = arithmetic_of(dtype)
        self.x, self.dy, self.residual = (draw(rng, shape, self.dtype, mean=mean) for mean in (3, 0, 0))
        self.weight, self.bias = draw(rng, shape[1], np.float64), draw(rng, shape[1], np.float64)
        mean, var = rng.normal(3, 0.5, shape[1]), rng.uniform(0.5, 2, shape[1])
        self.given = {"mean": mean, "var": var} if frozen else {}
        self.saved = np.full((ROWS, shape[1]), np.nan)

    def seen(self, *arrays):
        return tuple(seen(a, self.precision) if isinstance(a, np.ndarray) else a for a in arrays)

    def forward(self, tail):
        from fastbn.backends.cuda import launch

        out = poisoned(self.shape, self.dtype)
        x, y = self.seen(self.x, out)
        if self.frozen:
            launch.normalize(x, self.weight, self.bias, *self.given.values(), 1e-5, y, self.saved, 0, tail)
        else:
            launch.forward(x, self.weight, self.bias, None, None, 0.1, 1.0, 1e-5, y, self.saved, 0, tail)
        return out

    def backward(self, dy, x, tail):
        from fastbn.backends.cuda import launch

        dx, dweight, dbias = poisoned(self.shape, self.dtype), np.empty(self.shape[1]), np.empty(self.shape[1])
        launch.backward(*self.seen(dy, x), self.saved, self.frozen, *self.seen(dx), dweight, dbias, 0, tail)
        return fastbn.Gradients(dx, dweight, dbias)

    def sums_then_gradient(self, dy, x, tail):
        from fastbn.backends.cuda import launch

        sums, dx = np.empty((2, self.shape[1])), poisoned(self.shape, self.dtype)
        dy, x, out = self.seen(dy, x, dx)
        launch.sums(dy, x, self.saved, sums, 0, tail[:2] if isinstance(tail, tuple) else tail)
        count = self.shape[0] * self.shape[2]
        launch.gradient(dy, x, self.saved, sums, count, self.frozen, out, 0, tail)
        return fastbn.Gradients(dx, sums[1], sums[0])


@pytest.mark.parametrize(("shape", "frozen", "dtype", "tail"), CASES)
def test_tails(rng, shape, frozen, dtype, tail):
    """y is that of what was normalised, the gradients are those of a dy that came through, which a residual's is."""
    from fastbn_kernels.cuda.tails import named
    from simulated.gpu_vector import _act, _slope

    name, is_added = tail
    case = Tensors(rng, shape, frozen, dtype)
    dtype, activation = case.dtype, named(name)
    plain = case.forward(None)
    added = case.residual.astype(np.float64) if is_added else 0.0
    y = case.forward((activation, *case.seen(case.residual)) if is_added else activation)
    z = plain.astype(np.float64) + added
    rounding = float(np.finfo(dtype).eps)
    off = 2 * rounding * (np.abs(plain).astype(np.float64) + np.abs(z) + 1)  # z is not rounded to plain and added
    kind = activation and activation.kind
    expected = z if kind is None else np.vectorize(lambda u: _act(u, kind))(z)
    assert (np.abs(y - expected) <= 1.13 * off).all()
    if kind is None:
        return
    dy = case.dy.copy()
    dy[(np.abs(z) <= off) | (np.abs(z - 6) <= off)] = 0  # beside a bend
    through = dy * np.vectorize(lambda u: _slope(u, kind))(z)
    f = reference.forward(case.x, **case.given)
    gradients = reference.backward(through, case.x, case.weight, **case.given)
    slack = float(np.max(2 * off) * np.abs(dy).max()) if name in SMOOTH or is_added else 0.0
    for run in (case.backward, case.sums_then_gradient):
        dresidual = poisoned(shape, dtype)
        whole = (activation, *case.seen(case.residual, dresidual)) if is_added else activation
        found = run(dy, case.x, whole)
        exact = case.precision == "exact"
        if slack:
            check_off(found, gradients, dy, f, case.weight, off=slack, exact=exact)
        else:
            check_backward(found, gradients, through.astype(dtype), f, case.weight, exact=exact)
        if is_added:
            assert (np.abs(dresidual - through) <= slack).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_in_place(rng, shape):
    """A backward pass whose x holds y is that of what y was made of, with a dy that came through."""
    from fastbn_kernels.cuda.tails import inverse, named

    case = Tensors(rng, shape, False, np.float32)
    case.saved[:] = rng.uniform(0.5, 2, case.saved.shape)
    slope, y, dy = np.float32(0.3), case.residual, case.dy
    z, through = np.where(y > 0, y, y / slope), np.where(y > 0, dy, dy * slope)
    for run in (case.backward, case.sums_then_gradient):
        both = run(dy, y, inverse(named("leaky_relu", 0.3))), run(through, z, None)
        for name in ("dx", "dweight", "dbias"):
            np.testing.assert_array_equal(*(getattr(gradients, name) for gradients in both))


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
