"""NVIDIA GPUs: everything on the API side that knows of CUDA."""
