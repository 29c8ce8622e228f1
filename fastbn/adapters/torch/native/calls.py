"""The one compiled function that PyTorch's dispatcher gets to, by `register`."""

from __future__ import annotations

from numba import config

from fastbn.adapters.torch.native.backward import backward, backward_act
from fastbn.adapters.torch.native.forward import forward, forward_act
from fastbn_kernels.build import cache
from fastbn_kernels.build.decorators import scalar

OPERATORS = "forward", "backward", "forward_act", "backward_act"


@scalar
def call(operator: int, pointer: int, table_pointer: int) -> int:
    """Do one of OPERATORS: one function, because each of its own would be compiled with all that it calls."""
    if operator == 0:
        return forward(pointer, table_pointer)
    if operator == 1:
        return backward(pointer, table_pointer)
    if operator == 2:
        return forward_act(pointer, table_pointer)
    return backward_act(pointer, table_pointer)


if not config.DISABLE_JIT:  # compiled once a machine, then loaded
    cache.enable(call)
