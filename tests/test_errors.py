"""Every bad argument is named, with what was passed and what was expected, before anything is written."""

import numpy as np
import pytest

import fastbn

F4 = np.float32


def good():
    """Arguments that fit: a call of batch_norm that writes to three places."""
    return {
        "x": np.arange(24, dtype=F4).reshape(4, 3, 2),
        "weight": np.ones(3, F4),
        "bias": np.zeros(3, F4),
        "running_mean": np.full(3, 7, F4),
        "running_var": np.full(3, 7, F4),
        "out": np.full((4, 3, 2), 7, F4),
    }


def readonly(array):
    array.flags.writeable = False
    return array


def shifted_over_x(a):
    """An out that shares all but one row with x."""
    big = np.zeros((5, 3, 2), F4)
    return {"x": big[:4], "out": big[1:]}


# What to change in good(), the error, and the message. Functions see the good arguments.
FORWARD = [
    # --- x
    ({"x": [[1.0, 2.0]]}, TypeError, r"x: expected a numpy.ndarray, got \[\[1.0, 2.0\]\] \(list\)"),
    ({"x": 3.0}, TypeError, r"x: expected a numpy.ndarray, got 3.0 \(float\)"),
    ({"x": None}, TypeError, "x: expected a numpy.ndarray, got None"),
    ({"x": np.ones((4, 3, 2), int)}, TypeError, "x: expected .* float16 or bfloat16 .*, got an array of int64"),
    ({"x": np.ones((4, 3, 2), bool)}, TypeError, "x: .* got an array of bool"),
    ({"x": np.ones((4, 3, 2), complex)}, TypeError, "x: .* got an array of complex128"),
    ({"x": np.ones((4, 3, 2), "V2")}, TypeError, r"x: .* got an array of \|V2"),
    ({"x": np.ones((4, 3, 2), ">f4")}, TypeError, "x: .* native byte order, got an array of >f4"),
    ({"x": np.ones((4, 3, 2), object)}, TypeError, "x: .* got an array of object"),
    ({"x": np.ma.ones((4, 3, 2), F4)}, TypeError, "x: expected a numpy.ndarray, got a MaskedArray"),
    ({"x": np.ones(3, F4)}, ValueError, r"x: expected at least 2 dimensions, .* got shape \(3,\)"),
    ({"x": np.array(1, F4)}, ValueError, r"x: expected at least 2 dimensions, .* got shape \(\)"),
    (
        {"x": np.ones((0, 3, 2), F4), "out": None},
        ValueError,
        r"x: expected at least one value a channel .* empty batch",
    ),
    # --- axis
    ({"axis": 3}, ValueError, r"axis: expected an integer from -3 to 2 for x of shape \(4, 3, 2\), got 3"),
    ({"axis": -4}, ValueError, "axis: expected an integer from -3 to 2"),
    ({"axis": 1.0}, TypeError, r"axis: expected an integer, got 1.0 \(float\)"),
    ({"axis": None}, TypeError, "axis: expected an integer, got None"),
    ({"axis": True}, TypeError, "axis: expected an integer, got True"),
    ({"axis": (1,)}, TypeError, r"axis: expected an integer, got \(1,\)"),
    # --- parameters and statistics
    ({"weight": np.ones(4, F4)}, ValueError, r"weight: expected shape \(3,\), one value a channel, got shape \(4,\)"),
    ({"weight": np.ones((1, 3), F4)}, ValueError, r"weight: expected shape \(3,\)"),
    ({"weight": np.ones(3, int)}, TypeError, "weight: expected .* float32 or float64"),
    ({"weight": np.ones(3, np.float16)}, TypeError, "weight: expected .* or float64 .*, got an array of float16"),
    ({"weight": np.empty(0, F4)}, ValueError, r"weight: expected shape \(3,\), one value a channel, got shape \(0,\)"),
    ({"bias": np.empty(0, F4)}, ValueError, r"bias: expected shape \(3,\), one value a channel, got shape \(0,\)"),
    ({"weight": 1.0}, TypeError, r"weight: expected None or a numpy.ndarray of shape \(3,\), got 1.0"),
    ({"bias": np.ones(2, F4)}, ValueError, r"bias: expected shape \(3,\)"),
    ({"bias": [0, 0, 0]}, TypeError, r"bias: expected None or a numpy.ndarray of shape \(3,\), got \[0, 0, 0\]"),
    ({"running_mean": np.ones(4, F4)}, ValueError, r"running_mean: expected shape \(3,\)"),
    ({"running_var": np.ones(4, F4)}, ValueError, r"running_var: expected shape \(3,\)"),
    ({"running_var": np.ones(3, int)}, TypeError, "running_var: expected .* float32 or float64"),
    ({"running_var": None}, ValueError, "running_var: expected an array .* because running_mean is given, got None"),
    ({"running_mean": None}, ValueError, "running_mean: expected an array .* because running_var is given, got None"),
    (
        {"running_mean": None, "running_var": None, "training": False},
        ValueError,
        "running_mean, running_var: expected two arrays .* got None",
    ),
    ({"running_mean": readonly(np.ones(3, F4))}, ValueError, "running_mean: expected a writable array"),
    ({"running_var": readonly(np.ones(3, F4))}, ValueError, "running_var: expected a writable array"),
    (
        {"running_mean": np.lib.stride_tricks.as_strided(np.ones(1, F4), (3,), (0,))},
        ValueError,
        "running_mean: expected memory for every element",
    ),
    (lambda a: {"running_var": a["running_mean"]}, ValueError, "running_mean: expected memory apart from running_var"),
    (lambda a: {"running_var": a["weight"]}, ValueError, "running_var: expected memory apart from weight"),
    (lambda a: {"running_mean": a["x"].reshape(-1)[:3]}, ValueError, "running_mean: expected memory apart from x"),
    # --- numbers and switches
    ({"eps": 0}, ValueError, "eps: expected a number > 0, got 0.0"),
    ({"eps": -1e-5}, ValueError, "eps: expected a number > 0, got -1e-05"),
    ({"eps": np.nan}, ValueError, "eps: expected a number > 0, got nan"),
    ({"eps": np.inf}, ValueError, "eps: expected a number > 0, got inf"),
    ({"eps": "1e-5"}, TypeError, "eps: expected a number > 0, got '1e-5'"),
    ({"eps": None}, TypeError, "eps: expected a number > 0, got None"),
    ({"eps": np.ones(2)}, TypeError, "eps: expected a number > 0, got an array"),
    ({"momentum": 1.5}, ValueError, "momentum: expected a number from 0 to 1, .* got 1.5"),
    ({"momentum": -0.1}, ValueError, "momentum: expected a number from 0 to 1, .* got -0.1"),
    ({"momentum": None}, TypeError, r"momentum: .* got None; .* BatchNorm\(momentum=None\)"),
    ({"momentum": "0.1"}, TypeError, "momentum: expected a number from 0 to 1, .* got '0.1'"),
    ({"correction": -1}, ValueError, "correction: expected a number >= 0, got -1.0"),
    ({"correction": None}, TypeError, "correction: expected a number >= 0, got None"),
    ({"correction": 8}, ValueError, "correction: expected less than the 8 values a channel, got 8"),
    (
        {"x": np.ones((1, 3, 1), F4), "out": None},
        ValueError,
        "correction: expected less than the 1 value a channel, got 1; .* pass more values or correction=0",
    ),
    ({"training": 1}, TypeError, r"training: expected True or False, got 1 \(int\)"),
    ({"training": None}, TypeError, "training: expected True or False, got None"),
    # --- out
    ({"out": np.zeros((4, 3, 3), F4)}, ValueError, r"out: expected shape \(4, 3, 2\), got shape \(4, 3, 3\)"),
    ({"out": np.zeros((4, 3, 2))}, TypeError, "out: expected dtype float32, got float64"),
    ({"out": np.zeros((4, 3, 2), int)}, TypeError, "out: expected .* of float32, float64, float16 or bfloat16"),
    ({"out": [0]}, TypeError, r"out: expected None or a numpy.ndarray of shape \(4, 3, 2\), got \[0\]"),
    ({"out": readonly(np.zeros((4, 3, 2), F4))}, ValueError, "out: expected a writable array"),
    (
        {"out": np.lib.stride_tricks.as_strided(np.zeros(6, F4), (4, 3, 2), (0, 8, 4))},
        ValueError,
        "out: expected memory for every element",
    ),
    (shifted_over_x, ValueError, "out: expected x itself or memory apart from it, got an array that overlaps x"),
    (lambda a: {"out": a["x"][::-1]}, ValueError, "out: expected x itself or memory apart from it"),
    (
        lambda a: {"weight": a["out"].reshape(-1)[:3]},
        ValueError,
        "out: expected memory apart from weight, got an array that overlaps it",
    ),
    (lambda a: {"running_var": a["out"].reshape(-1)[:3]}, ValueError, "out: expected memory apart from running_var"),
    # --- moments
    ({"moments": 3}, TypeError, "moments: expected None or fastbn.Moments, got 3"),
    (
        {"moments": fastbn.Moments(8, np.zeros(2), np.ones(2))},
        ValueError,
        "moments: expected 3 channels, as x has, got 2",
    ),
    ({"moments": fastbn.Moments(0, np.zeros(3), np.ones(3))}, ValueError, "moments: expected moments of at least one"),
    ({"moments": fastbn.Moments(1, np.zeros(3), np.ones(3))}, ValueError, "correction: expected less than the 1 value"),
    (
        {"moments": fastbn.Moments(8, np.zeros(3), np.ones(3)), "training": False},
        ValueError,
        "moments: expected None with training=False",
    ),
]


