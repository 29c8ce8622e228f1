"""What is done after the normalization, and a residual before it, against its formulas."""

import numpy as np
import pytest

import fastbn
from beyond import F4, F8, SHAPES, cases, close, data, passes

ACTIVATIONS = None, "relu", "gelu", ("leaky_relu", 0.2)


@pytest.mark.parametrize(
    ("shape", "activation", "with_residual", "training"),
    cases(SHAPES, ACTIVATIONS, (False, True), (True, False), compiled=[
        ((12, 20), ("leaky_relu", 0.2), False, True),
        ((6, 5, 7), "gelu", True, False),
        ((16, 20, 130), "relu", True, True),
    ]),
)  # fmt: skip
def test_tail(shape, activation, with_residual, training):
    rng = np.random.default_rng(1)
    x, dy, residual, weight, bias = data(rng, shape)
    running = [np.full(shape[1], 2.5, F4), np.full(shape[1], 3.0, F4)]
    statistics = {"running_mean": running[0].copy(), "running_var": running[1].copy(), "training": training}
    given = residual if with_residual else None
    y, ctx = fastbn.batch_norm(x, weight, bias, **statistics, activation=activation, residual=given)
    grads = fastbn.batch_norm_backward(dy, ctx)

    fixed = {} if training else {"mean": running[0], "var": running[1]}
    expected, (dx, dweight, dbias, dresidual) = passes(x, dy, weight, bias, activation, given, **fixed)
    close(y, expected, F4)
    count = x.size // shape[1]
    close(grads.dx, dx, F4)
    close(grads.dweight, dweight, F4, count)
    close(grads.dbias, dbias, F4, count)
    assert (grads.dresidual is None) is not with_residual
    if with_residual:
        close(grads.dresidual, dresidual, F4)
    # The same by the long way, by other memory orders and into given arrays.
    moments = fastbn.batch_moments(x) if training else None
    out = np.empty_like(x)
    options = {"moments": moments} if training else statistics
    again, ctx = fastbn.batch_norm(
        x.copy(order="F"), weight, bias, **options, activation=activation, residual=given, out=out
    )
    assert again is out
    close(out, y, F4)
    found = fastbn.batch_norm_backward(
        dy.copy(order="F"), ctx, sums=fastbn.backward_sums(dy, ctx), out=np.empty_like(x)
    )
    close(found.dx, grads.dx, F4)
    close(found.dweight, grads.dweight, F4, count)
    if with_residual:
        close(found.dresidual, grads.dresidual, F4)


@pytest.mark.parametrize(
    ("dtype", "activation"),
    cases((F8, np.float16), ("tanh", "sigmoid", "silu", "relu6"), compiled=[(F8, "silu"), (np.float16, "tanh")]),
)
def test_tail_of_other_dtypes(dtype, activation):
    x, dy, residual, weight, bias = data(np.random.default_rng(2), (6, 5, 7), dtype)
    y, ctx = fastbn.batch_norm(x, weight, bias, activation=activation, residual=residual)
    grads = fastbn.batch_norm_backward(dy, ctx)
    expected, by = passes(x, dy, weight, bias, activation, residual)
    close(y, expected, dtype)
    for found, right in zip((grads.dx, grads.dweight, grads.dbias, grads.dresidual), by, strict=True):
        close(found, right, dtype, 1.0 if found.ndim > 1 else 42)


def test_residual_is_given_back_as_it_came():
    """Without an activation the gradient of a residual is dy; a copy, where dx goes there."""
    x, dy, residual, _, _ = data(np.random.default_rng(3), (6, 5, 7))
    _, ctx = fastbn.batch_norm(x, residual=residual, out=residual)
    assert fastbn.batch_norm_backward(dy, ctx).dresidual is dy
    kept = dy.copy()
    grads = fastbn.batch_norm_backward(dy, ctx, out=dy)
    assert grads.dx is dy
    np.testing.assert_array_equal(grads.dresidual, kept)
