"""Shapes, axes, strides and options that nobody thought of, drawn by hypothesis."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import fastbn
import reference
from tolerance import check_backward, check_forward


@st.composite
def cases(draw):
    """Draw an array of any strides, its axis, and a generator for everything else."""
    shape = draw(st.lists(st.integers(1, 9), min_size=2, max_size=5))
    if draw(st.booleans()):
        shape[draw(st.integers(0, len(shape) - 1))] = draw(st.integers(10, 700))
    axis = draw(st.integers(-len(shape), len(shape) - 1))
    dtype = draw(st.sampled_from([np.float32, np.float64]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    steps = [draw(st.sampled_from([1, 1, 1, 2, -1, -3])) for _ in shape]
    big = rng.standard_normal([n * abs(step) for n, step in zip(shape, steps, strict=True)]).astype(dtype)
    order = draw(st.permutations(range(len(shape))))
    x = np.empty([big.shape[i] for i in order], dtype).transpose(np.argsort(order))
    x[...] = big * rng.uniform(0.1, 10) + rng.choice([0, 0, 1, 100])
    x = x[tuple(slice(None, None, step) for step in steps)]
    return x, axis, rng


@given(cases(), st.booleans(), st.booleans(), st.floats(1e-8, 1), st.booleans())
def test_agrees_with_the_oracle(case, has_weight, has_bias, eps, frozen):
    x, axis, rng = case
    C = x.shape[axis]
    weight = rng.standard_normal(C).astype(x.dtype) if has_weight else None
    bias = rng.standard_normal(C).astype(x.dtype) if has_bias else None
    options, known = {}, {}
    if frozen:
        known = {"mean": rng.standard_normal(C).astype(x.dtype), "var": rng.uniform(0.1, 2, C).astype(x.dtype)}
        options = {"running_mean": known["mean"], "running_var": known["var"], "training": False}
    y, ctx = fastbn.batch_norm(x, weight, bias, axis=axis, eps=eps, **options)
    f = reference.forward(x, weight, bias, axis=axis, eps=eps, **known)
    check_forward(y, f, weight, bias)
    dy = rng.standard_normal(x.shape).astype(x.dtype)
    grads = fastbn.batch_norm_backward(dy, ctx)
    check_backward(grads, reference.backward(dy, x, weight, axis=axis, eps=eps, **known), dy, f, weight)


@given(cases(), st.integers(1, 4))
def test_batches_merge_in_any_cut(case, parts):
    x, axis, _ = case
    first = 0 if axis % x.ndim else 1
    whole = fastbn.batch_moments(x, axis=axis)
    pieces = [fastbn.batch_moments(part, axis=axis) for part in np.array_split(x, parts, axis=first)]
    merged = pieces[0].merge(*pieces[1:])
    assert merged.count == whole.count
    reach = np.sqrt(whole.var().max()) + np.abs(whole.mean).max()
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=0, atol=1e-13 * reach)
    np.testing.assert_allclose(merged.m2, whole.m2, rtol=1e-10, atol=1e-24 * whole.count * reach**2)
