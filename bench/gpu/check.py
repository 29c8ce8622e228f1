"""Every public function on device arrays against the oracle of the tests, with the tolerances derived there.

Outputs are NaN beforehand, data is fresh at every run, and everything is computed twice and must give the same bits.
"""

from __future__ import annotations

import functools
import traceback
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

import fastbn
import reference
from gpu_tolerance import check_backward, check_forward, statistics_error
from grid import affine, draw
from tolerance import check

from . import arrays, knobs, peers
from .cases import Check

MOMENTUM = 0.1


def parameter_dtype(name: str) -> str:
    """Return the dtype of parameters and statistics: that of the data, but not of 16 bits."""
    return name if name in ("float32", "float64") else "float32"


def same(first: Any, second: Any, what: str) -> None:
    """Raise unless two results have the same bits."""
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        if a is not None and np.ascontiguousarray(a).tobytes() != np.ascontiguousarray(b).tobytes():
            different = int((a != b).sum())
            raise AssertionError(f"{what}: result {i} has other bits, {different} of {a.size} values differ")


class Trial:
    """The data of a case, on the host and on the GPU, and what the oracle says of it."""

    def __init__(self, case: Check, seed: int) -> None:
        self.case, self.axis = case, case.axis
        self.own = arrays.house(case.owner)
        self.precision = peers.precision_of(case.dtype)
        self.bounds: dict[str, Any] = {"exact": self.precision == "exact"}
        rng = np.random.default_rng([seed, zlib.crc32(case.id.encode())])
        data = arrays.dtype(case.dtype)
        # Where 16 bits are far from zero, their spacing is an eighth of the standard deviation.
        bits = {"float16": 10, "bfloat16": 7}.get(case.dtype)
        self.std = case.mean * 2.0 ** (3 - bits) if bits and case.mean else 1.0
        self.x = draw(rng, case.shape, data, case.mean, self.std)
        self.dy = draw(rng, case.shape, data, 0.5)
        self.C = case.shape[case.axis]
        self.count = self.x.size // self.C
        usual = parameter_dtype(case.dtype)
        first, second = {"float64": ("float64", "float64"), "mixed": ("float32", "float64")}.get(
            case.params, (usual, usual)
        )
        weight, bias = affine(rng, self.C, np.float64)
        none = case.params == "none"
        self.weight = None if none else weight.astype(first)
        self.bias = None if none else bias.astype(second)
        self.mean = draw(rng, self.C, first, case.mean, self.std)
        self.var = (rng.uniform(0.1, 3, self.C) * self.std**2).astype(second)

    def there(self, parameter: Any) -> Any:
        """Return a parameter as the case passes it."""
        if parameter is None:
            return None
        return parameter.copy() if self.case.params == "host" else self.own.send(parameter)

    def stored(self, array: np.ndarray) -> Any:
        """Return an array on the GPU, stored as the case says."""
        return arrays.stored(self.own, array, self.case.stored)

    def poisoned(self) -> Any:
        """Return an output that shows every value that was not written."""
        return self.stored(np.full(self.x.shape, np.nan, self.x.dtype))

    def fetch(self, array: Any) -> Any:
        """Return what came back on the host; gradients of NumPy's parameters are there already."""
        return array if array is None or isinstance(array, np.ndarray) else self.own.fetch(array)

    @functools.cached_property
    def parameters(self) -> tuple[Any, Any]:
        """Return weight and bias as the case passes them."""
        return self.there(self.weight), self.there(self.bias)

    def forward(self, out: Any = None, x: Any = None, **more: Any) -> tuple[Any, fastbn.Context]:
        """Call `batch_norm`."""
        x = self.stored(self.x) if x is None else x
        return fastbn.batch_norm(x, *self.parameters, axis=self.axis, out=out, precision=self.precision, **more)

    def gradients(self, grads: fastbn.Gradients) -> fastbn.Gradients:
        """Return gradients on the host."""
        return fastbn.Gradients(*(self.fetch(g) for g in (grads.dx, grads.dweight, grads.dbias)))

    @functools.cached_property
    def batch(self) -> reference.Forward:
        """Return what the oracle says of the forward pass."""
        return reference.forward(self.x, self.weight, self.bias, axis=self.axis)

    @property
    def reach(self) -> float:
        """Return the largest distance from the mean, in standard deviations."""
        return float(np.abs(self.batch.xhat).max())

    @functools.cached_property
    def backward(self) -> tuple[np.ndarray, ...]:
        """Return what the oracle says of the gradients."""
        return reference.backward(self.dy, self.x, self.weight, axis=self.axis)


