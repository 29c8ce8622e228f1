"""What fastbn.adapters.sklearn costs, and what it gains over StandardScaler: fit, transform, inverse_transform."""

import functools
import json
import sys
from pathlib import Path

import numpy as np
from sklearn.preprocessing import StandardScaler

import fastbn
from fastbn.adapters.sklearn import BatchNormScaler

sys.path.insert(0, str(Path(__file__).parents[1]))
from paired import compare


def measure() -> dict:
    rng = np.random.default_rng(0)
    x = rng.normal(3, 1, (32, 64)).astype(np.float32)
    mean, var = np.zeros(64), np.ones(64)
    scaler = BatchNormScaler()
    bridge = compare(
        {
            "own": lambda: (fastbn.batch_moments(x), fastbn.batch_norm_inference(x, mean, var, var)),
            "adapter": lambda: scaler.fit(x).transform(x),
        }
    )
    speedup = {}
    for dtype in ("float32", "float64"):
        big = rng.normal(3, 1, (100_000, 100)).astype(dtype)
        ours, theirs = BatchNormScaler().fit(big), StandardScaler().fit(big)
        for name in ("fit", "transform", "inverse_transform"):
            a, b = getattr(ours, name), getattr(theirs, name)
            both = {"ours": functools.partial(a, big), "theirs": functools.partial(b, big)}
            speedup[f"{name}, {dtype}"] = round(compare(both).ratios["theirs"], 2)
    return {
        "host": "scikit-learn",
        "lines": 2,
        "bridge_us": round((bridge.seconds["adapter"] - bridge.seconds["own"]) * 1e6, 1),
        "bridge": "fit and transform, mostly scikit-learn's checks of X",
        "speedup_forward": speedup["transform, float32"],
        "speedup_backward": None,
        "speedup": speedup,
        "shape": "100000 x 100",
        "own": "StandardScaler",
    }


if __name__ == "__main__":
    print(json.dumps(measure()))
