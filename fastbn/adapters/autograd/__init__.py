"""Batch normalization as a primitive of HIPS autograd, with derivatives of every order in both modes.

from autograd import grad
from fastbn.adapters.autograd import batch_norm

grad(lambda x: np.sum(batch_norm(x, weight, bias, activation="relu") ** 2))(x)
"""

try:
    import autograd.numpy  # noqa: F401
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "fastbn.adapters.autograd needs autograd: pip install autograd", name=error.name
    ) from error

from fastbn.adapters.autograd.functional import batch_norm as batch_norm

__all__ = ["batch_norm"]
