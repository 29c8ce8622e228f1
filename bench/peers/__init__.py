"""What fastbn is compared with: a module each, with a NAME, what it is, and `build(problem, operation)`.

A peer that is not installed, or does not do an operation, raises `Unavailable` with the reason; the row then says so.
All of them work in the memory that the problem lies in where they can, write to preallocated outputs where they can,
and make the same results: y and updated running statistics, or dx, dweight and dbias. `both` is a forward and a
backward call, one after the other: in a net, other layers stand between them, so no peer may fuse the two.
"""

from __future__ import annotations

from types import ModuleType

from peers import jax_jit, numpy_plain, onednn, torch_compiled, torch_eager

EAGER = torch_eager.NAME
PEERS: dict[str, ModuleType] = {
    module.NAME: module for module in (torch_eager, torch_compiled, onednn, jax_jit, numpy_plain)
}
