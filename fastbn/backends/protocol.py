"""What a backend is. One folder each: `cpu`, `cuda`; a third one would be one more, and a line in `dispatch`.

A backend is a module with these functions. It gets calls that fit (`fastbn.call`), so it checks nothing; it may decline
an operation altogether, with a reason. Both pass one contract test.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from fastbn.call import BackwardCall, DoubleBackwardCall, ForwardCall, JvpCall, MomentsCall
from fastbn.context import Context, Gradients
from fastbn.moments import BackwardSums, Moments


class Support(NamedTuple):
    """Whether a backend does something and, if not, why, in words that complete an error."""

    supported: bool
    reason: str = ""

    def __bool__(self) -> bool:
        return self.supported


class Backend(Protocol):
    """Where a call is computed."""

    name: str

    def supports(self, operation: str) -> Support:
        """Return whether there is an `operation`: "forward" (and all that goes with it), "derivatives"."""

    def look(self, name: str, value: Any) -> Any:
        """Return an array as NumPy sees it (its shape, strides, dtype and address), anything else as it is."""

    def quick_forward(
        self, x: Any, weight: Any, bias: Any, running_mean: Any, running_var: Any, training: Any, momentum: Any,
        correction: Any, eps: Any, axis: Any, precision: Any, out: Any, activation: Any, residual: Any,
    ) -> tuple[Any, Context] | None:  # fmt: skip
        """Do a forward pass that is plainly right, unchecked by `fastbn.call`; None, and nothing written, otherwise."""

    def forward(self, call: ForwardCall) -> tuple[Any, Context]:
        """Return y and the context; move the running statistics."""

    def moments(self, call: MomentsCall) -> Moments:
        """Return the statistics of every channel, on the host."""

    def sums(self, call: BackwardCall) -> BackwardSums:
        """Return the sums of the backward pass over this x, on the host."""

    def quick_backward(self, dy: Any, ctx: Any, out: Any) -> Gradients | None:
        """Do a backward pass as `quick_forward` a forward pass."""

    def backward(self, call: BackwardCall) -> Gradients:
        """Return the gradients; from given sums if the call has some."""

    def double_backward(self, call: DoubleBackwardCall) -> tuple[Any, Any, Any]:
        """Return ddy, dx and dweight, where "derivatives" are supported."""

    def jvp(self, call: JvpCall) -> Any:
        """Return the tangent of y, where "derivatives" are supported."""
