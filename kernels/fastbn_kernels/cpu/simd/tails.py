"""Activations as arguments of compiled functions: without a size, told apart by type when a kernel is compiled.

Compiled code takes one as an argument, or as a constant, a global name of its module. So do the marks of what a
function is to do with a tail.
"""

from __future__ import annotations

from typing import Any

from numba import config, typeof, types
from numba.core.imputils import lower_constant
from numba.extending import NativeValue, models, register_model, typeof_impl, unbox

from fastbn_kernels.activation_names import NAMES as NAMES
from fastbn_kernels.activation_names import SLOPE


class Activation:
    """What a kernel does after the normalization, by its name; a copy or an unpickled one is the same object."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.type = ActivationType(self)

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> Any:
        return self.name.upper()  # a global name of this module


class LeakyReLU(Activation):
    """z, or of a z that is not positive, slope * z: an object a slope, which is a constant in compiled code."""

    def __init__(self, slope: float) -> None:
        self.slope = slope
        super().__init__(f"leaky_relu({slope!r})")

    def __reduce__(self) -> Any:
        return named, ("leaky_relu", self.slope)


class Inverse(Activation):
    """In a backward pass whose x holds y: what was normalised is found of y, by a leaky ReLU backwards."""

    def __init__(self, activation: LeakyReLU) -> None:
        self.activation = activation
        super().__init__(f"inverse_{activation.name}")

    def __reduce__(self) -> Any:
        return inverse, (self.activation,)


class ActivationType(types.Type):  # type: ignore[misc]
    """The Numba type of one activation."""

    def __init__(self, activation: Activation) -> None:
        super().__init__(name=f"fastbn_activation_{activation.name}")
        self.activation = activation


class WithResidual(tuple[Any, ...]):
    """A tail (activation, residual, ...) whose type Numba is told in 1 us: of a plain tuple it takes 20 to find out.

    Compiled code takes either, and makes plain ones.
    """

    __slots__ = ()


register_model(ActivationType)(models.OpaqueModel)
_tuples: dict[Any, Any] = {}


def _key(item: Any) -> Any:
    if item is None or isinstance(item, Activation):
        return item
    flags = item.flags
    return item.dtype, item.ndim, flags.c_contiguous, flags.writeable, flags.aligned


if not config.DISABLE_JIT:

    @typeof_impl.register(Activation)  # type: ignore[untyped-decorator]
    def _typeof(activation: Activation, _: Any) -> ActivationType:
        return activation.type

    @typeof_impl.register(WithResidual)  # type: ignore[untyped-decorator]
    def _typeof_tuple(tail: WithResidual, _: Any) -> Any:
        key = tuple(map(_key, tail))
        if key not in _tuples:
            _tuples[key] = types.Tuple([typeof(item) for item in tail])
        return _tuples[key]

    @unbox(ActivationType)  # type: ignore[untyped-decorator]
    def _unbox(_: Any, __: Any, c: Any) -> Any:
        return NativeValue(c.context.get_dummy_value())

    @lower_constant(ActivationType)  # type: ignore[untyped-decorator]
    def _constant(context: Any, _: Any, __: Any, ___: Any) -> Any:
        return context.get_dummy_value()


RELU = Activation("relu")
RELU6 = Activation("relu6")
TANH = Activation("tanh")
SIGMOID = Activation("sigmoid")
SILU = Activation("silu")
GELU = Activation("gelu")

WRITE = Activation("write")  # see `element`: what a gradient is, is computed and written beside dx
FROZEN = Activation("frozen")  # what is written goes through statistics through which no gradient flows

_SINGLE = {activation.name: activation for activation in (RELU, RELU6, TANH, SIGMOID, SILU, GELU)}
_leaky: dict[float, LeakyReLU] = {}
_inverses: dict[float, Inverse] = {}


def named(name: str | None, slope: float | None = None) -> Activation | None:
    """Return the activation of a name in NAMES, of None none; a slope is that of leaky_relu, 0.01 if it is not said."""
    if name is None:
        return None
    if name != "leaky_relu":
        return _SINGLE[name]
    slope = float(SLOPE if slope is None else slope)
    return _leaky.setdefault(slope, LeakyReLU(slope)) if slope not in _leaky else _leaky[slope]


def inverse(activation: LeakyReLU) -> Inverse:
    """Return the tail of a backward pass whose x holds y, leaky_relu of what was normalised; its slope is positive."""
    slope = activation.slope
    return _inverses.setdefault(slope, Inverse(activation)) if slope not in _inverses else _inverses[slope]
