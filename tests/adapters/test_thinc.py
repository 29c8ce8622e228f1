"""The layer for thinc: a model like thinc's own, whose running statistics go wherever its parameters go."""

import importlib
import sys

import numpy as np
import pytest

import fastbn
import reference
from grid import draw
from tolerance import check_backward, check_differences, check_forward

pytest.importorskip("thinc", reason="thinc is not installed; make test-all installs it")
from thinc.api import Adam, Config, Linear, Relu, Softmax, chain, data_validation, registry, with_array

from fastbn.adapters.thinc import BatchNorm

pytestmark = pytest.mark.frameworks

STATISTICS = "running_mean", "running_var"


def ready(rng, X, **options):
    """A layer with parameters and statistics that are not those of the start."""
    model = BatchNorm(**options).initialize(X)
    channels = model.get_dim("nI")
    model.set_param("G", draw(rng, channels, np.float32, mean=1))
    model.set_param("b", draw(rng, channels, np.float32))
    model.attrs["running_mean"] = draw(rng, channels, np.float32)
    model.attrs["running_var"] = rng.uniform(0.5, 2, channels).astype(np.float32)
    return model


def statistics(model):
    return [model.attrs[name].copy() for name in STATISTICS]


def net():
    return chain(Linear(9), BatchNorm(), Relu(7), BatchNorm(momentum=0.3), Softmax())


@pytest.mark.parametrize(("shape", "axis"), [((32, 64), 1), ((20, 5), -1), ((4, 6, 5, 3), 1), ((4, 6, 5, 3), -1)])
def test_training_and_prediction_are_the_oracle_s(rng, shape, axis):
    X, dY = draw(rng, shape, np.float32, mean=3), draw(rng, shape, np.float32)
    model = ready(rng, X, axis=axis, momentum=0.25, eps=1e-3)
    G, b = model.get_param("G"), model.get_param("b")
    mean, var = statistics(model)
    for is_train in (False, True):  # prediction first: it must leave the statistics as they are
        given = {"eps": 1e-3, "axis": axis} | ({} if is_train else {"mean": mean, "var": var})
        Y, backprop = model(X, is_train=is_train)
        f = reference.forward(X, G, b, **given)
        check_forward(Y, f, G, b)
        dX = backprop(dY)
        found = fastbn.Gradients(dX, model.get_grad("G").copy(), model.get_grad("b").copy())
        check_backward(found, reference.backward(dY, X, G, **given), dY, f, G)
        for name in ("G", "b"):
            model.get_grad(name)[:] = 0
        if not is_train:
            for name, old in zip(STATISTICS, (mean, var), strict=True):
                np.testing.assert_array_equal(model.attrs[name], old)
    count = X.size // mean.size
    batch_mean, batch_var = reference.moments(X, axis)
    for name, old, batch in zip(STATISTICS, (mean, var), (batch_mean, batch_var * count / (count - 1)), strict=True):
        assert model.attrs[name].dtype == np.float32
        np.testing.assert_allclose(model.attrs[name], reference.running(old, batch, 0.25).astype(float), rtol=1e-6)


@pytest.mark.parametrize("is_train", [True, False])
def test_gradients_are_central_differences(rng, is_train):
    X, dY = rng.normal(size=(6, 3, 2)), rng.normal(size=(6, 3, 2))
    model = ready(rng, X)
    for name in ("G", "b"):
        model.set_param(name, model.get_param(name).astype(np.float64))

    def loss():
        return float((model(X, is_train=is_train)[0] * dY).sum())

    dX = model(X, is_train=is_train)[1](dY)
    frozen = statistics(model)
    for values, gradient in [
        (X, dX),
        (model.get_param("G"), model.get_grad("G")),
        (model.get_param("b"), model.get_grad("b")),
    ]:
        check_differences(loss, values, gradient)
    if not is_train:
        np.testing.assert_array_equal(statistics(model), frozen)


def test_gradients_add_up_until_the_optimizer_takes_them(rng):
    X, dY = draw(rng, (16, 4), np.float32), draw(rng, (16, 4), np.float32)
    model = ready(rng, X)
    _, backprop = model.begin_update(X)
    backprop(dY)
    once = model.get_grad("G").copy(), model.get_grad("b").copy()
    backprop(dY)
    for name, gradient in zip(("G", "b"), once, strict=True):
        np.testing.assert_array_equal(model.get_grad(name), 2 * gradient)
    before = {name: model.get_param(name).copy() for name in ("G", "b")}
    model.finish_update(Adam(0.01))
    for name, gradient in zip(("G", "b"), once, strict=True):
        np.testing.assert_allclose(before[name] - model.get_param(name), 0.01 * np.sign(gradient), rtol=1e-2)
        assert not model.get_grad(name).any()


