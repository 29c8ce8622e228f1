"""A whole training step inside one `@njit` function: an MLP with batch norm on scikit-learn's digits.

Nothing returns to Python between the batch and the updated parameters, and the step holds no lock.
"""

import time

import numpy as np
from numba import njit
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fastbn_kernels.cpu import batch_norm_backward, batch_norm_forward, batch_norm_inference

HIDDEN, RATE, MOMENTUM, EPS, BATCH, EPOCHS = 100, 0.2, 0.1, 1e-5, 60, 15


@njit(nogil=True)
def train_step(x, labels, weight1, gamma, beta, weight2, bias2, running_mean, running_var):
    """Return the loss of a batch, and move every parameter and running statistic in place."""
    # Forward: x @ weight1, batch norm, ReLU, @ weight2.
    h = x @ weight1
    y, dh = np.empty_like(h), np.empty_like(h)
    mean, invstd = np.empty((2, HIDDEN)), np.empty(HIDDEN)
    batch_norm_forward(h, gamma, beta, EPS, y, mean, invstd)
    a = np.maximum(y, np.float32(0))
    logits = a @ weight2 + bias2

    # Softmax and cross-entropy; d is the gradient by the logits.
    loss = 0.0
    d = np.exp(logits)
    for n in range(len(x)):
        d[n] /= d[n].sum()
        loss -= np.log(d[n, labels[n]]) / len(x)
        d[n, labels[n]] -= 1
        d[n] /= len(x)

    # Backward.
    dgamma, dbeta = np.empty_like(gamma), np.empty_like(beta)
    dy = (d @ weight2.T) * (y > 0)
    batch_norm_backward(dy, h, gamma, mean, invstd, dh, dgamma, dbeta)

    # Update, and the running statistics, whose variance is the unbiased one.
    weight2 -= RATE * (a.T @ d)
    for n in range(len(x)):
        bias2 -= RATE * d[n]
    weight1 -= RATE * (x.T @ dh)
    gamma -= RATE * dgamma
    beta -= RATE * dbeta
    for c in range(HIDDEN):
        var = (1 / invstd[c] ** 2 - EPS) * len(x) / (len(x) - 1)
        running_mean[c] += MOMENTUM * (mean[0, c] - running_mean[c])
        running_var[c] += MOMENTUM * (var - running_var[c])
    return loss


@njit(nogil=True)
def predict(x, weight1, gamma, beta, weight2, bias2, running_mean, running_var):
    """Return the logits."""
    h = x @ weight1
    batch_norm_inference(h, running_mean, running_var, gamma, beta, EPS, h)
    return np.maximum(h, np.float32(0)) @ weight2 + bias2


images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
x_train, x_test, y_train, y_test = train_test_split(images, labels, train_size=900, stratify=labels, random_state=0)

rng = np.random.default_rng(0)
weight1 = rng.normal(0, (2 / 64) ** 0.5, (64, HIDDEN)).astype(np.float32)
weight2 = rng.normal(0, (2 / HIDDEN) ** 0.5, (HIDDEN, 10)).astype(np.float32)
gamma, beta, bias2 = np.ones(HIDDEN, np.float32), np.zeros(HIDDEN, np.float32), np.zeros(10, np.float32)
state = weight1, gamma, beta, weight2, bias2, np.zeros(HIDDEN), np.ones(HIDDEN)

started = time.perf_counter()
for epoch in range(EPOCHS):
    for batch in rng.permutation(len(x_train)).reshape(-1, BATCH):
        loss = train_step(x_train[batch], y_train[batch], *state)
    if epoch == 0:
        print(f"first epoch, with compilation or its cache: {time.perf_counter() - started:.1f} s")
        started = time.perf_counter()
steps = (EPOCHS - 1) * len(x_train) // BATCH
print(f"then {(time.perf_counter() - started) / steps * 1e6:.0f} us a step; last loss {loss:.4f}")

accuracy = (predict(x_test, *state).argmax(1) == y_test).mean()
print(f"test accuracy after {EPOCHS} epochs: {accuracy:.1%}")
assert accuracy > 0.94
