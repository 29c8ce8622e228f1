"""JAX: batch norm under jit, grad, vmap, and grad of grad.

XLA calls fastbn's kernels by itself where it can (`xla`), and Python, through `jax.pure_callback`, otherwise.
"""

from fastbn.adapters.jax.functional import batch_norm as batch_norm

__all__ = ["batch_norm"]