def test_a_chain_infers_the_channels(rng):
    X, Y = draw(rng, (12, 5), np.float32), np.eye(3, dtype=np.float32)[rng.integers(0, 3, 12)]
    model = net()
    with data_validation(True):
        model.initialize(X, Y)
        for layer, channels in ((model.layers[1], 9), (model.layers[3], 7)):
            assert layer.get_dim("nI") == layer.get_dim("nO") == channels
            assert layer.get_param("G").shape == layer.attrs["running_var"].shape == (channels,)
        guess, backprop = model.begin_update(X)
        assert backprop(guess - Y).dtype == np.float32
    last = BatchNorm().initialize(Y=Y)
    assert last.get_dim("nI") == 3
    assert BatchNorm(4).initialize().get_param("b").shape == (4,)


@pytest.mark.parametrize("medium", ["bytes", "disk", "dict"])
def test_saved_models_predict_and_go_on_training_alike(rng, tmp_path, medium):
    X, dY = draw(rng, (12, 5), np.float32, mean=2), draw(rng, (12, 3), np.float32)
    model = net().initialize(X, dY)
    model.begin_update(X)
    other = net()
    if medium == "bytes":
        other.from_bytes(model.to_bytes())
        assert other.to_bytes() == model.to_bytes()
        assert model.can_from_bytes(other.to_bytes())
    elif medium == "disk":
        model.to_disk(tmp_path / "model")
        other.from_disk(tmp_path / "model")
    else:
        other.from_dict(model.to_dict())
    np.testing.assert_array_equal(other.predict(X), model.predict(X))
    assert other.layers[3].attrs["momentum"] == 0.3
    for each in (model, other):  # the statistics that were read are read-only arrays
        each.begin_update(X)[1](dY)
    for i in (1, 3):
        np.testing.assert_array_equal(statistics(other.layers[i]), statistics(model.layers[i]))
        np.testing.assert_array_equal(other.layers[i].get_grad("G"), model.layers[i].get_grad("G"))


def test_without_a_momentum_statistics_are_averages_over_all_batches(rng):
    first, second = draw(rng, (12, 4), np.float32, mean=2), draw(rng, (12, 4), np.float32, mean=-1)
    model = BatchNorm(momentum=None, correction=0).initialize(first)
    model.begin_update(first)
    model = BatchNorm(momentum=None).from_bytes(model.to_bytes())  # the count goes with it
    model.begin_update(second)
    both = [reference.moments(X) for X in (first, second)]
    for name, (one, other) in zip(STATISTICS, zip(*both, strict=True), strict=True):
        np.testing.assert_allclose(model.attrs[name], ((one + other) / 2).astype(float), rtol=1e-5, atol=1e-6)
    assert model.attrs["num_batches_tracked"] == 2


BEYOND = [
    {"activation": "gelu"},
    {"activation": ("leaky_relu", 0.25), "ghost_batch_size": 5},
    {"renorm": (1.5, 0.5), "ghost_batch_size": 5, "momentum": None},
]


@pytest.mark.parametrize("options", BEYOND, ids=str)
def test_what_goes_beyond_is_the_layer_s_and_is_saved(rng, options):
    X, dY = draw(rng, (12, 4), np.float32, mean=2), draw(rng, (12, 4), np.float32)
    model = BatchNorm(**options).initialize(X)
    loaded = BatchNorm().initialize(X).from_bytes(model.to_bytes())
    renorm = {"renorm": fastbn.Renorm(*options["renorm"])} if "renorm" in options else {}
    layer = fastbn.BatchNorm(4, **(options | renorm))
    for _ in range(2):
        y = layer(X)
        dx = layer.backward(dY)
        for each in (model, loaded):
            Y, backprop = each.begin_update(X)
            np.testing.assert_array_equal(Y, y)
            np.testing.assert_array_equal(backprop(dY), dx)
    for each in (model, loaded):
        np.testing.assert_array_equal(statistics(each), [layer.running_mean, layer.running_var])
        assert each.attrs["num_batches_tracked"] == layer.num_batches_tracked
        np.testing.assert_array_equal(each.predict(X), layer.eval()(X))


