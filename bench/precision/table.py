"""What was measured, as JSON and as Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .data import AFFINE, LAYOUTS

Row = dict[str, Any]

DIGITS = {"float32": 2.0**24, "float64": 2.0**53, "float16": 2.0**11, "bfloat16": 2.0**8}

TITLES = {
    "y": "y, in ulp",
    "y_terms": "y, in ulp of its terms, |weight| max(|xhat|, 1) + |bias|",
    "dx": "dx, in ulp",
    "dx_terms": "dx, in ulp of its three terms",
    "dx_sums": "dx, in ulp of its three terms, with sums of absolute values",
    "y_absolute": "y, absolute",
    "mean": "mean, in ulp of the parameters' dtype",
    "var": "variance, in ulp of the parameters' dtype",
    "var_relative": "variance, relative error of what is given (fastbn gives float64)",
    "mean_std": "mean, error of what is given in standard deviations (fastbn gives float64)",
    "dweight": "dweight, in ulp",
    "dweight_terms": "dweight, in ulp of its terms, sum |dy| max(|xhat|, 1)",
    "dbias": "dbias, in ulp",
    "dbias_terms": "dbias, in ulp of its terms, sum |dy|",
}

PREAMBLE = """\
Largest error over all channels and values, in units in the last place (ulp) of the exact result in the dtype of the
result, against an oracle of {oracle_digits} binary digits (`tests/reference.py`). Half an ulp is the exact result
rounded once. A y near zero has a small ulp; there, errors in ulp of the terms that were added say more.

Float32 data are computed in float32 by default (`precision="fast"`), and held to 4 ulp of their terms, those of dx and
dweight with sums of absolute values; "exact" columns and lines are `precision="exact"`, computed in float64 and rounded
once. Data of other dtypes have one arithmetic.

NaN, and an infinity that should be a number, count as inf; a dash is what an implementation does not give or do.

Weight and bias are random (normal), eps is 1e-5 (at the scales 1e-20, 1e18 and 1e30 a thousandth of the variance, 1e38
at most), and the same numbers go to all. PyTorch, Flax, Keras, the formula as JAX's users write it, and NumPy compute
in training mode, with their own gradients; ONNX Runtime has no gradients. PyTorch's variance is the unbiased one, and
compared with that. The columns "inference" are given the statistics rounded to float32, which at 1e30 cannot hold the
variance, and compared with the exact y of these.

{date}, {machine}, seed {seed}, run `{size}`; {versions}.
All figures are in the JSON file beside this one; `python bench/accuracy.py --full --out FILE.json` makes both.
"""

BESIDE = """\
float32 by mean and by scale is the worst over all counts of values a channel. Of 1e7 values and more there is one
channel, for which NCHW and NHWC are the same.
"""

HEADLINE = """\
Over all layouts, plans, counts and means. Where weight * xhat and bias cancel, the error of the arithmetic stays. The
last columns have it: the error of y on top of half its ulp, relative to its terms |weight| max(|xhat|, 1) + |bias|; and
the share of its terms that y may fall to and still be within 4 ulp. float64 data is computed in float64: its sums are
off by some of its own ulp, which for a y near zero is any number of them.
"""

OWN = """\
## fastbn in every layout, by every plan

