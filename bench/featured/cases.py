"""Which features are measured on which shapes: some that fit a cache and some that do not."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import numpy as np
from problem import Problem, draw
from suites import Case

import fastbn
from fastbn.activations import NAMES as ACTIVATIONS

from . import ours, population, torch_users
from .work import Feature, Group, ways

TORCH = "PyTorch"
GHOSTS = 32
Maker = Callable[[], Group]


def _case(*shape: int, axis: int = 1) -> Case:
    return Case("features", shape, axis)


IMAGES, ROWS, LAST = _case(32, 64, 56, 56), _case(4096, 256), _case(16, 56, 56, 64, axis=3)
LATE = _case(64, 512, 7, 7)
# Every activation on three of them, the usual ones on all.
TAILS = {IMAGES: ACTIVATIONS, LATE: ACTIVATIONS, ROWS: ACTIVATIONS} | dict.fromkeys(
    [_case(16, 256, 14, 14), LAST, _case(32, 64)], ("relu", "gelu")
)
RESIDUALS = None, "relu", "gelu"
MASKED = _case(64, 256, 512), _case(64, 512, 256, axis=2), _case(32, 128, 200)
LENGTHS = "lengths of T/2 to T", "lengths of 1 to T", "half, at random"
WITH_GHOSTS = _case(256, 64, 28, 28), _case(1024, 512), _case(256, 128)
STATISTICS = IMAGES, LATE, ROWS
AXES = (256, 16, 14, 14), (64, 128, 256)
WHITENED = {_case(64, 64, 28, 28): 4, _case(1024, 256): 16}
RECALIBRATED = IMAGES, ROWS


def tails(case: Case, activations: tuple[str, ...] = ACTIVATIONS) -> Group:
    """Return the fused tail; the bytes are those of the residual, which is read; back, read, and its gradient too."""
    p = draw(case, "float32", "both")
    outputs = ours.Outputs(p)
    residual = np.random.default_rng().standard_normal(case.shape, np.float32)
    features = []
    for other, activation in [(None, name) for name in activations] + [(residual, name) for name in RESIDUALS]:
        name = " + ".join(filter(None, ["residual" if other is not None else None, activation]))
        own = ours.batch_norm(p, outputs, activation=activation, residual=other)
        tensors = (0, 0) if other is None else (1, 2 if activation else 0)
        make = functools.partial(torch_users.tail, p, activation, other)
        features.append(Feature(name, own, **ways((TORCH, make)), tensors=tensors))
    return Group("tail", case, ours.batch_norm(p, outputs), features)


def draw_mask(p: Problem, kind: str) -> np.ndarray:
    """Return which positions count: of lines of every length between two, or half of all."""
    rng = np.random.default_rng()
    N, T = (size for i, size in enumerate(p.x.shape) if i != p.case.axis)
    if kind == LENGTHS[2]:
        return rng.random((N, T)) < 0.5
    least = max(1, T // 2) if kind == LENGTHS[0] else 1
    return np.arange(T) < rng.integers(least, T + 1, N)[:, None]


def masks(case: Case) -> Group:
    """Return masks, beside plain batch norm of all positions."""
    p = draw(case, "float32", "both")
    outputs = ours.Outputs(p)
    features = []
    for kind in LENGTHS:
        mask = draw_mask(p, kind)
        found = ways((f"{TORCH}, x[mask]", functools.partial(torch_users.masked, p, mask)))
        features.append(Feature(f"mask, {kind}", ours.batch_norm(p, outputs, mask=mask), **found))
    return Group("mask", case, ours.batch_norm(p, outputs), features)


def ghosts(case: Case) -> Group:
    """Return ghost batches, beside plain batch norm of the whole batch and loops over slices."""
    p, size = draw(case, "float32", "both"), min(GHOSTS, case.shape[0] // 2)
    outputs = ours.Outputs(p)
    own = ours.batch_norm(p, outputs, ghost_batch_size=size)
    found = ways(
        (f"{TORCH}, a loop", lambda: torch_users.ghosts(p, size)),
        ("fastbn, a loop", lambda: ours.loop(p, ours.Outputs(p), size)),
    )
    return Group("ghosts", case, ours.batch_norm(p, outputs), [Feature(f"ghost batches of {GHOSTS}", own, **found)])


def statistics(case: Case) -> Group:
    """Return what is done with statistics, and in place."""
    p = draw(case, "float32", "both")
    outputs, renorm = ours.Outputs(p), fastbn.Renorm()
    return Group(
        "statistics",
        case,
        ours.batch_norm(p, outputs),
        [
            Feature(
                "renorm",
                ours.batch_norm(p, outputs, renorm=renorm),
                **ways((f"{TORCH}, its formulas", lambda: torch_users.renormalized(p, renorm.r_max, renorm.d_max))),
            ),
            Feature(
                "in place, leaky_relu",
                ours.in_place(p, outputs, activation="leaky_relu"),
                **ways((TORCH, lambda: torch_users.tail(p, "leaky_relu", None))),
            ),
            Feature(
                "update_stats=False",
                ours.batch_norm(p, outputs, update_stats=False),
                **ways((TORCH, lambda: torch_users.without_running(p))),
            ),
            Feature(
                "two phases, moments= and sums=",
                ours.two_phases(p, outputs),
                **ways((f"{TORCH}, its formulas", lambda: torch_users.two_phases(p))),
            ),
        ],
    )


def axes(shape: tuple[int, ...]) -> Group:
    """Return several channel axes, beside plain batch norm of (N, C), which is the same."""
    case = _case(shape[0], math.prod(shape[1:]))
    p = draw(case, "float32", "both")
    outputs = ours.Outputs(p)
    found = ways((TORCH, lambda: torch_users.flat(p, len(shape) - 1)))
    name = f"axis={tuple(range(1, len(shape)))}"
    return Group("axes", case, ours.batch_norm(p, outputs), [Feature(name, ours.axes(p, outputs, shape), **found)])


def whitening(case: Case, groups: int) -> Group:
    """Return whitening, beside plain batch norm, which leaves channels correlated."""
    p = draw(case, "float32", "both")
    outputs = ours.Outputs(p)
    own = ours.whitened(p, outputs, groups)
    found = ways((f"{TORCH}, eigh", lambda: torch_users.whitened(p, groups)))
    name = f"DecorrelatedBatchNorm, groups of {case.channels // groups}"
    return Group("whitening", case, ours.batch_norm(p, outputs), [Feature(name, own, **found)])


def recalibration(case: Case) -> Group:
    """Return `recalibrate`, beside the forward passes of training over the same batches."""
    p = draw(case, "float32", "forward")
    found = ways((f"{TORCH}, update_bn", lambda: population.updated(p)))
    feature = Feature("recalibrate", population.recalibrated(p), **found)
    return Group("recalibration", case, population.passes(p), [feature], ("forward",))


def everything() -> Iterator[tuple[str, Maker]]:
    """Yield the name of every group and how it is made; arrays are drawn when it is."""
    for case, activations in TAILS.items():
        yield "tail", functools.partial(tails, case, activations)
    for name, make, cases in (("mask", masks, MASKED), ("ghosts", ghosts, WITH_GHOSTS),
                              ("statistics", statistics, STATISTICS)):  # fmt: skip
        for case in cases:
            yield name, functools.partial(make, case)
    for shape in AXES:
        yield "axes", functools.partial(axes, shape)
    for case, groups in WHITENED.items():
        yield "whitening", functools.partial(whitening, case, groups)
    for case in RECALIBRATED:
        yield "recalibration", functools.partial(recalibration, case)


def small() -> Iterator[tuple[str, Maker]]:
    """Yield one small group of every kind and layout, for tests of the harness."""
    for case in (LATE, ROWS, LAST):
        yield "tail", functools.partial(tails, case.shrunk(), ("relu", "gelu"))
    for case in MASKED[:2]:
        yield "mask", functools.partial(masks, Case("features", (5, 9, 12), case.axis))
    yield "ghosts", functools.partial(ghosts, _case(9, 5, 3, 4))
    yield "statistics", functools.partial(statistics, LATE.shrunk())
    yield "axes", functools.partial(axes, (9, 3, 4, 2))
    yield "whitening", functools.partial(whitening, _case(16, 8, 5, 3), 2)
    yield "recalibration", functools.partial(recalibration, _case(20, 5))
