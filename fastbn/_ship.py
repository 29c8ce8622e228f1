"""Compile the kernels that a wheel brings: ``python -m fastbn._ship``, part of ``make wheel``.

One process for each level of x86-64, which compiles for it on whatever processor it runs; nothing is executed. The
archives lie in the package that this Python imports, named after Python, Numba and the sources
(`fastbn_kernels.build.shipped`), so that several Pythons may add theirs to one wheel.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys

# What is compiled: what ordinary calls need. The others are compiled on first use.
DTYPES = ("float32",)
PRECISION = "fast"


def _write(level: str) -> None:
    """Write the archive of a level; Numba must have been told to compile for it."""
    import fastbn_kernels.cpu  # noqa: F401  # Numba, while Ctrl-C waits
    from fastbn.warmup import tasks
    from fastbn_kernels.build import cache, shipped

    cache.enable = lambda dispatcher: None  # compile everything anew
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    kernels = [kernel.get(dtype, parallel) for kernel, dtype, parallel in tasks(DTYPES, False, PRECISION)]
    file = shipped.FOLDER / shipped.file_name(level, cache.sources_digest("cpu"))
    shipped.write(file, kernels)
    print(f"{file}: {len(kernels)} kernels, {file.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Write an archive for each level, or for the one that is named."""
    if len(sys.argv) > 1:
        _write(sys.argv[1])
        return
    import fastbn_kernels.cpu  # noqa: F401
    from fastbn_kernels.build import shipped

    if shipped.SYSTEM not in shipped.SYSTEMS:
        sys.exit(f"fastbn: kernels are shipped for {', '.join(shipped.SYSTEMS)}, this is {shipped.SYSTEM}")
    running = []
    for level in shipped.LEVELS:
        for old in shipped.FOLDER.glob(shipped.file_name(level, "*")):
            old.unlink()
        variables = os.environ | shipped.environment(level)
        running.append(subprocess.Popen([sys.executable, "-m", "fastbn._ship", level], env=variables))
    if sum(process.wait() != 0 for process in running):  # all of them, where any() stops at the first
        sys.exit("fastbn: a level could not be compiled")


if __name__ == "__main__":
    main()
