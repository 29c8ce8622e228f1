"""What is done after the normalization, by every kernel: an activation and a residual, forward and back."""

import math

import numpy as np
import pytest
from numba import config, njit, typeof, types

import fastbn
import reference
from fastbn.backends.cpu import launch
from fastbn_kernels.build.addresses import address_of, call_none
from fastbn_kernels.build.decorators import RESIDUAL, tail_key
from fastbn_kernels.cpu import kernel
from fastbn_kernels.cpu.simd.tails import (
    GELU,
    RELU,
    RELU6,
    SIGMOID,
    SILU,
    TANH,
    WRITE,
    WithResidual,
    inverse,
    named,
)
from fastbn_kernels.cpu.small_calls import DONE
from fastbn_kernels.saved import BIAS, ROWS, VAR, WEIGHT
from grid import draw, poisoned
from plans import force
from tolerance import ULPS, check, check_backward, check_terms, reaching, relative

EPS = 1e-5

# (N, C, S) and changes of the plan: every family.
FAMILIES = {
    "small, channels last": ((32, 24, 1), {}),
    "small, channels first": ((6, 5, 4), {}),
    "channels last": ((3000, 24, 1), {}),
    "columns": ((130, 264, 1), {}),
    "short segments": ((16, 24, 100), {}),
    "channels first": ((4, 6, 1800), {"family": "channels_first"}),
    "tiles": ((4, 6, 1800), {"family": "tiles"}),
    "overlapped": ((2, 4, 6400), {"family": "overlapped", "groups": 2, "past_cache": (True, True)}),
    "past the cache": ((3000, 24, 1), {"past_cache": (True, True)}),
}
SMALL = "small, channels last", "small, channels first"
QUICK = "channels last", "channels first"  # one of each kind of loop, which the other families walk too
SLOW = () if config.DISABLE_JIT else pytest.mark.slow
EVERY_FAMILY = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
EITHER_STATISTICS = pytest.mark.parametrize("frozen", [False, True])

LEAKY = named("leaky_relu", 0.3)
BENT = RELU, RELU6, LEAKY

# int32 are the bits of float32 that is computed in float64.
OUTPUTS = [
    (SILU, True, np.float32),
    (SILU, True, np.int32),
    (SILU, True, np.float64),
    (RELU6, True, np.float16),
    (None, True, np.float32),
    (RELU, False, np.float32),
    (LEAKY, True, np.float32),
    (TANH, False, np.int32),
    (SIGMOID, True, np.float32),
    (GELU, False, np.float64),
]
GRADIENTS = [
    (SILU, True, np.float32),
    (SILU, False, np.float32),
    (SILU, True, np.int32),
    (SILU, True, np.float64),
    (RELU6, True, np.float16),
    (RELU, True, np.float32),
    (LEAKY, True, np.float32),
    (TANH, True, np.int32),
    (SIGMOID, False, np.float64),
    (GELU, True, np.float32),
]
# What is compiled too, besides the first of each: another activation and the other dtypes. relu, and a residual alone,
# are compiled by tests/adapters/test_torch_fused.py.
COMPILED = {(SILU, np.int32), (SILU, np.float64), (RELU6, np.float16)}


def mostly_slow(cases):
    """Every kernel takes 1 to 6 s to compile: `make test` has time for the first case, `make test-all` for COMPILED.

    The first and the rest are run in plain Python.
    """
    plain = [pytest.mark.bounds, pytest.mark.skipif(not config.DISABLE_JIT, reason="in plain Python alone")]
    marked = []
    for i, case in enumerate(cases):
        marks = [pytest.mark.slow] if (case[0], case[-1]) in COMPILED else plain
        name = "-".join(getattr(value, "__name__", repr(value)) for value in case)
        marked.append(pytest.param(*case, marks=marks if i else pytest.mark.bounds, id=name))
    return marked


