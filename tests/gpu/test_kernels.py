"""The GPU kernels agree with the oracle: every layout, dtype and launch plan, on poisoned outputs."""

import dataclasses

import ml_dtypes
import numpy as np
import pytest

import fastbn
import reference
from fastbn import layout
from fastbn.backends.cuda import plan as cuda_plan
from gpu_helpers import EXACT, arithmetic_of, gpu, gradients, here, needed, parameter_dtype, poisoned, simulated, there  # noqa: F401
from gpu_tolerance import check_backward, check_forward, check_var
from grid import SMALL, affine, draw, thinned

pytestmark = needed

DTYPES = [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, EXACT]

# (shape, axis, GPU, what the plan must be): every way that a call can be launched.
PLANS = {
    "a block a channel, all of it kept": (((2, 3, 8, 8), 1), {}, lambda p: p.blocks == 1 and whole(p)),
    "channels in turn": (((2, 9, 4, 8), 1), {}, lambda p: p.blocks == 1 and p.block_groups < 9),
    "smaller blocks": (((8, 20, 4, 8), 1), {"threads": 64}, lambda p: p.threads == 32 and p.block_groups > 4),
    "several blocks a channel": (
        ((8, 2, 16, 16), 1), {"multiprocessors": 6}, lambda p: p.blocks > 1 and p.block_groups == 2 and whole(p),
    ),
    "a group of blocks, in turn": (
        ((24, 3, 16, 16), 1), {"family": "channels_first", "kept": 13},
        lambda p: p.blocks > 1 == p.block_groups and whole(p),
    ),
    "kept in part": (((16, 3, 16, 16), 1), {"family": "channels_first", "kept": 3}, lambda p: first(p) and part(p)),
    "nothing kept": (
        ((8, 3, 16, 16), 1), {"family": "channels_first", "kept": 0}, lambda p: first(p) and p.smem_vectors == 0,
    ),
    "segments that share vectors": (((30, 3, 7, 7), 1), {"multiprocessors": 6}, lambda p: ragged(p) and p.blocks > 1),
    "segments that share vectors, kept in part": (
        ((40, 2, 7, 7), 1), {"family": "channels_first", "kept": 2}, lambda p: ragged(p) and p.smem_vectors < steps(p),
    ),
    "segments shorter than a vector": (((50, 3, 3), 1), {}, lambda p: ragged(p)),
    "rows": (((100, 24), 1), {}, lambda p: last(p) and p.blocks == 1),
    "rows, groups in turn": (
        ((30, 300), 1), {"multiprocessors": 1}, lambda p: p.block_groups * p.geometry[3] * 8 < 300,
    ),
    "rows, a group of blocks": (
        ((600, 16), 1), {"multiprocessors": 6}, lambda p: last(p) and 1 < p.blocks <= cuda_plan.DIRECT,
    ),
    "rows, a large group of blocks": (
        ((2400, 8), 1), {"multiprocessors": 12}, lambda p: last(p) and p.blocks > cuda_plan.DIRECT,
    ),
    "rows, kept in part": (((900, 16), 1), {"kept": 2}, lambda p: last(p) and part(p)),
    "rows, nothing kept": (((500, 16), 1), {"kept": 0}, lambda p: last(p) and p.smem_vectors == 0),
    "narrow rows together": (((480, 3), 1), {}, lambda p: p.geometry[2] > 1),
    "narrow rows together, a group of blocks": (
        ((960, 6), 1), {"multiprocessors": 8}, lambda p: p.geometry[2] > 1 and p.blocks > 1,
    ),
    "rows a value at a time": (((41, 37), 1), {}, lambda p: p.scalars),
    "one channel": (((64, 1, 5), 1), {"multiprocessors": 3}, lambda p: first(p)),
}  # fmt: skip


