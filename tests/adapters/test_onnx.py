"""fastbn.adapters.onnx: ONNX's own tests of the operator, every opset against its text, and models that cross over."""

import unittest
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

import fastbn
import reference
from grid import draw
from tolerance import VAR, check_forward

onnx = pytest.importorskip("onnx", reason="onnx is not installed; make test-all installs it")
pytestmark = pytest.mark.frameworks

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.backend.base import Backend, BackendRep  # noqa: E402

from fastbn.adapters.onnx import batch_normalization, from_onnx, to_onnx  # noqa: E402

STATE = ("weight", "bias", "running_mean", "running_var")
NEWEST = onnx.defs.onnx_opset_version()


class Fastbn(Backend):
    """Runs models of one node BatchNormalization."""

    @classmethod
    def prepare(cls, model, device="CPU", **kwargs):
        super().prepare(model, device, **kwargs)
        (node,) = model.graph.node
        held = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        names = [given.name for given in model.graph.input if given.name not in held]

        class Prepared(BackendRep):
            def run(self, inputs, **kwargs):
                values = held | dict(zip(names, inputs, strict=True))
                results = batch_normalization(node, [values[n] for n in node.input], model.opset_import[0].version)
                by_name = dict(zip(node.output, results, strict=True))
                return [by_name[output.name] for output in model.graph.output]

        return Prepared()

    @classmethod
    def supports_device(cls, device):
        return device == "CPU"