def snapshot(arguments):
    return {name: np.array(value, copy=True) for name, value in arguments.items() if isinstance(value, np.ndarray)}


@pytest.mark.parametrize(("change", "error", "message"), FORWARD)
def test_forward(change, error, message):
    arguments = good()
    arguments |= change(arguments) if callable(change) else change
    before = snapshot(arguments)
    with pytest.raises(error, match=message):
        fastbn.batch_norm(**arguments)
    for name, values in before.items():
        np.testing.assert_array_equal(np.asarray(arguments[name]), values)


def test_the_good_arguments_are_good():
    arguments = good()
    y, _ = fastbn.batch_norm(**arguments)
    assert y is arguments["out"]
    assert not (y == 7).any()
    assert not (arguments["running_mean"] == 7).any()


@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
def test_matrix():
    with pytest.raises(TypeError, match=r"x: expected a numpy.ndarray, got a matrix"):
        fastbn.batch_norm(np.matrix(np.ones((4, 3), F4)))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": [1]}, TypeError, "x: expected a numpy.ndarray"),
        ({"axis": 9}, ValueError, "axis: expected an integer"),
        ({"running_mean": None}, ValueError, "running_mean: expected an array"),
        ({"running_mean": None, "running_var": None}, ValueError, "running_mean, running_var: expected two arrays"),
        ({"eps": 0}, ValueError, "eps: expected a number > 0"),
        ({"out": np.zeros((4, 3), F4)}, ValueError, "out: expected shape"),
    ],
)
def test_inference(change, error, message):
    arguments = good() | change
    before = snapshot(arguments)
    with pytest.raises(error, match=message):
        fastbn.batch_norm_inference(**arguments)
    for name, values in before.items():
        np.testing.assert_array_equal(arguments[name], values)