def act(z, activation):
    """Return what an activation makes of z."""
    if activation is None:
        return z
    if activation is TANH:
        return np.tanh(z)
    if activation is LEAKY:
        return np.where(z > 0, z, LEAKY.slope * z)
    if activation in (RELU, RELU6):
        return np.clip(z, 0, np.inf if activation is RELU else 6)
    if activation is GELU:
        return z * normal(z)
    s = 1 / (1 + np.exp(-z))
    return s if activation is SIGMOID else z * s


def slope(z, activation):
    """Return the derivative of an activation."""
    if activation is TANH:
        return 1 - np.tanh(z) ** 2
    if activation is LEAKY:
        return np.where(z > 0, 1, LEAKY.slope)
    if activation in (RELU, RELU6):
        return (z > 0) & ((z < 6) | (activation is RELU))
    if activation is GELU:
        return normal(z) + z * np.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    s = 1 / (1 + np.exp(-z))
    return s * (1 - s) if activation is SIGMOID else s * (1 + z * (1 - s))


def normal(z):
    """Return the normal distribution."""
    return np.vectorize(math.erfc)(-np.asarray(z, np.float64) / math.sqrt(2)) / 2


def tail_of(tail, own):
    """Return a tail as the kernels of a plan take it."""
    return WithResidual(launch.data_of(item, own) if isinstance(item, np.ndarray) else item for item in tail)


