"""More than 2^31 values, where a 32-bit index would wrap: float16, 4.3 GB a tensor."""

import numpy as np
import pytest

import fastbn
import reference
from grid import affine, draw
from tolerance import check_backward, check_forward

NEEDED = 14  # GB: x, y, and what the system needs


def available():
    """Return the memory that is free for use, in GB."""
    try:
        with open("/proc/meminfo") as file:
            found = next(line for line in file if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return 0
    return int(found.split()[1]) / 1e6


@pytest.mark.slow
@pytest.mark.skipif(available() < NEEDED, reason=f"needs {NEEDED} GB of free memory")
@pytest.mark.parametrize(
    ("pattern", "times"),
    [((1, 2, 1 << 16), (1, 1, (1 << 14) + 1)), ((1 << 10, 64), ((1 << 15) + 1, 1)), ((1 << 10, 32, 9), (7300, 1, 1))],
    ids=["runs", "rows", "short runs"],
)
def test_more_than_two_to_the_31(rng, pattern, times):
    """A pattern over and over: its statistics are the whole's, and so is every value; dy is y."""
    block = draw(rng, pattern, np.float16, mean=3)
    weight, bias = affine(rng, pattern[1], np.float32)
    x = np.tile(block, times)
    assert x.size > 1 << 31
    y, ctx = fastbn.batch_norm(x, weight, bias)
    f = reference.forward(block, weight, bias)
    np.testing.assert_allclose(ctx.moments.mean, f.mean.astype(float), rtol=1e-6)
    np.testing.assert_allclose(ctx.moments.var(), f.var.astype(float), rtol=1e-6)
    first = everywhere(y, pattern)
    check_forward(first, f, weight, bias)
    grads = fastbn.batch_norm_backward(y, ctx, out=y)
    expected = reference.backward(first, block, weight)
    repeats = x.size // block.size
    own = fastbn.Gradients(everywhere(y, pattern), grads.dweight / repeats, grads.dbias / repeats)
    check_backward(own, expected, first, f, weight)


def everywhere(array, pattern):
    """Return the first block of an array after comparing all others with it."""
    first = array[tuple(slice(n) for n in pattern)].copy()
    for axis, (n, whole) in enumerate(zip(pattern, array.shape, strict=True)):
        for start in range(n, whole, n):
            np.testing.assert_array_equal(array[(slice(None),) * axis + (slice(start, start + n),)], first)
    return first


@pytest.mark.slow
@pytest.mark.skipif(available() < NEEDED, reason=f"needs {NEEDED} GB of free memory")
def test_inference_in_place(rng):
    block = draw(rng, (1 << 10, 64), np.float16)
    x = np.tile(block, ((1 << 15) + 1, 1))
    mean, var = draw(rng, 64, np.float32), rng.uniform(0.5, 2, 64).astype(np.float32)
    assert fastbn.batch_norm_inference(x, mean, var, out=x) is x
    check_forward(everywhere(x, block.shape), reference.forward(block, mean=mean, var=var))
