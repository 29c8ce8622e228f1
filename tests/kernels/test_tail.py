"""What is done after the normalization, by every kernel, forward and back: relu, before the API offers it."""

import numpy as np
import pytest

import fastbn
import reference
from fastbn.backends.cpu import launch, plan
from fastbn_kernels.cpu.simd.tails import RELU
from fastbn_kernels.saved import BIAS, ROWS, VAR, WEIGHT
from grid import draw, poisoned
from plans import force
from tolerance import check_backward, check_forward

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


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_relu(rng, monkeypatch, name, frozen):
    shape, changes = FAMILIES[name]
    force(monkeypatch, **changes)
    x, dy = draw(rng, shape, np.float32, mean=3), draw(rng, shape, np.float32)
    C = shape[1]
    weight, bias = draw(rng, C, np.float64), draw(rng, C, np.float64)
    given = {"mean": rng.normal(3, 0.5, C), "var": rng.uniform(0.5, 2, C)} if frozen else {}
    saved = np.full((ROWS, C), np.nan)
    saved[WEIGHT], saved[BIAS] = weight, bias
    y = poisoned(shape, np.float32)
    if frozen:
        saved[0], saved[1], saved[VAR] = given["mean"], 0.0, given["var"]
        launch.normalize(x, saved, 1e-5, y, RELU)
    else:
        launch.forward(x, saved, 1e-5, y, RELU)
    plain = poisoned(shape, np.float32)
    launch.normalize(x, saved.copy(), 1e-5, plain)
    check_forward(plain, reference.forward(x, weight, bias, **given), weight, bias)
    np.testing.assert_array_equal(y, np.maximum(plain, 0))

    through = np.where(plain > 0, dy, np.float32(0))
    expected = reference.backward(through, x, weight, **given)
    f = reference.forward(x, **given)
    for over_sums in (False, True):
        dx = poisoned(shape, np.float32)
        if over_sums:
            sums = launch.sums(dy, x, saved, RELU)
            launch.gradient(dy, x, saved, sums, shape[0] * shape[2], frozen, dx, RELU)
        else:
            sums = launch.backward(dy, x, saved, frozen, dx, RELU)
        check_backward(fastbn.Gradients(dx, sums[1], sums[0]), expected, through, f, weight)


def test_kernels_are_told_apart_by_their_tail():
    """A kernel with a tail is another one than without, in this process and in the cache on disk."""
    from fastbn_kernels.cpu import kernel

    name = plan.make(4, 6, 1800, 4, 1).normalize
    functions = [kernel(name).get(np.dtype(np.float32), True, tail) for tail in (None, RELU)]
    assert functions[0] is not functions[1]
