"""How kernels are compiled, kept between processes, and run.

`decorators` makes a kernel of a function, `cache` keeps what was compiled, `regions` changes what Numba writes around
a `prange` loop, `spread` says who runs its pieces, `threads` starts Numba's layer, `forks` and `interrupts` see to it
that `os.fork` and Ctrl-C leave nothing half done.
"""
