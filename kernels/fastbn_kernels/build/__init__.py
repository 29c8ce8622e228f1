"""How kernels are compiled, kept between processes, and run.

`decorators` makes a kernel of a function, `cache` keeps what was compiled, `regions` changes what Numba writes around
a `prange` loop, `spread` says who runs its pieces, `threads` starts Numba's layer, `forks` and `interrupts` see to it
that `os.fork` and Ctrl-C leave nothing half done.
"""

from fastbn_kernels.build import interrupts

with (
    interrupts.held_back()
):  # whoever imports a kernel comes here first: this is all that there is of Numba, and of NumPy
    from fastbn_kernels.build import decorators as decorators
