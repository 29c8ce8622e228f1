"""Batch renormalization against its formulas."""

import numpy as np
import pytest

import fastbn
import reference
from beyond import F4, INTERPRETED, SHAPES, close, data
from plans import force
from reference import WIDE, column


@pytest.mark.parametrize("shape", [*SHAPES, (64, 40, 7, 7)], ids=str)
def test_renorm(shape):
    rng = np.random.default_rng(7)
    x, dy, _, weight, bias = data(rng, shape)
    r_max, d_max, eps = 1.3, 0.4, 1e-3
    mean = rng.normal(3, 1, shape[1]).astype(F4)
    var = rng.uniform(1, 9, shape[1]).astype(F4)
    moved = mean.copy(), var.copy()
    y, ctx = fastbn.batch_norm(
        x, weight, bias, running_mean=moved[0], running_var=moved[1], eps=eps, renorm=fastbn.Renorm(r_max, d_max)
    )
    grads = fastbn.batch_norm_backward(dy, ctx)

    f = reference.forward(x, eps=eps)
    sigma = np.sqrt(var.astype(WIDE) + eps)
    r = np.clip(np.sqrt(f.var + eps) / sigma, 1 / r_max, r_max)
    d = np.clip((f.mean - mean) / sigma, -d_max, d_max)
    assert ((r > 1 / r_max) & (r < r_max)).any()
    assert (np.abs(d) == d_max).any()
    scale, shift = (column(values, x, 1) for values in (r * weight, d * weight + bias))
    dx, by_xhat, by_one = reference.backward(dy, x, r * weight, eps=eps)
    close(y, f.xhat * scale + shift, F4)
    close(grads.dx, dx, F4)
    close(grads.dweight, r * by_xhat + d * by_one, F4, x.size // shape[1])
    close(grads.dbias, by_one, F4, x.size // shape[1])
    close(moved[0], 0.9 * mean + 0.1 * f.mean, F4, 4.0)
    # With given moments, of this very batch, it is the same.
    again, _ = fastbn.batch_norm(
        x, weight, bias, running_mean=mean, running_var=var, eps=eps, renorm=fastbn.Renorm(r_max, d_max),
        moments=fastbn.batch_moments(x), update_stats=False,
    )  # fmt: skip
    close(again, y, F4)


@pytest.mark.bounds
@pytest.mark.skipif(not INTERPRETED, reason="in plain Python alone")
@pytest.mark.parametrize(
    ("shape", "family"), [((3, 2, 130), "tiles"), ((3, 2, 130), "channels_first"), ((40, 6), None)]
)
def test_renorm_with_a_mask_is_that_of_what_counts(monkeypatch, shape, family):
    rng = np.random.default_rng(9)
    x, _, _, weight, bias = data(rng, shape)
    mask = rng.random((shape[0], *shape[2:])) < 0.6
    given = {
        "running_mean": rng.normal(3, 1, shape[1]).astype(F4), "running_var": rng.uniform(1, 9, shape[1]).astype(F4),
        "update_stats": False, "renorm": fastbn.Renorm(1.3, 0.4),
    }  # fmt: skip
    expected, _ = fastbn.batch_norm(np.moveaxis(x, 1, -1)[mask], weight, bias, **given)
    if family:
        force(monkeypatch, family=family)
    y, _ = fastbn.batch_norm(x, weight, bias, mask=mask, **given)
    close(np.moveaxis(y, 1, -1)[mask], expected, F4)


@pytest.mark.parametrize("shape", [*SHAPES, (64, 40, 7, 7)], ids=str)
def test_renorm_without_corrections_is_batch_norm(shape):
    x, dy, _, weight, bias = data(np.random.default_rng(8), shape)
    running = [np.full(shape[1], 9.0, F4), np.full(shape[1], 0.1, F4)]
    given = {"running_mean": running[0], "running_var": running[1], "update_stats": False}
    y, ctx = fastbn.batch_norm(x, weight, bias, **given, renorm=fastbn.Renorm(1, 0))
    plain, plain_ctx = fastbn.batch_norm(x, weight, bias)
    np.testing.assert_array_equal(y, plain)
    grads, expected = fastbn.batch_norm_backward(dy, ctx), fastbn.batch_norm_backward(dy, plain_ctx)
    np.testing.assert_array_equal(grads.dx, expected.dx)
    np.testing.assert_array_equal(grads.dweight, expected.dweight)
