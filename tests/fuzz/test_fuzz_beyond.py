"""What goes beyond plain batch norm, with anything: the right answer, or one clear error and nothing written.

As plain Python in `make interpreted`, since each activation has a kernel of its own; compiled in `make fuzz`.
"""

import os

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import fastbn
from fastbn.backends.cpu import backend
from fuzz import calls, legal
from fuzz.arrays import stored, values
from fuzz.calls import Call
from fuzz.check import INTERPRETED, answered, called, examples
from fuzz.check import values as held
from fuzz.expected import Expected

pytestmark = [
    pytest.mark.bounds,
    pytest.mark.skipif(
        not INTERPRETED and os.environ.get("HYPOTHESIS_PROFILE") != "nightly",
        reason="in plain Python, and in make fuzz",
    ),
]


@pytest.fixture(scope="module", autouse=True)
def types_are_checked():
    """On the quick path Numba's dispatcher does that, which plain Python goes without."""
    with pytest.MonkeyPatch.context() as patch:
        if INTERPRETED:
            patch.setattr(backend, "quick_forward", lambda *_: None)
            patch.setattr(backend, "quick_backward", lambda *_: None)
        yield


def went_back(data, call, expected, ctx):
    """The backward pass after a forward pass; dx goes anywhere."""
    like = ctx.like
    dy = stored(data.draw, call.memory, values(data.draw, like.shape, like.dtype))
    if expected.residual is None or call.arguments["activation"] is None:
        out = data.draw(st.sampled_from(["none", "none", "dy", "new"]))
    else:
        out = data.draw(st.sampled_from(["none", "none", "new"]))
    out = {"none": None, "dy": dy, "new": np.empty(like.shape, like.dtype)}[out]
    arguments = {"dy": dy, "ctx": ctx, "out": out}
    before = held(dy)
    allowed = legal.output(out, like, [dy], [])
    if ctx.x is None:  # told from y, or not, as weights are
        allowed = None if allowed else False
    if ctx.beyond is not None and isinstance(ctx.beyond.residual, str):
        allowed = False  # the residual was overwritten, and is needed
    if not ctx.own_statistics:
        allowed = False
    grads = called(Call(call.memory, arguments), fastbn.batch_norm_backward, allowed, [] if out is None else [out])
    if grads is not None:
        answered(grads.dx, out, like, in_order=False)
        own = call.arguments["moments"] is None  # through given ones of as many values, gradients flow as if they were
        if own and (ctx.x is not None or expected.x.dtype == np.float64):
            expected.check_gradients(grads, before)


@examples(20)
@given(calls.beyond(), st.data())
def test_batch_norm_and_back(call, data):
    a = call.arguments
    assume(not isinstance(a["axis"], tuple))  # several channel axes
    allowed = legal.batch_norm(a)
    expected, written = None, []
    if allowed:
        expected = Expected(a)
        written = [a["out"]] if a["out"] is not None else []
        if a["training"] and a["running_mean"] is not None and a["update_stats"]:
            written += [a["running_mean"], a["running_var"]]
    found = called(call, fastbn.batch_norm, allowed, written)
    if found is None or expected is None:
        return
    y, ctx = found
    answered(y, a["out"], a["x"])
    expected.check_y(np.asarray(y))
    expected.check_running(a)
    if ctx.like is not None:
        went_back(data, call, expected, ctx)


@examples(4)
@given(calls.beyond())
def test_inference_and_moments(call):
    a = call.arguments
    assume(not isinstance(a["axis"], tuple))
    inference = {name: value for name, value in a.items() if name not in (
        "training", "momentum", "correction", "moments", "ghost_batch_size", "renorm", "update_stats")}  # fmt: skip
    full = a | {"training": False, "momentum": 0.1, "correction": 1, "moments": None, "ghost_batch_size": None,
                "renorm": None, "update_stats": True}  # fmt: skip
    allowed = legal.batch_norm(full)
    expected = Expected(full) if allowed else None
    written = [a["out"]] if allowed and a["out"] is not None else []
    y = called(Call(call.memory, inference), fastbn.batch_norm_inference, allowed, written)
    if y is not None and expected is not None:
        answered(y, a["out"], a["x"])
        expected.check_y(np.asarray(y))
