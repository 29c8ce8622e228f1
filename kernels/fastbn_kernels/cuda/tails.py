"""What a GPU kernel does after the normalization, as a constant of its code: the twin of `cpu/simd/tails.py`.

There is one object of each, whose Numba type is its own; compiled code decides by that, so what is not asked for costs
no instruction, no load and no register.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fastbn_kernels.activation_names import NAMES, SLOPE
from fastbn_kernels.cuda.build.numba_cuda import (
    SIMULATED,
    core_models,
    lower_constant,
    register_model,
    typeof_impl,
    types,
)


class Kind(NamedTuple):
    """What tells one tail from another.

    Attributes
    ----------
    name : str or None
        An activation, of `activation_names.NAMES`.
    slope : float
        That of leaky_relu, of others 0.
    adds : bool
        Whether a residual is added before.
    writes : bool
        Whether what is computed of a gradient is written beside dx, as that of the residual.
    inverse : bool
        Whether x holds y of the activation: what was normalised is found of it.
    """

    name: str | None
    slope: float = 0.0
    adds: bool = False
    writes: bool = False
    inverse: bool = False


class Tail:
    """A tail of a kind; a copy or an unpickled one is the same object."""

    def __init__(self, kind: Kind) -> None:
        self.kind = kind

    def __repr__(self) -> str:
        return "_".join(map(str, self.kind))

    def __reduce__(self) -> Any:
        return tail, tuple(self.kind)


_tails: dict[Kind, Tail] = {}


def tail(name: str | None, slope: float = 0.0, adds: bool = False, writes: bool = False, inverse: bool = False) -> Tail:
    """Return the one tail of a kind."""
    kind = Kind(name, slope, adds, writes, inverse)
    return _tails.setdefault(kind, Tail(kind)) if kind not in _tails else _tails[kind]


def named(name: str | None, slope: float | None = None) -> Tail | None:
    """Return the activation of a name, of None none; a slope is that of leaky_relu, 0.01 if it is not said."""
    if name is None:
        return None
    if name not in NAMES:
        raise KeyError(name)
    return tail(name, float(SLOPE if slope is None else slope) if name == "leaky_relu" else 0.0)


def inverse(activation: Tail) -> Tail:
    """Return the tail of a backward pass whose x holds y, leaky_relu of what was normalised; its slope is positive."""
    return tail(activation.kind.name, activation.kind.slope, inverse=True)


def beside(activation: Tail | None, writes: bool) -> Tail:
    """Return the tail that adds a residual before an activation, and in a backward pass perhaps writes its gradient."""
    kind = Kind(None) if activation is None else activation.kind
    return tail(kind.name, kind.slope, True, writes)


if not SIMULATED:

    class TailType(types.Type):  # type: ignore[misc]
        """The Numba type of one tail."""

        def __init__(self, of: Tail) -> None:
            super().__init__(name=f"fastbn_tail_{of!r}")
            self.kind = of.kind

    register_model(TailType)(core_models.OpaqueModel)

    @typeof_impl.register(Tail)  # type: ignore[untyped-decorator]
    def _typeof(of: Tail, _: Any) -> Any:
        return TailType(of)

    @lower_constant(TailType)  # type: ignore[untyped-decorator]
    def _constant(context: Any, _: Any, __: Any, ___: Any) -> Any:
        return context.get_dummy_value()
