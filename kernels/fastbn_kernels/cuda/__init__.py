"""Kernels for NVIDIA GPUs, twins of those in `fastbn_kernels.cpu` by file, name and order of arguments."""

import fastbn_kernels.build  # noqa: F401  # Numba, while Ctrl-C waits
