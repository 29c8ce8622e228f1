"""Kernels with a mask: what counts is normalised as if there were nothing else, and nothing else is read."""

import numba
import numpy as np
import pytest

import fastbn
import reference
from fastbn.backends.cpu import launch, masked
from fastbn_kernels.cpu.simd.tails import SILU
from fastbn_kernels.saved import BIAS, M2, MEAN, MEAN_LO, ROWS, VAR, WEIGHT
from grid import affine, draw, poisoned
from plans import force
from tolerance import ULPS, check, check_backward, check_forward, check_terms, reaching, statistics

EPS = 1e-5

# int32 are the bits of float32 that is computed in float64. A kernel takes 1 to 2 s to compile: `make test` has time
# for float32 alone.
DTYPES = [np.float32, np.int32, np.float64, np.float16]

# (N, C, S): a rest behind the vectors, several segments a tile and several tiles a segment; rows narrower than a
# vector, and with a rest.
SHAPES = {
    "channels first": [(5, 6, 300), (3, 2, 8300), (150, 3, 70), (7, 5, 9)],
    "channels last": [(300, 5, 1), (900, 300, 1), (2500, 32, 1)],
}
if numba.config.DISABLE_JIT:  # in plain Python a vector is an array
    SHAPES = {"channels first": [(3, 2, 150), (2, 1, 8300)], "channels last": [(40, 20, 1)]}
EVERY_ORDER = pytest.mark.parametrize("order", SHAPES)


COMPILED = ("channels first", np.float64), ("channels last", np.float16)


def every_dtype():
    """Every order of memory and dtype in plain Python; compiled, float32 and in the longer suite COMPILED."""
    found = []
    for order in SHAPES:
        for dtype in DTYPES:
            if dtype == np.float32 or numba.config.DISABLE_JIT:
                found.append(pytest.param(order, dtype, id=f"{order}-{dtype.__name__}"))
            elif (order, dtype) in COMPILED:
                found.append(pytest.param(order, dtype, marks=pytest.mark.slow, id=f"{order}-{dtype.__name__}"))
    return pytest.mark.parametrize(("order", "dtype"), found)


