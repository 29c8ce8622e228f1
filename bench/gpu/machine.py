"""What the machine is, and how fast it copies: the limit that times are seen against."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastbn
from fastbn_kernels.cuda import gpu
from fastbn_kernels.cuda.build.numba_cuda import SIMULATED

from . import arrays, timing
from .timing import Contender

DISTRIBUTIONS = (
    "numpy", "numba", "numba-cuda", "llvmlite", "cuda-bindings", "cuda-core", "torch", "triton", "cupy-cuda13x",
    "cupy-cuda12x", "nvidia-cudnn-cu13", "nvidia-nvjitlink", "nvidia-cuda-nvrtc", "nvidia-cuda-nvcc", "ml_dtypes",
)  # fmt: skip
# Buffers beyond every cache, in bytes: their copies are the limit.
LARGE = (1 << 30, 2 << 30, 4 << 30)
SECONDS = {True: 0.005, False: 0.15}


def _said(*command: str) -> str | None:
    """Return what a command prints, or None if it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, cwd=Path(__file__).parent)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def versions() -> dict[str, str]:
    found = {"python": platform.python_version(), "fastbn": fastbn.__version__}
    for name in DISTRIBUTIONS:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def by_torch() -> dict[str, Any]:
    """Return what PyTorch knows of the GPU."""
    import torch

    found: dict[str, Any] = {"cudnn": torch.backends.cudnn.version(), "cuda": torch.version.cuda}
    gpu = torch.cuda.get_device_properties(0)
    for name in dir(gpu):
        value = None if name.startswith("_") else getattr(gpu, name)
        if isinstance(value, str | int | float):
            found[name] = value
    return found


def run(given: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Tell what is installed and what the GPU is."""
    tell({"versions": versions(), "commit": _said("git", "rev-parse", "HEAD"), "simulated": SIMULATED})
    tell({"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")})
    tell({"processor": platform.machine(), "processors": os.cpu_count(), "system": platform.platform()})
    tell({"nvidia_smi": _said(
        "nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,clocks.max.sm", "--format=csv"
    )})  # fmt: skip
    tell({"name": gpu.name(), "problem": gpu.problem(), "plan_device": gpu.properties()})
    own = arrays.house()
    tell({"arrays": own.name})
    if own.name == "torch":
        try:
            tell({"torch_device": by_torch()})
        except Exception as error:  # what is beside the point must not stop the rest
            tell({"torch_device": f"{type(error).__name__}: {error}"})


def _rate(own: Any, nbytes: int, sets: int, tiny: bool) -> dict[str, Any]:
    pairs = [
        tuple(own.random((nbytes // 4,), "float32") for _ in range(2)) for _ in range(sets)
    ]  # random: zeros can be faster
    contender = Contender("copy", [lambda s=s, t=t: own.copy(t, s) for s, t in pairs])
    times = timing.measure(own, [contender], SECONDS[tiny])["copy"]
    if "error" in times:
        raise RuntimeError(times["error"])
    row = {"nbytes": nbytes, "sets": sets, "times": times, "tb_per_s": 2 * nbytes / times["us"] / 1e6}
    if own.name == "torch" and nbytes < LARGE[0]:
        row["graph_us"] = timing.graph(own, contender)
    return row


def run_copy(given: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Tell the rate, read and written, of copies: of large buffers, and of those of the sizes that are timed."""
    own = arrays.house()
    tiny = given["tiny"]
    large = (1 << 16,) if tiny else LARGE
    for nbytes in large:
        tell({"large": True} | _rate(own, nbytes, 1 if tiny else 2, tiny))
    l2_bytes = gpu.properties()["l2_bytes"]
    for nbytes in sorted(set(given["sizes"])):
        sets = 2 if tiny else int(np.clip(1 + -(-l2_bytes // nbytes), 2, 64))
        tell({"large": False} | _rate(own, nbytes, sets, tiny))
