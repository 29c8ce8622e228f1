"""Train a net with batch normalization on the handwritten digits of scikit-learn, its gradients by MyGrad."""

import mygrad
import numpy as np
from mygrad.nnet import relu, softmax_crossentropy
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from fastbn.adapters.mygrad import batch_norm

EPOCHS, BATCH, WIDTH, RATE, MOMENTUM = 10, 60, 100, 0.2, 0.9


def net(parameters: dict, running: list, x: np.ndarray, training: bool) -> mygrad.Tensor:
    """Return the logits."""
    for i, (mean, var) in enumerate(running):
        x = mygrad.matmul(x, parameters[f"w{i}"])
        gain, bias = parameters[f"gain{i}"], parameters[f"bias{i}"]
        x = relu(batch_norm(x, gain, bias, running_mean=mean, running_var=var, training=training))
    return mygrad.matmul(x, parameters["w2"]) + parameters["bias2"]


def main() -> None:
    """Print the loss and the accuracy after each epoch."""
    rng = np.random.default_rng(0)
    images, labels = load_digits(return_X_y=True)
    x, x_test, labels, labels_test = train_test_split(
        images.astype(np.float32) / 16, labels, test_size=400, random_state=0, stratify=labels
    )
    sizes = 64, WIDTH, WIDTH, 10
    arrays = {f"w{i}": rng.normal(size=sizes[i : i + 2]) / np.sqrt(sizes[i]) for i in range(3)}
    for i in range(2):
        arrays[f"gain{i}"], arrays[f"bias{i}"] = np.ones(WIDTH), np.zeros(WIDTH)
    arrays["bias2"] = np.zeros(10)
    parameters = {name: mygrad.tensor(array, dtype=np.float32) for name, array in arrays.items()}
    running = [(np.zeros(WIDTH, np.float32), np.ones(WIDTH, np.float32)) for _ in range(2)]
    velocity = {name: np.zeros_like(parameter.data) for name, parameter in parameters.items()}

    accuracy = 0.0
    for epoch in range(EPOCHS):
        for batch in np.array_split(rng.permutation(len(x)), len(x) // BATCH):
            loss = softmax_crossentropy(net(parameters, running, x[batch], training=True), labels[batch])
            loss.backward()
            for name, parameter in parameters.items():
                velocity[name] = MOMENTUM * velocity[name] - RATE * (1 - MOMENTUM) * parameter.grad
                parameter.data += velocity[name]
        with mygrad.no_autodiff:
            guess = net(parameters, running, x_test, training=False).data.argmax(1)
        accuracy = (guess == labels_test).mean()
        print(f"epoch {epoch + 1:2}: loss {loss.item():.4f}, {accuracy:.1%} of {len(x_test)} test images")
    assert accuracy > 0.95


if __name__ == "__main__":
    main()
