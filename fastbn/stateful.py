"""What the layers have in common: a mode, and a state that goes to a dict and comes from one as a whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeAlias

import numpy as np

from fastbn.checks import scalars, state_dict

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]


class Stateful:
    """The base of the layers. `STATE` names the arrays of a layer's state, which may be None."""

    STATE: ClassVar[tuple[str, ...]]

    training: bool
    track_running_stats: bool
    num_batches_tracked: int

    def train(self, mode: bool = True) -> Self:
        """Normalise with the batch's statistics from now on (with ``mode=False``, as `eval`); return the layer."""
        self.training = scalars.flag("mode", mode)
        return self

    def eval(self) -> Self:
        """Normalise with the running statistics from now on; return the layer."""
        return self.train(False)

    def _arrays(self) -> dict[str, Array]:
        arrays = {name: getattr(self, name) for name in self.STATE}
        return {name: array for name, array in arrays.items() if array is not None}

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the parameters and statistics, `BatchNorm`'s under PyTorch's keys.

        Returns
        -------
        dict
            `weight`, `bias`, `running_mean`, `running_var` (of `DecorrelatedBatchNorm`, `running_cov`) and
            `num_batches_tracked` (int64, no axes), as far as the layer has them.
        """
        state = {name: array.copy() for name, array in self._arrays().items()}
        if self.track_running_stats:
            state["num_batches_tracked"] = np.array(self.num_batches_tracked, np.int64)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take parameters and statistics from a state dict, this layer's or, for a `BatchNorm`, PyTorch's.

        The arrays of the layer keep their identity and dtype and get new scalars. Either the whole state fits and is
        taken, or nothing changes.

        Parameters
        ----------
        state : mapping
            The keys of `state_dict`; values are arrays or what `numpy.asarray` takes, such as a PyTorch tensor on the
            CPU.

        Raises
        ------
        ValueError
            If keys are missing or unknown, or a shape does not fit.
        TypeError
            If a value is not of a real floating type, or the count not an integer.
        """
        self.take_state(self.check_state(state))

    def check_state(self, state: Mapping[str, Any], prefix: str = "") -> dict[str, Array]:
        """Return the values of a state that fits, cast to this layer's dtype; `prefix` is for messages.

        With `take_state`, which cannot fail, several layers are loaded as a whole; see `fastbn.load`.
        """
        return state_dict.check(state, self._arrays(), self.track_running_stats, prefix)

    def take_state(self, checked: Mapping[str, Array]) -> None:
        """Store what `check_state` returned."""
        for name, array in self._arrays().items():
            array[...] = checked[name]
        if self.track_running_stats:
            self.num_batches_tracked = int(checked["num_batches_tracked"])
