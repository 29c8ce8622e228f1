"""What `bench/on_gpu.py` runs on a machine with a GPU: checks, copies, times, sweeps, each a job of its own."""
