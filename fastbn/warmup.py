"""Compile kernels ahead of their first use, into the cache on disk.

For an image that is built once and started often, or before anything is timed. The kernels are those that plans can
name.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fastbn import arithmetic
from fastbn._apart import compile_apart
from fastbn.backends.cpu import plan
from fastbn.checks import scalars

# By what its data are to a kernel: 16-bit floats are bits. So is float32 where it is computed exactly.
DTYPES: dict[str, np.dtype[Any]] = {
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
    "float16": np.dtype(np.int16),
    "bfloat16": np.dtype(np.uint16),
}

# Operations of `batch_moments`, `backward_sums`, `batch_norm_backward(sums=...)`, and of higher derivatives.
RARE = "moments", "sums", "gradient", "jvp", "double_backward"
# Those that are computed exactly whatever the precision, and what higher derivatives through running statistics call.
EXACT = "moments", "jvp", "double_backward"
THROUGH_RUNNING = "normalize", "sums", "gradient"
# What no plan names and is rare too, computed exactly always: `DecorrelatedBatchNorm` and `decorrelate`.
WHITENING = "products", "combine"

Progress: TypeAlias = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True)
class Warmup:
    """What a warm-up did.

    Attributes
    ----------
    compiled, loaded : int
        Kernels that were compiled, and that the cache had. A kernel that this process had used before is neither.
    seconds : float
        How long it took.
    """

    compiled: int
    loaded: int
    seconds: float


def check(dtypes: Sequence[str]) -> list[str]:
    """Return the names of dtypes without repetition; raise ValueError if one is unknown."""
    names = [dtypes] if isinstance(dtypes, str) else list(dtypes)
    for name in names:
        if name not in DTYPES:
            raise ValueError(f"dtypes: expected names among {', '.join(DTYPES)}, got {name!r}")
    if not names:
        raise ValueError(f"dtypes: expected at least one of {', '.join(DTYPES)}, got none")
    return list(dict.fromkeys(names))


def warmup(
    dtypes: Sequence[str] = ("float32",),
    progress: Progress | None = None,
    *,
    precision: str | None = None,
    rare: bool = False,
    processes: int = 1,
) -> Warmup:
    """Compile the kernels that ordinary calls need, or load them from the cache.

    Ordinary calls are the layer, `batch_norm`, `batch_norm_inference` and `batch_norm_backward` on contiguous arrays of
    any layout and size, with parameters of the usual dtype: that of the data, float32 for 16-bit data. The next process
    on this processor loads what was compiled here, as long as neither fastbn nor Numba is another.

    Parameters
    ----------
    dtypes : sequence of str, default ("float32",)
        Of the data: "float32", "float64", "float16", "bfloat16".
    progress : callable, optional
        Called as ``progress(done, total, name)`` before every kernel, and once with an empty name at the end.
    precision : "fast" or "exact", optional
        The precision of the calls, as for `batch_norm`; float32 has other kernels for either.
    rare : bool, default False
        Compile all kernels: also those that statistics over several machines, higher derivatives and whitening need.
    processes : int, default 1
        From 2 on, so many other processes compile, and this one loads what they have compiled.

    Returns
    -------
    Warmup
        How many kernels were compiled, how many loaded, and how long that took.

    Raises
    ------
    TypeError, ValueError
        For an unknown dtype or precision.

    Notes
    -----
    A kernel with a parallel loop is compiled once, whatever the number of threads. With a Numba whose loops fastbn
    cannot direct (the log says so), it is compiled for one thread or for several, as there are now; with `rare`, for
    both.
    """
    started = time.perf_counter()
    pending = list(tasks(check(dtypes), rare, scalars.precision(precision)))
    compiled = loaded = 0
    elsewhere: set[int] = set()
    report = progress
    if processes > 1:
        report, through = None, itertools.count(1)
        elsewhere = compile_apart(
            pending, processes, lambda name: progress(next(through), len(pending), name) if progress else None
        )
    for done, (kernel, dtype, parallel) in enumerate(pending):
        if report is not None:
            report(done, len(pending), kernel.name)
        known = kernel.is_ready(dtype, parallel)
        statistics = getattr(kernel.get(dtype, parallel), "stats", None)  # plain Python under NUMBA_DISABLE_JIT=1
        if statistics is not None and not known:
            hit = bool(statistics.cache_hits) and done not in elsewhere
            loaded += hit
            compiled += not hit
    if progress is not None:
        progress(len(pending), len(pending), "")
    return Warmup(compiled, loaded, time.perf_counter() - started)


def _is_of(name: str, operations: tuple[str, ...]) -> bool:
    return any(name == f"{operation}_{family}" for operation in operations for family in plan.FAMILIES)


def _precisions(name: str, dtype: str, precision: str, rare: bool) -> list[str]:
    """Return in which precisions calls need a kernel of that name for data of a dtype."""
    if name in WHITENING:
        return [arithmetic.EXACT]
    if dtype != "float32" or not (rare and _is_of(name, EXACT + THROUGH_RUNNING)):
        return [precision]
    return [arithmetic.EXACT] if _is_of(name, EXACT) else sorted({precision, arithmetic.EXACT})


def tasks(names: Sequence[str], rare: bool, precision: str) -> Iterator[tuple[Any, np.dtype[Any], bool]]:
    """List what is to be compiled, as the backend asks for it: kernel, dtype, and whether parallel."""
    from fastbn_kernels.build import threads
    from fastbn_kernels.cpu import kernel

    several = threads.count() > 1
    for name in (*plan.kernels(), *(WHITENING if rare else ())):
        if _is_of(name, RARE) and not rare:
            continue
        found = kernel(name)
        # One and the same kernel, unless Numba's loops are its own (`spread.works`).
        versions = [False] if "prange" not in found.source.__code__.co_names else [True, False] if rare else [several]
        for dtype in names:
            for own in _precisions(name, dtype, precision, rare):
                exact = dtype == "float32" and own == arithmetic.EXACT
                for parallel in versions:
                    yield found, arithmetic.BITS if exact else DTYPES[dtype], parallel
