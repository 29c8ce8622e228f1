"""Derivatives beyond the gradients agree with the oracle and with central differences."""

import ml_dtypes
import numba
import numpy as np
import pytest

import fastbn
import reference
from grid import LARGE, SMALL, STORED, affine, draw, thinned
from plans import force
from tolerance import check_differences, check_double_backward, check_jvp

# Channels apart, of whole ones and of tiles; rows of few and of many channels. All but the last two in parallel.
PLANS = [
    ((4, 16, 25, 25), 1),
    ((2, 3, 100, 100), 1),
    ((200, 5, 7, 7), 1),
    ((3000, 40), 1),
    ((200, 700), 1),
    ((6, 5, 9), 1),
    ((40, 24), 1),
]


def given_statistics(rng, channels, dtype, frozen):
    """What the oracle and batch_norm are given to normalise with running statistics, or nothing."""
    if not frozen:
        return {}, {}
    mean, var = draw(rng, channels, dtype), rng.uniform(0.1, 3, channels).astype(dtype)
    return {"mean": mean, "var": var}, {"running_mean": mean, "running_var": var, "training": False}


def everything(rng, shape, axis, dtype, mean=3.0):
    """Return x, dy, ddx (or tx), and weight, bias and what comes in by them."""
    x, dy, v = (draw(rng, shape, dtype, mean=m) for m in (mean, 0.5, -0.5))
    parameters = np.float64 if dtype == np.float64 else np.float32
    return x, dy, v, *affine(rng, shape[axis], parameters), *affine(rng, shape[axis], parameters)


def check_both(ctx, x, dy, v, weight, ddweight, ddbias, *, given=None, **settings):
    """Check both functions against the oracle; `given` has the arrays as they are handed over. Return the results."""
    expected = reference.double_backward(v, ddweight, ddbias, dy, x, weight, **settings)
    f = reference.forward(x, **settings)
    v_given, dy_given = given or (v, dy)
    results = fastbn.batch_norm_double_backward(v_given, ddweight, ddbias, dy_given, ctx)
    check_double_backward(results, expected, v, ddweight, ddbias, dy, f, weight)
    ty = fastbn.batch_norm_jvp(v_given, ddweight, ddbias, ctx)
    check_jvp(ty, expected[0], v, ddweight, ddbias, f, weight)
    return *results, ty


@pytest.mark.parametrize(("case", "frozen", "dtype"), thinned(SMALL + LARGE, [False, True], [np.float32, np.float64]))
@pytest.mark.bounds
def test_against_the_oracle(rng, case, dtype, frozen):
    shape, axis = case
    x, dy, v, weight, bias, ddweight, ddbias = everything(rng, shape, axis, dtype)
    statistics, running = given_statistics(rng, shape[axis], dtype, frozen)
    _, ctx = fastbn.batch_norm(x, weight, bias, axis=axis, **running, precision="exact")
    results = check_both(ctx, x, dy, v, weight, ddweight, ddbias, axis=axis, **statistics)
    assert {a.dtype for a in results} == {np.dtype(dtype)}


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [(np.float16, (4, 3, 7, 7)), (np.float16, (40, 24))]
    + [pytest.param(dtype, shape, marks=pytest.mark.slow)  # two dozen kernels to compile
       for dtype in (np.float16, ml_dtypes.bfloat16) for shape, _ in PLANS],
)  # fmt: skip
@pytest.mark.parametrize("frozen", [False, True])
def test_16_bits(rng, dtype, shape, frozen):
    x, dy, v, weight, bias, ddweight, ddbias = everything(rng, shape, 1, dtype, mean=1)
    statistics, running = given_statistics(rng, shape[1], np.float32, frozen)
    _, ctx = fastbn.batch_norm(x, weight, bias, **running)
    ddy, dx, dweight, ty = check_both(ctx, x, dy, v, weight, ddweight, ddbias, **statistics)
    assert (ddy.dtype, dx.dtype, ty.dtype, dweight.dtype) == (*[np.dtype(dtype)] * 3, np.float32)