def test_onnxs_own_tests_of_the_operator():
    """Four of nodes, of the newest opset that the operator has, two of them in training; five of models of opset 6."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the data of other operators, which are made on import
        from onnx.backend.test.runner import Runner

        runner = Runner(Fastbn, __name__).include(r"(?i)^test_batchnorm.*_cpu$")
    result = unittest.TestResult()
    for case in runner.test_cases.values():
        for test in unittest.defaultTestLoader.loadTestsFromTestCase(case):
            if "atchnorm" in test.id() or "BatchNorm" in test.id():
                test.run(result)
    done = result.testsRun - len(result.skipped)
    assert result.errors == result.failures == []
    assert done >= 9


def node(opset, training=False, outputs=None, **attributes):
    """A node as an opset writes it."""
    if opset == 1:
        attributes["consumed_inputs"] = [0, 0, 0, 1, 1]
    if opset < 7:
        attributes["is_test"] = int(not training)
    elif opset >= 14:
        attributes["training_mode"] = int(training)
    if outputs is None:
        outputs = ["y", "mean", "var", "saved_mean", "saved_var"][: 1 if not training else 3 if opset >= 14 else 5]
    return helper.make_node("BatchNormalization", ["x", *STATE], outputs, **attributes)


def inputs(rng, shape, statistics, dtype=np.float32):
    x, scale, bias, mean = (draw(rng, s, dtype, mean=1) for s in (shape, *[statistics] * 3))
    return [x, scale, bias, mean, rng.uniform(0.5, 2, statistics).astype(dtype)]


@pytest.mark.parametrize("opset", [1, 6, 7, 9, 14, 15, NEWEST])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("spatial", [1, 0])
def test_every_opset_computes_what_its_text_says(rng, opset, training, spatial):
    shape, statistics = (4, 3, 5, 2), (3,) if spatial or opset >= 9 else (3, 5, 2)
    given = inputs(rng, shape, statistics)
    kept = [value.tobytes() for value in given]
    made = node(opset, training, epsilon=1e-3, momentum=0.75, **({"spatial": spatial} if opset < 9 else {}))
    onnx.checker.check_node(made, checking(opset))
    results = batch_normalization(made, given, opset)
    assert [value.tobytes() for value in given] == kept
    assert [r.shape for r in results] == [shape, *[statistics] * (len(made.output) - 1)]
    rows = [value.reshape(4, -1) if statistics != (3,) else value for value in given[:1]]
    x, weight, bias, mean, var = *rows, *(value.reshape(-1) for value in given[1:])
    eps = float(np.float32(1e-3))
    taken = {} if training else {"mean": mean, "var": var}
    f = reference.forward(x, weight, bias, eps=eps, **taken)
    check_forward(results[0].reshape(x.shape), f, weight, bias)
    if training:
        expected = [0.75 * mean + 0.25 * f.mean, 0.75 * var + 0.25 * f.var, f.mean, f.var]
        for actual, value in zip(results[1:], expected, strict=False):
            close(actual.reshape(-1), value, 1 + np.abs(f.mean).max() + f.var.max())


def close(actual, expected, terms):
    assert (np.abs(actual - expected) <= (VAR + 2.0**-22) * terms).all()


def checking(opset):
    context = onnx.checker.C.CheckerContext()
    context.ir_version = onnx.IR_VERSION
    context.opset_imports = {"": opset}
    return context


def test_dtypes_a_single_axis_and_outputs_without_a_name(rng):
    import ml_dtypes

    given = inputs(rng, (6, 3, 4), (3,))
    halves = [given[0].astype(np.float16), *(value.astype(ml_dtypes.bfloat16) for value in given[1:])]
    y, mean, var = batch_normalization(node(15, True), halves, 15)
    assert (y.dtype, mean.dtype, var.dtype) == (np.float16, ml_dtypes.bfloat16, ml_dtypes.bfloat16)
    f = reference.forward(halves[0], *halves[1:3])
    check_forward(y, f, *(value.astype(np.float32) for value in halves[1:3]))
    y, nothing, var = batch_normalization(node(14, True, ["y", "", "var"]), given, 14)
    assert nothing is None
    assert var.shape == (3,)
    one = [given[0][:, 0, 0], *(value[:1] for value in given[1:])]
    (y,) = batch_normalization(node(9), one, 9)
    f = reference.forward(one[0][:, np.newaxis], one[1], one[2], mean=one[3], var=one[4])
    check_forward(y[:, np.newaxis], f, one[1], one[2])
    # Up to opset 6, the text has statistics of channels with spatial=0 too: in inference that is the same.
    same = [batch_normalization(node(6, spatial=spatial), given, 6)[0] for spatial in (0, 1)]
    np.testing.assert_array_equal(*same)


@pytest.mark.parametrize(
    ("made", "change", "opset", "message"),
    [
        (helper.make_node("Relu", ["x"], ["y"]), {}, 15, "node: expected a BatchNormalization of ONNX"),
        (node(15), {"n": 4}, 15, "inputs: expected five"),
        (node(15), {}, 0, "opset: expected an integer >= 1"),
        (node(15, outputs=["y", "mean"]), {}, 15, "node: expected one output in inference"),
        (node(15, True, outputs=["y", "a", "b", "c"]), {}, 15, "node: expected at most 3 outputs in opset 15"),
        (node(7, True, spatial=0), {}, 7, r"inputs: expected a mean of shape \(3, 4\), one for every activation"),
        (node(15, epsilon=0.0), {}, 15, "eps: expected a number > 0"),
        (node(15, True, momentum=1.5), {}, 15, "momentum: expected a number from 0 to 1"),
    ],
)  # fmt: skip
def test_nodes_that_say_nothing_that_can_be_computed(rng, made, change, opset, message):
    with pytest.raises(ValueError, match=message):
        batch_normalization(made, inputs(rng, (6, 3, 4), (3,))[: change.get("n")], opset)


def layer(rng, channels=5, **options):
    bn = fastbn.BatchNorm(channels, **({"eps": 1e-3, "momentum": 0.2} | options))
    for name, array in bn._arrays().items():
        array[:] = rng.uniform(0.5, 2, channels) if name == "running_var" else draw(rng, channels, np.float32)
    return bn


@pytest.mark.parametrize(
    ("shape", "options", "more"),
    [
        ((7, 5), {}, {"ndim": 2}),
        ((2, 5, 3), {"affine": False}, {"ndim": 3}),
        ((2, 5, 3, 4), {"dtype": np.float64, "momentum": None}, {}),
        ((2, 3, 4, 5), {"axis": -1}, {}),
        ((5, 6), {"axis": 0}, {"ndim": 2}),
        ((2, 3, 5, 4, 2), {"axis": 2}, {"ndim": 5, "opset": 7}),
        ((7, 5), {"axis": -1}, {"ndim": 2, "opset": 9}),
        ((7, 5, 1, 2), {}, {"opset": 20}),
    ],
)
def test_onnx_runtime_computes_what_the_layer_does(rng, shape, options, more):
    runtime = pytest.importorskip("onnxruntime")
    bn = layer(rng, **options)
    model = bn.to_onnx(**more)
    onnx.checker.check_model(model, full_check=True)
    assert len(model.graph.node) == (1 if bn.axis % len(shape) == 1 else 3)
    session = runtime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = draw(rng, shape, bn.dtype, mean=2)
    (y,) = session.run(None, {"x": x})
    own = bn.eval()(x)
    assert (y.dtype, y.shape) == (own.dtype, own.shape)
    # ONNX Runtime makes a scale and a shift of it, each rounded: a few units of terms that are below 50.
    np.testing.assert_allclose(y, own, rtol=1e-5, atol=50 * 2.0**-22)


@pytest.mark.parametrize("dtype", [np.float16, "bfloat16"])
def test_halves(rng, dtype):
    import ml_dtypes

    dtype = np.dtype(ml_dtypes.bfloat16) if dtype == "bfloat16" else np.dtype(dtype)
    bn = layer(rng)
    for opset in (14, 15):
        model = bn.to_onnx(ndim=2, dtype=dtype, opset=opset)
        onnx.checker.check_model(model, full_check=True)
        held = {t.name: numpy_helper.to_array(t).dtype for t in model.graph.initializer}
        assert set(held.values()) == {dtype if opset == 14 else np.dtype(np.float32)}
        assert model.graph.input[0].type.tensor_type.elem_type == helper.np_dtype_to_tensor_dtype(dtype)
        x = draw(rng, (8, 5), np.float32).astype(dtype)
        (y,) = Fastbn.run_model(model, [x])
        if opset == 15:
            np.testing.assert_array_equal(y, bn.eval()(x))


def test_there_and_back(rng, tmp_path):
    bn = layer(rng, dtype=np.float64)
    onnx.save(bn.to_onnx(), tmp_path / "layer.onnx")
    other = from_onnx(tmp_path / "layer.onnx")
    assert (other.eps, other.momentum, other.axis, other.correction, other.training) == (1e-3, 0.2, 1, 0, False)
    for name in STATE:
        np.testing.assert_array_equal(getattr(other, name), getattr(bn, name))
        assert getattr(other, name).dtype == np.float64
    assert from_onnx(fastbn.BatchNorm(3, momentum=None).to_onnx()).momentum == 0.1  # ONNX's default


def net(rng, training=False):
    """Three batch norms: with initializers, with constants and the output's name alone, with a computed scale."""
    graph = helper.make_graph(
        [
            helper.make_node("BatchNormalization", ["x", "w", "b", "m", "v"], ["a"], name="first", epsilon=0.01),
            helper.make_node("Constant", [], ["v2"], value=numpy_helper.from_array(np.full(3, 4, np.float16))),
            helper.make_node("BatchNormalization", ["a", "w", "b", "m", "v2"], ["c", "", ""][: 1 + 2 * training],
                             **({"training_mode": 1} if training else {})),
            helper.make_node("Abs", ["w"], ["w3"]),
            helper.make_node("BatchNormalization", ["c", "w3", "b", "m", "v"], ["y"], name="third"),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 3])],
        [numpy_helper.from_array(rng.uniform(1, 2, 3).astype(np.float32), name) for name in "wbmv"],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 15)])


