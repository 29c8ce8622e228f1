"""Population statistics: what layers normalise with in inference, taken once the parameters have come to rest."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from typing import Any, Literal, TypeAlias

import numpy as np

from fastbn.checks import arrays, scalars
from fastbn.layer import BatchNorm
from fastbn.moments import Moments, Statistic

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

METHODS = ("pooled", "average")


def recalibrate(
    layers: BatchNorm | Iterable[BatchNorm] | Mapping[str, BatchNorm],
    batches: Iterable[Any],
    forward: Callable[[Any], object],
    *,
    method: Literal["pooled", "average"] = "pooled",
    progress: bool | None = None,
) -> None:
    """Set the running statistics of layers to those of a population: of all that the layers see in some batches.

    What training leaves in `running_mean` and `running_var` is an average that forgets, of what the layers saw while
    the parameters moved. This runs the net as it is now over the batches and replaces them.

    Parameters
    ----------
    layers : BatchNorm, iterable of them, or mapping from names
        With running statistics, not frozen.
    batches : iterable
        Gone over once. Of data as in training; Wu and Johnson found 1,000 to 10,000 samples enough.
    forward : function
        ``forward(batch)`` runs the net, and so calls the layers; what it returns is not used. Meanwhile the layers
        normalise with the statistics of the batch, as in training, and have no running ones. The modes of all other
        layers, such as dropout, stay what they are.
    method : "pooled" or "average"
        "pooled": mean and variance of all values together, whatever batches they came in; exact, since moments are
        merged (`Moments.merge`). The variance is divided by ``count - layer.correction``.
        "average": as Ioffe and Szegedy define them, the mean of the means of batches, and the mean of their variances,
        each divided by ``count - layer.correction``: m / (m - 1) times the biased ones for the default correction. Each
        batch counts the same. Differences between the means of batches are not in this variance.
    progress : bool, optional
        Whether to show a bar, by the package rich. Default: if standard error is a terminal and rich is installed.

    Raises
    ------
    TypeError, ValueError
        If an argument does not fit, a layer was not called, or statistics are infinite, NaN, or of too few values.
    ModuleNotFoundError
        If the bar is asked for and rich is missing.
    Exception
        Whatever `batches` and `forward` raise. In all of these cases every layer is as it was before.

    Notes
    -----
    A layer that is called several times a batch counts every call. `num_batches_tracked` becomes the number of calls;
    momentum, parameters, modes and what `backward` needs stay. Statistics are float64, rounded once to the layer's
    dtype, and depend on the order of the batches in their last bits alone.

    The statistics of a layer are those of its inputs while the layers before it normalise each batch by its own
    statistics, in one pass for all layers. So they are in training, in `torch.optim.swa_utils.update_bn`, and in
    fvcore's `update_bn_stats` ("precise BN"); these two compute "average". In inference the layers before it normalise
    with the population's instead. To have exactly that, recalibrate one layer after the other, the first one first,
    those before it in `eval` mode: a pass over the batches for each layer.

    Ioffe and Szegedy (2015), "Batch Normalization", Algorithm 2, step 10, arXiv:1502.03167. Wu and Johnson (2021),
    "Rethinking 'Batch' in BatchNorm", section 3, arXiv:2105.07576.

    Examples
    --------
    >>> import numpy as np, fastbn
    >>> rng = np.random.default_rng(0)
    >>> weight, bn = rng.normal(size=(8, 4)), fastbn.BatchNorm(4, dtype=np.float64)
    >>> batches = [rng.normal(3, 2, size=(n, 8)) for n in (32, 32, 7)]
    >>> fastbn.recalibrate(bn, batches, lambda x: bn(x @ weight))
    >>> everything = np.concatenate(batches) @ weight
    >>> bool(np.allclose(bn.running_var, everything.var(0, ddof=1)))
    True
    """
    named = _named(layers)
    if not isinstance(batches, Iterable):
        raise scalars.unfit("batches", batches, "an iterable")
    if not callable(forward):
        raise scalars.unfit("forward", forward, "a function of a batch")
    if not isinstance(method, str) or method not in METHODS:
        kind = ValueError if isinstance(method, str) else TypeError
        raise kind(f"method: expected 'pooled' or 'average', got {scalars.described(method)}")
    shown = _bar(batches, progress)
    found = {name: Population(name, layer, method) for name, layer in named.items()}
    with contextlib.ExitStack() as stack:
        for population in found.values():
            stack.enter_context(population.observed())
        count = 0
        for batch in stack.enter_context(shown):
            forward(batch)
            count += 1
        if not count:
            raise ValueError("batches: expected at least one batch, got none")
    new = [population.statistics() for population in found.values()]
    for layer, population, (mean, var) in zip(named.values(), found.values(), new, strict=True):
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean[...] = mean
        layer.running_var[...] = var
        layer.num_batches_tracked = population.calls


class Population:
    """The statistics of all calls of a layer so far."""

    def __init__(self, name: str, layer: BatchNorm, method: str) -> None:
        self.name = name
        self.layer = layer
        self.calls = 0
        self.moments = Moments(0, np.zeros(layer.num_features), np.zeros(layer.num_features))
        self.means = np.zeros(layer.num_features)
        self.vars: Statistic | None = np.zeros(layer.num_features) if method == "average" else None

    def add(self, moments: Moments) -> None:
        """Take the moments of a call."""
        self.calls += 1
        if self.vars is None:
            self.moments = self.moments.merge(moments)
            return
        self._enough(moments.count, f"in every call, got {moments.count} in call {self.calls}")
        with np.errstate(over="ignore", invalid="ignore"):  # said at the end
            self.means += moments.mean
            self.vars += moments.var(self.layer.correction)

    def _enough(self, count: int, got: str) -> None:
        correction = self.layer.correction
        if count <= correction:
            values = f"{correction:g} value{'s' * (correction != 1)}"
            raise ValueError(f"batches: expected more than {values} a channel for {self.name} {got}")

    @contextlib.contextmanager
    def observed(self) -> Iterator[None]:
        """Let the layer normalise by batches, without running statistics, and show what it does."""
        layer = self.layer
        kept = {name: getattr(layer, name) for name in (
            "running_mean", "running_var", "track_running_stats", "num_batches_tracked", "training", "_ctx",
        )}  # fmt: skip
        layer.running_mean = layer.running_var = None
        layer.track_running_stats = False
        layer.training = True
        layer._observer = self.add
        try:
            yield
        finally:
            del layer._observer
            for name, value in kept.items():
                setattr(layer, name, value)

    def statistics(self) -> tuple[Array, Array]:
        """Return mean and variance of the population in the dtype of the layer."""
        if not self.calls:
            raise ValueError(
                f"forward: expected it to call {self.name}, it did not; leave out layers that are not used"
            )
        if self.vars is None:
            self._enough(self.moments.count, f"in all batches together, got {self.moments.count}")
            mean, var = self.moments.mean, self.moments.var(self.layer.correction)
        else:
            mean, var = self.means / self.calls, self.vars / self.calls
        with np.errstate(over="ignore", invalid="ignore"):
            rounded = mean.astype(self.layer.dtype), var.astype(self.layer.dtype)
        for values, what in zip(rounded, ("mean", "variance"), strict=True):
            if not np.isfinite(values).all():
                channel = int(np.isfinite(values).argmin())
                raise ValueError(
                    f"batches: expected finite statistics that {self.layer.dtype} can hold, "
                    f"got a {what} of {values[channel]} in channel {channel} of {self.name}"
                )
        return rounded


def _named(layers: object) -> dict[str, BatchNorm]:
    """Return every layer once, under the name that messages have for it."""
    if isinstance(layers, BatchNorm):
        named: dict[str, object] = {"layers": layers}
    elif isinstance(layers, Mapping):
        named = {f"layers[{key!r}]": layer for key, layer in layers.items()}
    elif isinstance(layers, Iterable):
        named = {f"layers[{i}]": layer for i, layer in enumerate(layers)}
    else:
        raise scalars.unfit(
            "layers", layers, "a fastbn.BatchNorm, an iterable of them, or a mapping from names to them"
        )
    if not named:
        raise ValueError("layers: expected at least one fastbn.BatchNorm, got none")
    checked: dict[str, BatchNorm] = {}
    for name, layer in named.items():
        if not isinstance(layer, BatchNorm):
            raise scalars.unfit(name, layer, "a fastbn.BatchNorm")
        if layer.running_mean is None or layer.running_var is None:
            raise ValueError(f"{name}: expected a layer with running statistics, got track_running_stats=False")
        if layer.frozen:
            raise ValueError(f"{name}: expected a layer that may change, got a frozen one; call unfreeze() first")
        arrays.writable(f"{name}.running_mean", layer.running_mean)
        arrays.writable(f"{name}.running_var", layer.running_var)
        if not any(layer is other for other in checked.values()):
            checked[name] = layer
    return checked


def _bar(batches: Iterable[Any], progress: object) -> contextlib.AbstractContextManager[Iterable[Any]]:
    """Return the batches, with a bar if one is wanted."""
    wanted = None if progress is None else scalars.flag("progress", progress)
    if wanted or (wanted is None and sys.stderr is not None and sys.stderr.isatty()):
        try:
            rich = importlib.import_module("rich.progress")
            console = importlib.import_module("rich.console").Console(stderr=True)
        except ModuleNotFoundError as error:
            if wanted:
                raise ModuleNotFoundError(
                    "progress: expected the package rich for the bar of progress=True, it is not installed; "
                    'pip install "fastbn[progress]", or pass progress=False'
                ) from error
        else:
            return _tracked(rich, console, batches)
    return contextlib.nullcontext(batches)


@contextlib.contextmanager
def _tracked(rich: Any, console: Any, batches: Iterable[Any]) -> Iterator[Iterable[Any]]:
    total = len(batches) if isinstance(batches, Sized) else None
    columns = (
        rich.TextColumn("{task.description}"),
        rich.BarColumn(),
        rich.MofNCompleteColumn(),
        rich.TimeElapsedColumn(),
    )
    with rich.Progress(*columns, console=console, transient=True) as bar:
        yield bar.track(batches, total=total, description="recalibrating")
