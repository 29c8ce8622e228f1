"""Gradient accumulation with batch norm: micro-batches that fit into memory, statistics of the whole batch.

Adding up gradients of micro-batches gives those of the batch for every layer but batch norm, whose statistics are then
those of 8 samples. Two sums over all micro-batches make it exact: of x before a layer normalises (`batch_moments`), of
dy before it goes back (`backward_sums`). Parts are taken layer by layer; what is large at a time, such as the columns
that a convolution makes of its input, is that of one part. (Or keep nothing: go forward again for every sum.)
"""

from itertools import pairwise

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import fastbn

SIZES, RATE, BATCH, MICRO, EPOCHS = [64, 100, 100, 10], 0.2, 64, 8, 8

images, labels = load_digits(return_X_y=True)
images = (images / 16).astype(np.float32)
x_train, x_test, y_train, y_test = train_test_split(images, labels, train_size=896, stratify=labels, random_state=0)

rng = np.random.default_rng(0)
weights = [rng.normal(0, (2 / i) ** 0.5, (i, o)).astype(np.float32) for i, o in pairwise(SIZES)]
norms = [fastbn.BatchNorm(size) for size in SIZES[1:-1]]


def merged(parts):
    """Return moments or sums of all micro-batches."""
    first, *others = parts
    return first.merge(*others)


def forward(bn, parts):
    """Normalise micro-batches with the statistics of all of them; the running ones move once."""
    whole = merged([fastbn.batch_moments(x) for x in parts])
    options = {"running_mean": bn.running_mean, "running_var": bn.running_var, "moments": whole, "activation": "relu"}
    done = [fastbn.batch_norm(x, bn.weight, bn.bias, update_stats=i == 0, **options) for i, x in enumerate(parts)]
    return [y for y, _ in done], [ctx for _, ctx in done]


def backward(dys, contexts):
    """Go back likewise; dweight and dbias are the whole batch's already."""
    sums = merged([fastbn.backward_sums(dy, ctx) for dy, ctx in zip(dys, contexts, strict=True)])
    grads = [fastbn.batch_norm_backward(dy, ctx, sums=sums) for dy, ctx in zip(dys, contexts, strict=True)]
    return [g.dx for g in grads], grads[0].dweight, grads[0].dbias


def loss_gradient(logits, y):
    """Return the gradient of the cross-entropy, summed over samples and divided by those of a batch."""
    dy = np.exp(logits - logits.max(1, keepdims=True))
    dy /= dy.sum(1, keepdims=True)
    dy[np.arange(len(y)), y] -= 1
    return dy / BATCH


def gradients(xs, ys):
    """Return the gradients of a batch that comes in parts, those of the last layer first."""
    inputs, contexts = [xs], []
    for weight, bn in zip(weights[:-1], norms, strict=True):
        xs, ctxs = forward(bn, [x @ weight for x in xs])
        inputs.append(xs)
        contexts.append(ctxs)
    dys = [loss_gradient(x @ weights[-1], y) for x, y in zip(xs, ys, strict=True)]
    found = []
    for k in reversed(range(len(weights))):
        found.append(sum(x.T @ dy for x, dy in zip(inputs[k], dys, strict=True)))  # accumulated, as ever
        dys = [dy @ weights[k].T for dy in dys]
        if k > 0:
            dys, *own = backward(dys, contexts[k - 1])
            found += own
    return found


# One batch in 8 parts has the gradients and the statistics that it has in one call of each layer.
x, y = x_train[:BATCH], y_train[:BATCH]
parts = [slice(i, i + MICRO) for i in range(0, BATCH, MICRO)]
kept = [bn.state_dict() for bn in norms]
accumulated = gradients([x[part] for part in parts], [y[part] for part in parts])
after = [bn.state_dict() for bn in norms]
for bn, state in zip(norms, kept, strict=True):
    bn.load_state_dict(state)
at_once = gradients([x], [y])
for found, expected in zip(accumulated, at_once, strict=True):
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()
for bn, state in zip(norms, after, strict=True):
    assert np.allclose(bn.running_var, state["running_var"], rtol=1e-6)
# With the statistics of each micro-batch they are others altogether.
alone = [gradients([x[part]], [y[part]]) for part in parts]
off = max(np.abs(sum(g) - e).max() / np.abs(e).max() for g, e in zip(zip(*alone, strict=True), at_once, strict=True))
print(f"gradients with the statistics of {MICRO} samples at a time are off by {100 * off:.0f} %")
assert off > 0.1

parameters = [  # as `gradients` has theirs
    weights[2], norms[1].weight, norms[1].bias, weights[1], norms[0].weight, norms[0].bias, weights[0],
]  # fmt: skip
for epoch in range(1, EPOCHS + 1):
    order = rng.permutation(len(x_train))
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        found = gradients([x_train[rows[part]] for part in parts], [y_train[rows[part]] for part in parts])
        for parameter, gradient in zip(parameters, found, strict=True):
            parameter -= RATE * gradient
    hidden = x_test
    for weight, bn in zip(weights[:-1], norms, strict=True):
        hidden = np.maximum(bn.eval()(hidden @ weight), 0)
    accuracy = np.mean((hidden @ weights[-1]).argmax(1) == y_test)
    print(f"epoch {epoch}: test accuracy {100 * accuracy:.1f} %")

assert accuracy > 0.95