class Case:
    """A tensor, its parameters, and what the oracle makes of it."""

    def __init__(self, rng, monkeypatch, name, frozen, dtype, activation=None):
        if dtype != np.float32 and name not in QUICK and not config.DISABLE_JIT:
            pytest.skip("the other families are compiled for float32")
        if activation in (LEAKY, TANH, SIGMOID, GELU) and name not in SMALL:
            pytest.skip("every family has the same activations")
        self.shape, changes = FAMILIES[name]
        force(monkeypatch, **changes)
        self.frozen, C = frozen, self.shape[1]
        self.exact = dtype == np.int32
        self.dtype = dtype = np.float32 if self.exact else dtype
        self.x = draw(rng, self.shape, dtype, mean=3)
        self.weight, self.bias = draw(rng, C, np.float64, std=2), draw(rng, C, np.float64, mean=1, std=2)
        self.given = {"mean": rng.normal(3, 0.5, C), "var": rng.uniform(0.5, 2, C)} if frozen else {}
        self.saved = np.full((ROWS, C), np.nan)
        self.saved[WEIGHT], self.saved[BIAS] = self.weight, self.bias
        f = reference.forward(self.x, self.weight, self.bias, **self.given)
        self.normalized, reach = f.y, float(np.abs(f.xhat).max())
        wide = dtype == np.float64 or self.exact
        self.rounding = 2.0**-53 if wide else 2.0**-24
        self.smooth_rounding = 2.0**-53 if dtype == np.float64 else 2.0**-24  # of exact float32 data too
        w, b = np.abs(self.weight), np.abs(self.bias)
        self.terms = None
        if dtype == np.float32 and not self.exact:  # as of `check_forward`: how far what was normalised may be
            self.terms = w[:, None] * reaching(f) + b[:, None]
            self.relative, self.off = ULPS * 2.0**-23, ULPS * np.spacing(self.terms.astype(dtype)).astype(np.float64)
        else:
            self.relative = relative(self.x.size // C, reach, np.float64 if self.exact else dtype)
            self.off = self.relative * (reach * w.max() + w.max() + b.max())

    def seen(self, array):
        """Return data as kernels see them."""
        return array.view(np.intc) if self.exact else array

    def seen_all(self, item):
        """Return a part of a tail likewise."""
        return self.seen(item) if isinstance(item, np.ndarray) else item

    def tail(self, activation, residual):
        """Return what is done after the normalization, as kernels see it."""
        return activation if residual is None else (activation, self.seen(residual))

    def forward(self, y, tail, x=None):
        """Normalise to y; return it."""
        x, saved, out = self.seen(self.x if x is None else x), self.saved, self.seen(y)
        if self.frozen:
            saved[0], saved[1], saved[VAR] = self.given["mean"], 0.0, self.given["var"]
            launch.normalize(x, saved, EPS, out, tail)
        else:
            launch.forward(x, saved, EPS, out, tail)
        return y

    def check_forward(self, y, activation, residual):
        """A residual rounds once more, a smooth activation, whose slope is at most 1.13, 11 times more.

        See `test_smooth_activations`.
        """
        z = self.normalized + residual
        expected = act(z, activation)
        smooth = 0 if activation in (None, *BENT) else 11 * self.smooth_rounding * np.abs(expected)
        if self.terms is None:
            check(y, expected, 1.13 * (self.off + self.rounding * np.abs(z)) + smooth)
        else:  # the last rounding is among these
            check_terms(y, expected, self.terms, 0.13 * self.off + 1.13 * self.rounding * np.abs(z) + smooth)


@EITHER_STATISTICS
@EVERY_FAMILY
@pytest.mark.parametrize(("activation", "added", "dtype"), mostly_slow(OUTPUTS))
def test_outputs(rng, monkeypatch, activation, added, dtype, name, frozen):
    case = Case(rng, monkeypatch, name, frozen, dtype, activation)
    residual = draw(rng, case.shape, case.dtype, std=2)
    residual.flags.writeable = False
    tail = case.tail(activation, residual if added else None)
    y = case.forward(poisoned(case.shape, case.dtype), tail)
    case.check_forward(y, activation, residual.astype(np.longdouble) if added else 0)
    over = case.x.copy()
    np.testing.assert_array_equal(case.forward(over, tail, over), y)
    if added:  # which may be y
        over = residual.copy()
        np.testing.assert_array_equal(case.forward(over, case.tail(activation, over)), y)


def backward(case, dy, x, dx, *tail):
    """Write dx, and what a tail writes; return the sums."""
    given = [case.seen(array) for array in (dy, x, dx)]
    own = launch.plan_of(given[1])
    dy, x, dx = (launch.data_of(array, own) for array in given)
    sums = np.empty((2, case.shape[1]))
    tail = tail[0] if len(tail) == 1 else tail_of(map(case.seen_all, tail), own)
    options = case.frozen, own.past_cache[1], own.groups
    kernel(own.backward).launch(x.dtype, own.parallel, dy, x, case.saved, *options, dx, sums, tail)
    return sums


def sums_then_gradient(case, dy, x, dx, *tail):
    """Do the same by two kernels."""
    given = [case.seen(array) for array in (dy, x, dx)]
    own = launch.plan_of(given[1])
    dy, x, dx = (launch.data_of(array, own) for array in given)
    sums = np.empty((2, case.shape[1]))
    first, second = (tail[0],) * 2
    if len(tail) > 1:
        tail = [case.seen_all(item) for item in tail]
        first, second = tail_of(tail[:2], own), tail_of([*tail, WRITE], own)
    options = float(case.shape[0] * case.shape[2]), case.frozen, own.past_cache[1], own.groups
    kernel(own.sums).launch(x.dtype, own.parallel, dy, x, case.saved, sums, first)
    kernel(own.gradient).launch(x.dtype, own.parallel, dy, x, case.saved, sums, *options, dx, second)
    return sums


@EITHER_STATISTICS
@EVERY_FAMILY
@pytest.mark.parametrize(("activation", "added", "dtype"), mostly_slow(GRADIENTS))
def test_gradients(rng, monkeypatch, activation, added, dtype, name, frozen):
    case = Case(rng, monkeypatch, name, frozen, dtype, activation)
    if not added and name not in (*SMALL, *QUICK):
        pytest.skip("every family has the same activations")
    shape, x, dtype = case.shape, case.x, case.dtype
    dy, residual = draw(rng, shape, dtype), draw(rng, shape, dtype)
    z = case.normalized + (residual.astype(np.longdouble) if added else 0)
    if activation in BENT:  # on which side of a bend z lies nobody can say who is not exact
        dy[np.minimum(np.abs(z), np.abs(z - 6)) <= np.max(case.off) + case.rounding * np.abs(z).max()] = 0
    case.forward(poisoned(shape, dtype), case.tail(activation, np.zeros_like(x)))  # fills `saved`
    incoming = dy * slope(z, activation)
    expected = reference.backward(incoming, x, case.weight, **case.given)
    # A slope is at most 1.13 and its own 1; it errs by 11 roundings of it and 9 of what it is the sum of, at most 0.3,
    # and is once more rounded as dy times it is. What goes to the residual is rounded to be stored, and then read.
    off = 0.0
    if activation not in BENT:
        off = 0.13 * case.relative + np.max(case.off) + case.rounding * np.abs(z).max() + 16 * case.smooth_rounding
    if added:
        off += 1.13 * np.finfo(dtype).eps / 2
    off = float(off * np.abs(dy).max())
    f = reference.forward(x, **case.given)
    for run in (backward, sums_then_gradient) if name in (*SMALL, *QUICK) else (backward,):
        dx, dresidual = poisoned(shape, dtype), poisoned(shape, dtype)
        sums = run(case, dy, x, dx, activation, *((residual, dresidual) if added else ()))
        gradients = fastbn.Gradients(dx, sums[1], sums[0])
        check_backward(gradients, expected, dy, f, case.weight, off=off, exact=case.exact)
        if added:
            check(dresidual, incoming, off)
        if dtype != np.float32:
            continue
        over, again = dy.copy(), poisoned(shape, dtype)  # dx may be dy
        run(case, over, x, over, activation, *((residual, again) if added else ()))
        np.testing.assert_array_equal(over, dx)
        np.testing.assert_array_equal(again, dresidual if added else again)


@EITHER_STATISTICS
@pytest.mark.parametrize("name", [*SMALL, *(pytest.param(n, marks=SLOW) for n in QUICK)])
@pytest.mark.parametrize("dtype", [np.float32, pytest.param(np.float64, marks=SLOW)])
def test_in_place(rng, monkeypatch, name, dtype, frozen):
    """A backward pass whose x holds y has the bits of one whose x is what y was made of, and whose dy came through."""
    case = Case(rng, monkeypatch, name, frozen, dtype)
    dy, y = draw(rng, case.shape, dtype), draw(rng, case.shape, dtype)
    case.saved[:] = rng.uniform(0.5, 2, case.saved.shape)
    z = np.where(y > 0, y, y / dtype(LEAKY.slope))
    through = np.where(y > 0, dy, dy * dtype(LEAKY.slope))
    for run in (backward, sums_then_gradient) if config.DISABLE_JIT else (backward,):
        expected, dx = poisoned(case.shape, dtype), poisoned(case.shape, dtype)
        sums = run(case, through, z, expected, None)
        found = run(case, dy, y, dx, inverse(LEAKY))
        np.testing.assert_array_equal(dx, expected)
        np.testing.assert_array_equal(found, sums)


@EITHER_STATISTICS
@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("activation", "added", "dtype"), mostly_slow(OUTPUTS))
def test_whole_calls(rng, monkeypatch, activation, added, dtype, name, frozen):
    """The kernels for small tensors write the bits of the others, forward and back."""
    case = Case(rng, monkeypatch, name, frozen, dtype)
    shape, dtype, seen = case.shape, case.dtype, case.seen
    own = launch.plan_of(seen(case.x))
    residual, dy = draw(rng, shape, dtype), draw(rng, shape, dtype)
    kind = np.float64 if dtype == np.float64 else np.float32
    parameters = [values.astype(kind) for values in (case.weight, case.bias)]
    running = [values.astype(kind) for values in case.given.values()] or [np.empty(0, kind)] * 2
    case.saved[WEIGHT], case.saved[BIAS] = parameters
    case.given = dict(zip(case.given, running, strict=False))
    tail = case.tail(activation, residual if added else None)
    expected, y = case.forward(poisoned(shape, dtype), tail), poisoned(shape, dtype)

    tail, x, target = launch.tail_of(tail, own), launch.data_of(seen(case.x), own), launch.data_of(seen(y), own)
    saved = np.full_like(case.saved, np.nan)
    whole = kernel(own.call_forward).get(x.dtype, False, tail_key(tail))
    assert whole(x, *parameters, *running, 0.1, 1.0, EPS, not frozen, target, saved, tail) == DONE
    np.testing.assert_array_equal(y, expected)

    if activation is None:  # what comes back to the residual is dy
        return
    (expected, other), (dx, another) = poisoned((2, *shape), dtype), poisoned((2, *shape), dtype)
    first, second = ((residual, written) if added else () for written in (other, another))
    sums = backward(case, dy, case.x, expected, activation, *first)
    found = np.empty((2, shape[1]), kind)
    tail = tail_of([activation, *map(seen, second)], own) if added else activation
    whole = kernel(own.call_backward).get(x.dtype, False, tail_key(tail))
    arrays = launch.data_of(seen(dy), own), x, case.saved, frozen, launch.data_of(seen(dx), own)
    assert whole(*arrays, found[1], found[0], tail) == DONE
    np.testing.assert_array_equal(dx, expected)
    np.testing.assert_array_equal(found, sums.astype(kind))
    if added:
        np.testing.assert_array_equal(another, other)


