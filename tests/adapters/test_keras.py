"""fastbn.adapters.keras: a layer that crosses over computes the same, in training and in inference, both ways."""

import os

import numpy as np
import pytest

import fastbn
from grid import draw

os.environ["KERAS_BACKEND"] = os.environ.get("KERAS_BACKEND", "jax")  # before Keras is imported; its default is absent
pytest.importorskip("keras", reason="Keras is not installed; make test-all installs it")
import jax
import keras

from fastbn.adapters.keras import call, from_keras, to_keras

pytestmark = pytest.mark.frameworks

FORMS = [{}, {"scale": False}, {"center": False}, {"scale": False, "center": False}, {"axis": 1}]


def made(rng, shape=(8, 4, 4, 4), **options):
    """A layer with numbers of its own."""
    layer = keras.layers.BatchNormalization(**({"momentum": 0.9, "epsilon": 1e-3} | options))
    layer.build(shape)
    for variable in layer.variables:
        variable.assign(rng.uniform(0.5, 2, variable.shape))
    return layer


def numbers(layer):
    return {variable.name: np.array(keras.ops.convert_to_numpy(variable.value)) for variable in layer.variables}


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_the_same_inference_and_the_same_training_step(rng, options):
    layer = made(rng, **options)
    bn = from_keras(layer)
    x = draw(rng, (8, 4, 4, 4), np.float32, mean=1)
    # Keras rounds the scale, the product and the shift to float32: a few units of the terms, which are below 20.
    close = {"rtol": 1e-5, "atol": 20 * 2.0**-22}
    np.testing.assert_allclose(bn.eval()(x), layer(x, training=False), **close)
    np.testing.assert_allclose(bn.train()(x), layer(x, training=True), **close)
    for name, value in (("running_mean", layer.moving_mean), ("running_var", layer.moving_variance)):
        np.testing.assert_allclose(getattr(bn, name), value, rtol=1e-6)


@pytest.mark.parametrize("options", FORMS, ids=str)
def test_there_and_back_keeps_every_bit(rng, options):
    layer, other = made(rng, **options), made(rng, **options)
    to_keras(from_keras(layer), other)
    assert numbers(layer).keys() == numbers(other).keys()
    for name, value in numbers(layer).items():
        np.testing.assert_array_equal(numbers(other)[name], value)


@pytest.mark.skipif(keras.backend.backend() != "jax", reason="gradients of Keras's layer are taken by JAX")
@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 3, 5, 4)], ids=str)
def test_a_mask_means_what_it_means_to_keras(rng, shape):
    """Statistics, values everywhere and gradients: those that Keras's layer has on the backend that is installed."""
    layer = made(rng, shape)
    bn = from_keras(layer)
    x, dy = draw(rng, shape, np.float32, mean=1), draw(rng, shape, np.float32)
    mask = rng.random(shape[:-1]) < 0.6
    old = [variable.value for variable in layer.non_trainable_variables]
    given = [variable.value for variable in layer.trainable_variables]

    def loss(trained, x):
        y, state = layer.stateless_call(trained, old, x, training=True, mask=mask)
        return (y * dy).sum(), (y, state)

    y, backward = call(bn, x, training=True, mask=mask)
    dx = backward(dy)
    close = {"rtol": 1e-5, "atol": 20 * 2.0**-22}
    (_, (wanted, state)), grads = jax.value_and_grad(loss, (0, 1), has_aux=True)(given, jax.numpy.asarray(x))
    for found, expected in zip((y, bn.running_mean, bn.running_var), (wanted, *state), strict=True):
        np.testing.assert_allclose(found, expected, **close)
    for found, expected in zip((bn.dweight, bn.dbias, dx), (*grads[0], grads[1]), strict=True):
        # Sums of a hundred terms of float32 in float32 on Keras's side.
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(call(bn, x, training=False, mask=mask)[0], bn.eval()(x))
    for bad, message in ((mask[:2], "without the last axis"), (mask[..., None], "without the last axis")):
        with pytest.raises(ValueError, match=message):
            call(bn, x, mask=bad)
    with pytest.raises(ValueError, match="for channels along axis 1"):
        call(fastbn.BatchNorm(shape[1]), x, mask=mask)


def test_a_trained_layer_goes_to_keras(rng):
    bn = fastbn.BatchNorm(4, axis=-1, momentum=0.1, eps=1e-3, correction=0)
    x = draw(rng, (50, 4), np.float32, mean=3)
    for _ in range(5):
        bn.backward(bn(x))
        bn.weight -= 0.01 * bn.dweight
        bn.bias -= 0.01 * bn.dbias
    layer = made(rng, (50, 4))
    to_keras(bn, layer)
    np.testing.assert_allclose(layer(x, training=False), bn.eval()(x), rtol=1e-5, atol=20 * 2.0**-22)


def test_what_does_not_fit_is_refused_and_nothing_is_written(rng):
    layer = made(rng, (8, 4))
    good = {"axis": -1, "momentum": 0.1, "eps": 1e-3, "correction": 0}
    before = numbers(layer)
    for bad, message in (
        ({"axis": 0}, "expected axis, epsilon"),
        ({"eps": 1e-5}, "expected axis, epsilon"),
        ({"momentum": 0.9}, "expected axis, epsilon"),
        ({"momentum": None}, "expected axis, epsilon"),
        ({"correction": 1}, "expected axis, epsilon"),
        ({"track_running_stats": False}, "expected a layer with running statistics"),
    ):
        with pytest.raises(ValueError, match=message):
            to_keras(fastbn.BatchNorm(4, **(good | bad)), layer)
    with pytest.raises(ValueError, match=r"bn.weight: expected shape \(4,\), got \(5,\)"):
        to_keras(fastbn.BatchNorm(5, **good), layer)
    with pytest.raises(TypeError, match=r"bn: expected a fastbn.BatchNorm"):
        to_keras(layer, layer)
    bn = fastbn.BatchNorm(4, **good)
    bn.bias += 1
    without = made(rng, (8, 4), center=False)
    kept = numbers(without)
    with pytest.raises(ValueError, match="expected a beta for the bias"):
        to_keras(bn, without)
    for name, value in kept.items():
        np.testing.assert_array_equal(numbers(without)[name], value)
    for name, value in before.items():
        np.testing.assert_array_equal(numbers(layer)[name], value)
    with pytest.raises(ValueError, match="has been built"):
        from_keras(keras.layers.BatchNormalization())
    with pytest.raises(ValueError, match="renorm"):
        from_keras(made(rng, (8, 4), renorm=True))
    with pytest.raises(TypeError, match=r"expected a keras.layers.BatchNormalization, got a Dense"):
        from_keras(keras.layers.Dense(3))