def test_moments():
    with pytest.raises(TypeError, match=r"x: expected a numpy.ndarray"):
        fastbn.batch_moments([1, 2])
    with pytest.raises(ValueError, match=r"axis: expected an integer from -2 to 1"):
        fastbn.batch_moments(np.ones((2, 2)), axis=2)


def shifted_over_dy():
    big = np.zeros((5, 3, 2), F4)
    return {"dy": big[:4], "out": big[1:]}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"dy": [1]}, TypeError, r"dy: expected a numpy.ndarray of shape \(4, 3, 2\)"),
        (
            {"dy": np.ones((4, 3), F4)},
            ValueError,
            r"dy: expected the shape of x and y, \(4, 3, 2\), got shape \(4, 3\)",
        ),
        ({"dy": np.ones((4, 3, 2))}, TypeError, "dy: expected the dtype of x and y, float32, got float64"),
        ({"dy": np.ones((4, 3, 2), int)}, TypeError, "dy: expected .* float32, float64, float16 or bfloat16"),
        ({"ctx": None}, TypeError, "ctx: expected the fastbn.Context that batch_norm returned with y, got None"),
        ({"out": np.zeros((4, 3), F4)}, ValueError, r"out: expected shape \(4, 3, 2\)"),
        ({"out": np.zeros((4, 3, 2))}, TypeError, "out: expected dtype float32"),
        (
            shifted_over_dy(),
            ValueError,
            "out: expected dy itself or memory apart from it, got an array that overlaps dy",
        ),
        ({"sums": 1}, TypeError, "sums: expected None or fastbn.BackwardSums, got 1"),
        ({"sums": fastbn.BackwardSums(8, np.zeros(2), np.zeros(2))}, ValueError, "sums: expected 3 channels"),
        (
            {"sums": fastbn.BackwardSums(9, np.zeros(3), np.zeros(3))},
            ValueError,
            "sums: expected sums over the 8 values a channel .* got sums over 9",
        ),
    ],
)
def test_backward(change, error, message):
    a = good()
    _, ctx = fastbn.batch_norm(a["x"], a["weight"], a["bias"])
    arguments = {"dy": np.ones((4, 3, 2), F4), "ctx": ctx, "out": np.full((4, 3, 2), 7, F4)} | change
    before = snapshot(arguments)
    with pytest.raises(error, match=message):
        fastbn.batch_norm_backward(**arguments)
    for name, values in before.items():
        np.testing.assert_array_equal(arguments[name], values)


