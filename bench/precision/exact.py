"""The exact results, by the oracle of the tests, and how far others are from them.

The oracle works in 80-bit floats. Values are given to it less their channel's first value, which changes neither y nor
a gradient and is exact where the mean is far: its own mean would otherwise be off by 2^-64 of |mean|, which at 1e6
standard deviations is more than the last place of a float64 y. Large tensors go through it in pieces.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from problem import parameter_dtype

import reference  # the oracle of the tests

from .data import Problem, pieces

WIDE = np.longdouble
# Above so many values, y and dx are kept as float64, which loses 2^-29 of a float32's last place, and terms as float32.
KEPT = 1 << 23


@dataclass
class Expected:
    """Exact results; y, dx and the sizes of their terms (C, n), all else (C,)."""

    mean: np.ndarray
    var: np.ndarray
    y: np.ndarray
    dx: np.ndarray
    dweight: np.ndarray
    dbias: np.ndarray
    y_terms: np.ndarray  # |weight| max(|xhat|, 1) + |bias|; the 1 is the mean, which has a standard deviation's digits
    dx_terms: np.ndarray  # the sizes of the three terms of dx added up
    dx_sums: np.ndarray  # likewise, of the sums in these terms the absolute values, and max(|xhat|, 1) instead of xhat
    dweight_terms: np.ndarray  # sum |dy| max(|xhat|, 1)
    dbias_terms: np.ndarray  # sum |dy|


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean less the first value, and the variance."""
    count = x.shape[1]
    first = x[:, :1].astype(WIDE)
    offset, var = np.zeros(x.shape[0], WIDE), np.zeros(x.shape[0], WIDE)
    for at in pieces(*x.shape):
        offset += (x[:, at] - first).sum(1) / count
    for at in pieces(*x.shape):
        var += ((x[:, at] - first - offset[:, None]) ** 2).sum(1) / count
    return offset, var


def expected(problem: Problem, statistics: tuple[np.ndarray, np.ndarray] | None = None) -> Expected:
    """Return the exact results; with `statistics` given, the y that is normalised with these."""
    case, x, dy, weight, bias = problem
    first = x[:, :1].astype(WIDE)
    offset, var = _moments(x)
    if statistics is not None:
        offset, var = statistics[0] - first[:, 0], statistics[1].astype(WIDE)
    small = x.size <= KEPT
    y, dx = (np.empty(x.shape, WIDE if small else np.float64) for _ in range(2))
    y_terms, dx_terms, dx_sums = (np.empty(x.shape, WIDE if small else np.float32) for _ in range(3))
    given: dict[str, Any] = {"mean": offset, "var": var, "eps": case.eps, "axis": 0}
    dweight, dbias, dweight_terms, dbias_terms = np.zeros((4, case.channels), WIDE)
    w = WIDE(1) if weight is None else np.abs(reference.column(weight, x, 0))
    b = WIDE(0) if bias is None else np.abs(reference.column(bias, x, 0))
    for at in pieces(*x.shape):
        found = reference.forward(x[:, at] - first, weight, bias, **given)
        y[:, at] = found.y
        y_terms[:, at] = w * np.maximum(np.abs(found.xhat), 1) + b
        _, more_weight, more_bias = reference.backward(dy[:, at], x[:, at] - first, weight, **given)
        dweight += more_weight
        dbias += more_bias
        size = np.abs(dy[:, at]).astype(WIDE)
        dweight_terms += (size * np.maximum(np.abs(found.xhat), 1)).sum(1)
        dbias_terms += size.sum(1)
    for at in pieces(*x.shape):
        found = reference.forward(x[:, at] - first, **given)
        scale = found.invstd if weight is None else found.invstd * np.asarray(weight, WIDE)
        own = dy[:, at].astype(WIDE) * scale[:, None]
        middle = reference.column(scale * dbias / case.count, x, 0)
        along = found.xhat * reference.column(scale * dweight / case.count, x, 0)
        dx[:, at] = own - middle - along
        dx_terms[:, at] = np.abs(own) + np.abs(middle) + np.abs(along)
        middle = reference.column(np.abs(scale) * dbias_terms / case.count, x, 0)
        along = np.maximum(np.abs(found.xhat), 1) * reference.column(np.abs(scale) * dweight_terms / case.count, x, 0)
        dx_sums[:, at] = np.abs(own) + middle + along
    sums = dweight, dbias, y_terms, dx_terms, dx_sums, dweight_terms, dbias_terms
    return Expected(first[:, 0] + offset, var, y, dx, *sums)


