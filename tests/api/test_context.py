"""A context made again from the arrays of another, as a host does that keeps arrays alone."""

import numpy as np
import pytest

import fastbn
from grid import affine, draw


@pytest.mark.parametrize("training", [True, False])
def test_a_context_made_again_from_its_parts_goes_back_with_the_same_bits(rng, training):
    x, dy = draw(rng, (6, 5, 4), np.float32), draw(rng, (6, 5, 4), np.float32)
    weight, bias = affine(rng, 5, np.float32)
    mean, var = draw(rng, 5, np.float32), rng.uniform(0.5, 2, 5).astype(np.float32)
    _, ctx = fastbn.batch_norm(x, weight, bias, running_mean=mean, running_var=var, training=training)
    parts = ctx.axis, ctx.count, ctx.saved.copy(), ctx.weight_dtype, ctx.bias_dtype, ctx.frozen
    again = fastbn.batch_norm_backward(dy, fastbn.Context(x.copy(), *parts))
    expected = fastbn.batch_norm_backward(dy, ctx)
    for name in ("dx", "dweight", "dbias"):
        np.testing.assert_array_equal(getattr(again, name), getattr(expected, name))