Largest error in ulp over the means 0, 1, 100, 1e4, 1e6 standard deviations from zero (16 bits: to 100), and of all
layouts and plans at the scales 1e-20, 1e18 and 1e30, over tensors of 8000 to 54150 values. Parameters: none; random;
*near*, where in every channel one weight * xhat and bias cancel to a millionth; *cancelling*, where they cancel to the
last place of bias, so that y is what rounding the bias left. The other columns are the worst over all four: *of terms*
is in ulp of the terms that are added instead of their sum (for dx and dweight with sums of absolute values), and
*beyond* is the error of y on top of half its ulp, relative to its terms: the error of the arithmetic. The table of
plans is of the scale 1.
"""


def cell(value: float | None) -> str:
    """Return an error as text."""
    if value is None:
        return "-"
    if math.isinf(value):
        return "inf"
    if 0 < value < 0.01:
        return f"{value:.0e}"
    return f"{value:.2f}" if value < 100 else f"{value:.0f}" if value < 1e4 else f"{value:.0e}"


def worst(found: Iterable[float | None]) -> float | None:
    return max((value for value in found if value is not None), default=None)


def kind(row: Row) -> str:
    """Return what a row of plans is called: its dtype and, if it is not the default, its precision."""
    return f"{row['dtype']} exact" if row["precision"] == "exact" else str(row["dtype"])


def grid(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return ["| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *rows)]


def _groups(cases: list[Row]) -> list[tuple[str, list[Row]]]:
    """Return the rows of the tables: float32 by mean and scale, worst of all counts; by count; the other dtypes."""
    single = [case for case in cases if case["dtype"] == "float32"]
    labels = dict.fromkeys(case["label"] for case in single)
    groups = [(f"float32, {label}", [case for case in single if case["label"] == label]) for label in labels]
    central = [case for case in single if case["label"] == "mean 0 std"]
    groups += [(f"float32, mean 0, {case['count']:g} values", [case]) for case in central]
    others = [case for case in cases if case["dtype"] != "float32"]
    for dtype, label in dict.fromkeys((case["dtype"], case["label"]) for case in others):
        groups.append((f"{dtype}, {label}", [c for c in others if (c["dtype"], c["label"]) == (dtype, label)]))
    return groups


def comparison(found: Row) -> list[str]:
    """Return a table for every quantity: cases down, implementations across."""
    names = list(dict.fromkeys(name for case in found["cases"] for name in case["errors"]))
    lines = []
    for quantity, title in TITLES.items():
        given = [n for n in names if any(quantity in case["errors"].get(n, {}) for case in found["cases"])]
        rows = [
            [label, *(cell(worst(case["errors"].get(name, {}).get(quantity) for case in group)) for name in given)]
            for label, group in _groups(found["cases"])
        ]
        lines += [f"### {title}", "", *grid(["", *given], rows), ""]
    return lines


def own(found: Row) -> list[str]:
    """Return the tables of fastbn's own errors: by layout, and by plan."""
    rest = {
        "of terms": "y_terms", "beyond": "y_beyond", "dx": "dx", "of terms ": "dx_sums", "mean": "mean", "var": "var",
        "dweight": "dweight", "of terms  ": "dweight_terms", "dbias": "dbias", "of terms   ": "dbias_terms",
    }  # fmt: skip
    rows = found["plans"]
    dtypes = list(dict.fromkeys(map(kind, rows)))
    by_layout, by_plan = [], []
    for dtype in dtypes:
        own_rows = [row for row in rows if kind(row) == dtype]
        groups = [(layout, [r for r in own_rows if r["std"] == 1 and layout in r["layouts"]]) for layout in LAYOUTS]
        scales = dict.fromkeys(row["std"] for row in own_rows if row["std"] != 1)
        groups += [(f"all, std {std:g}", [row for row in own_rows if row["std"] == std]) for std in scales]
        for name, some in groups:
            y = [worst(row["errors"]["y"] for row in some if row["affine"] == kind) for kind in AFFINE]
            others = [worst(row["errors"].get(quantity) for row in some) for quantity in rest.values()]
            by_layout.append([dtype, name, *map(cell, (*y, *others))])
    rows = [row for row in rows if row["std"] == 1]
    for plan in dict.fromkeys(plan for row in rows for plan in row["plans"]):
        cells = [plan]
        for dtype in dtypes:
            some = [row["errors"] for row in rows if kind(row) == dtype and plan in row["plans"]]
            cells += [cell(worst(errors[name] for errors in some)) for name in ("y_terms", "y_beyond", "dx_sums")]
        by_plan.append(cells)
    heads = ["dtype", "layout", *(f"y, {kind}" for kind in AFFINE), *map(str.strip, rest)]
    plan_heads = [f"{dtype}: {name}" for dtype in dtypes for name in ("y of terms", "beyond", "dx of terms")]
    return [*grid(heads, by_layout), "", *grid(["plan", *plan_heads], by_plan), ""]


def headline(found: Row) -> list[str]:
    """Return the worst y of fastbn over everything, a line for every dtype."""
    lines = []
    for label in dict.fromkeys(map(kind, found["plans"])):
        plans = [row for row in found["plans"] if kind(row) == label]
        dtype, precision = plans[0]["dtype"], plans[0]["precision"]
        cases = [case for case in found["cases"] if case["dtype"] == dtype]
        names = {name for case in cases for name in case["errors"] if name.startswith("fastbn")}
        names = {name for name in names if ("exact" in name) is (precision == "exact")}
        beside = [case["errors"][name] for case in cases for name in sorted(names) if name in case["errors"]]
        usual, scaled, near, last = (
            [row["errors"] for row in plans if row["affine"] in kinds and (row["std"] == 1) is unscaled]
            for kinds, unscaled in (
                (("none", "random"), True), (("none", "random"), False), (("near",), True), (("cancelling",), True)
            )
        )  # fmt: skip
        y = [worst(errors["y"] for errors in some) for some in (beside + usual, scaled, near, last)]
        everywhere = beside + usual + near + last
        terms, beyond = (worst(errors[q] for errors in everywhere) for q in ("y_terms", "y_beyond"))
        down_to = beyond * DIGITS[dtype] / 3.5  # what is left of 4 ulp after rounding
        share = "-" if down_to > 1 else f"2^{math.ceil(math.log2(down_to))}" if down_to > 0 else "0"
        lines.append([label, *map(cell, (*y, terms, beyond)), share])
    heads = [
        "y, in ulp",
        "no parameters, or random",
        "scales 1e-20, 1e18, 1e30",
        "cancelling to a millionth",
        "to the last place",
    ]
    return grid([*heads, "of its terms", "beyond half an ulp, of the terms", "4 ulp kept down to"], lines)


def page(found: Row) -> str:
    """Return the Markdown."""
    about = found | {"versions": ", ".join(f"{name} {version}" for name, version in found["versions"].items())}
    missing = [f"- {name}: {reason.splitlines()[0]}" for name, reason in found["unavailable"].items()]
    parts = [
        "# Accuracy", "", PREAMBLE.format(**about), "## The worst y of fastbn", "", HEADLINE, *headline(found), "",
        "## Beside others", "", BESIDE, *comparison(found),
        OWN, *own(found), *(["## Left out", "", *missing, ""] if missing else []),
    ]  # fmt: skip
    return "\n".join(parts)


def _plain(value: Any) -> Any:
    """Return a record with four digits a figure, and infinity as text, which JSON has no number for."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return "inf" if math.isinf(value) else float(f"{value:.4g}")
    return value


def write(found: Row, path: Path) -> None:
    """Write the record to a JSON file, a case a line, and the tables beside it."""
    lists = {key: _plain(found[key]) for key in ("cases", "plans")}
    text = json.dumps({key: value for key, value in found.items() if key not in lists}, indent=1)[:-2]
    for key, rows in lists.items():
        text += f',\n "{key}": [\n  ' + ",\n  ".join(json.dumps(row) for row in rows) + "\n ]"
    path.write_text(text + "\n}\n")
    path.with_suffix(".md").write_text(page(found).rstrip() + "\n")
