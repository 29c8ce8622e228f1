"""Kernels for NVIDIA GPUs, twins of those in `fastbn_kernels.cpu` by file, name and order of arguments."""