def tuple_of(grads: fastbn.Gradients) -> tuple[Any, ...]:
    return grads.dx, grads.dweight, grads.dbias


def check_moments(t: Trial, m: fastbn.Moments, exact: bool) -> None:
    error = statistics_error(t.count, t.reach, t.x.dtype, exact=exact)
    m2 = t.batch.var * t.count
    assert m.count == t.count, f"count {m.count}, not {t.count}"
    check(m.mean, t.batch.mean, error * np.sqrt(t.batch.var).max())
    check(m.m2, m2, error * m2.max())


def training(t: Trial) -> None:
    """Check y, the moments and the running statistics of a forward pass with the batch's own statistics."""

    def once() -> tuple[Any, ...]:
        running = (t.there(t.mean), t.there(t.var)) if t.count > 1 else (None, None)
        out = t.poisoned()
        y, ctx = t.forward(out, running_mean=running[0], running_var=running[1], momentum=MOMENTUM)
        assert y is out
        m = ctx.moments
        return t.fetch(y), *map(t.fetch, running), m.mean, m.m2, ctx.invstd

    first = once()
    y, mean, var, m_mean, m2, _ = first
    check_forward(y, t.batch, t.weight, t.bias, axis=t.axis, **t.bounds)
    check_moments(t, fastbn.Moments(t.count, m_mean, m2), **t.bounds)
    if t.count > 1:
        error = statistics_error(t.count, t.reach, t.x.dtype, **t.bounds)
        batch_var = t.batch.var * t.count / (t.count - 1)
        old_mean, old_var = np.abs(t.mean).max(), np.abs(t.var).max()
        mean_terms, var_terms = np.abs(t.batch.mean).max(), batch_var.max()
        if t.x.itemsize == 2 or t.case.dtype == "float32":  # what is rounded to float32 is the batch's part alone
            old_mean, old_var, error = t.reach * np.sqrt(var_terms), 0, MOMENTUM * error
            var_terms *= t.reach**2
        check(mean, reference.running(t.mean, t.batch.mean, MOMENTUM), error * float(old_mean + mean_terms))
        check(var, reference.running(t.var, batch_var, MOMENTUM), error * float(old_var + var_terms))
    same(first, once(), "computed again")


def backward(t: Trial) -> None:
    """Check the gradients through the batch's own statistics."""

    def once() -> fastbn.Gradients:
        _, ctx = t.forward()
        grads = fastbn.batch_norm_backward(t.stored(t.dy), ctx, out=t.poisoned())
        return t.gradients(grads)

    first = once()
    for got, given in ((first.dweight, t.weight), (first.dbias, t.bias)):
        assert (got is None) == (given is None)
        assert got is None or got.dtype == given.dtype, f"a gradient is of {got.dtype}"
    check_backward(first, t.backward, t.dy, t.batch, t.weight, axis=t.axis, **t.bounds)
    same(tuple_of(first), tuple_of(once()), "computed again")


def run(given: dict[str, Any], tell: Callable[[dict[str, Any]], None]) -> None:
    """Check one case, an aspect at a time."""
    from . import check_beyond, check_more

    seed = given.pop("seed")
    given |= {"shape": tuple(given["shape"]), "knobs": tuple(map(tuple, given["knobs"]))}
    case = Check(**given)
    functions = {"training": training, "backward": backward} | check_more.ASPECTS | check_beyond.ASPECTS
    try:
        trial = Trial(case, seed)
    except arrays.Unsupported as error:
        tell({"what": "all", "skipped": str(error)})
        return
    for aspect in case.aspects:
        try:
            with knobs.turned(**dict(case.knobs)) as plans:
                functions[aspect](trial)
            tell({"what": aspect, "ok": True, "plans": len(plans)})
        except arrays.Unsupported as error:
            tell({"what": aspect, "skipped": str(error)})
        except Exception as error:
            said = str(error) or traceback.extract_tb(error.__traceback__)[-1].line  # an assertion may say nothing
            tell({"what": aspect, "ok": False, "error": f"{type(error).__name__}: {said}"[:600]})
