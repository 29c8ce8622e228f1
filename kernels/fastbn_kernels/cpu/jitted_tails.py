"""What functions for a caller's own `@njit` code do after the normalization: arguments that may be absent, as one tail.

An absent argument is None, or omitted, which Numba types as something of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import types
from numba.core.errors import TypingError
from numba.extending import overload

from fastbn_kernels.cpu.simd.tails import Activation, ActivationType, named


def leaky_relu(slope: float = 0.01) -> Activation:
    """Return a leaky ReLU of a slope, to be passed as a constant; not in compiled code."""
    found = named("leaky_relu", slope)
    assert found is not None
    return found


def absent(kind: Any) -> bool:
    """Return whether a Numba type is that of an argument that is None or was left out."""
    return kind in (None, types.none) or (isinstance(kind, types.Omitted) and kind.value is None)


def _check_activation(activation: Any) -> None:
    if not absent(activation) and not isinstance(activation, ActivationType):
        raise TypingError(
            "fastbn: an activation is RELU, RELU6, TANH, SIGMOID, SILU, GELU or one that leaky_relu(slope) made, all "
            f"of fastbn_kernels.cpu and outside of compiled code, got {activation}"
        )


def forward_tail(activation: Any, residual: Any) -> Any:
    """Return the tail of a forward pass."""
    return activation if residual is None else (activation, residual)


@overload(forward_tail)  # type: ignore[untyped-decorator]
def _forward_tail(activation: Any, residual: Any) -> Any:
    _check_activation(activation)

    def nothing(activation: Any, residual: Any) -> Any:
        return None

    def alone(activation: Any, residual: Any) -> Any:
        return activation

    def after_nothing(activation: Any, residual: Any) -> Any:
        return None, residual

    def both(activation: Any, residual: Any) -> Any:
        return activation, residual

    if absent(residual):
        return nothing if absent(activation) else alone
    return after_nothing if absent(activation) else both


def backward_tail(activation: Any, bias: Any, residual: Any, dresidual: Any) -> Any:
    """Return the tail of a backward pass."""
    return activation if residual is None else (activation, residual, dresidual)


@overload(backward_tail)  # type: ignore[untyped-decorator]
def _backward_tail(activation: Any, bias: Any, residual: Any, dresidual: Any) -> Any:
    _check_activation(activation)

    def nothing(activation: Any, bias: Any, residual: Any, dresidual: Any) -> Any:
        return None

    def alone(activation: Any, bias: Any, residual: Any, dresidual: Any) -> Any:
        return activation

    def both(activation: Any, bias: Any, residual: Any, dresidual: Any) -> Any:
        return activation, residual, dresidual

    if absent(activation):
        if not absent(residual) or not absent(dresidual):
            raise TypingError(
                "fastbn: without an activation the gradient of a residual is dy; leave out residual and dresidual"
            )
        return nothing
    if absent(bias):
        raise TypingError("fastbn: with an activation, a backward pass needs the bias of the forward pass, got None")
    if absent(residual) is not absent(dresidual):
        raise TypingError("fastbn: residual and dresidual, where its gradient goes, come together")
    return alone if absent(residual) else both


def bias_of(bias: Any, c: int) -> float:
    """Return a number of the bias, 0 if there is none."""
    return 0.0 if bias is None else float(bias[c])


@overload(bias_of)  # type: ignore[untyped-decorator]
def _bias_of(bias: Any, c: Any) -> Any:
    def zero(bias: Any, c: Any) -> float:
        return 0.0

    def number(bias: Any, c: Any) -> Any:
        return np.float64(bias[c])

    return zero if absent(bias) else number


def has_channels(bias: Any, C: int) -> bool:
    """Return whether a bias has so many channels, or is absent."""
    return bias is None or bias.size == C


@overload(has_channels)  # type: ignore[untyped-decorator]
def _has_channels(bias: Any, C: Any) -> Any:
    def none(bias: Any, C: Any) -> bool:
        return True

    def some(bias: Any, C: Any) -> Any:
        return bias.size == C

    return none if absent(bias) else some
