"""The layer with anything: the right answer, or one clear error that leaves every array and attribute as it was."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

import fastbn
from fuzz import calls, legal
from fuzz.arrays import DATA, JUNK, PARAMETERS, Memory, any_array, stored, values
from fuzz.calls import Call
from fuzz.check import Before, answered, called, examples
from fuzz.check import values as held

JUNK = st.sampled_from(JUNK)
GOOD = {
    "num_features": st.sampled_from([1, 2, 3, 5, np.int64(3)]),
    "axis": st.sampled_from([1, 1, -1, 0, 2, np.int8(-1)]),
    "eps": st.sampled_from([1e-5, 1e-3, 1, np.float32(0.5)]),
    "momentum": st.sampled_from([0.1, None, 0, 1]),
    "correction": st.sampled_from([1, 0, 1.5]),
    "affine": st.booleans(),
    "track_running_stats": st.sampled_from([True, True, np.True_, False]),
    "dtype": st.sampled_from([np.float32, np.float64, "float32", "d", np.dtype("f4"), float]),
    "precision": st.sampled_from(calls.PRECISIONS),
    "device": st.sampled_from([None, "cpu"]),
}
DTYPES = st.sampled_from([np.floating, np.float16, "a", "f4,(", ">f4", [("a", "f4")], {"names": ["a"]}, "f4,f4",
                          np.zeros(2), np.int32, np.longdouble])  # fmt: skip


def constructible(a):
    """Whether the docstring of the layer allows arguments; None where another word of NumPy may do."""
    features = legal.index(a["num_features"])
    return legal.every(
        None if isinstance(a["num_features"], np.ndarray) else features is not None and 1 <= features < 2**59,
        legal.index(a["axis"]) is not None and abs(legal.index(a["axis"])) < 2**63,
        legal.number(a["eps"], 0, above=True),
        a["momentum"] is None or legal.number(a["momentum"], 0, 1),
        legal.number(a["correction"], 0),
        legal.flag(a["affine"]),
        legal.flag(a["track_running_stats"]),
        None
        if isinstance(a["dtype"], np.generic)
        else any(a["dtype"] is dtype for dtype in (np.float32, np.float64, "float32", "d", float))
        or (isinstance(a["dtype"], np.dtype) and a["dtype"] in PARAMETERS),
        legal.precision(a["precision"]),
        None if isinstance(a["device"], str) and a["device"] == "cuda" else legal.device(a["device"]),
    )


@examples(5)
@given(st.fixed_dictionaries(GOOD), st.data())
def test_constructor(arguments, data):
    for _ in range(data.draw(st.sampled_from([0, 1, 1, 2]))):
        name = data.draw(st.sampled_from(list(GOOD)))
        arguments[name] = data.draw(DTYPES if name == "dtype" and data.draw(st.booleans()) else JUNK)
    layer = called(Call(Memory(), arguments), fastbn.BatchNorm, constructible(arguments))
    if layer is not None:
        arrays = [layer.weight, layer.bias] if layer.affine else []
        arrays += [layer.running_mean, layer.running_var] if layer.track_running_stats else []
        assert {(array.shape, array.dtype) for array in arrays} <= {((layer.num_features,), layer.dtype)}
        assert len(layer._arrays()) == len(arrays)
        assert repr(layer).startswith("BatchNorm(")


def attributes(layer):
    """Everything that a layer holds, with copies of what its arrays hold."""
    return {name: (value, held(value)) for name, value in vars(layer).items()}


def unchanged(layer, before, but=()):
    """Assert that a layer has the same objects with the same values, except for some attributes."""
    assert vars(layer).keys() == before.keys()
    for name, value in vars(layer).items():
        if name not in but:
            assert value is before[name][0], name
            if isinstance(value, np.ndarray):
                assert value.tobytes() == before[name][1].tobytes(), name


@st.composite
def layers(draw):
    """A layer of good arguments with parameters and statistics of its own, and the x of a call."""
    arguments = {name: draw(strategy) for name, strategy in GOOD.items()}
    layer = fastbn.BatchNorm(**arguments)
    memory = Memory()
    for name, array in layer._arrays().items():
        array[...] = values(draw, array.shape, array.dtype, positive=name == "running_var")
    layer.train(draw(st.booleans()))
    layer.num_batches_tracked = draw(st.sampled_from([0, 1, 12]))
    ndim = draw(st.integers(3, 4))
    shape = [draw(st.sampled_from([0, 1, 2, 2, 3, 4, 9])) for _ in range(ndim)]
    shape[layer.axis] = draw(st.sampled_from([layer.num_features] * 9 + [4]))
    x = stored(draw, memory, values(draw, tuple(shape), draw(DATA)))
    own = list(layer._arrays().values())
    out = calls.output(draw, memory, x, *own)
    if draw(st.integers(0, 5)) == 0:
        x = draw(st.one_of(JUNK, st.builds(lambda: any_array(draw, memory)), st.sampled_from([*own, None])))
        if isinstance(x, np.ndarray) and x.ndim == 1 and x.size and x.dtype in PARAMETERS:
            x = np.lib.stride_tricks.as_strided(x, (2, x.size, 1), (0, x.itemsize, x.itemsize))
    if draw(st.integers(0, 9)) == 0:
        out = draw(JUNK)
    return layer, Call(memory, {"x": x, "out": out})


def as_function(layer, a):
    """The arguments of batch_norm that a call of a layer stands for."""
    return a | {
        **dict.fromkeys(("weight", "bias", "running_mean", "running_var")), **layer._arrays(), "moments": None,
        "momentum": 1 / (layer.num_batches_tracked + 1) if layer.momentum is None else layer.momentum,
        "training": layer.training or not layer.track_running_stats, "correction": layer.correction,
        "eps": layer.eps, "axis": layer.axis, "precision": layer.precision, "device": layer.device,
    }  # fmt: skip


@examples(10)
@given(layers(), st.data())
def test_call_and_backward(drawn, data):
    layer, call = drawn
    a = as_function(layer, call.arguments)
    x = a["x"]
    fits = legal.data(x) and legal.axis(layer.axis, x) and x.shape[layer.axis] == layer.num_features
    allowed = legal.every(fits, legal.batch_norm(a)) if fits else False
    tracking = layer.training and layer.track_running_stats
    before, was = Before(a) if allowed else None, attributes(layer)
    written = [a["out"]] if allowed and a["out"] is not None else []
    y = called(call, layer, allowed, written)
    if y is None:
        unchanged(layer, was)
        return
    moved = ["running_mean", "running_var", "num_batches_tracked"] if tracking else []
    unchanged(layer, was, ["_ctx", *moved])
    assert layer.num_batches_tracked == was["num_batches_tracked"][0] + tracking
    assert (layer.running_mean, layer.running_var) == (was["running_mean"][0], was["running_var"][0]) or tracking
    answered(y, a["out"], x)
    before.check_y(y)
    before.check_running(a)
    back = data.draw(calls.backward(call, layer._ctx), label="backward")
    complete = back.arguments | {"ctx": layer._ctx, "sums": None}
    back.arguments = {name: complete[name] for name in ("dy", "out")}
    dy, was, allowed = held(complete["dy"]), attributes(layer), legal.backward(complete)
    written = [complete["out"]] if allowed is not False and complete["out"] is not None else []
    kept = layer._ctx.x is not None
    dx = called(back, layer.backward, allowed, written)
    unchanged(layer, was, [] if dx is None else ["dweight", "dbias"])
    if dx is not None:
        answered(dx, complete["out"], np.asarray(x), in_order=False)
        if kept:
            before.check_gradients(fastbn.Gradients(dx, layer.dweight, layer.dbias), dy, None, x.dtype)


@examples(2)
@given(st.fixed_dictionaries(GOOD), st.data())
def test_state(arguments, data):
    """A state is taken as a whole, or an error leaves the layer as it was."""
    source, target = fastbn.BatchNorm(**arguments), fastbn.BatchNorm(**arguments)
    memory = Memory()
    for array in source._arrays().values():
        array[...] = values(data.draw, array.shape, array.dtype)
    source.num_batches_tracked = data.draw(st.integers(0, 2**62))
    state = source.state_dict()
    spoilt = data.draw(st.sampled_from(["no", "no", "stored", "missing", "more", "junk", "all", "mode"]))
    names = list(state) or ["weight"]
    if spoilt == "stored":
        state = {name: stored(data.draw, memory, array) for name, array in state.items()}
    elif spoilt == "missing":
        state.pop(data.draw(st.sampled_from(names)), None)
    elif spoilt == "more":
        state[data.draw(st.sampled_from(["extra", 3, None, ("a",)]))] = 1
    elif spoilt == "junk":
        state[data.draw(st.sampled_from(names))] = data.draw(st.one_of(JUNK, st.builds(any_array, st.just(data.draw),
                                                                                       st.just(memory))))  # fmt: skip
    elif spoilt == "all":
        state = data.draw(JUNK)
    was = attributes(target)
    if spoilt == "mode":
        mode = data.draw(st.one_of(st.booleans(), JUNK))
        done = called(Call(memory, {"mode": mode}), target.train, legal.flag(mode))
        unchanged(target, was, ["training"])
        assert done is None or (done is target and target.training == mode)
        return
    taken = []
    fits = None if spoilt != "no" else True
    called(Call(memory, {"state": state}), lambda state: taken.append(target.load_state_dict(state)), fits)
    if not taken:
        unchanged(target, was)
        return
    unchanged(target, {name: (value, held(value)) for name, (value, _) in was.items()}, ["num_batches_tracked"])
    for name, array in target._arrays().items():
        with np.errstate(all="ignore"):
            np.testing.assert_array_equal(array, np.asarray(state[name]).astype(array.dtype))
    if target.track_running_stats:
        assert target.num_batches_tracked == int(np.asarray(state["num_batches_tracked"]).reshape(()))