def test_backward_through_shared_moments_needs_shared_sums():
    """The sums of one rank would give a wrong gradient in silence."""
    x = np.arange(24, dtype=F4).reshape(4, 3, 2)
    _, ctx = fastbn.batch_norm(x[:2], moments=fastbn.batch_moments(x))
    with pytest.raises(ValueError, match=r"sums: expected the merged backward_sums .* 8 values a channel and x has 4"):
        fastbn.batch_norm_backward(x[:2], ctx)


def test_backward_after_an_overwritten_x():
    x = np.arange(24, dtype=F4).reshape(4, 3, 2)
    _, ctx = fastbn.batch_norm(x, out=x)
    for call in (fastbn.batch_norm_backward, fastbn.backward_sums):
        with pytest.raises(ValueError, match=r"ctx: expected one that still has x, but x was overwritten \(out=x\)"):
            call(x, ctx)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_features": 0}, ValueError, "num_features: expected at least 1 channel, got 0"),
        ({"num_features": 2.0}, TypeError, "num_features: expected an integer, got 2.0"),
        ({"axis": "1"}, TypeError, "axis: expected an integer, got '1'"),
        ({"eps": 0}, ValueError, "eps: expected a number > 0"),
        ({"momentum": 2}, ValueError, "momentum: expected a number from 0 to 1"),
        ({"correction": -1}, ValueError, "correction: expected a number >= 0"),
        ({"affine": 1}, TypeError, "affine: expected True or False"),
        ({"track_running_stats": None}, TypeError, "track_running_stats: expected True or False"),
        ({"dtype": np.int32}, TypeError, "dtype: expected float32 or float64"),
        ({"dtype": np.float16}, TypeError, "dtype: expected float32 or float64"),
        ({"dtype": None}, TypeError, "dtype: expected float32 or float64, got None"),
        ({"dtype": "nonsense"}, TypeError, "dtype: expected float32 or float64, got 'nonsense'"),
    ],
)
def test_layer(arguments, error, message):
    with pytest.raises(error, match=message):
        fastbn.BatchNorm(**({"num_features": 3} | arguments))


def test_layer_calls():
    layer = fastbn.BatchNorm(3)
    with pytest.raises(TypeError, match=r"x: expected a numpy.ndarray"):
        layer([1])
    with pytest.raises(ValueError, match=r"x: expected 3 channels along axis 1, got shape \(2, 4\)"):
        layer(np.ones((2, 4), F4))
    with pytest.raises(TypeError, match=r"mode: expected True or False"):
        layer.train(1)
    with pytest.raises(TypeError, match=r"state: expected a mapping"):
        layer.load_state_dict([1])