def test_a_layer_of_a_net(rng):
    model = net(rng)
    first, second = from_onnx(model, "first"), from_onnx(net(rng, training=True), "c")
    np.testing.assert_array_equal(first.running_var, numpy_helper.to_array(model.graph.initializer[3]))
    assert (first.eps, first.training, second.eps, second.training) == (0.01, False, 1e-5, True)
    np.testing.assert_array_equal(second.running_var, np.full(3, 4, np.float32))
    assert second.dtype == np.float32
    for name, message in (
        (None, r"name: expected one BatchNormalization of this model, which has \['first', 'c', 'third'\], got None"),
        ("fourth", "name: expected one BatchNormalization"),
        ("third", "model: expected a constant for the weight of node 'third', got 'w3', which is computed"),
    ):
        with pytest.raises(ValueError, match=message):
            from_onnx(model, name)
    with pytest.raises(TypeError, match=r"model: expected an onnx\.ModelProto or a path, got a SimpleNamespace"):
        from_onnx(SimpleNamespace())
    old = helper.make_model(
        helper.make_graph([node(7, spatial=0)], "old", [], [], [
            numpy_helper.from_array(np.ones((3, 2), np.float32), name) for name in STATE
        ]),
        opset_imports=[helper.make_opsetid("", 7)],
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"statistics of channels in node 'y', got spatial=0 and .* \(3, 2\)"):
        from_onnx(old)


@pytest.mark.parametrize(
    ("options", "more", "error", "message"),
    [
        ({"track_running_stats": False}, {}, ValueError, "layer: expected running statistics"),
        (
            {"axis": 3},
            {"ndim": 3},
            ValueError,
            "ndim: expected an integer >= 2 of axes of which the layer's axis 3 is one",
        ),
        ({}, {"ndim": 1}, ValueError, "ndim: expected an integer >= 2"),
        ({}, {"opset": 6}, ValueError, f"opset: expected an integer from 7 to {NEWEST}, got 6"),
        ({}, {"opset": NEWEST + 1}, ValueError, "opset: expected an integer from 7"),
        ({}, {"dtype": np.int32}, TypeError, "dtype: expected float32, float64, float16 or bfloat16"),
        ({}, {"dtype": np.float16, "opset": 9, "mean": 1e6}, ValueError, "dtype: expected one that holds the layer's"),
    ],
)
def test_what_no_model_says(rng, options, more, error, message):
    bn = fastbn.BatchNorm(5, **options)
    if "mean" in more:
        bn.running_mean[:] = more["mean"]
    more = {name: value for name, value in more.items() if name != "mean"}
    with pytest.raises(error, match=message):
        bn.to_onnx(**more)
    with pytest.raises(TypeError, match=r"layer: expected a fastbn.BatchNorm, got a dict"):
        to_onnx({})


def test_the_example_of_the_docstring():
    import doctest

    from fastbn.adapters.onnx import models

    assert doctest.testmod(models).failed == 0
