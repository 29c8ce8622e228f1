"""The Numba kernels of fastbn: arrays in, arrays out.

`cpu` and `cuda` hold the same functions under the same names; `formulas` holds the scalar arithmetic that both share,
`saved` what a forward pass leaves for the backward pass; `build` compiles, keeps and runs kernels. Nothing here checks
an argument: `fastbn` does, before it launches. Importing this package imports nothing; its rooms import Numba, which
takes a good part of a second, so `fastbn` imports them at the first call and not before.
"""
