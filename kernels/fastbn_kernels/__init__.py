"""The Numba kernels of fastbn: arrays in, arrays out.

`cpu` and `cuda` hold the same functions under the same names; `formulas` holds the scalar arithmetic that both
share; `jit` is the only file that touches Numba's decorators. Nothing here checks an argument: `fastbn` does, before
it launches. Importing this package imports Numba, which takes a good part of a second; `fastbn` therefore imports it
at the first call and not before.
"""

from fastbn_kernels import interrupts

with interrupts.held_back():
    from fastbn_kernels import jit  # noqa: F401  # all that there is of Numba
