"""What is checked of numbers, switches, dtypes and statistics, and of arrays that share memory."""

import decimal
import fractions

import ml_dtypes
import numpy as np
import pytest

from fastbn.checks import aliasing, scalars


class Speechless:
    """A value that cannot be shown."""

    def __repr__(self):
        raise RuntimeError("no representation")


TRUE_NUMBERS = [1, 0.5, np.float32(0.5), np.float64(1), np.int8(1), fractions.Fraction(1, 2)]
NO_NUMBERS = [None, "1", True, np.True_, 1j, [1.0], np.ones(1), np.timedelta64(1), decimal.Decimal(1), Speechless()]
NOT_FINITE = [np.nan, np.inf, -np.inf, 10**400, np.float32(np.inf)]
CHECKS = {"eps": scalars.eps, "momentum": scalars.momentum, "correction": scalars.correction}


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("value", TRUE_NUMBERS, ids=repr)
def test_a_number_comes_back_as_a_float(name, value):
    found = CHECKS[name](value)
    assert type(found) is float
    assert found == value


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("value", NO_NUMBERS, ids=lambda value: type(value).__name__)
def test_what_is_no_number(name, value):
    with pytest.raises(TypeError, match=f"^{name}: expected a number"):
        CHECKS[name](value)


@pytest.mark.parametrize("name", CHECKS)
@pytest.mark.parametrize("value", NOT_FINITE, ids=lambda value: str(value)[:5])
def test_what_is_not_finite(name, value):
    with pytest.raises(ValueError, match=f"^{name}: expected a number .*, got -?(inf|nan)$"):
        CHECKS[name](value)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("eps", 0, "eps: expected a number > 0, got 0.0; without it a constant channel divides by zero"),
        ("eps", -1e-5, "eps: expected a number > 0, got -1e-05"),
        ("momentum", -0.1, "momentum: expected a number from 0 to 1, the weight of the new value, got -0.1"),
        ("momentum", 1.5, "momentum: expected a number from 0 to 1, the weight of the new value, got 1.5"),
        ("correction", -1, "correction: expected a number >= 0, got -1.0"),
    ],
)
def test_bounds(name, value, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        CHECKS[name](value)


def test_both_ends_of_a_momentum_are_legal():
    assert [scalars.momentum(value) for value in (0, 1)] == [0.0, 1.0]
    with pytest.raises(TypeError, match=r"momentum: .*the layer BatchNorm"):
        scalars.momentum(None)


def test_a_flag_is_true_or_false():
    assert [scalars.flag("training", value) for value in (True, False, np.True_, np.False_)] == [True, False] * 2
    for value in (1, 0, None, "yes", np.ones(1, bool)):
        with pytest.raises(TypeError, match=r"^training: expected True or False, got"):
            scalars.flag("training", value)


def test_integers():
    for value in (3, np.int8(3), np.array(3)):
        assert scalars.integer("axis", value) == 3
    for value in (True, np.True_, 3.0, "3", None):
        with pytest.raises(TypeError, match=r"^axis: expected an integer, got"):
            scalars.integer("axis", value)
    for value in (2**63, -(2**63) - 1, 10**5000):
        with pytest.raises(ValueError, match=r"^axis: expected an integer of 64 bits, got"):
            scalars.integer("axis", value)
    assert scalars.integer("axis", -(2**63)) == -(2**63)


def test_counts_of_channels_and_values():
    assert (scalars.features(1), scalars.features(scalars.MOST), scalars.count(0)) == (1, scalars.MOST, 0)
    for value, said in ((0, "at least 1 channel"), (-3, "at least 1 channel"), (scalars.MOST + 1, "at most")):
        with pytest.raises(ValueError, match=f"^num_features: expected {said}"):
            scalars.features(value)
    with pytest.raises(ValueError, match=r"^count: expected an integer >= 0, got -1"):
        scalars.count(-1)


def test_the_dtype_of_parameters():
    for value in (np.float32, "float32", np.dtype("f4")):
        assert scalars.parameter_dtype(value) == np.float32
    assert scalars.parameter_dtype(float) == np.float64
    for value in (None, np.float16, "a", "f4,(", ">f4", int, np.longdouble, ml_dtypes.bfloat16, Speechless()):
        with pytest.raises(TypeError, match=r"^dtype: expected float32 or float64, got"):
            scalars.parameter_dtype(value)


def test_16_bit_floats_of_the_machine():
    assert scalars.is_half(np.dtype(np.float16))
    assert scalars.is_half(np.dtype(ml_dtypes.bfloat16))
    for other in ("f4", "i2", "u2", ">f2", np.dtype(ml_dtypes.bfloat16).newbyteorder(">")):
        assert not scalars.is_half(np.dtype(other))


def test_statistics_of_channels():
    own = np.ones(3)
    assert scalars.per_channel("mean", own) is own
    for value in ([1, 2], (1.0, 2.0), np.ones(2, np.float32), np.ones(4)[::2], np.ones(2, ">f8"), np.ones(2, int)):
        found = scalars.per_channel("mean", value)
        assert found.dtype == np.float64
        assert found.flags.carray
        np.testing.assert_array_equal(found, np.asarray(value, float))
    for value in (1.0, np.ones((1, 2)), ["a"], [True], [1j], np.ma.masked_array(np.ones(2)), [Speechless()]):
        with pytest.raises(TypeError, match=r"^mean: expected real numbers of shape \(C,\), got"):
            scalars.per_channel("mean", value)
    with pytest.raises(ValueError, match=r"^m2: expected shape \(3,\), as mean has, got shape \(2,\)"):
        scalars.as_many("m2", np.ones(2), "mean", own)
    scalars.as_many("m2", np.ones(3), "mean", own)


def test_what_numpy_cannot_take_is_named():
    class Elsewhere:
        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("it is on a GPU")

    with pytest.raises(TypeError, match=r"^x: expected what numpy.asarray takes, got .*: it is on a GPU"):
        scalars.as_array("x", Elsewhere())


def test_the_divisor_of_a_variance():
    scalars.divisor(2, 1)
    for correction in (2, 2.5):
        with pytest.raises(ValueError, match=f"^correction: expected less than the 2 values .*, got {correction}"):
            scalars.divisor(2, correction)


def test_what_was_passed_is_said_in_a_few_words():
    assert scalars.described(np.ones((2, 3), np.int8)) == "an array of int8 and shape (2, 3)"
    assert scalars.described("a") == "'a' (str)"
    assert scalars.described("a" * 50) == "an object of type str"
    assert scalars.described(Speechless()) == "an object of type Speechless"
    assert scalars.described(10**5000) == "an object of type int"


def views(length=24):
    memory = np.zeros(length, np.float32)
    return memory, memory[:12].reshape(3, 4)


def test_the_same_memory_seen_in_the_same_way():
    memory, x = views()
    assert aliasing.same(x, memory[:12].reshape(3, 4))
    assert aliasing.same(x[:1], np.lib.stride_tricks.as_strided(x, (1, 4), (999, 4)))  # one element has no stride
    for other in (x.copy(), memory[1:13].reshape(3, 4), x[:2], x.reshape(4, 3), x.T, x.view(np.int32), x[::-1]):
        assert not aliasing.same(x, other)


def test_arrays_that_share_memory():
    memory, x = views()
    for other in (x, x.T, x[::-1], x[1:, 2:], memory, memory[11:]):
        assert aliasing.overlap(x, other)
    for other in (memory[12:], x.copy(), memory[20:]):
        assert not aliasing.overlap(x, other)
    assert not aliasing.overlap(memory[::2], memory[1::2])  # interleaved


def test_where_it_is_hard_to_tell_they_share():
    memory = np.zeros(10**6, np.int8)
    strides = [(3, 5, 7, 11, 13, 17), (2, 4, 8, 16, 32, 64)]
    one, other = (np.lib.stride_tricks.as_strided(memory, (7,) * 6, each) for each in strides)
    assert aliasing.overlap(one, other)


def test_arrays_that_overlap_themselves():
    _, x = views()
    for fine in (x, x.T, x[::-1, ::2], x[:0], np.zeros(()), np.zeros((1, 5))[::-1], np.zeros((4, 1, 3))[:, :, ::2]):
        assert not aliasing.overlaps_itself(fine)
    for shape, strides in (((3, 4), (0, 4)), ((3, 4), (4, 4)), ((3, 4), (12, 4)), ((2, 2), (2, 8))):
        assert aliasing.overlaps_itself(np.lib.stride_tricks.as_strided(x, shape, strides))
    assert aliasing.overlaps_itself(np.broadcast_to(np.float32(1), (2,)))
