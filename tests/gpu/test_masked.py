"""GPU kernels with a mask, on the simulated GPU: the statistics of what counts, and nothing else is read."""

import ml_dtypes
import numpy as np
import pytest

import fastbn
import reference
from fastbn.arithmetic import seen
from fastbn.backends.cuda import plan as cuda_plan
from fastbn_kernels.saved import M2, MEAN, MEAN_LO, ROWS, VAR
from gpu_helpers import EXACT, SIMULATED, arithmetic_of, gpu  # noqa: F401
from gpu_tolerance import check_backward, check_forward, check_var
from grid import draw, poisoned, thinned

pytestmark = pytest.mark.skipif(not SIMULATED, reason="launches on NumPy's memory, as a simulated GPU alone can")

# Whole vectors, segments that share them, one channel; rows, several groups of columns, narrow rows together, a value
# at a time.
SHAPES = [(6, 3, 64), (6, 3, 49), (5, 1, 30), (70, 12, 1), (20, 70, 1), (48, 3, 1), (41, 37, 1)]
DTYPES = [np.float32, np.float64, ml_dtypes.bfloat16, EXACT]
MASKS = ["padded", "random", "one"]


def mask_of(rng, kind, N, S):
    """A mask (N, S)."""
    if kind == "one":
        mask = np.zeros((N, S), bool)
        mask[rng.integers(N), rng.integers(S)] = True
        return mask
    if kind == "random":
        return rng.random((N, S)) < 0.5
    if S == 1:
        return np.ascontiguousarray(np.arange(N)[:, None] % 20 < 1 + np.arange(N)[:, None] // 20 * 5)
    return np.arange(S) < rng.integers(1, S + 1, N)[:, None]


class Case:
    """A tensor with a mask, and what the oracle makes of what counts, in an array (values, C) of its own."""

    def __init__(self, rng, shape, kind, dtype, mean=3.0, frozen=False):
        from fastbn.backends.cuda import masked

        self.launch = masked
        self.dtype, self.precision = arithmetic_of(dtype)
        self.exact, self.shape, C = self.precision == "exact", shape, shape[1]
        self.mask = mask_of(rng, kind, shape[0], shape[2])
        x, dy = draw(rng, shape, self.dtype, mean=mean), draw(rng, shape, self.dtype)
        self.weight, self.bias = draw(rng, C, np.float64), draw(rng, C, np.float64)
        self.given = {"mean": rng.normal(3, 0.5, C), "var": rng.uniform(0.5, 2, C)} if frozen else {}
        self.f = reference.forward(self.only(x), self.weight, self.bias, **self.given)
        self.expected = reference.backward(self.only(dy), self.only(x), self.weight, **self.given)
        self.only_dy = self.only(dy)
        aside = np.broadcast_to(~self.mask[:, None, :], shape)
        x[aside], dy[aside] = rng.choice([np.nan, np.inf], 2)
        self.x, self.dy = seen(x, self.precision), seen(dy, self.precision)
        self.count = float(self.mask.sum())
        self.saved, self.running = np.full((ROWS, C), np.nan), np.array([[0.5] * C, [2.0] * C])

    def only(self, array):
        """Return what counts, (values, C)."""
        return np.moveaxis(array, 1, -1)[self.mask]

    def new(self):
        """Return a poisoned output, and as kernels see it."""
        array = poisoned(self.shape, self.dtype)
        return array, seen(array, self.precision)

    def forward(self, x, y, tail=None):
        """Normalise x to y."""
        given = x, self.mask
        if self.given:
            statistics = self.given["mean"], self.given["var"]
            self.launch.normalize(*given, self.weight, self.bias, *statistics, 1e-5, y, self.saved, 0, tail)
        else:
            options = *self.running, 0.25, 1.0, 1e-5
            self.launch.forward(*given, self.count, self.weight, self.bias, *options, y, self.saved, 0, tail)

    def backward(self, dy, x, dx, tail=None):
        """Return dweight, dbias and the sums."""
        C = self.shape[1]
        found, (dweight, dbias) = np.full((2, C), np.nan), np.full((2, C), np.nan)
        frozen = bool(self.given)
        self.launch.backward(dy, x, self.mask, self.count, self.saved, frozen, dx, dweight, dbias, found, 0, tail)
        np.testing.assert_array_equal(found, [dbias, dweight])
        return dweight, dbias

    def check(self):
        """Hold both passes against the oracle, and each over its own input against itself."""
        y, target = self.new()
        self.forward(self.x, target)
        assert not np.moveaxis(y, 1, -1)[~self.mask].any()
        check_forward(self.only(y), self.f, self.weight, self.bias, exact=self.exact)
        over = self.x.copy()
        running = self.running.copy()
        self.forward(over, over)
        np.testing.assert_array_equal(over, target)
        dx, target = self.new()
        dweight, dbias = self.backward(self.dy, self.x, target)
        assert not np.moveaxis(dx, 1, -1)[~self.mask].any()
        found = fastbn.Gradients(self.only(dx), dweight, dbias)
        check_backward(found, self.expected, self.only_dy, self.f, self.weight, exact=self.exact)
        over = self.dy.copy()
        self.backward(over, self.x, over)
        np.testing.assert_array_equal(over, target)
        return running


@pytest.mark.parametrize(("shape", "kind", "dtype"), thinned(SHAPES, MASKS, DTYPES))
def test_through_the_batch(rng, shape, kind, dtype):
    case = Case(rng, shape, kind, dtype)
    running = case.check()
    count = int(case.count)
    check_var(case.saved[VAR], case.f.var, case.f, count, case.dtype, exact=case.exact)
    mean = case.saved[MEAN] + case.saved[MEAN_LO]
    np.testing.assert_allclose(running[0], 0.75 * 0.5 + 0.25 * mean, rtol=1e-12)
    if count > 1:
        np.testing.assert_allclose(running[1], 0.75 * 2 + 0.25 * case.saved[M2] / (count - 1), rtol=1e-12)


@pytest.mark.parametrize(("shape", "dtype"), thinned(SHAPES, [np.float32, EXACT]))
def test_through_given_statistics(rng, shape, dtype):
    Case(rng, shape, "random", dtype, frozen=True).check()


@pytest.mark.parametrize("dtype", [np.float32, EXACT])
@pytest.mark.parametrize("shape", [(6, 3, 64), (6, 3, 49), (70, 12, 1)])
def test_a_mean_far_from_zero(rng, shape, dtype):
    case = Case(rng, shape, "random", dtype, mean=1e6)
    case.check()
    case.saved[:] = np.nan
    case.launch.moments(case.x, case.mask, case.count, case.saved, 0)
    check_var(case.saved[M2] / case.count, case.f.var, case.f, int(case.count), case.dtype, exact=case.exact)


@pytest.mark.parametrize("shape", [(8, 2, 256), (600, 16, 1)])
def test_groups_of_blocks(rng, gpu, shape):  # noqa: F811
    own = gpu(multiprocessors=6)
    assert cuda_plan.make(*shape, 4, True, 1, True, own).blocks > 1
    Case(rng, shape, "random", np.float32).check()


@pytest.mark.parametrize("shape", [(6, 3, 64), (6, 3, 49), (70, 12, 1)])
def test_what_is_done_after(rng, shape):
    """A residual is not read where nothing counts, and its gradient is zero there."""
    from fastbn_kernels.cuda.tails import named

    case, slope = Case(rng, shape, "random", np.float32), 0.25
    residual = draw(rng, shape, np.float32)
    added = case.only(residual).astype(np.float64)
    residual[np.broadcast_to(~case.mask[:, None, :], shape)] = np.nan
    tail = named("leaky_relu", slope), residual
    y, plain = poisoned(shape, np.float32), poisoned(shape, np.float32)
    case.forward(case.x, plain)
    case.forward(case.x, y, tail)
    z = case.only(plain) + added
    off = 2.0**-22 * (np.abs(z) + np.abs(added) + 1)
    assert (np.abs(case.only(y) - np.where(z > 0, z, slope * z)) <= off).all()
    assert not np.moveaxis(y, 1, -1)[~case.mask].any()
    dy = case.dy
    np.moveaxis(dy, 1, -1)[case.mask] = through = np.where(np.abs(z) <= off, np.float32(0), case.only_dy)
    through = through * np.where(z > 0, np.float32(1), np.float32(slope))
    case.expected, case.only_dy = reference.backward(through, case.only(case.x), case.weight), through
    dx, dresidual = poisoned(shape, np.float32), poisoned(shape, np.float32)
    dweight, dbias = case.backward(dy, case.x, dx, (*tail, dresidual))
    found = fastbn.Gradients(case.only(dx), dweight, dbias)
    check_backward(found, case.expected, through, case.f, case.weight)
    np.testing.assert_array_equal(case.only(dresidual), through)
    for array in (dx, dresidual):
        assert not np.moveaxis(array, 1, -1)[~case.mask].any()


def test_without_any(rng):
    from fastbn.backends.cuda import masked

    for shape in [(6, 3, 64), (70, 12, 1)]:
        x, mask = np.full(shape, np.nan, np.float32), np.zeros((shape[0], shape[2]), bool)
        saved = np.full((ROWS, shape[1]), np.nan)
        masked.moments(x, mask, 0.0, saved, 0)
        np.testing.assert_array_equal(saved[[MEAN, MEAN_LO, M2]], 0)
