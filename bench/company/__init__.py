"""What a training step gains from fastbn: calls right after a product of the host, PyTorch models, NumPy trainers.

Every host, NumPy, PyTorch or JAX, has a process of its own (`hosts`), in the environment that a user's program has.
"""