def _largest(errors: np.ndarray) -> float:
    return float(np.nan_to_num(errors, nan=np.inf).max())


def _relative(actual: np.ndarray, exact: np.ndarray) -> float:
    error = np.abs(actual.astype(WIDE) - exact)
    return _largest(np.where(error == 0, 0, error / np.abs(exact)))


def _of_terms(actual: np.ndarray, exact: np.ndarray, terms: np.ndarray) -> float:
    """Return the largest error in units in the last place of the terms that were added."""
    unit = np.spacing(terms.astype(actual.dtype)).astype(exact.dtype)
    return _largest(np.abs(actual.astype(exact.dtype) - exact) / unit)


def _of_values(actual: np.ndarray, exact: np.ndarray, terms: np.ndarray) -> tuple[float, ...]:
    """Return the largest error as `reference.ulps` has it, in ulp of the terms, absolute, beyond half an ulp; a share.

    "Beyond" is relative to the terms; the share of its terms is that of the largest value that is over 4 ulp off. All
    is in the dtype of `exact`, which of a large tensor is float64.
    """
    error = np.abs(actual.astype(exact.dtype) - exact)
    error[np.isnan(error)] = np.inf
    unit = np.spacing(np.abs(exact).astype(actual.dtype)).astype(exact.dtype)
    unit_of_terms = np.spacing(terms.astype(actual.dtype)).astype(exact.dtype)
    share = np.where(error > 4 * unit, np.abs(exact) / terms, 0)
    found = error / unit, error / unit_of_terms, error, (error - unit / 2) / terms, share
    return tuple(float(np.nan_to_num(values, nan=np.inf).max(initial=0)) for values in found)


def errors(found: dict[str, np.ndarray], exact: Expected, problem: Problem) -> dict[str, float]:
    """Return the largest error of each result that was found, in ulp of its dtype; NaN counts as infinite.

    Statistics are rounded to the dtype of parameters first; "mean_relative" and "var_relative" are theirs before that.
    A variance named "unbiased_var" is compared with the unbiased one. Names that end in "_terms" are errors in ulp of
    the terms that were added instead of their sum, in "_absolute" errors in no unit, in "_beyond" what comes on top of
    half an ulp, relative to the terms; in "_share" is how large a value is, relative to its terms, that is off by more
    than 4 ulp. "dx_sums" is in ulp of the terms of dx and of what its sums add up; "mean_std" in standard deviations.
    """
    result = {}
    own = parameter_dtype(problem.x.dtype)
    with np.errstate(all="ignore"):
        for name in ("mean", "var", "unbiased_var", "dweight", "dbias"):
            if name not in found:
                continue
            right = exact.var * problem.case.count / (problem.case.count - 1) if name == "unbiased_var" else None
            right = getattr(exact, name) if right is None else right
            name_of = name.removeprefix("unbiased_")
            result[name_of] = reference.ulps(found[name].astype(own), right)
            if name + "_terms" in vars(exact):
                result[name + "_terms"] = _of_terms(found[name].astype(own), right, vars(exact)[name + "_terms"])
            if name_of in ("mean", "var"):
                result[name_of + "_relative"] = _relative(found[name], right)
            if name == "mean":
                off = np.abs(found[name].astype(WIDE) - right)
                result["mean_std"] = _largest(np.where(off == 0, 0, off / np.sqrt(exact.var)))
        for name in ("y", "dx"):
            if name not in found:
                continue
            right, terms, got = getattr(exact, name), getattr(exact, name + "_terms"), found[name]
            largest = [_of_values(got[:, at], right[:, at], terms[:, at]) for at in pieces(*got.shape)]
            suffixes = ("", "_terms", "_absolute", "_beyond", "_share")
            for suffix, values in zip(suffixes, zip(*largest, strict=True), strict=True):
                result[name + suffix] = max(values)
        if "dx" in found:
            parts = pieces(*found["dx"].shape)
            result["dx_sums"] = max(_of_terms(found["dx"][:, a], exact.dx[:, a], exact.dx_sums[:, a]) for a in parts)
    return result
