"""What a round trip to the GPU costs a NumPy array, from rates that `fastbn devices` measured on this machine.

A call takes a fixed time and one by the byte. The rates are those of arrays that no cache holds; smaller ones are
faster on the CPU than this says. Where the CPU reads and writes 30 GB/s and the bus carries 6 each way, no array is
sent: 0.07 ns a byte of x against 0.33.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from fastbn._version import __version__

Progress: TypeAlias = Callable[[int, int, str], None]
Prepare: TypeAlias = Callable[[np.ndarray[Any, Any]], Callable[[], object]]

UNKNOWN = "nobody has measured what a round trip costs here; `fastbn devices` does"
AGAIN = "`fastbn devices` measures them again"

# 4 KB for the fixed times; up to 134 MB for the rates, or what takes LONG, which a simulated GPU does at 64 KB.
TINY = (2, 8, 8, 8)
LARGER = (4, 16, 16, 16), (8, 64, 32, 32), (64, 64, 32, 32), (512, 64, 32, 32)
LONG = 0.1  # seconds
RUNS = 5


@dataclass(frozen=True)
class Rates:
    """How fast a machine is.

    Attributes
    ----------
    cpu, gpu : float
        Bytes a second of the forward pass in training on an array that is there, x and y counted.
    to_gpu, from_gpu : float
        Bytes a second from and to NumPy's memory, which is pageable.
    cpu_fixed, gpu_fixed, to_gpu_fixed, from_gpu_fixed : float
        Seconds that each takes whatever the size.
    """

    cpu: float
    gpu: float
    to_gpu: float
    from_gpu: float
    cpu_fixed: float
    gpu_fixed: float
    to_gpu_fixed: float
    from_gpu_fixed: float

    def lines(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Return (seconds, seconds a byte of x) on the CPU, and there and back."""
        fixed = self.to_gpu_fixed + self.gpu_fixed + self.from_gpu_fixed
        return (self.cpu_fixed, 2 / self.cpu), (fixed, 1 / self.to_gpu + 2 / self.gpu + 1 / self.from_gpu)


def _median(run: Callable[[], object]) -> float:
    run()  # compiles, allocates
    times: list[float] = []
    while len(times) < RUNS and sum(times) < RUNS * LONG:
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _line(prepare: Prepare) -> tuple[float, float]:
    """Return bytes of an array a second and fixed seconds of what `prepare` makes of one."""
    values = np.random.default_rng(0).standard_normal(math.prod(TINY), np.float32)
    fixed = _median(prepare(values.reshape(TINY)))
    for shape in LARGER:
        x = np.resize(values, shape)
        seconds = _median(prepare(x))
        if seconds >= LONG:
            break
    return x.nbytes / (seconds - fixed if seconds > fixed else seconds), fixed


def measure(progress: Progress | None = None) -> Rates:
    """Measure the rates of this machine, in less than 10 s beside the time to compile the kernels.

    Parameters
    ----------
    progress : callable, optional
        Called as ``progress(done, total, name)`` before every rate, and once with an empty name at the end.

    Returns
    -------
    Rates

    Raises
    ------
    ValueError
        If there is no GPU.
    """
    from fastbn.dispatch import require, to_device, to_host
    from fastbn.functional import batch_norm

    require()
    mark = to_device(np.zeros(1, np.float32))  # fetching it waits for what was launched before

    def computed(x: np.ndarray[Any, Any]) -> Callable[[], object]:
        there = to_device(x)
        return lambda: (batch_norm(there), to_host(mark))

    def fetched(x: np.ndarray[Any, Any]) -> Callable[[], object]:
        there = to_device(x)
        return lambda: to_host(there)

    stages: list[tuple[str, Prepare, int]] = [
        ("cpu", lambda x: lambda: batch_norm(x, device="cpu"), 2),
        ("gpu", computed, 2),
        ("to_gpu", lambda x: lambda: (to_device(x), to_host(mark)), 1),
        ("from_gpu", fetched, 1),
    ]
    found: dict[str, float] = {}
    for done, (name, prepare, tensors) in enumerate(stages):
        if progress is not None:
            progress(done, len(stages), name)
        rate, found[f"{name}_fixed"] = _line(prepare)
        found[name] = tensors * rate
    if progress is not None:
        progress(len(stages), len(stages), "")
    waiting = _median(lambda: to_host(mark))
    for name in ("gpu_fixed", "to_gpu_fixed"):
        found[name] = max(0.0, found[name] - waiting)
    return Rates(**found)


