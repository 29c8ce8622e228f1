"""`precision`: which arithmetic float32 gets, who decides, and that a call has it however it is made."""

import copy
import pickle

import numpy as np
import pytest

import fastbn
from fastbn import arithmetic
from fastbn_kernels.build.decorators import Kernel
from grid import affine, draw

# A whole call in one kernel, rows and channels; large, and by the kernels of the plan.
SHAPES = [(32, 64), (6, 5, 4, 7), (700, 64), (8, 16, 30, 30)]


@pytest.fixture
def environment(monkeypatch):
    """Return what says, for this test, what FASTBN_PRECISION is to a process that starts now."""

    def says(value):
        monkeypatch.setenv("FASTBN_PRECISION", value)
        arithmetic.forget()

    yield says
    monkeypatch.undo()
    arithmetic.forget()


def drawn(rng, shape, dtype=np.float32):
    parameters = np.float64 if dtype == np.float64 else np.float32
    weight, bias = affine(rng, shape[1], parameters)
    return draw(rng, shape, dtype, mean=3), draw(rng, shape, dtype), weight, bias


def results(x, dy, weight, bias, training=True, **options):
    """Everything that a call and its backward passes return or write."""
    mean, var = np.full_like(weight, 0.25), np.full_like(weight, 2)
    given = {"running_mean": mean, "running_var": var, "training": training, **options}
    y, ctx = fastbn.batch_norm(x, weight, bias, **given)
    grads, sums = fastbn.batch_norm_backward(dy, ctx), fastbn.backward_sums(dy, ctx)
    merged = fastbn.batch_norm_backward(dy, ctx, sums=sums)
    found = y, mean, var, grads.dx, grads.dweight, grads.dbias, sums.sum_dy, sums.sum_dy_xhat, merged.dx
    return [np.ascontiguousarray(array) for array in found]


def assert_bits(got, expected):
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == b.dtype
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_way_through_a_call_has_the_bits_of_its_precision(rng, shape, training, monkeypatch):
    given = drawn(rng, shape)
    short = {precision: results(*given, training, precision=precision) for precision in arithmetic.NAMES}
    assert (short["fast"][0] != short["exact"][0]).any()
    assert (short["fast"][3] != short["exact"][3]).any()
    assert_bits(results(*given, training), short["fast"])
    gaps = [np.repeat(array, 2, 0)[::2] for array in given[:2]]
    for function in ("quick_forward", "quick_backward"):
        monkeypatch.setattr(fastbn.dispatch.cpu, function, lambda *_: None)
    for precision, expected in short.items():
        assert_bits(results(*given, training, precision=precision), expected)
        assert_bits(results(*gaps, *given[2:], training, precision=precision), expected)
        over = given[0].copy()
        y, _ = fastbn.batch_norm(over, *given[2:], precision=precision, out=over)
        assert y is over
        assert_bits([over], results(*given, precision=precision)[:1])


def test_exact_is_float64_rounded_once(rng):
    """Against float64 data, whose results differ from the unrounded ones by 2^-52."""
    x, dy, weight, bias = drawn(rng, (6, 5, 4, 7))
    found = results(x, dy, weight, bias, precision="exact")
    wide = results(*(array.astype(np.float64) for array in (x, dy, weight, bias)))
    for got, expected in zip(found, wide, strict=True):
        np.testing.assert_allclose(got, expected.astype(got.dtype), rtol=2.0**-23, atol=1e-12)
    assert (found[0] == wide[0].astype(np.float32)).mean() > 0.999


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_other_dtypes_have_one_arithmetic(rng, dtype):
    given = drawn(rng, (32, 6), dtype)
    assert_bits(results(*given, precision="exact"), results(*given, precision="fast"))


def test_the_environment_says_what_calls_get_that_ask_for_nothing(rng, environment):
    given = drawn(rng, (32, 6))
    explicit = {precision: results(*given, precision=precision) for precision in arithmetic.NAMES}
    layers = {precision: fastbn.BatchNorm(6, precision=precision) for precision in (None, *arithmetic.NAMES)}
    ys = {precision: layers[precision](given[0]) for precision in arithmetic.NAMES}
    for says, precision in (("exact", "exact"), ("", "fast"), ("fast", "fast")):
        environment(says)
        assert_bits(results(*given), explicit[precision])
        assert_bits([layers[None](given[0])], [ys[precision]])
        assert arithmetic.own() == precision
    environment("double")
    for _ in range(2):
        with pytest.raises(ValueError, match="FASTBN_PRECISION: expected 'fast' or 'exact' in the environment, got 'd"):
            fastbn.batch_norm(given[0])
    assert_bits(results(*given, precision="exact"), explicit["exact"])


def test_a_context_goes_back_in_its_own_precision(rng, environment):
    x, dy, weight, bias = drawn(rng, (32, 6))
    found = {}
    for precision in arithmetic.NAMES:
        _, ctx = fastbn.batch_norm(x, weight, bias, precision=precision)
        assert ctx.precision == precision
        parts = x, ctx.axis, ctx.count, ctx.saved, ctx.weight_dtype, ctx.bias_dtype
        found[precision] = fastbn.batch_norm_backward(dy, ctx).dx
        environment(precision)
        for again in (fastbn.Context(*parts), fastbn.Context(*parts, precision=precision), copy.copy(ctx)):
            assert again.precision == precision
            assert_bits([fastbn.batch_norm_backward(dy, again).dx], [found[precision]])
    assert (found["fast"] != found["exact"]).any()


@pytest.mark.parametrize("training", [True, False])
def test_who_asks_for_statistics_or_higher_derivatives_gets_all_digits(rng, training, monkeypatch):
    x, dy, weight, bias = drawn(rng, (32, 6))
    given = {"running_mean": bias.copy(), "running_var": weight**2, "training": training}
    _, ctx = fastbn.batch_norm(x, weight, bias, **given, precision="fast")
    seen = []
    launch = Kernel.launch
    monkeypatch.setattr(Kernel, "launch", lambda self, dtype, *a: seen.append(dtype.char) or launch(self, dtype, *a))
    fastbn.batch_moments(x)
    results = [fastbn.batch_norm_jvp(dy, weight, None, ctx), fastbn.batch_norm_jvp(dy, None, bias, ctx)]
    results += fastbn.batch_norm_double_backward(dy, weight, bias, x, ctx)
    assert {result.dtype for result in results} == {np.dtype(np.float32)}
    assert set(seen) == {"i"}


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer))])
def test_a_layer_keeps_its_precision(rng, copied, tmp_path):
    x, dy, *_ = drawn(rng, (32, 6))
    layer, other = fastbn.BatchNorm(6, precision="exact"), fastbn.BatchNorm(6)
    again = copied(layer)
    assert again.precision == "exact"
    assert "precision='exact'" in repr(again)
    fastbn.save(tmp_path / "layer.npz", layer)
    for each, precision in ((again, "exact"), (other, "fast")):
        fastbn.load(tmp_path / "layer.npz", each)
        y, ctx = fastbn.batch_norm(x, each.weight, each.bias, precision=precision)
        assert_bits([each(x), each.backward(dy)], [y, fastbn.batch_norm_backward(dy, ctx).dx])
        mean, var = each.running_mean, each.running_var
        expected = fastbn.batch_norm_inference(x, mean, var, each.weight, each.bias, precision=precision)
        assert_bits([each.eval()(x)], [expected])
