"""A batch normalization layer for thinc: parameters of the model, running statistics in its attrs.

    from thinc.api import chain, Linear, Relu, Softmax
    from fastbn.adapters.thinc import BatchNorm

    model = chain(Linear(64), BatchNorm(), Relu(32), Softmax())

Annotations here are evaluated at once, since thinc reads them to check a config and its data.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

import fastbn

try:
    from thinc.api import Model, get_width, registry
    from thinc.types import FloatsXd
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("fastbn.adapters.thinc needs thinc: pip install thinc", name=error.name) from error

STATISTICS = "running_mean", "running_var"
OPTIONS = "axis", "eps", "momentum", "correction", "activation", "ghost_batch_size", "renorm", "precision"


def BatchNorm(  # noqa: N802  # thinc's layers are functions named as classes
    nI: int | None = None,
    *,
    axis: int = 1,
    eps: float = 1e-5,
    momentum: float | None = 0.1,
    correction: float = 1,
    activation: str | tuple[str, float] | None = None,
    ghost_batch_size: int | None = None,
    renorm: tuple[float, float] | None = None,
    precision: str | None = None,
) -> Model[FloatsXd, FloatsXd]:
    """Return a layer that normalises every channel of a batch, then scales and shifts it.

    Training (`begin_update`, ``is_train=True``) normalises with the batch's statistics and moves the running ones;
    `predict` uses the running ones. The callback of either returns dX and adds to the gradients of `G` and `b`.

    Parameters
    ----------
    nI : int, optional
        Channels, C, which is nO too. Default: those of the sample that `initialize` gets.
    axis : int, default 1
        The channel axis of X, an array of at least two axes. Wrap the layer in `with_array` for lists and Ragged.
    eps, momentum, correction, activation, ghost_batch_size, precision
        As for `fastbn.BatchNorm`; `momentum` is the weight of the new value, None averages over all batches so far.
        With an activation the layer does what it and one of thinc's activations after it do, in one pass over memory.
    renorm : tuple of r_max and d_max, optional
        Batch renormalization in training: the arguments of `fastbn.Renorm`, as a model's attrs can be saved.

    Returns
    -------
    thinc.api.Model
        Its parameters are `G` (ones at first) and `b` (zeros), as in thinc's LayerNorm; its attrs, which are saved and
        copied with it, the options, `running_mean` and `running_var` (zeros and ones), NumPy arrays of float32, and
        `num_batches_tracked`.

    Raises
    ------
    TypeError, ValueError
        If an option does not fit, here; if data does not, when the layer is called.
    """
    given = axis, eps, momentum, correction, activation, ghost_batch_size, renorm, precision
    options: dict[str, Any] = dict(zip(OPTIONS, given, strict=True))
    fastbn.BatchNorm(1 if nI is None else nI, **as_fastbn_has_them(options))  # checks them
    return Model(
        "batchnorm",
        forward,
        init=init,
        dims={"nI": nI, "nO": nI},
        params={"G": None, "b": None},
        attrs={**options, **dict.fromkeys(STATISTICS), "num_batches_tracked": 0},
    )


def as_fastbn_has_them(options: dict[str, Any]) -> dict[str, Any]:
    """Return options as `fastbn.BatchNorm` takes them: saved models have lists, and numbers for Renorm."""
    activation, renorm = options["activation"], options["renorm"]
    if isinstance(activation, list):
        activation = tuple(activation)
    if isinstance(renorm, list | tuple):
        renorm = fastbn.Renorm(*renorm)
    return options | {"activation": activation, "renorm": renorm}


def init(model: Model[FloatsXd, FloatsXd], X: Any = None, Y: Any = None) -> None:
    """Infer the channels from a sample and allocate parameters and statistics."""
    sample = Y if X is None else X
    if sample is not None:
        axis = model.attrs["axis"]
        try:
            channels = get_width(sample, dim=axis)
        except IndexError:
            fastbn.batch_moments(sample, axis=axis)  # says what is wrong
            raise
        model.set_dim("nI", channels)
    channels = model.get_dim("nI")
    model.set_dim("nO", channels)
    model.set_param("G", model.ops.alloc1f(channels) + 1)
    model.set_param("b", model.ops.alloc1f(channels))
    model.attrs["running_mean"] = np.zeros(channels, np.float32)
    model.attrs["running_var"] = np.ones(channels, np.float32)
    model.attrs["num_batches_tracked"] = 0


def forward(
    model: Model[FloatsXd, FloatsXd], X: FloatsXd, is_train: bool
) -> tuple[FloatsXd, Callable[[FloatsXd], FloatsXd]]:
    """Normalise X, and return the callback that goes back through what was used."""
    attrs = model.attrs
    G, b = model.get_param("G"), model.get_param("b")
    # Copies: the arrays that `from_bytes` leaves are read-only, and those that a user took from attrs are the user's.
    mean, var = (np.array(attrs[name]) for name in STATISTICS)
    options = as_fastbn_has_them({name: attrs[name] for name in OPTIONS})
    averaging = options["momentum"] is None and options["ghost_batch_size"] is not None
    if options["momentum"] is None:
        options["momentum"] = 1.0 / (attrs["num_batches_tracked"] + 1)
    Y, ctx = fastbn.batch_norm(
        X, G, b, running_mean=mean, running_var=var, training=is_train, update_stats=not averaging, **options
    )
    if is_train:
        if averaging:
            average(ctx, mean, var, attrs)
        attrs["running_mean"], attrs["running_var"] = mean, var
        attrs["num_batches_tracked"] += ctx.batches

    def backprop(dY: FloatsXd) -> FloatsXd:
        gradients = fastbn.batch_norm_backward(dY, ctx)
        model.inc_grad("G", gradients.dweight)
        model.inc_grad("b", gradients.dbias)
        return gradients.dx

    return Y, backprop


def average(ctx: fastbn.Context, mean: Any, var: Any, attrs: dict[str, Any]) -> None:
    """Move statistics so that those of all batches so far, and of all ghost batches, have the same weight."""
    for number, part in enumerate(ctx.parts(), attrs["num_batches_tracked"] + 1):
        assert part.moments is not None
        for running, new in ((mean, part.moments.mean), (var, part.moments.var(attrs["correction"]))):
            running[...] = running * (1.0 - 1.0 / number) + new / number


registry.layers("fastbn.BatchNorm.v1", func=BatchNorm)