def test_copies_do_not_share_statistics(rng):
    X = draw(rng, (12, 4), np.float32, mean=2)
    model = ready(rng, X)
    copied, taken, before = model.copy(), model.attrs["running_mean"], statistics(model)
    model.begin_update(X)
    assert not (model.attrs["running_mean"] == before[0]).any()
    np.testing.assert_array_equal(statistics(copied), before)
    np.testing.assert_array_equal(taken, before[0])


def test_an_initialized_layer_starts_anew(rng):
    X = draw(rng, (12, 4), np.float32, mean=2)
    model = ready(rng, X).initialize(X)
    np.testing.assert_array_equal(statistics(model), [np.zeros(4), np.ones(4)])
    np.testing.assert_array_equal([model.get_param("G"), model.get_param("b")], [np.ones(4), np.zeros(4)])


def test_the_registry_makes_it_from_a_config():
    text = '[model]\n@layers = "fastbn.BatchNorm.v1"\nnI = 4\naxis = -1\nmomentum = '
    assert registry.resolve(Config().from_str(text + "null"))["model"].attrs["momentum"] is None
    model = registry.resolve(Config().from_str(text + "0.25"))["model"]
    assert model.get_dim("nO") == 4
    beyond = 'activation = ["leaky_relu", 0.1]\nrenorm = [3, 5]\nghost_batch_size = 16'
    model = registry.resolve(Config().from_str(f"{text}0.25\n{beyond}"))["model"]
    assert [*model.attrs["activation"]] == ["leaky_relu", 0.1]
    assert {name: model.attrs[name] for name in ("momentum", "axis", "eps")} == {
        "momentum": 0.25, "axis": -1, "eps": 1e-5,
    }  # fmt: skip


def test_lists_of_sequences_through_with_array(rng):
    X = [draw(rng, (n, 4), np.float32, mean=1) for n in (3, 5, 2)]
    model = with_array(BatchNorm()).initialize(X)
    Y, backprop = model.begin_update(X)
    expected = fastbn.batch_norm(np.concatenate(X), np.ones(4, np.float32), np.zeros(4, np.float32))[0]
    np.testing.assert_array_equal(np.concatenate(Y), expected)
    assert [dX.shape for dX in backprop(Y)] == [x.shape for x in X]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"axis": 1.5}, TypeError, "axis: expected an integer"),
        ({"eps": 0}, ValueError, "eps: expected a number > 0"),
        ({"momentum": 2}, ValueError, "momentum: expected a number from 0 to 1"),
        ({"activation": "swish"}, ValueError, "activation: expected None, one of"),
        ({"renorm": (0.5, 1)}, ValueError, "r_max: expected a number >= 1"),
        ({"ghost_batch_size": 0}, ValueError, "ghost_batch_size: expected at least 1"),
        ({"nI": "4"}, TypeError, "num_features: expected an integer"),
    ],
)
def test_options_are_checked_when_the_layer_is_made(options, error, message):
    with pytest.raises(error, match=message):
        BatchNorm(**options)


def test_data_that_does_not_fit_is_refused_and_changes_nothing(rng):
    X = draw(rng, (6, 4), np.float32)
    model = ready(rng, X)
    before = statistics(model)
    for bad, error, message in [
        (X.astype(int), TypeError, "x: expected a numpy.ndarray of float32"),
        ([X], TypeError, "x: expected a numpy.ndarray, got an object of type list"),
        (X[:, :3], ValueError, "weight: expected shape"),
        (X[:1], ValueError, "correction: expected less than the 1 value"),
    ]:
        with pytest.raises(error, match=message):
            model.begin_update(bad)
    with pytest.raises(TypeError, match="dy: expected the dtype of x and y, float32, got float64"):
        model.begin_update(X)[1](X.astype(float))
    with pytest.raises(ValueError, match="axis: expected an integer from -2 to 1"):
        BatchNorm(axis=2).initialize(X)
    assert not model.has_grad("G")
    assert not np.array_equal(statistics(model), before)  # the one call that was good
    np.testing.assert_allclose(statistics(model)[0], 0.9 * before[0] + 0.1 * X.mean(0), rtol=1e-5, atol=1e-6)


def test_without_thinc_the_import_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "thinc.api", None)
    monkeypatch.delitem(sys.modules, "fastbn.adapters.thinc")
    with pytest.raises(ModuleNotFoundError, match="needs thinc: pip install thinc"):
        importlib.import_module("fastbn.adapters.thinc")