def steps(plan):
    """How many vectors a thread has at most."""
    if plan.family == "channels_first":
        N, _, _, Q = plan.geometry
        return -(-N * Q // (plan.blocks * plan.threads))
    R, _, _, row_threads = plan.geometry
    return -(-R // (plan.blocks * (plan.threads // row_threads)))


def whole(plan):
    """Whether a thread keeps all of its vectors."""
    return plan.smem_vectors >= steps(plan) > 0


def part(plan):
    """Whether it keeps some, and so few that whole loops go on without them."""
    return 0 < plan.smem_vectors < steps(plan) - 4


def first(plan):
    return plan.family == "channels_first"


def last(plan):
    return plan.family == "channels_last"


def ragged(plan):
    _, _, S, Q = plan.geometry
    return first(plan) and S % Q != 0


def check_everything(rng, shape, axis, dtype, mean=3.0, outliers=None, size=1.0):
    """Hold forward, inference and backward, training and frozen, against the oracle."""
    dtype, precision = arithmetic_of(dtype)
    exact = precision == "exact"
    x, dy = draw(rng, shape, dtype, mean=mean * size, std=size), draw(rng, shape, dtype, mean=0.5)
    if outliers is not None:
        x[outliers] = 1e4
    C = shape[axis]
    eps = 1e-5 * size**2
    options = {"axis": axis, "eps": eps, "precision": precision}
    own = {"axis": axis, "exact": exact}
    weight, bias = affine(rng, C, parameter_dtype(dtype))
    f = reference.forward(x, weight, bias, axis=axis, eps=eps)
    y, ctx = fastbn.batch_norm(there(x), there(weight), there(bias), out=poisoned(shape, dtype), **options)
    check_forward(here(y), f, weight, bias, **own)
    check_var(ctx.moments.var() / size**2, f.var / size**2, f, x.size // C, dtype, exact=exact)
    grads = gradients(fastbn.batch_norm_backward(there(dy), ctx, out=poisoned(shape, dtype)))
    assert (grads.dx.dtype, grads.dweight.dtype) == (dtype, parameter_dtype(dtype))
    check_backward(grads, reference.backward(dy, x, weight, axis=axis, eps=eps), dy, f, weight, **own)

    mean_, var = draw(rng, C, weight.dtype, std=size), (rng.uniform(0.1, 3, C) * size**2).astype(weight.dtype)
    given = {"mean": mean_, "var": var, "axis": axis, "eps": eps}
    y, ctx = fastbn.batch_norm(
        there(x), there(weight), there(bias), running_mean=there(mean_), running_var=there(var), training=False,
        out=poisoned(shape, dtype), **options,
    )  # fmt: skip
    f = reference.forward(x, weight, bias, **given)
    check_forward(here(y), f, weight, bias, **own)
    grads = gradients(fastbn.batch_norm_backward(there(dy), ctx, out=poisoned(shape, dtype)))
    check_backward(grads, reference.backward(dy, x, weight, **given), dy, f, weight, **own)


@pytest.mark.parametrize(("case", "dtype"), thinned(SMALL, DTYPES))
def test_any_shape(rng, case, dtype):
    shape, axis = case
    check_everything(rng, shape, axis, dtype)


@pytest.mark.parametrize(("name", "dtype"), thinned(PLANS, DTYPES))
def test_every_plan(rng, gpu, name, dtype):  # noqa: F811
    (shape, axis), properties, holds = PLANS[name]
    own = gpu(**properties)
    N, C, S = layout.analyse(shape, np.empty(shape, np.uint8).strides, 1, axis).shape
    assert holds(cuda_plan.make(N, C, S, 4, True, 1, True, own)), "the plan is not the one that this test is about"
    check_everything(rng, shape, axis, dtype)


@pytest.mark.parametrize("blocks", [3, 18])
def test_a_group_of_blocks_that_takes_several_groups_of_columns(rng, gpu, monkeypatch, blocks):  # noqa: F811
    gpu(multiprocessors=9)
    make = cuda_plan.make
    monkeypatch.setattr(
        cuda_plan, "make", lambda *shape: dataclasses.replace(make(*shape), blocks=blocks, block_groups=1)
    )
    check_everything(rng, (300, 70), 1, np.float32)


FIRST = {(9, 3, 8, 8): np.s_[0, :, 0, 0], (9, 3, 7, 7): np.s_[0, :, 0, 0], (70, 12): np.s_[0], (48, 3): np.s_[0]}


@pytest.mark.parametrize(("shape", "dtype"), thinned(FIRST, DTYPES))
def test_an_outlier_in_first_place(rng, gpu, shape, dtype):  # noqa: F811
    """It is what sums are taken around at first in float64; they are then taken again."""
    gpu(multiprocessors=4)
    check_everything(rng, shape, 1, dtype, outliers=FIRST[shape])


@pytest.mark.parametrize(("shape", "outliers"), [((8, 2, 16, 16), np.s_[:, :, ::4, 0]), ((2048, 4), np.s_[::128])])
def test_outliers_where_samples_are_taken(rng, gpu, shape, outliers):  # noqa: F811
    """Their mean is what sums are taken around at first in float32; of x - k all others would be rounded alike."""
    gpu(multiprocessors=4)
    C = shape[1]
    x = np.broadcast_to(rng.uniform(3, 4, C).reshape([1, C] + [1] * (len(shape) - 2)), shape).astype(np.float32)
    x[outliers] = 1e4
    y, ctx = fastbn.batch_norm(there(x))
    f = reference.forward(x)
    check_forward(here(y), f)
    check_var(ctx.moments.var(), f.var, f, x.size // C, np.float32)


@pytest.mark.parametrize(("shape", "dtype"), [
    ((6, 3, 8, 8), np.float32), ((6, 3, 7, 7), np.float32), ((70, 12), np.float32), ((48, 3), EXACT),
])  # fmt: skip
@pytest.mark.parametrize("size", [1e-22, 1e19])
def test_values_whose_squares_are_out_of_range(rng, shape, dtype, size):
    check_everything(rng, shape, 1, dtype, size=size)


@pytest.mark.parametrize(("shape", "axis"), [((6, 3, 8, 8), 1), ((6, 3, 7, 7), 1), ((70, 12), 1)])
@pytest.mark.parametrize(("mean", "dtype"), [(1e2, np.float32), (1e4, EXACT), (1e6, np.float32), (1e6, EXACT)])
def test_a_mean_far_from_zero(rng, shape, axis, mean, dtype):
    check_everything(rng, shape, axis, dtype, mean=mean)


@pytest.mark.parametrize(
    ("name", "dtype"),
    thinned(
        ["rows, a large group of blocks", "several blocks a channel", "segments that share vectors"],
        [np.float32, np.float64, ml_dtypes.bfloat16],
    ),
)
def test_the_same_bits(rng, gpu, name, dtype):  # noqa: F811
    """The simulator runs threads in an order drawn anew each time."""
    (shape, axis), properties, _ = PLANS[name]
    gpu(**properties)
    x, dy = draw(rng, shape, dtype), draw(rng, shape, dtype)

    def results():
        y, ctx = fastbn.batch_norm(there(x), axis=axis)
        over = there(x)
        fastbn.batch_norm(over, axis=axis, out=over)
        np.testing.assert_array_equal(here(over), here(y))
        grads = fastbn.batch_norm_backward(there(dy), ctx)
        second = there(dy)
        fastbn.batch_norm_backward(second, ctx, out=second)
        np.testing.assert_array_equal(here(second), here(grads.dx))
        return here(y), here(grads.dx), ctx.saved

    expected = results()
    for _ in range(2):
        for a, b in zip(results(), expected, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    ("shape", "bad", "dtype"), thinned([(6, 3, 8, 8), (6, 3, 7, 7), (70, 12), (48, 3)], [np.nan, np.inf], DTYPES)
)
def test_nan_and_infinity_stay_in_their_channel(rng, shape, bad, dtype):
    axis = 1
    dtype, precision = arithmetic_of(dtype)
    x = draw(rng, shape, dtype)
    clean, _ = fastbn.batch_norm(there(x), axis=axis, precision=precision)
    index = [1] * x.ndim
    x[tuple(index)] = bad
    y, ctx = fastbn.batch_norm(there(x), axis=axis, precision=precision)
    y = here(y)
    np.testing.assert_array_equal(np.delete(y, 1, axis), np.delete(here(clean), 1, axis))
    assert np.isnan(np.moveaxis(y, axis, 0)[1]).all()
    np.testing.assert_array_equal(ctx.moments.mean[1], bad)
    dx = here(fastbn.batch_norm_backward(there(draw(rng, shape, dtype)), ctx).dx)
    assert np.isfinite(np.delete(dx, 1, axis)).all()


def test_frozen_gradients_are_finite_where_x_is_not(rng):
    x, dy = draw(rng, (6, 3, 8, 8), np.float32), draw(rng, (6, 3, 8, 8), np.float32)
    x[0, 1, 0, 0] = np.inf
    mean, var = there(np.zeros(3, np.float32)), there(np.ones(3, np.float32))
    _, ctx = fastbn.batch_norm(there(x), running_mean=mean, running_var=var, training=False)
    assert np.isfinite(here(fastbn.batch_norm_backward(there(dy), ctx).dx)).all()


def test_the_simulated_gpu_is_what_the_plans_are_about():
    """Otherwise the names above would promise what they do not hold."""
    own = simulated(kept=4)
    assert cuda_plan.capacity(own, "channels_last", 2, 1) == 4
    assert cuda_plan.capacity(own, "channels_first", 2, 1) > 4