def masks(rng, N, S):
    """Masks of every kind: padded sequences, one value, all, a sample without any, at random."""
    alone = np.zeros((N, S), bool)
    alone[rng.integers(N), rng.integers(S)] = True
    without = np.ones((N, S), bool)
    without[0] = False
    if S == 1:  # rows of sequences
        without[: N // 2] = False
        padded = np.arange(N)[:, None] % 50 < rng.integers(1, 51, N)[np.arange(N) // 50, None]
    else:
        padded = np.arange(S) < rng.integers(0, S + 1, N)[:, None]
        padded[-1] = True
    return {
        "padded": padded,
        "random": rng.random((N, S)) < rng.uniform(0.2, 0.8),
        "one": alone,
        "all": np.ones((N, S), bool),
        "a sample without": without,
    }


class Case:
    """A tensor, its mask, and what the oracle makes of what counts, in an array (values, C) of its own."""

    def __init__(self, rng, shape, mask, dtype, mean=3.0, frozen=False):
        self.exact = dtype == np.int32
        self.dtype = np.dtype(np.float32 if self.exact else dtype)
        self.shape, self.mask = shape, np.ascontiguousarray(mask)
        C = shape[1]
        x, dy = draw(rng, shape, self.dtype, mean=mean), draw(rng, shape, self.dtype)
        self.weight, self.bias = affine(rng, C, np.float64)
        self.given = {"mean": rng.normal(3, 0.5, C), "var": rng.uniform(0.5, 2, C)} if frozen else {}
        self.saved = np.full((ROWS, C), np.nan)
        self.saved[WEIGHT], self.saved[BIAS] = self.weight, self.bias
        if frozen:
            self.saved[MEAN], self.saved[MEAN_LO], self.saved[VAR] = self.given["mean"], 0.0, self.given["var"]
        self.f = reference.forward(self.only(x), self.weight, self.bias, **self.given)
        self.gradients = reference.backward(self.only(dy), self.only(x), self.weight, **self.given)
        self.only_dy = self.only(dy)
        aside = np.broadcast_to(~mask[:, None, :], shape)
        x[aside], dy[aside] = rng.choice([np.nan, np.inf, -np.inf], 2)
        x.flags.writeable = dy.flags.writeable = False
        self.x, self.dy = x, dy

    def only(self, array):
        """Return what counts, (values, C)."""
        return np.moveaxis(array, 1, -1)[self.mask]

    def seen(self, array):
        """Return data as kernels see them."""
        return array.view(np.intc) if self.exact else array

    def forward(self, y, x=None, tail=None):
        x = self.seen(self.x if x is None else x)
        run = masked.normalize if self.given else masked.forward
        run(x, self.mask, self.saved, EPS, self.seen(y), tail)
        return y

    def backward(self, dx, dy=None, x=None):
        dy, x = self.seen(self.dy if dy is None else dy), self.seen(self.x if x is None else x)
        return masked.backward(dy, x, self.mask, self.saved, bool(self.given), self.seen(dx))

    def zero_aside(self, array):
        assert not np.moveaxis(array, 1, -1)[~self.mask].any()

    def check_moments(self, saved):
        f, count = self.f, int(self.mask.sum())
        error = statistics(count, np.abs(f.xhat).max(), self.dtype, self.exact)
        mean = saved[MEAN].astype(np.longdouble) + saved[MEAN_LO]
        assert (np.abs(mean - f.mean) <= error * np.sqrt(f.var)).all()
        assert (np.abs(saved[M2] - f.var * count) <= error * f.var * count).all()

    def check_forward(self, y):
        self.zero_aside(y)
        check_forward(self.only(y), self.f, self.weight, self.bias, exact=self.exact)

    def check_backward(self, dx, sums):
        self.zero_aside(dx)
        found = fastbn.Gradients(self.only(dx), sums[1], sums[0])
        check_backward(found, self.gradients, self.only_dy, self.f, self.weight, exact=self.exact)


def cases(rng, order, dtype, **options):
    """Every shape with a mask of every kind, every other one of float32 far from zero."""
    mean, far = 3.0, dtype in (np.float32, np.int32) and not options  # with given statistics y would be far too
    for N, C, S in SHAPES[order]:
        for mask in masks(rng, N, S).values():
            yield Case(rng, (N, C, S), mask, dtype, mean, **options)
            mean = 1e6 if far and mean == 3 else 3.0


@pytest.mark.bounds
@every_dtype()
def test_through_the_batch(rng, monkeypatch, order, dtype):
    """Over x or dy, and past the cache, bits are the same."""
    for case in cases(rng, order, dtype):
        y = case.forward(poisoned(case.shape, case.dtype))
        case.check_forward(y)
        case.check_moments(case.saved)
        dx = poisoned(case.shape, case.dtype)
        sums = case.backward(dx)
        case.check_backward(dx, sums)
        for past_cache in (False, True):
            with monkeypatch.context() as patch:
                force(patch, past_cache=(past_cache, past_cache))
                over = case.x.copy()
                np.testing.assert_array_equal(case.forward(over, over), y)
                for over_x in (False, True):
                    arrays = case.dy.copy(), case.x.copy()
                    np.testing.assert_array_equal(case.backward(arrays[over_x], *arrays), sums)
                    np.testing.assert_array_equal(arrays[over_x], dx)


@every_dtype()
def test_through_given_statistics(rng, order, dtype):
    for case in cases(rng, order, dtype, frozen=True):
        case.check_forward(case.forward(poisoned(case.shape, case.dtype)))
        dx = poisoned(case.shape, case.dtype)
        case.check_backward(dx, case.backward(dx))


@every_dtype()
def test_in_two_phases(rng, order, dtype):
    for case in cases(rng, order, dtype):
        given, saved = (case.seen(case.x), case.mask), case.saved
        masked.moments(*given, saved)
        case.check_moments(saved)
        case.forward(poisoned(case.shape, case.dtype))
        sums = masked.sums(case.seen(case.dy), *given, saved)
        dx = poisoned(case.shape, case.dtype)
        masked.gradient(case.seen(case.dy), *given, saved, sums, int(case.mask.sum()), False, case.seen(dx))
        case.check_backward(dx, sums)


@EVERY_ORDER
def test_what_is_done_after(rng, order):
    """A residual is not read either where x is not."""
    for case in cases(rng, order, np.float32, frozen=True):
        residual = draw(rng, case.shape, case.dtype)
        added = case.only(residual)
        residual[np.broadcast_to(~case.mask[:, None, :], case.shape)] = np.nan
        y = case.forward(poisoned(case.shape, case.dtype), tail=(SILU, residual))
        case.zero_aside(y)
        z = case.f.y + added.astype(np.longdouble)
        terms = np.abs(case.weight) * reaching(case.f) + np.abs(case.bias)
        expected = z / (1 + np.exp(-z))
        off = 0.1 * ULPS * np.spacing(terms.astype(np.float32)) + 2.0**-24 * (1.1 * np.abs(z) + 8 * np.abs(expected))
        check_terms(case.only(y), expected, terms, off)


@pytest.mark.parametrize("shape", [(4, 5, 9000), (3, 1, 40000), (9000, 7, 1)])
def test_threads_do_not_matter(rng, shape):
    """Nor whether one takes whole channels or tiles."""
    for mask in masks(rng, shape[0], shape[2]).values():
        case, found = Case(rng, shape, mask, np.float32), []
        for threads in (1, numba.config.NUMBA_NUM_THREADS):
            before = numba.get_num_threads()
            numba.set_num_threads(threads)
            try:
                y, dx = (poisoned(shape, np.float32) for _ in range(2))
                found.append([case.forward(y), case.backward(dx), dx, case.saved.copy()])
            finally:
                numba.set_num_threads(before)
        for one, other in zip(*found, strict=True):
            np.testing.assert_array_equal(one, other)


@EVERY_ORDER
def test_without_any(rng, order):
    """Ranks may have none; that a batch has some is for the API to ask for."""
    for N, C, S in SHAPES[order]:
        x, saved = np.full((N, C, S), np.nan, np.float32), np.full((ROWS, C), np.nan)
        mask = np.zeros((N, S), bool)
        masked.moments(x, mask, saved)
        np.testing.assert_array_equal(saved[[MEAN, MEAN_LO, M2]], 0)
        saved[:] = 1
        np.testing.assert_array_equal(masked.sums(x, x, mask, saved), 0)
        y = poisoned(x.shape, np.float32)
        masked.normalize(x, mask, saved, EPS, y)
        np.testing.assert_array_equal(y, 0)


@EVERY_ORDER
def test_all(rng, order):
    """Where all positions count, bits are those without a mask."""
    for N, C, S in SHAPES[order]:
        case, found = Case(rng, (N, C, S), np.ones((N, S), bool), np.float32), []
        for module, given in ((masked, (case.mask,)), (launch, ())):
            y, dx = poisoned((2, N, C, S), np.float32)
            module.forward(case.x, *given, case.saved, EPS, y)
            sums = module.backward(case.dy, case.x, *given, case.saved, False, dx)
            found.append((y, dx, sums, case.saved.copy()))
        for one, other in zip(*found, strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_oracle_with_a_mask(rng):
    """Of what counts by itself it says the same."""
    case = Case(rng, (5, 6, 30), rng.random((5, 30)) < 0.5, np.float64)
    f = reference.forward(case.x, case.weight, case.bias, mask=case.mask)
    dx, dweight, dbias = reference.backward(case.dy, case.x, case.weight, mask=case.mask)
    check(np.float64(case.only(f.y)), case.f.y, 1e-17)
    check(np.float64(case.only(dx)), case.gradients[0], 1e-17)
    check(np.float64(dweight), case.gradients[1], 1e-17)
    check(np.float64(dbias), case.gradients[2], 1e-17)
    case.zero_aside(f.y)
    case.zero_aside(dx)
