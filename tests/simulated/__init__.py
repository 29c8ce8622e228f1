"""What stands for hardware in the tests: a GPU in Python, and the vector operations in NumPy.

Kernels import it where Numba is told to simulate (NUMBA_ENABLE_CUDASIM=1) or not to compile (NUMBA_DISABLE_JIT=1).
"""

from numba import config

if config.ENABLE_CUDASIM:
    from simulated import device_arrays  # noqa: F401