@pytest.mark.parametrize(
    ("case", "mean_and_eps", "dtype"),
    thinned(PLANS, [(1e4, 1e-5), (1e6, 1e-5), (0, 1e-30), (0, 1e3)], [np.float32, np.float64]),
)
def test_far_from_zero_and_any_eps(rng, case, mean_and_eps, dtype):
    (shape, axis), (mean, eps) = case, mean_and_eps
    x, dy, v, weight, bias, ddweight, ddbias = everything(rng, shape, axis, dtype, mean)
    _, ctx = fastbn.batch_norm(x, weight, bias, axis=axis, eps=eps, precision="exact")
    check_both(ctx, x, dy, v, weight, ddweight, ddbias, axis=axis, eps=eps)


@pytest.mark.parametrize(("shape", "axis"), PLANS)
def test_the_gradient_of_the_weight_does_not_depend_on_the_weight(rng, shape, axis):
    x, dy, v, weight, bias, ddweight, ddbias = everything(rng, shape, axis, np.float32)
    found = []
    for weight_ in (weight, np.zeros_like(weight)):
        _, ctx = fastbn.batch_norm(x, weight_, bias, axis=axis, precision="exact")
        found.append(check_both(ctx, x, dy, v, weight_, ddweight, ddbias, axis=axis)[2])
    np.testing.assert_array_equal(*found)
    assert found[0].all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("place", range(len(STORED)))
def test_any_strides(rng, place, dtype):
    x, dy, v, weight, bias, ddweight, ddbias = everything(rng, (6, 5, 4, 9), 1, dtype)
    ways = list(STORED.values())
    stored, v_given, dy_given = (ways[(place + i) % len(ways)](a) for i, a in ((0, x), (1, v), (3, dy)))
    _, ctx = fastbn.batch_norm(stored, weight, bias, precision="exact")
    before = np.array(v_given), np.array(dy_given)
    ddy, dx, _, ty = check_both(ctx, x, dy, v, weight, ddweight, ddbias, given=(v_given, dy_given))
    for result in (ddy, dx, ty):
        assert type(result) is np.ndarray
        assert result.strides == np.empty_like(stored).strides
    for given, held in zip((v_given, dy_given), before, strict=True):
        np.testing.assert_array_equal(given, held)


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


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("shape", [(6, 5, 9), (40, 24)])
def test_none_stands_for_zeros(rng, shape, frozen):
    x, dy, v, weight, bias, ddweight, ddbias = everything(rng, shape, 1, np.float32)
    _, running = given_statistics(rng, shape[1], np.float32, frozen)
    _, ctx = fastbn.batch_norm(x, weight, bias, **running)
    full = v, ddweight, ddbias
    for kept in range(8):
        given = [a if kept >> i & 1 else None for i, a in enumerate(full)]
        zeros = [np.zeros_like(b) if a is None else a for a, b in zip(given, full, strict=True)]
        results = *fastbn.batch_norm_double_backward(*given, dy, ctx), fastbn.batch_norm_jvp(*given, ctx)
        expected = *fastbn.batch_norm_double_backward(*zeros, dy, ctx), fastbn.batch_norm_jvp(*zeros, ctx)
        for result, wanted in zip(results, expected, strict=True):
            np.testing.assert_array_equal(result, wanted)


def test_frozen_derivatives_are_finite_where_x_is_not(rng):
    """Through running statistics, x matters only to what comes in by the weight."""
    x, dy, v = (draw(rng, (4, 3, 5), np.float32) for _ in range(3))
    x[1, 1, 1] = np.inf
    shift = np.ones(3, np.float32)
    statistics = {"running_mean": np.zeros(3), "running_var": np.full(3, 3.0), "training": False, "eps": 1.0}
    _, ctx = fastbn.batch_norm(x, shift, shift, **statistics)
    ddy, _, dweight = fastbn.batch_norm_double_backward(v, None, shift, dy, ctx)
    np.testing.assert_array_equal(ddy, (v.astype(np.float64) / 2 + 1).astype(np.float32))
    np.testing.assert_array_equal(fastbn.batch_norm_jvp(v, None, shift, ctx), ddy)
    assert np.isfinite(dweight).all()
    _, dx, _ = fastbn.batch_norm_double_backward(v, 4 * shift, None, dy, ctx)
    np.testing.assert_array_equal(dx, 2 * dy)


