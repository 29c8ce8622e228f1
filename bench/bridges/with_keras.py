"""What a net of Keras gains from being served by fastbn: the layer that from_keras returns is fastbn's own."""

import json
import os
import sys
from pathlib import Path

os.environ["KERAS_BACKEND"] = os.environ.get("KERAS_BACKEND", "jax")
import keras
import numpy as np

import fastbn
from fastbn.adapters.keras import from_keras

sys.path.insert(0, str(Path(__file__).parents[1]))
from paired import compare


def measure() -> dict:
    rng = np.random.default_rng(0)
    small = rng.normal(size=(32, 64)).astype(np.float32)
    layer = keras.layers.BatchNormalization()
    layer.build(small.shape)
    bn = from_keras(layer)

    def own():
        y, ctx = fastbn.batch_norm(
            small, bn.weight, bn.bias, running_mean=bn.running_mean, running_var=bn.running_var, eps=bn.eps, axis=-1
        )
        return fastbn.batch_norm_backward(y, ctx)

    bridge = compare({"own": own, "layer": lambda: bn.backward(bn(small)), "converting": lambda: from_keras(layer)})
    x = rng.normal(size=(32, 28, 28, 64)).astype(np.float32)
    theirs = keras.layers.BatchNormalization()
    theirs.build(x.shape)
    ours, tensor = from_keras(theirs), keras.ops.convert_to_tensor(x)
    ready = keras.ops.convert_to_numpy  # waits for the result
    speedup = {}
    for name, training in (("training", True), ("inference", False)):
        ours.train(training)
        both = {"ours": lambda: ours(x), "theirs": lambda training=training: ready(theirs(tensor, training=training))}
        speedup[name] = round(compare(both).ratios["theirs"], 2)
    return {
        "host": "Keras",
        "lines": 2,
        "bridge_us": round((bridge.seconds["layer"] - bridge.seconds["own"]) * 1e6, 1),
        "bridge": "fastbn.BatchNorm beyond the functions; from_keras itself is called once",
        "converting_us": round(bridge.seconds["converting"] * 1e6, 1),
        "speedup_forward": speedup["training"],
        "speedup_inference": speedup["inference"],
        "speedup_backward": None,
        "shape": "32 x 28 x 28 x 64, channels last",
        "own": f"keras.layers.BatchNormalization, eager, {keras.backend.backend()} backend",
    }


if __name__ == "__main__":
    print(json.dumps(measure()))
