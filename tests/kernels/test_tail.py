"""What is done after the normalization, by every kernel: an activation forward and back, a residual forward."""

import numpy as np
import pytest
from numba import config, njit, typeof, types

import fastbn
import reference
from fastbn.backends.cpu import launch
from fastbn_kernels.build.addresses import address_of, call_none
from fastbn_kernels.build.decorators import RESIDUAL, tail_key
from fastbn_kernels.cpu import kernel
from fastbn_kernels.cpu.simd.tails import RELU, RELU6, SILU, WithResidual
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
    "short segments": ((16, 24, 100), {}),
    "channels first": ((4, 6, 1800), {"family": "channels_first"}),
    "tiles": ((4, 6, 1800), {"family": "tiles"}),
    "overlapped": ((2, 4, 6400), {"family": "overlapped", "groups": 2, "past_cache": (True, True)}),
    "past the cache": ((3000, 24, 1), {"past_cache": (True, True)}),
}
QUICK = "channels last", "channels first"  # one of each kind of loop, which the other families walk too
EVERY_FAMILY = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
EITHER_STATISTICS = pytest.mark.parametrize("frozen", [False, True])

# int32 are the bits of float32 that is computed in float64.
OUTPUTS = [
    (SILU, True, np.float32),
    (SILU, True, np.int32),
    (SILU, True, np.float64),
    (RELU6, True, np.float16),
    (None, True, np.float32),
    (RELU, False, np.float32),
]
GRADIENTS = [(SILU, np.float32), (SILU, np.int32), (SILU, np.float64), (RELU6, np.float16), (RELU, np.float32)]
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
    if activation is SILU:
        return z / (1 + np.exp(-z))
    return np.clip(z, 0, np.inf if activation is RELU else 6)


def slope(z, activation):
    """Return the derivative of an activation."""
    if activation is SILU:
        s = 1 / (1 + np.exp(-z))
        return s * (1 + z * (1 - s))
    return (z > 0) & ((z < 6) | (activation is RELU))


class Case:
    """A tensor, its parameters, and what the oracle makes of it."""

    def __init__(self, rng, monkeypatch, name, frozen, dtype):
        if dtype != np.float32 and name not in QUICK and not config.DISABLE_JIT:
            pytest.skip("the other families are compiled for float32")
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
        self.silu_rounding = 2.0**-53 if dtype == np.float64 else 2.0**-24  # of exact float32 data, SILU is float32
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
        """A residual rounds once more, SILU, whose slope is at most 1.1, 8 times more (see `test_silu`)."""
        z = self.normalized + residual
        expected = act(z, activation)
        of_silu = 8 * self.silu_rounding * np.abs(expected) if activation is SILU else 0
        if self.terms is None:
            check(y, expected, 1.1 * (self.off + self.rounding * np.abs(z)) + of_silu)
        else:  # the last rounding is among these
            check_terms(y, expected, self.terms, 0.1 * self.off + 1.1 * self.rounding * np.abs(z) + of_silu)


@EITHER_STATISTICS
@EVERY_FAMILY
@pytest.mark.parametrize(("activation", "added", "dtype"), mostly_slow(OUTPUTS))
def test_outputs(rng, monkeypatch, activation, added, dtype, name, frozen):
    case = Case(rng, monkeypatch, name, frozen, dtype)
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


@EITHER_STATISTICS
@EVERY_FAMILY
@pytest.mark.parametrize(("activation", "dtype"), mostly_slow(GRADIENTS))
def test_gradients(rng, monkeypatch, activation, dtype, name, frozen):
    case = Case(rng, monkeypatch, name, frozen, dtype)
    shape, x, saved, dtype = case.shape, case.x, case.saved, case.dtype
    dy = draw(rng, shape, dtype)
    if activation is not SILU:  # on which side of a bend z lies nobody can say who is not exact
        dy[np.minimum(np.abs(case.normalized), np.abs(case.normalized - 6)) <= case.off] = 0
    case.forward(poisoned(shape, dtype), case.tail(activation, np.zeros_like(x)))  # fills `saved`
    expected = reference.backward(dy * slope(case.normalized, activation), x, case.weight, **case.given)
    # The slope of SILU is at most 1.1, its own 1/2; it errs by 9 roundings of it and 8 of what it is the sum of, at
    # most 0.3, and is once more rounded as dy times it is.
    off = 0.1 * case.relative + 0.5 * np.max(case.off) + 14 * case.silu_rounding if activation is SILU else 0
    f = reference.forward(x, **case.given)
    for over_sums in (False, True):
        dx = poisoned(shape, dtype)
        given, out = (case.seen(dy), case.seen(x), saved), case.seen(dx)
        if over_sums:
            sums = launch.sums(*given, activation)
            launch.gradient(*given, sums, shape[0] * shape[2], frozen, out, activation)
        else:
            sums = launch.backward(*given, frozen, out, activation)
        gradients = fastbn.Gradients(dx, sums[1], sums[0])
        check_backward(gradients, expected, dy, f, case.weight, off=off * float(np.abs(dy).max()), exact=case.exact)


@EITHER_STATISTICS
@pytest.mark.parametrize("name", ["small, channels last", "small, channels first"])
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

    expected, dx = poisoned(shape, dtype), poisoned(shape, dtype)
    sums = launch.backward(seen(dy), seen(case.x), case.saved, frozen, seen(expected), activation)
    found = np.empty((2, shape[1]), kind)
    whole = kernel(own.call_backward).get(x.dtype, False, activation)
    arrays = launch.data_of(seen(dy), own), x, case.saved, frozen, launch.data_of(seen(dx), own)
    assert whole(*arrays, found[1], found[0], activation) == DONE
    np.testing.assert_array_equal(dx, expected)
    np.testing.assert_array_equal(found, sums.astype(kind))


# ---------------------------------------------------------------- how a tail is told


def test_kernels_are_told_apart_by_their_tail():
    """A kernel with a tail is another one than without, in this process and in the cache on disk."""
    one, other = np.zeros(3), np.ones(3)
    tails = None, SILU, (None, one), (SILU, one)
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
            assert typeof(WithResidual((RELU6, residual))) == typeof((RELU6, residual))


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
