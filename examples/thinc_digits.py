"""Train a thinc net with batch normalization on the handwritten digits of scikit-learn, save it, and load it."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from thinc.api import Adam, Model, Relu, Softmax, chain, fix_random_seed

from fastbn.adapters.thinc import BatchNorm

EPOCHS, BATCH = 10, 60


def net() -> Model:
    """Return a net that is not initialized."""
    return chain(Relu(100), BatchNorm(), Relu(100), BatchNorm(), Softmax())


def main() -> None:
    """Print the accuracy after each epoch, and that the loaded net has it too."""
    fix_random_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, x_test, labels, labels_test = train_test_split(
        images.astype(np.float32) / 16, labels, test_size=400, random_state=0, stratify=labels
    )
    y = np.eye(10, dtype=np.float32)[labels]
    model, optimizer = net().initialize(x[:5], y[:5]), Adam(0.003)

    def accuracy(model: Model) -> float:
        return float((model.predict(x_test).argmax(1) == labels_test).mean())

    for epoch in range(EPOCHS):
        for batch, truth in model.ops.multibatch(BATCH, x, y, shuffle=True):
            guess, backprop = model.begin_update(batch)
            backprop((guess - truth) / len(batch))
            model.finish_update(optimizer)
        print(f"epoch {epoch + 1:2}: {accuracy(model):.1%} of {len(x_test)} test images")
    loaded = net().from_bytes(model.to_bytes())
    assert (loaded.predict(x_test) == model.predict(x_test)).all()
    assert accuracy(loaded) > 0.95


if __name__ == "__main__":
    main()