def test_dweight_has_the_weights_dtype_and_is_none_without_one(rng):
    x = draw(rng, (8, 3), np.float32)
    _, ctx = fastbn.batch_norm(x, np.ones(3))
    assert fastbn.batch_norm_double_backward(x, None, None, x, ctx)[2].dtype == np.float64
    _, ctx = fastbn.batch_norm(x)
    assert fastbn.batch_norm_double_backward(x, None, None, x, ctx)[2] is None


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4)])
def test_frozen_derivatives_of_nothing(shape):
    x, w = np.empty(shape, np.float32), np.ones(3, np.float32)
    _, ctx = fastbn.batch_norm(x, w, w, running_mean=w, running_var=w, training=False)
    ddy, dx, dweight = fastbn.batch_norm_double_backward(x, w, None, x, ctx)
    assert ddy.shape == dx.shape == fastbn.batch_norm_jvp(None, w, w, ctx).shape == shape
    np.testing.assert_array_equal(dweight, 0)


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("shape", "axis"), PLANS)
def test_same_bits_by_every_plan_and_any_number_of_threads(rng, shape, axis, frozen, monkeypatch):
    x, dy, v, weight, bias, ddweight, ddbias = everything(rng, shape, axis, np.float32, mean=10)
    _, running = given_statistics(rng, shape[axis], np.float32, frozen)
    _, ctx = fastbn.batch_norm(x, weight, bias, axis=axis, **running)

    def results():
        back = fastbn.batch_norm_double_backward(v, ddweight, ddbias, dy, ctx)
        return *back, fastbn.batch_norm_jvp(v, ddweight, ddbias, ctx)

    found = [results(), results()]
    before = numba.get_num_threads()
    try:
        for count in range(1, numba.config.NUMBA_NUM_THREADS + 1):
            numba.set_num_threads(count)
            found.append(results())
    finally:
        numba.set_num_threads(before)
    for changes in (
        {"parallel": False},
        {"family": "channels_first"},
        {"family": "tiles"},
        {"past_cache": (True, True)},
    ):
        with monkeypatch.context() as patch:
            force(patch, **changes)
            found.append(results())
    for other in found[1:]:
        for one, two in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.frameworks
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", [(32, 6), (8, 6, 50), (4, 7, 9, 9)])
def test_same_numbers_as_pytorch_differentiated_twice(rng, shape, training):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed; make test-all installs it")
    x, dy, v, weight, bias, ddweight, ddbias = everything(rng, shape, 1, np.float64)
    mean, var = draw(rng, shape[1], np.float64), rng.uniform(0.5, 2, shape[1])
    given = {} if training else {"running_mean": mean, "running_var": var, "training": False}
    _, ctx = fastbn.batch_norm(x, weight, bias, **given)
    t, w, b, g = (torch.from_numpy(a).requires_grad_() for a in (x, weight, bias, dy))
    running = [None, None] if training else [torch.from_numpy(mean), torch.from_numpy(var)]
    y = torch.nn.functional.batch_norm(t, *running, w, b, training)
    grads = torch.autograd.grad(y, (t, w, b), g, create_graph=True)
    came = [torch.from_numpy(a) for a in (v, ddweight, ddbias)]
    expected = torch.autograd.grad(grads, (g, t, w), came)
    results = fastbn.batch_norm_double_backward(v, ddweight, ddbias, dy, ctx)
    for result, wanted in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, wanted.numpy(), rtol=1e-10, atol=1e-10 * np.sqrt(x.size))
    np.testing.assert_allclose(fastbn.batch_norm_jvp(v, ddweight, ddbias, ctx), expected[0].numpy(), atol=1e-10)


def test_a_context_made_of_read_only_arrays(rng):
    """As a host makes it that keeps arrays of its own between the passes."""
    x, dy, ddx = (draw(rng, (6, 5, 9), np.float64) for _ in range(3))
    weight, bias = affine(rng, 5, np.float64)
    _, ctx = fastbn.batch_norm(x, weight, bias)
    expected = fastbn.batch_norm_double_backward(ddx, weight, bias, dy, ctx)
    tangent = fastbn.batch_norm_jvp(ddx, weight, bias, ctx)
    ctx.saved.flags.writeable = False
    for got, want in zip(fastbn.batch_norm_double_backward(ddx, weight, bias, dy, ctx), expected, strict=True):
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(fastbn.batch_norm_jvp(ddx, weight, bias, ctx), tangent)