# ---------------------------------------------------------------- how a tail is told


def test_kernels_are_told_apart_by_their_tail():
    """A kernel with a tail is another one than without, in this process and in the cache on disk."""
    one, other = np.zeros(3), np.ones(3)
    tails = None, SILU, (None, one), (SILU, one), (SILU, one, other), (SILU, one, other, WRITE), (LEAKY, one)
    assert len({tail_key(tail) for tail in tails}) == len(tails)
    assert tail_key((SILU, one)) == tail_key((SILU, other)) == (SILU, RESIDUAL)
    get = kernel("normalize_channels_last").get
    plain, with_residual = (get(np.dtype(np.float32), True, tail) for tail in (None, (SILU, RESIDUAL)))
    assert (plain is with_residual) == bool(config.DISABLE_JIT)


@pytest.mark.skipif(bool(config.DISABLE_JIT), reason="activations have no type under NUMBA_DISABLE_JIT")
@pytest.mark.parametrize("dtype", [np.float32, np.int16])
def test_a_pair_has_the_type_of_a_plain_one(dtype):
    for residual in (np.zeros((2, 3), dtype), np.zeros((2, 3, 4), dtype)):
        for writeable in (True, False):
            residual.flags.writeable = writeable
            for tail in ((RELU6, residual), (LEAKY, residual, residual.copy()), (RELU6, residual, residual, WRITE)):
                assert typeof(WithResidual(tail)) == typeof(tail)


