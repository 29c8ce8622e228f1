"""What goes beyond plain batch norm, on a GPU and on what is sent there: the same as on the processor."""

import numpy as np
import pytest

import fastbn
from beyond import F4, close, data
from gpu_helpers import here, needed, there

pytestmark = needed

SHAPES = [(6, 4, 8), (12, 20)]


def on(place, array):
    """Return an array where it is wanted."""
    return there(array) if place == "there" and array is not None else array


def options(place, **more):
    return more | ({"device": "cuda"} if place == "sent" else {})


def passes(place, x, dy, weight, bias, running, given, out=None):
    """Return what a forward and a backward pass give, on the host."""
    placed = {
        name: on(place, value) if isinstance(value, np.ndarray) and value.dtype != bool else value
        for name, value in given.items()
    }
    mean, var = (on(place, values.copy()) for values in running)
    own = on(place, x)
    if out is not None:
        placed["out"] = own
    y, ctx = fastbn.batch_norm(
        own, on(place, weight), on(place, bias), running_mean=mean, running_var=var, **options(place, **placed)
    )
    grads = fastbn.batch_norm_backward(on(place, dy), ctx)
    found = [y, grads.dx, grads.dweight, grads.dbias, mean, var]
    if given.get("residual") is not None:
        found.append(grads.dresidual)
    return [np.array(here(each), copy=True) for each in found]


def lengths(shape):
    """A mask that leaves some of every sample but one, whole."""
    positions = np.arange(shape[2]) if len(shape) > 2 else np.zeros(1, int)
    mask = positions[None] < (np.arange(shape[0]) % 5 + 1)[:, None]
    mask[1] = len(shape) > 2
    return mask if len(shape) > 2 else mask[:, 0]


@pytest.mark.parametrize("place", ["there", "sent"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("what", ["ghosts", "renorm", "mask", "residual", "relu", "gelu", "kept", "in place"])
def test_the_same_as_on_the_processor(place, shape, what):
    rng = np.random.default_rng(1)
    x, dy, residual, weight, bias = data(rng, shape)
    running = rng.normal(3, 1, shape[1]).astype(F4), rng.uniform(2, 6, shape[1]).astype(F4)
    given = {
        "ghosts": {"ghost_batch_size": 4, "residual": residual},
        "renorm": {"renorm": fastbn.Renorm(1.2, 0.3)},
        "mask": {"mask": lengths(shape)},
        "residual": {"residual": residual},
        "relu": {"activation": "relu", "residual": residual},
        "gelu": {"activation": "gelu"},
        "kept": {"update_stats": False},
        "in place": {},
    }[what]
    if what == "mask":
        full = np.broadcast_to(np.expand_dims(given["mask"], 1), shape)
        x[~full] = dy[~full] = np.nan
    expected = passes("cpu", x.copy(), dy, weight, bias, running, given, out=True if what == "in place" else None)
    found = passes(place, x.copy(), dy, weight, bias, running, given, out=True if what == "in place" else None)
    passes(place, x.copy(), dy, weight, bias, running, {})  # a plain call, which is kept and is another
    again = passes(place, x.copy(), dy, weight, bias, running, given, out=True if what == "in place" else None)
    for ours, theirs in zip(found + again, expected * 2, strict=True):
        close(ours, theirs, F4, 40.0)


def test_moments_with_a_mask():
    x = data(np.random.default_rng(2), (6, 4, 8))[0]
    mask = lengths(x.shape)
    expected = fastbn.batch_moments(x, mask=mask)
    for found in (fastbn.batch_moments(there(x), mask=mask), fastbn.batch_moments(there(x), mask=there(mask))):
        assert found.count == expected.count
        close(found.mean, expected.mean, F4)
        close(found.m2, expected.m2, F4)


def test_several_axes_are_for_the_processor():
    with pytest.raises(ValueError, match="axis: expected one integer for an array on a GPU"):
        fastbn.batch_norm(there(np.ones((2, 3, 4), F4)), axis=(1, 2))
