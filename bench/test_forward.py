"""Training forward passes, beside PyTorch eager in the same run, outputs preallocated for both.

`make bench` shows the times of fastbn and, as `vs_torch` in the JSON and in the report's last lines, how many times
faster than PyTorch it is. Channels-first cases must not be slower; the other layouts are shown as they are.
"""

from __future__ import annotations

import numpy as np
import pytest
from paired import speedup

import fastbn

torch = pytest.importorskip("torch", reason="PyTorch is not installed; make bench installs it")

NCHW = [
    (32, 64, 56, 56),
    (32, 256, 14, 14),
    (64, 512, 7, 7),
    (8, 128, 28, 28),
    (16, 3, 224, 224),
    (1, 64, 112, 112),
    (32, 64, 1000),
    (4, 16, 24, 24, 24),
]
ROWS = [(32, 56, 56, 64), (64, 7, 7, 512), (65536, 128), (4096, 1024), (32, 64)]


def ours(x, axis):
    C = x.shape[axis]
    y, weight, bias = np.empty_like(x), np.ones(C, np.float32), np.zeros(C, np.float32)
    mean, var = np.zeros(C, np.float32), np.ones(C, np.float32)
    return lambda: fastbn.batch_norm(x, weight, bias, running_mean=mean, running_var=var, axis=axis, out=y)


def theirs(x, axis):
    t = torch.from_numpy(np.moveaxis(x, axis, 1))
    C = t.shape[1]
    weight, bias, mean, var = torch.ones(C), torch.zeros(C), torch.zeros(C), torch.ones(C)
    y, saved = torch.empty_like(t), [torch.empty(C), torch.empty(C)]
    out = torch.ops.aten.native_batch_norm.out
    return lambda: out(t, weight, bias, mean, var, True, 0.1, 1e-5, out=y, save_mean=saved[0], save_invstd=saved[1])


@pytest.mark.parametrize(
    ("shape", "axis"),
    [(s, 1) for s in NCHW] + [(s, -1) for s in ROWS],
    ids=lambda v: "x".join(map(str, v)) if isinstance(v, tuple) else f"axis{v}",
)
def test_training_forward(benchmark, shape, axis):
    x = np.random.default_rng().standard_normal(shape, np.float32)
    a, b = ours(x, axis), theirs(x, axis)
    np.testing.assert_allclose(np.moveaxis(a()[0], axis, 1), b()[0].numpy(), rtol=1e-3, atol=1e-3)
    benchmark(a)
    if benchmark.enabled:
        ratio = speedup(a, b)
        benchmark.extra_info["vs_torch"] = round(ratio, 2)
        if axis == 1:
            assert ratio >= 1
