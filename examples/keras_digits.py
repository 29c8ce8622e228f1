"""Keras: a net trained on scikit-learn's digits by Keras, served in plain NumPy by fastbn, and sent back."""

import os

os.environ["KERAS_BACKEND"] = os.environ.get("KERAS_BACKEND", "jax")
import keras
import numpy as np
from keras.ops import convert_to_numpy
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fastbn.adapters.keras import from_keras, to_keras

keras.utils.set_random_seed(0)
x, labels = load_digits(return_X_y=True)
x_train, x_test, y_train, y_test = train_test_split(np.float32(x / 16), labels, random_state=0)

dense, last = keras.layers.Dense(100, use_bias=False), keras.layers.Dense(10)
norm = keras.layers.BatchNormalization(momentum=0.9)
model = keras.Sequential([keras.Input((64,)), dense, norm, keras.layers.ReLU(), last])
entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile(keras.optimizers.SGD(0.1, momentum=0.9), entropy)
model.fit(x_train, y_train, batch_size=60, epochs=6, verbose=0)

bn = from_keras(norm).eval()
kernel, (w, b) = convert_to_numpy(dense.kernel.value), (convert_to_numpy(v.value) for v in (last.kernel, last.bias))
logits = np.maximum(bn(x_test @ kernel), 0) @ w + b
accuracy = (logits.argmax(1) == y_test).mean()
print(f"test accuracy {accuracy:.1%}")
assert accuracy > 0.95
assert np.abs(logits - model.predict(x_test, verbose=0)).max() < 1e-3

bn.bias[...] = 0  # and a change on this side goes there
to_keras(bn, norm)
logits = np.maximum(bn(x_test @ kernel), 0) @ w + b
assert np.abs(logits - model.predict(x_test, verbose=0)).max() < 1e-3
