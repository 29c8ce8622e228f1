"""Train a net with batch normalization on the handwritten digits of scikit-learn, its gradients by HIPS autograd."""

import autograd.numpy as anp
import numpy as np
from autograd import value_and_grad
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fastbn.adapters.autograd import batch_norm

EPOCHS, BATCH, WIDTH, RATE, MOMENTUM = 10, 60, 100, 0.2, 0.9


def net(parameters: dict, running: list, x: np.ndarray, training: bool) -> np.ndarray:
    """Return the logits."""
    for i, (mean, var) in enumerate(running):
        x = anp.dot(x, parameters[f"w{i}"])
        gain, bias = parameters[f"gain{i}"], parameters[f"bias{i}"]
        x = anp.maximum(batch_norm(x, gain, bias, running_mean=mean, running_var=var, training=training), 0)
    return anp.dot(x, parameters["w2"]) + parameters["bias2"]


def loss(parameters: dict, running: list, x: np.ndarray, truth: np.ndarray) -> float:
    """Return the mean cross-entropy."""
    logits = net(parameters, running, x, training=True)
    largest = anp.max(logits, 1, keepdims=True)
    total = anp.log(anp.sum(anp.exp(logits - largest), 1, keepdims=True)) + largest
    return anp.mean(anp.sum((total - logits) * truth, 1))


def main() -> None:
    """Print the loss and the accuracy after each epoch."""
    rng = np.random.default_rng(0)
    images, labels = load_digits(return_X_y=True)
    x, x_test, labels, labels_test = train_test_split(
        images.astype(np.float32) / 16, labels, test_size=400, random_state=0, stratify=labels
    )
    y = np.eye(10, dtype=np.float32)[labels]
    sizes = 64, WIDTH, WIDTH, 10
    parameters = {f"w{i}": (rng.normal(size=sizes[i : i + 2]) / np.sqrt(sizes[i])).astype(np.float32) for i in range(3)}
    for i in range(2):
        parameters[f"gain{i}"], parameters[f"bias{i}"] = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)
    parameters["bias2"] = np.zeros(10, np.float32)
    running = [(np.zeros(WIDTH, np.float32), np.ones(WIDTH, np.float32)) for _ in range(2)]
    velocity = {name: np.zeros_like(value) for name, value in parameters.items()}

    accuracy, gradient = 0.0, value_and_grad(loss)
    for epoch in range(EPOCHS):
        for batch in np.array_split(rng.permutation(len(x)), len(x) // BATCH):
            value, gradients = gradient(parameters, running, x[batch], y[batch])
            for name, parameter in parameters.items():
                velocity[name] = MOMENTUM * velocity[name] - RATE * (1 - MOMENTUM) * gradients[name]
                parameter += velocity[name]
        guess = net(parameters, running, x_test, training=False).argmax(1)
        accuracy = (guess == labels_test).mean()
        print(f"epoch {epoch + 1:2}: loss {value:.4f}, {accuracy:.1%} of {len(x_test)} test images")
    assert accuracy > 0.95


if __name__ == "__main__":
    main()
