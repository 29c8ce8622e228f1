"""Every function with anything: the right answer, or one clear error with nothing written; no warning, no crash."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

import fastbn
import reference
from fuzz import calls, legal
from fuzz.arrays import JUNK, Memory, junk, stored, values
from fuzz.calls import Call
from fuzz.check import Before, answered, called, examples
from fuzz.check import values as held
from tolerance import check, relative

pytestmark = pytest.mark.bounds


def go_back(data, call, before, x_before, ctx):
    """The backward pass, and its sums, after a forward pass."""
    back = data.draw(calls.backward(call, ctx), label="backward")
    a = back.arguments
    only = Call(call.memory, {name: a[name] for name in ("dy", "ctx")})
    fits = isinstance(a["ctx"], fastbn.Context) and a["ctx"].like is not None
    fits = fits and legal.gradient(a["dy"], a["ctx"].like) and (True if a["ctx"].x is not None else None)
    sums = called(only, fastbn.backward_sums, fits)
    assert sums is None or type(sums) is fastbn.BackwardSums
    dy = held(a["dy"])
    allowed = legal.backward(a)
    x, kept = ctx.like, ctx.x is not None
    over_x = allowed is not False and a["out"] is not None and x.size > 0 and legal.same(x, a["out"])
    written = [a["out"]] if allowed is not False and a["out"] is not None else []
    grads = called(back, fastbn.batch_norm_backward, allowed, written)
    if grads is not None:
        answered(grads.dx, a["out"], x, in_order=False)
        assert (ctx.like is None) == over_x
        if kept:
            before.check_gradients(grads, dy, a["sums"] or call.arguments["moments"], x_before.dtype)


@examples(45)
@given(calls.forward(), st.data())
def test_batch_norm_and_back(call, data):
    a = call.arguments
    assume(not isinstance(a["axis"], tuple))  # several channel axes
    allowed = legal.batch_norm(a)
    before, written = None, []
    if allowed:
        before = Before(a)
        x = held(a["x"])
        written = [a["out"]] if a["out"] is not None else []
        if a["training"] and a["running_mean"] is not None:
            written += [a["running_mean"], a["running_var"]]
    found = called(call, fastbn.batch_norm, allowed, written)
    if found is None:
        return
    y, ctx = found
    answered(y, a["out"], a["x"])
    before.check_y(y)
    before.check_running(a)
    assert type(ctx) is fastbn.Context
    assert (ctx.x is None) == (a["out"] is not None and x.size > 0 and legal.same(a["out"], a["x"]))
    assert ctx.x is None or (type(ctx.x) is np.ndarray and legal.same(ctx.x, a["x"]))
    assert ctx.moments is None or type(ctx.moments) is fastbn.Moments
    go_back(data, call, before, x, ctx)


@examples(10)
@given(calls.forward())
def test_batch_norm_inference(call):
    a = call.arguments
    assume(not isinstance(a["axis"], tuple))
    for name in ("training", "momentum", "correction", "moments"):
        del a[name]
    full = a | {"training": False, "momentum": 0.1, "correction": 1, "moments": None}
    allowed = legal.batch_norm(full)
    before = Before(full) if allowed else None
    y = called(call, fastbn.batch_norm_inference, allowed, [a["out"]] if allowed and a["out"] is not None else [])
    if y is not None:
        answered(y, a["out"], a["x"])
        before.check_y(y)


@examples(10)
@given(calls.forward())
def test_batch_moments(call):
    a = call.arguments = {name: call.arguments[name] for name in ("x", "axis", "device")}
    assume(not isinstance(a["axis"], tuple))
    allowed = legal.data(a["x"]) and legal.axis(a["axis"], a["x"]) and legal.device(a["device"])
    m = called(call, fastbn.batch_moments, allowed)
    if m is None:
        return
    x = np.moveaxis(np.asarray(a["x"]), a["axis"], 0)
    assert m.mean.shape == m.m2.shape == (len(x),)
    assert m.count == np.prod(x.shape[1:], dtype=int)
    rest = {"weight": None, "bias": None, "running_mean": None, "running_var": None, "moments": None, "momentum": 0}
    before = Before(a | rest | {"eps": 1e-5, "training": True, "correction": 0})
    if before.good.any():
        mean, var = reference.moments(before.x, 0)
        error = relative(m.count, np.abs(before.f.xhat).max(), x.dtype)
        check(m.mean[before.good], mean, error * (np.sqrt(var).max() + (x.dtype.itemsize == 2) * np.abs(mean).max()))
        check(m.m2[before.good], var * m.count, error * (var * m.count).max())


STATISTICS = st.sampled_from([[0.0, 1.0], [1e308, -np.inf], (1, 2), [np.nan, 5e-324], np.ones(2), np.ones(2, "f4"),
                              np.ones((1, 2)), [], [1.0], np.ones(2, ">f8"), np.ones(4)[::2], [2**70, 1], [True, False],
                              np.array([0x7FA00000] * 2, np.uint32).view(np.float32), *JUNK])  # fmt: skip
COUNTS = st.sampled_from([0, 1, 2, 3, 7, np.int32(4), 2**62, *JUNK])


def statistic(value):
    """Whether a value is a list or array of real numbers; None where a caller cannot be sure."""
    if isinstance(value, np.ndarray) and not isinstance(value, np.ma.MaskedArray):
        return value.ndim == 1 and value.dtype.kind in "fiu"
    if isinstance(value, list | tuple):
        return bool(value) and all(type(number) in (int, float) for number in value) and None
    return None


@examples(15)
@given(st.data(), st.sampled_from([fastbn.Moments, fastbn.BackwardSums]), st.booleans())
def test_statistics(data, kind, spoilt):
    """The constructors, merge and var."""
    own = ("count", "mean", "m2") if kind is fastbn.Moments else ("count", "sum_dy", "sum_dy_xhat")
    made = []
    for _ in range(data.draw(st.integers(1, 3))):
        arrays = STATISTICS if spoilt else st.sampled_from([[0.0, 1.0], [1e308, -np.inf], [np.inf, -1e308], np.ones(2)])
        counts = COUNTS if spoilt else st.integers(0, 5)
        arguments = dict(zip(own, (data.draw(counts), data.draw(arrays), data.draw(arrays)), strict=True))
        good = type(arguments["count"]) is int and 0 <= arguments["count"] < 2**63
        allowed = None if spoilt else good
        found = called(Call(Memory(), arguments), kind, allowed)
        if found is not None:
            one, other = (getattr(found, name) for name in own[1:])
            assert one.shape == other.shape
            assert one.dtype == other.dtype == np.float64
            assert type(one) is type(other) is np.ndarray
            with np.errstate(invalid="ignore"):  # a signalling NaN
                np.testing.assert_array_equal(one, np.asarray(arguments[own[1]], np.float64))
            made.append(found)
    if not made:
        return
    others = made[1:] + ([data.draw(st.sampled_from(JUNK))] if spoilt and data.draw(st.booleans()) else [])
    allowed = all(type(other) is kind and getattr(other, own[1]).shape == getattr(made[0], own[1]).shape
                  for other in others)  # fmt: skip
    if sum(part.count for part in made) >= 2**63:
        allowed = None
    merged = called(Call(Memory(), {}), lambda: made[0].merge(*others), allowed)
    if merged is not None:
        assert merged.count == made[0].count + sum(other.count for other in others)
    if kind is fastbn.Moments:
        m = merged or made[0]
        correction = data.draw(st.sampled_from([0, 1, 1.5, np.float32(2), m.count, np.nextafter(m.count, 0), *JUNK]))
        allowed = legal.number(correction, 0) and float(correction) < m.count
        var = called(Call(Memory(), {"correction": correction}), m.var, allowed)
        if var is not None and m.count < 2**53:
            with np.errstate(all="ignore"):
                np.testing.assert_allclose(var, m.m2 / (m.count - float(correction)), rtol=1e-15)


@examples(3)
@given(st.data())
def test_devices(data):
    memory = Memory()
    value = junk(data.draw, memory)
    if data.draw(st.booleans()):
        value = stored(data.draw, memory, values(data.draw, (2, 3), np.dtype(np.float32)))
    is_array = isinstance(value, np.ndarray)
    assert called(Call(memory, {"array": value}), fastbn.to_device, False) is None
    fetched = called(Call(memory, {"array": value}), fastbn.to_host, is_array)
    assert fetched is None or fetched is value
    device = data.draw(calls.DEVICES)
    choice = called(Call(memory, {"x": value, "device": device}), fastbn.explain, legal.device(device) and None)
    assert choice is None or choice.device == "cpu"