def break_even(rates: Rates) -> float:
    """Return the bytes of x from which on the round trip is cheaper than the CPU; infinity if never."""
    (cpu_fixed, cpu), (gpu_fixed, gpu) = rates.lines()
    if gpu < cpu:
        return max(0.0, (gpu_fixed - cpu_fixed) / (cpu - gpu))
    return 0.0 if gpu == cpu and gpu_fixed < cpu_fixed else math.inf


def file() -> Path | None:
    """Return where rates are kept, or None if the user has no folder for that."""
    try:
        if os.name == "nt":
            base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
        else:
            base = Path(os.environ.get("XDG_CACHE_HOME", ""))
            base = base if base.is_absolute() else Path.home() / ".cache"
    except RuntimeError:  # no home
        return None
    return base / "fastbn" / "device.json"


def gpu_name() -> str | None:
    """Return the name of the GPU that is here, or None; imports numba.cuda."""
    from fastbn import dispatch as device

    if device.problem() is not None:
        return None
    from fastbn_kernels.cuda import gpu

    return gpu.name()


def _stamp() -> dict[str, object]:
    """Return what rates depend on, but for the GPU, which takes an import of numba.cuda to know."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"host": platform.node(), "cpus": cpus, "fastbn": __version__}


def save(rates: Rates) -> str | None:
    """Keep rates for later processes and the next call of this one; return why they are not kept, or None."""
    from fastbn import dispatch as device

    path, gpu = file(), gpu_name()
    if gpu is None or gpu == "simulator":
        return "there is no GPU that they could be of" if gpu is None else "a simulated GPU says nothing of a real one"
    if path is None:
        return "there is no home folder"
    text = json.dumps({"stamp": _stamp() | {"gpu": gpu}, "rates": asdict(rates)}, indent=1)
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, "utf-8")
        beside.replace(path)  # at once, so that no process reads a half
    except OSError as error:
        with contextlib.suppress(OSError):
            beside.unlink()
        return f"{path}: {error.strerror or error}"
    device.forget()
    return None


def _read(path: Path) -> tuple[dict[str, object], Rates]:
    kept = json.loads(path.read_text("utf-8"))
    rates = Rates(**{field.name: float(kept["rates"][field.name]) for field in fields(Rates)})
    lowest = {name: 0.0 if name.endswith("_fixed") else 1.0 for name in asdict(rates)}
    if not all(lowest[name] <= value < math.inf for name, value in asdict(rates).items()):
        raise ValueError("a rate is no positive number")
    return dict(kept["stamp"]), rates


def find(*, whatever_gpu: bool = False) -> tuple[Rates | None, str]:
    """Return the rates that are kept and "", or None and why; `whatever_gpu` spares the import of numba.cuda."""
    path = file()
    try:
        if path is None:
            raise FileNotFoundError
        kept, rates = _read(path)
    except (FileNotFoundError, NotADirectoryError):
        return None, UNKNOWN
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        return None, f"the rates in {path} cannot be read ({type(error).__name__}: {error}); {AGAIN}"
    here = _stamp()
    for name in here if whatever_gpu else (*here, "gpu"):
        own = gpu_name() if name == "gpu" else here[name]
        if kept.get(name) != own:
            return None, f"the rates in {path} are of {name} {kept.get(name)}, here it is {own}; {AGAIN}"
    return rates, ""


def load() -> Rates | None:
    """Return the rates of this machine that are kept, or None; `find` says why."""
    return find()[0]


def choose(nbytes: int) -> tuple[str, str]:
    """Return "cpu" or "cuda" for a NumPy array that nobody sends anywhere, and why."""
    rates, reason = find()
    if rates is None:
        return "cpu", reason
    limit = break_even(rates)
    cpu, gpu = (_short(1e3 * (fixed + nbytes * slope)) for fixed, slope in rates.lines())
    pays = "at no size" if limit == math.inf else f"from {_short(limit / 1e6)} MB on"
    reason = f"for {_short(nbytes / 1e6)} MB a round trip takes {gpu} ms and the CPU {cpu}; it pays {pays}"
    return "cpu" if nbytes < limit else "cuda", reason


def _short(value: float) -> str:
    """Return a number in three digits, without an exponent below a million."""
    return f"{float(f'{value:.3g}'):g}"


@functools.cache
def threshold() -> float:
    """Return from how many bytes on NumPy arrays go to the GPU by themselves; infinity without rates.

    Which GPU is here is not asked, as that takes 0.9 s: `device.of` does, when the first array is to go there.
    """
    rates, _ = find(whatever_gpu=True)
    return math.inf if rates is None else break_even(rates)


def forget() -> None:
    """Read the rates again at the next call."""
    threshold.cache_clear()
