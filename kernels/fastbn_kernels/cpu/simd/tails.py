"""Activations as arguments of compiled functions: without a size, told apart by type when a kernel is compiled.

Compiled code takes one as an argument, or as a constant, a global name of its module.
"""

from __future__ import annotations

from typing import Any

from numba import config, typeof, types
from numba.core.imputils import lower_constant
from numba.extending import NativeValue, models, register_model, typeof_impl, unbox


class Activation:
    """What a kernel does after the normalization, by its name; a copy or an unpickled one is the same object."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.type = ActivationType(self)

    def __repr__(self) -> str:
        return self.name

    def __reduce__(self) -> str:
        return self.name.upper()  # a global name of this module


class ActivationType(types.Type):  # type: ignore[misc]
    """The Numba type of one activation."""

    def __init__(self, activation: Activation) -> None:
        super().__init__(name=f"fastbn_activation_{activation.name}")
        self.activation = activation


class WithResidual(tuple[Any, ...]):
    """A pair (activation, residual) whose type Numba is told in 1 us: of a plain one it takes 20 to find out.

    Compiled code takes either, and makes plain ones.
    """

    __slots__ = ()


register_model(ActivationType)(models.OpaqueModel)
_pairs: dict[Any, Any] = {}


if not config.DISABLE_JIT:

    @typeof_impl.register(Activation)  # type: ignore[untyped-decorator]
    def _typeof(activation: Activation, _: Any) -> ActivationType:
        return activation.type

    @typeof_impl.register(WithResidual)  # type: ignore[untyped-decorator]
    def _typeof_pair(pair: WithResidual, _: Any) -> Any:
        activation, residual = pair
        flags = residual.flags
        key = activation, residual.dtype, residual.ndim, flags.c_contiguous, flags.writeable, flags.aligned
        if key not in _pairs:
            _pairs[key] = types.Tuple((typeof(activation), typeof(residual)))
        return _pairs[key]

    @unbox(ActivationType)  # type: ignore[untyped-decorator]
    def _unbox(_: Any, __: Any, c: Any) -> Any:
        return NativeValue(c.context.get_dummy_value())

    @lower_constant(ActivationType)  # type: ignore[untyped-decorator]
    def _constant(context: Any, _: Any, __: Any, ___: Any) -> Any:
        return context.get_dummy_value()


RELU = Activation("relu")
RELU6 = Activation("relu6")
SILU = Activation("silu")
