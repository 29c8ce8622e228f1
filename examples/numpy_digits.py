"""A trainer in plain NumPy, whole: an MLP on scikit-learn's digits, with batch norm before each activation.

The three calls are `bn(x)` on the way forward, `bn.backward(dy)` on the way back, and the update of `bn.weight` and
`bn.bias`.
"""

from itertools import pairwise

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import fastbn

SIZES, RATE, BATCH, EPOCHS = [64, 100, 100, 10], 0.2, 60, 10

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
x_train, x_test, y_train, y_test = train_test_split(images, labels, train_size=900, stratify=labels, random_state=0)

rng = np.random.default_rng(0)
weights = [rng.normal(0, (2 / i) ** 0.5, (i, o)).astype(np.float32) for i, o in pairwise(SIZES)]
norms = [fastbn.BatchNorm(size) for size in SIZES[1:-1]]
last_bias = np.zeros(10, np.float32)  # the other layers have that of their batch norm


def forward(x):
    """Return the logits, and what the way back needs."""
    inputs, active = [], []
    for weight, bn in zip(weights, norms, strict=False):
        inputs.append(x)
        x = bn(x @ weight)  # 1. forward: normalised with this batch's statistics, running statistics updated
        active.append(x > 0)
        x = np.maximum(x, 0)
    inputs.append(x)
    return x @ weights[-1] + last_bias, inputs, active


def train_step(x, y):
    """Move every parameter down its gradient of the mean cross-entropy."""
    logits, inputs, active = forward(x)
    dy = np.exp(logits - logits.max(1, keepdims=True))
    dy /= dy.sum(1, keepdims=True)
    dy[np.arange(len(y)), y] -= 1
    dy /= len(y)  # the gradient by the logits
    last_bias[...] -= RATE * dy.sum(0)
    for k in reversed(range(len(weights))):
        dweight = inputs[k].T @ dy
        dx = dy @ weights[k].T
        weights[k] -= RATE * dweight
        if k > 0:
            bn = norms[k - 1]
            dy = bn.backward(dx * active[k - 1])  # 2. backward: the gradient by what came into the batch norm
            bn.weight -= RATE * bn.dweight  # 3. update
            bn.bias -= RATE * bn.dbias


for _ in range(EPOCHS):
    for batch in rng.permutation(len(x_train)).reshape(-1, BATCH):
        train_step(x_train[batch], y_train[batch])

for bn in norms:
    bn.eval()  # from here on the running statistics
accuracy = (forward(x_test)[0].argmax(1) == y_test).mean()
print(f"test accuracy after {EPOCHS} epochs: {accuracy:.1%}")
assert accuracy > 0.94