@pytest.mark.skipif(bool(config.DISABLE_JIT), reason="nothing has an address under NUMBA_DISABLE_JIT")
def test_a_kernel_is_called_by_its_address(rng):
    """From compiled code, as XLA does: an activation is a constant there, a tail with a residual is put together."""

    @njit
    def normalize(address, x, saved, y, residual):
        call_none(address, (x, saved, EPS, False, np.int64(0), y, (SILU, residual)))

    @njit
    def sum_up(address, dy, x, saved, sums):
        call_none(address, (dy, x, saved, sums, SILU))

    single = np.dtype(np.float32)
    data = types.Array(types.float32, 2, "C", readonly=True)
    x, residual = draw(rng, (40, 5), single), draw(rng, (40, 5), single)
    saved, y, sums = rng.uniform(1, 2, (ROWS, 5)), poisoned((2, 40, 5), single), poisoned((2, 2, 5), np.float64)

    function = kernel("normalize_channels_last").get(single, True, (SILU, RESIDUAL))
    assert next(iter(function.overloads))[-1] == types.Tuple((SILU.type, data))
    normalize(address_of(function), x, saved, y[0], residual)
    function(x, saved, EPS, False, 0, y[1], (SILU, residual))
    np.testing.assert_array_equal(*y)

    function = kernel("sums_channels_last").get(single, True, SILU)
    assert next(iter(function.overloads))[-1] == SILU.type
    sum_up(address_of(function), residual, x, saved, sums[0])
    function(residual, x, saved, sums[1], SILU)
    np.testing.assert_array_equal(*sums)
