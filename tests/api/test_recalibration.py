"""Population statistics: against all data at once, in the widest float; whatever fails leaves every layer as it was."""

import io
import sys

import numpy as np
import pytest

import fastbn
import reference
from grid import draw
from tolerance import VAR

SIZES = [8, 1, 32, 5, 8]


def batches(rng, dtype, sizes=SIZES):
    """Ragged batches whose means differ by standard deviations."""
    return [draw(rng, (n, 6), dtype, mean=3 * i) for i, n in enumerate(sizes)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("correction", [0, 1])
def test_pooled_statistics_are_those_of_all_data_at_once(rng, dtype, correction):
    layer = fastbn.BatchNorm(6, dtype=np.float64, correction=correction, momentum=0.9)
    given = batches(rng, dtype)
    assert fastbn.recalibrate(layer, iter(given), layer) is None
    everything = np.concatenate(given)
    mean, var = reference.moments(everything)
    var = var * len(everything) / (len(everything) - correction)
    # float64: merged five times, of sums of at most 32 values; each rounds a few times.
    off = VAR if dtype == np.float32 else 100 * 2.0**-53
    assert (np.abs(layer.running_var - var) <= off * var).all()
    assert (np.abs(layer.running_mean - mean) <= off * (np.abs(mean) + np.sqrt(var))).all()


@pytest.mark.parametrize("correction", [0, 1])
def test_the_average_of_the_paper(rng, correction):
    layer = fastbn.BatchNorm(6, correction=correction, dtype=np.float64)
    given = batches(rng, np.float64, [8, 2, 32, 5])
    fastbn.recalibrate([layer], given, layer, method="average")
    means, variances = zip(*(reference.moments(x) for x in given), strict=True)
    unbiased = [var * len(x) / (len(x) - correction) for var, x in zip(variances, given, strict=True)]
    for actual, expected in ((layer.running_mean, np.mean(means, 0)), (layer.running_var, np.mean(unbiased, 0))):
        np.testing.assert_allclose(actual, expected.astype(float), rtol=1e-14)


def net(rng):
    """Two layers that follow each other, of which the second is called twice a batch."""
    w = draw(rng, (6, 6), np.float64)
    layers = {
        name: fastbn.BatchNorm(6, dtype=np.float64, momentum=momentum) for name, momentum in (("a", 0.1), ("b", None))
    }
    for layer in layers.values():
        layer.running_mean[:], layer.running_var[:] = draw(rng, 6, np.float64), rng.uniform(1, 2, 6)
        layer(draw(rng, (4, 6), np.float64))

    def forward(x):
        hidden = np.tanh(layers["a"](x)) @ w
        return layers["b"](hidden) + layers["b"](hidden + 1)

    return layers, forward, w


def test_layers_see_what_they_see_in_training_and_every_call_counts(rng):
    layers, forward, w = net(rng)
    given = batches(rng, np.float64, [8, 3])
    arrays = [layer.running_var for layer in layers.values()]
    layers["b"].eval()
    fastbn.recalibrate(layers, given, forward)
    hidden = [np.tanh(reference.forward(x).y) @ w for x in given]
    mean, var = reference.moments(np.concatenate([h + i for h in hidden for i in (0, 1)]))
    np.testing.assert_allclose(layers["b"].running_mean, mean.astype(float), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(layers["b"].running_var, (var * 22 / 21).astype(float), rtol=1e-12)
    assert [layer.num_batches_tracked for layer in layers.values()] == [2, 4]
    assert [layer.training for layer in layers.values()] == [True, False]
    assert [layer.momentum for layer in layers.values()] == [0.1, None]
    assert all(layer.running_var is array for layer, array in zip(layers.values(), arrays, strict=True))
    # One layer after the other, as in inference.
    fastbn.recalibrate(layers["a"].train(), given, forward)
    layers["a"].eval()
    fastbn.recalibrate(layers["b"], given, forward)
    a = layers["a"]
    f = reference.forward(np.concatenate(given), mean=a.running_mean, var=a.running_var)
    mean, var = reference.moments(np.concatenate([np.tanh(f.y) @ w + i for i in (0, 1)]))
    np.testing.assert_allclose(layers["b"].running_var, (var * 22 / 21).astype(float), rtol=1e-12)


def test_the_same_bits_again_and_what_was_in_the_statistics_does_not_matter(rng):
    layers, forward, _ = net(rng)
    given = batches(rng, np.float32)
    states = []
    for start in (1.0, np.nan):
        for layer in layers.values():
            layer.running_mean[:] = layer.running_var[:] = start
        fastbn.recalibrate(layers, given, forward)
        states.append(b"".join(array.tobytes() for layer in layers.values() for array in layer._arrays().values()))
    assert states[0] == states[1]


def held(layers):
    """All that a layer is, arrays by identity and by their bytes."""
    return [
        (name, value.tobytes() if isinstance(value, np.ndarray) else value, id(value))
        for layer in layers.values()
        for name, value in vars(layer).items()
    ]


@pytest.mark.parametrize("method", ["pooled", "average"])
@pytest.mark.parametrize("where", ["forward", "batches", "interrupt", "never called"])
def test_whatever_fails_changes_nothing(rng, method, where):
    layers, forward, _ = net(rng)
    layers["a"].eval()
    x = draw(rng, (8, 6), np.float64)
    before = held(layers)

    def given():
        yield x
        if where == "batches":
            raise OSError("no more")
        yield x

    def failing(batch, calls=[]):  # noqa: B006
        calls.append(forward(batch) if where != "never called" else layers["a"](batch))
        layers["b"].train()
        if len(calls) == 2 and where in ("forward", "interrupt"):
            raise KeyboardInterrupt if where == "interrupt" else ZeroDivisionError

    expected = {"forward": ZeroDivisionError, "batches": OSError, "interrupt": KeyboardInterrupt}.get(where, ValueError)
    with pytest.raises(expected):
        fastbn.recalibrate(layers, given(), failing, method=method)
    assert held(layers) == before


def test_a_bar_where_somebody_looks(rng, monkeypatch):
    pytest.importorskip("rich")
    layer, given = fastbn.BatchNorm(6), batches(rng, np.float32)
    for progress, terminal, shown in (
        (True, False, True),
        (None, True, True),
        (None, False, False),
        (False, True, False),
    ):
        file = io.StringIO()
        file.isatty = lambda terminal=terminal: terminal
        monkeypatch.setattr(sys, "stderr", file)
        fastbn.recalibrate(layer, given, layer, progress=progress)
        fastbn.recalibrate(layer, iter(given), layer, progress=progress)
        assert (file.getvalue() != "") is shown
