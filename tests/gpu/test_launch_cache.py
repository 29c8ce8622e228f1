"""Calls like one before take the short way: the same results, the same errors, nothing of the call before."""

import numpy as np
import pytest

import fastbn
import reference
from fastbn.backends.cuda import launch_cache
from gpu_helpers import EXACT, arithmetic_of, here, needed, poisoned, there
from gpu_tolerance import check_backward, check_forward
from grid import affine, draw, thinned

pytestmark = needed

SHAPES = [((6, 4, 8, 8), 1), ((6, 4, 7, 7), -3), ((40, 12), 1), ((41, 37), 1)]


@pytest.fixture(autouse=True)
def from_nothing():
    launch_cache.forget()


@pytest.fixture
def taken(monkeypatch):
    """How often the short way was taken."""
    from fastbn.backends.cuda import backend

    counts = {"forward": 0, "backward": 0}
    for name in counts:
        function = getattr(launch_cache, name)

        def counted(*arguments, name=name, function=function):
            done = function(*arguments)
            counts[name] += done is not None
            return done

        monkeypatch.setattr(backend, f"quick_{name}", counted)
    return counts


@pytest.mark.parametrize(
    ("case", "training", "given", "dtype"),
    thinned(SHAPES, [True, False], [True, False], [np.float32, np.float64, np.float16, EXACT]),
)
def test_fresh_data_each_time(rng, taken, case, training, given, dtype):
    shape, axis = case
    dtype, precision = arithmetic_of(dtype)
    bounds = {"axis": axis, "exact": precision == "exact"}
    C = shape[axis]
    for _ in range(3):
        x, dy = draw(rng, shape, dtype, mean=3), draw(rng, shape, dtype)
        weight, bias = affine(rng, C, np.float64 if dtype is np.float64 else np.float32)
        mean, var = draw(rng, C, weight.dtype), rng.uniform(0.5, 2, C).astype(weight.dtype)
        out, over = (poisoned(shape, dtype), poisoned(shape, dtype)) if given else (None, None)
        device_mean, device_var = there(mean), there(var)
        y, ctx = fastbn.batch_norm(
            there(x), there(weight), there(bias), running_mean=device_mean, running_var=device_var,
            training=training, axis=axis, out=out, precision=precision,
        )  # fmt: skip
        frozen = {} if training else {"mean": mean, "var": var}
        check_forward(here(y), reference.forward(x, weight, bias, axis=axis, **frozen), weight, bias, **bounds)
        grads = fastbn.batch_norm_backward(there(dy), ctx, out=over)
        own = fastbn.Gradients(here(grads.dx), here(grads.dweight), here(grads.dbias))
        f = reference.forward(x, axis=axis, **frozen)
        check_backward(own, reference.backward(dy, x, weight, axis=axis, **frozen), dy, f, weight, **bounds)
        if training:
            batch_mean, _ = reference.moments(x, axis)
            expected = reference.running(mean, batch_mean, 0.1).astype(float)
            np.testing.assert_allclose(here(device_mean), expected, rtol=2e-6, atol=2e-6)
        else:
            np.testing.assert_array_equal(here(device_mean), mean)
    assert taken == {"forward": 2, "backward": 2}


def test_what_differs_takes_the_long_way(rng, taken):
    x = there(draw(rng, (6, 4, 8, 8), np.float32))
    weight = there(np.ones(4, np.float32))
    fastbn.batch_norm(x, weight)
    for changed in ({"precision": "exact"}, {"eps": 1e-3}, {"axis": -3}, {"training": False}, {"momentum": 0.5}):
        more = {"running_mean": there(np.zeros(4, np.float32)), "running_var": there(np.ones(4, np.float32))}
        y, _ = fastbn.batch_norm(x, weight, **(more | changed))
        assert np.isfinite(here(y)).all()
    fastbn.batch_norm(there(draw(rng, (6, 4, 9, 8), np.float32)), weight)
    fastbn.batch_norm(there(draw(rng, (6, 4, 8, 8), np.float64)), weight)
    fastbn.batch_norm(x, there(np.ones(4, np.float64)))
    fastbn.batch_norm(x, np.ones(4, np.float32))
    assert taken["forward"] == 0


def test_errors_are_those_of_the_first_call(rng):
    values = there(draw(rng, (2 * 6 * 4 * 64,), np.float32))
    shape = 6, 4, 8, 8
    x, apart = values[: 6 * 256].reshape(shape), values[6 * 256 :].reshape(shape)
    overlapping = values[4 : 4 + 6 * 256].reshape(shape)
    mean, var = there(np.zeros(4, np.float32)), there(np.ones(4, np.float32))
    for _ in range(2):
        _, ctx = fastbn.batch_norm(x, running_mean=mean, running_var=var, out=apart)
        fastbn.batch_norm_backward(apart, ctx, out=apart)
    before = here(values)
    with pytest.raises(ValueError, match="out: expected x itself or memory apart"):
        fastbn.batch_norm(x, running_mean=mean, running_var=var, out=overlapping)
    with pytest.raises(ValueError, match="running_mean: expected memory apart"):
        fastbn.batch_norm(x, running_mean=mean, running_var=mean, out=apart)
    with pytest.raises(ValueError, match="out: expected"):
        fastbn.batch_norm_backward(apart, ctx, out=overlapping)
    with pytest.raises(TypeError, match="training: expected True or False"):
        fastbn.batch_norm(x, running_mean=mean, running_var=var, training=1, out=apart)
    np.testing.assert_array_equal(here(values), before)


def test_in_place(rng):
    for _ in range(2):
        data = draw(rng, (6, 4, 8, 8), np.float32)
        x = there(data)
        y, ctx = fastbn.batch_norm(x, out=x)
        assert y is x
        check_forward(here(x), reference.forward(data))
        dy = draw(rng, data.shape, np.float32)
        grads = fastbn.batch_norm_backward(there(dy), ctx, out=x)  # from y, where x was
        np.testing.assert_allclose(here(grads.dx), reference.backward(dy, data)[0].astype(float), atol=3e-6)
        with pytest.raises(ValueError, match="overwritten"):
            fastbn.batch_norm_backward(x, ctx)


def test_no_more_are_kept_than_that(rng, monkeypatch):
    monkeypatch.setattr(launch_cache, "MOST", 2)
    for n in range(2, 7):
        fastbn.batch_norm(there(draw(rng, (n, 4), np.float32)))
    assert len(launch_cache._recipes) == 2
