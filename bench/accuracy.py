"""Measure the accuracy of batch norm in fastbn and in the frameworks, against 80-bit floats.

    python bench/accuracy.py [--out bench/results/accuracy.json]

For every implementation and distance of the mean from zero: the largest relative error of the variance over the
channels, and the largest error of y, in units of its standard deviation and in ulp. float32, one batch of
32 x 8 x 56 x 56 drawn afresh at each run (the seed is in the result). Frameworks that are not installed are left out.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import secrets
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

import fastbn

sys.path.append(str(Path(__file__).parents[1] / "tests"))
import reference  # the oracle of the tests

SHAPE = (32, 8, 56, 56)
CASES = [(0.0, 1.0), (100.0, 1.0), (1e4, 1.0), (1e6, 1.0)]
EPS = 1e-5

# From NCHW float32 to (y as NCHW, batch variance).
Implementation = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


def channels_last(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(x, 1, -1))


def fastbn_nchw(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y, ctx = fastbn.batch_norm(x, eps=EPS)
    return y, ctx.moments.var()


def fastbn_nhwc(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y, ctx = fastbn.batch_norm(channels_last(x), eps=EPS, axis=-1)
    return np.moveaxis(y, -1, 1), ctx.moments.var()


def torch_with(memory_format: str) -> Implementation:
    def run(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        import torch

        t = torch.from_numpy(x).contiguous(memory_format=getattr(torch, memory_format))
        mean, var = torch.zeros(x.shape[1]), torch.zeros(x.shape[1])
        y = torch.nn.functional.batch_norm(t, mean, var, training=True, momentum=1.0, eps=EPS)
        count = x.size // x.shape[1]
        return y.numpy(), var.double().numpy() * (count - 1) / count

    return run


def flax(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    import jax
    from flax import linen

    layer = linen.BatchNorm(use_running_average=False, momentum=0.0, epsilon=EPS)
    last = channels_last(x)
    variables = layer.init(jax.random.key(0), last)
    y, state = layer.apply(variables, last, mutable=["batch_stats"])
    return np.moveaxis(np.asarray(y), -1, 1), np.asarray(state["batch_stats"]["var"])


def keras(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    os.environ.setdefault("KERAS_BACKEND", "jax")
    import keras

    layer = keras.layers.BatchNormalization(momentum=0.0, epsilon=EPS)
    y = layer(channels_last(x), training=True)
    return np.moveaxis(np.asarray(y), -1, 1), np.asarray(layer.moving_variance)


def numpy_var(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    return (x - mean) / np.sqrt(var + np.float32(EPS)), var.ravel()


IMPLEMENTATIONS: dict[str, tuple[str | None, Implementation]] = {
    "fastbn NCHW": (None, fastbn_nchw),
    "fastbn NHWC": (None, fastbn_nhwc),
    "PyTorch NCHW": ("torch", torch_with("contiguous_format")),
    "PyTorch NHWC": ("torch", torch_with("channels_last")),
    "Flax": ("flax", flax),
    "Keras (JAX)": ("keras", keras),
    "NumPy": (None, numpy_var),
}


def measure(run: Implementation, x: np.ndarray) -> dict[str, float]:
    """Return the errors of one implementation on one batch."""
    expected = reference.forward(x, eps=EPS)
    y, var = run(x)
    return {
        "var": float(np.abs(var / expected.var - 1).max()),
        "y": float(np.abs(y - expected.y).max()),
        "ulp": reference.ulps(y, expected.y),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    arguments = parser.parse_args()
    seed = secrets.randbits(32)
    rng = np.random.default_rng(seed)
    batches = [(rng.standard_normal(SHAPE) * std + mean).astype(np.float32) for mean, std in CASES]
    names = [n for n, (module, _) in IMPLEMENTATIONS.items() if module is None or importlib.util.find_spec(module)]
    found = {name: [measure(IMPLEMENTATIONS[name][1], x) for x in batches] for name in names}
    print(f"Relative error of var, worst error of y; {' x '.join(map(str, SHAPE))}, float32\n")
    print("| mean, std | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for i, (mean, std) in enumerate(CASES):
        cells = [f"{found[name][i]['var']:.0e}, {found[name][i]['y']:.0e}" for name in names]
        print(f"| {mean:g}, {std:g} | " + " | ".join(cells) + " |")
    if arguments.out:
        distributions = ["numpy", "numba", "torch", "jax", "flax", "keras"]
        versions = {d: importlib.metadata.version(d) for d in distributions if importlib.util.find_spec(d)}
        record = {"seed": seed, "shape": SHAPE, "eps": EPS, "cases": CASES, "machine": platform.machine()}
        record |= {"versions": versions | {"fastbn": fastbn.__version__}, "errors": found}
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
        print(f"\nwritten to {arguments.out}")


if __name__ == "__main__":
    main()
