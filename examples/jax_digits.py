"""JAX: a sigmoid net with batch norm by fastbn, trained on scikit-learn's digits under jit and grad."""

import functools
import itertools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import fastbn
from fastbn.adapters.jax import batch_norm

x, labels = load_digits(return_X_y=True)
x_train, x_test, y_train, y_test = train_test_split(np.float32(x / 16), labels, random_state=0)
SIZES = [64, 100, 100, 10]


def start(rng):
    """Return parameters and running statistics."""
    weights = [rng.normal(0, n**-0.5, (n, m)).astype(np.float32) for n, m in itertools.pairwise(SIZES)]
    ones, zeros = ([np.full(n, value, np.float32) for n in SIZES[1:-1]] for value in (1, 0))
    return {"weights": weights, "gamma": ones, "beta": zeros}, {"mean": zeros, "var": ones}


def net(parameters, state, x, training):
    """Return the logits and the next running statistics."""
    new = {"mean": [], "var": []}
    *hidden, last = parameters["weights"]
    for i, w in enumerate(hidden):
        x, mean, var = batch_norm(
            x @ w, parameters["gamma"][i], parameters["beta"][i], state["mean"][i], state["var"][i], training=training
        )
        x = jax.nn.sigmoid(x)
        new["mean"].append(mean)
        new["var"].append(var)
    return x @ last, new


def loss(parameters, state, x, labels):
    """Return the cross entropy, and the next running statistics."""
    logits, state = net(parameters, state, x, True)
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean(), state


@jax.jit
def step(parameters, state, x, labels):
    """Take one step of gradient descent."""
    grads, state = jax.grad(loss, has_aux=True)(parameters, state, x, labels)
    return jax.tree.map(lambda p, g: p - 0.5 * g, parameters, grads), state


infer = jax.jit(functools.partial(net, training=False))
rng = np.random.default_rng(0)
parameters, state = start(rng)
for _ in range(20):
    order = rng.permutation(len(x_train))
    for i in range(0, len(order) - 59, 60):
        parameters, state = step(parameters, state, x_train[order[i : i + 60]], y_train[order[i : i + 60]])
logits = infer(parameters, state, x_test)[0]
accuracy = float((logits.argmax(1) == y_test).mean())
print(f"test accuracy {accuracy:.1%}")
assert accuracy > 0.95

# The same net in plain NumPy, with layers of fastbn that were saved and loaded.
layers = {}
for i, size in enumerate(SIZES[1:-1]):
    layers[f"bn{i}"] = fastbn.BatchNorm(size).eval()
    arrays = parameters["gamma"][i], parameters["beta"][i], state["mean"][i], state["var"][i]
    keys = "weight", "bias", "running_mean", "running_var"
    layers[f"bn{i}"].load_state_dict(dict(zip(keys, arrays, strict=True)) | {"num_batches_tracked": np.array(0)})
loaded = {name: fastbn.BatchNorm(layer.num_features).eval() for name, layer in layers.items()}
with tempfile.TemporaryDirectory() as folder:
    fastbn.save(Path(folder, "digits.npz"), layers)
    fastbn.load(Path(folder, "digits.npz"), loaded)
values = x_test
for i, w in enumerate(parameters["weights"][:-1]):
    values = 1 / (1 + np.exp(-loaded[f"bn{i}"](values @ np.asarray(w))))
assert np.abs(values @ np.asarray(parameters["weights"][-1]) - logits).max() < 1e-4
