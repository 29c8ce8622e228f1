"""Batch norm inside a caller's own `@njit` functions: what fastbn gives, from serial, parallel and threaded code.

float32 is computed in float32 there, as with precision="fast".
"""

import inspect
import re
import threading
from dataclasses import dataclass

import numba
import numpy as np
import pytest
from numba import njit, prange

import fastbn
import reference
from fastbn.backends.cpu import launch, plan
from fastbn_kernels.cpu import (
    RELU,
    SILU,
    batch_norm_backward,
    batch_norm_backward_channel,
    batch_norm_forward,
    batch_norm_forward_channel,
    batch_norm_inference,
    leaky_relu,
)
from grid import draw, poisoned
from plans import ALIKE
from processes import ROOT, run
from tolerance import check, check_backward, check_forward, statistics

EPS = 1e-5

# (N, C, S), which fastbn takes a channel at a time: one tile, several short runs a tile, pieces of a long run, few
# channels for the threads.
RUNS = [(4, 3, 49), (1, 2, 17), (700, 5, 49), (3, 8, 3600), (2, 3, 22500), (3, 1, 40000)]
# (N, C): narrow rows taken together, one block, several blocks, more than one group of columns.
ROWS = [(32, 64), (7, 5), (3000, 40), (20, 4100)]


@njit(nogil=True)
def step(x, dy, weight, bias, y, mean, invstd, dx, dweight, dbias):
    batch_norm_forward(x, weight, bias, EPS, y, mean, invstd)
    batch_norm_backward(dy, x, weight, mean, invstd, dx, dweight, dbias)


@njit(parallel=True)
def step_by_channels(x, dy, weight, bias, y, mean, invstd, dx, dweight, dbias):
    for c in prange(x.shape[1]):
        batch_norm_forward_channel(x, c, weight, bias, EPS, y, mean, invstd)
        batch_norm_backward_channel(dy, x, c, weight, mean, invstd, dx, dweight, dbias)


@njit(parallel=True)
def steps(x, dy, weight, bias, y, mean, invstd, dx, dweight, dbias):
    """One step for each of several batches, each in one thread."""
    for k in prange(len(x)):
        step(x[k], dy[k], weight[k], bias[k], y[k], mean[k], invstd[k], dx[k], dweight[k], dbias[k])


@dataclass
class Case:
    """The arguments of a step, outputs poisoned."""

    x: np.ndarray
    dy: np.ndarray
    weight: np.ndarray
    bias: np.ndarray
    y: np.ndarray
    mean: np.ndarray
    invstd: np.ndarray
    dx: np.ndarray
    dweight: np.ndarray
    dbias: np.ndarray

    @property
    def all(self):
        return list(vars(self).values())

    @property
    def results(self):
        return self.all[4:]

    @property
    def forward(self):
        return self.x, self.weight, self.bias, EPS, self.y, self.mean, self.invstd

    @property
    def backward(self):
        return self.dy, self.x, self.weight, self.mean, self.invstd, self.dx, self.dweight, self.dbias

    @property
    def grads(self):
        return fastbn.Gradients(self.dx, self.dweight, self.dbias)


def case(rng, shape, dtype=np.float32, mean=10, kept=np.float64, rows=2):
    C = shape[1]
    x, dy = draw(rng, shape, dtype, mean=mean), draw(rng, shape, dtype)
    weight, bias = draw(rng, C, dtype, mean=1), draw(rng, C, dtype)
    y, dx = poisoned(shape, dtype), poisoned(shape, dtype)
    statistics = poisoned((2, C) if rows == 2 else C, kept), poisoned(C, kept)
    return Case(x, dy, weight, bias, y, *statistics, dx, poisoned(C, dtype), poisoned(C, dtype))


def same(found, expected):
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def of_fastbn(own):
    y, ctx = fastbn.batch_norm(own.x, own.weight, own.bias, eps=EPS, precision="fast")
    grads = fastbn.batch_norm_backward(own.dy, ctx)
    return [y, np.array([ctx.mean, ctx.mean_lo]), ctx.invstd, grads.dx, grads.dweight, grads.dbias]


def check_step(own, extra=0.0):
    """Check against the oracle; by `extra` times max(|xhat|, 1) xhat may be off in the gradients, and scale likewise.

    With xhat, dx is off by less than 2 + 3.2 reach, in units of extra * scale * |dy|: twice 2 + reach^2 at most.
    """
    f = reference.forward(own.x, own.weight, own.bias, eps=EPS)
    error = statistics(own.x.size // own.weight.size, np.abs(f.xhat).max(), own.x.dtype)
    check_forward(own.y, f, own.weight, own.bias)
    held = np.atleast_2d(own.mean).astype(np.longdouble).sum(0)
    rounding = np.finfo(own.mean.dtype).eps * (1 if own.mean.ndim == 1 else np.finfo(own.mean.dtype).eps)
    assert (np.abs(held - f.mean) <= error * np.sqrt(f.var) + rounding * np.abs(f.mean)).all()
    check(own.invstd, f.invstd, error * f.invstd)
    expected = reference.backward(own.dy, own.x, own.weight, eps=EPS)
    check_backward(own.grads, expected, own.dy, f, own.weight, off=2 * extra * float(np.abs(own.dy).max()))


KINDS = [np.float32, pytest.param(np.float64, marks=pytest.mark.slow)]


@pytest.mark.parametrize("shape", [*RUNS, (64, 32, 49)], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_runs_agree_with_the_oracle(rng, shape, dtype):
    own = case(rng, shape, dtype)
    step(*own.all)
    check_step(own)


@pytest.mark.parametrize("shape", ROWS, ids=str)
@pytest.mark.parametrize("dtype", KINDS)  # float64 compiles for half a minute
def test_rows_agree_with_the_oracle_and_are_the_bits_of_fastbn(rng, monkeypatch, shape, dtype):
    """Where fastbn takes rows in blocks; many channels of a few float32 rows it takes in columns (`column_groups`)."""
    for owner, name in ((plan, "make"), (launch, "large_call")):  # without what they have kept
        monkeypatch.setattr(owner, name, inspect.unwrap(getattr(owner, name)))
    monkeypatch.setattr(plan, "COLUMN_CHANNELS", shape[1] + 1)
    own = case(rng, shape, dtype)
    batch_norm_forward(*own.forward)
    batch_norm_backward(*own.backward)
    check_step(own)
    same(own.results, of_fastbn(own))


@pytest.mark.parametrize("shape", RUNS, ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_runs_are_the_bits_of_fastbn_where_it_takes_a_channel_at_a_time(rng, shape, dtype):
    own = case(rng, shape, dtype, mean=1e3)
    assert plan.make(*shape, own.x.dtype.char, 2).family in ALIKE
    step(*own.all)
    same(own.results, of_fastbn(own))


def test_a_loop_over_channels_and_over_batches_gives_the_bits_of_a_call(rng):
    cases = [case(rng, (6, 5, 300)) for _ in range(7)]
    together = [np.stack(arrays) for arrays in zip(*(own.all for own in cases), strict=True)]
    before = numba.get_num_threads()
    try:
        for threads in {1, numba.config.NUMBA_NUM_THREADS}:
            numba.set_num_threads(threads)
            steps(*together)
            for k, own in enumerate(cases):
                step(*own.all)
                same([array[k] for array in together[4:]], own.results)
                by_channels = Case(*own.all[:4], *(np.full_like(array, np.nan) for array in own.results))
                step_by_channels(*by_channels.all)
                same(by_channels.results, own.results)
    finally:
        numba.set_num_threads(before)


def test_python_threads_run_it_side_by_side(rng):
    cases = [case(rng, (6, 5, 300)) for _ in range(4)]

    def work(own):
        for _ in range(50):
            step(*own.all)

    threads = [threading.Thread(target=work, args=(own,)) for own in cases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for own in cases:
        same(own.results, of_fastbn(own))


@pytest.mark.parametrize("shape", [(3, 8, 3600), (32, 64)], ids=str)
@pytest.mark.parametrize("over", ["dy", "x"])
def test_in_place(rng, shape, over):
    own = case(rng, shape)
    batch_norm_forward(*own.forward)
    batch_norm_backward(*own.backward)
    x = own.x.copy()
    batch_norm_forward(x, *own.forward[1:4], x, own.mean, own.invstd)
    np.testing.assert_array_equal(x, own.y)
    dy, x = own.dy.copy(), own.x.copy()
    dx = dy if over == "dy" else x
    batch_norm_backward(dy, x, own.weight, own.mean, own.invstd, dx, own.dweight, own.dbias)
    np.testing.assert_array_equal(dx, own.dx)


def test_a_constant_channel_gives_exactly_the_bias(rng):
    own = case(rng, (5, 4, 77))
    own.x[:, 2] = np.float32(rng.normal() * 1e6)
    step(*own.all)
    assert (own.y[:, 2] == own.bias[2]).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("shape", [(5, 4, 77), (32, 64)], ids=str)
def test_nan_and_infinity_stay_in_their_channel(rng, shape, bad):
    own = case(rng, shape)
    batch_norm_forward(*own.forward)
    batch_norm_backward(*own.backward)
    expected = [array.copy() for array in own.results]
    own.x[1, 2] = bad
    batch_norm_forward(*own.forward)
    batch_norm_backward(*own.backward)
    for found, clean in zip(own.results, expected, strict=True):
        axis = {own.y.ndim: 1, 1: 0}.get(found.ndim, 1) if found is not own.mean else 1
        others = np.delete(np.arange(shape[1]), 2)
        np.testing.assert_array_equal(found.take(others, axis), clean.take(others, axis))
        assert not np.isfinite(found.take(2, axis)).all() or found is own.dbias


# What a float keeps of the mean, and of invstd, relative to them.
KEPT = [
    (np.float64, 2, 0.0, 0.0),
    (np.float64, 1, 2.0**-53, 0.0),
    pytest.param(np.float32, 2, 2.0**-48, 2.0**-24, marks=pytest.mark.slow),
    pytest.param(np.float32, 1, 2.0**-24, 2.0**-24, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("kept", "rows", "of_mean", "of_invstd"), KEPT)
def test_the_gradients_are_as_good_as_the_mean_that_is_kept_and_y_always(rng, kept, rows, of_mean, of_invstd):
    own = case(rng, (6, 5, 300), mean=1e5, kept=kept, rows=rows)
    batch_norm_forward(*own.forward)
    batch_norm_backward(*own.backward)
    invstd = float(reference.forward(own.x, eps=EPS).invstd.max())
    check_step(own, extra=of_mean * np.abs(own.x).max() * invstd + of_invstd)
    same([own.y, own.dbias], [of_fastbn(own)[k] for k in (0, 5)])


@pytest.mark.parametrize("shape", [(6, 5, 300), (32, 64)], ids=str)
def test_inference_is_the_bits_of_fastbn(rng, shape):
    own = case(rng, shape)
    mean, var = rng.normal(10, 1, shape[1]), rng.random(shape[1]) + 0.1
    batch_norm_inference(own.x, mean, var, own.weight, own.bias, EPS, own.y)
    expected = fastbn.batch_norm_inference(own.x, mean, var, own.weight, own.bias, eps=EPS, precision="fast")
    np.testing.assert_array_equal(own.y, expected)


LEAKY = leaky_relu(0.25)


@njit
def relu_step(x, dy, r, weight, bias, y, mean, invstd, dx, dweight, dbias, dr):
    batch_norm_forward(x, weight, bias, EPS, y, mean, invstd, RELU, r)
    batch_norm_backward(dy, x, weight, mean, invstd, dx, dweight, dbias, RELU, bias, r, dr)


@njit
def leaky_step_by_channels(x, dy, r, weight, bias, y, mean, invstd, dx, dweight, dbias, dr):
    for c in range(x.shape[1]):
        batch_norm_forward_channel(x, c, weight, bias, EPS, y, mean, invstd, LEAKY, r)
        batch_norm_backward_channel(dy, x, c, weight, mean, invstd, dx, dweight, dbias, LEAKY, bias, r, dr)


# Of each of them some 6 s are for the compiler.
TAILS = [
    (relu_step, "relu", (6, 5, 303)),
    pytest.param(relu_step, "relu", (32, 64), marks=pytest.mark.slow),
    pytest.param(leaky_step_by_channels, ("leaky_relu", 0.25), (6, 5, 303), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("function", "activation", "shape"), TAILS, ids=["runs", "rows", "channels"])
def test_an_activation_and_a_residual_are_those_of_fastbn(rng, function, activation, shape):
    own = case(rng, shape)
    r, dr = draw(rng, shape, np.float32), poisoned(shape, np.float32)
    function(own.x, own.dy, r, own.weight, own.bias, *own.results, dr)
    y, ctx = fastbn.batch_norm(
        own.x, own.weight, own.bias, residual=r, activation=activation, eps=EPS, precision="fast"
    )  # fmt: skip
    grads = fastbn.batch_norm_backward(own.dy, ctx)
    wanted = [y, np.array([ctx.mean, ctx.mean_lo]), ctx.invstd, grads.dx, grads.dweight, grads.dbias, grads.dresidual]
    same([*own.results, dr], wanted)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(6, 5, 303), (33, 5)], ids=str)
def test_y_may_be_the_residual_in_inference_and_in_training(rng, shape):
    own, C = case(rng, shape), shape[1]
    r, mean, var = draw(rng, shape, np.float32), rng.normal(10, 1, C), rng.random(C) + 0.1
    y = r.copy()
    batch_norm_inference(own.x, mean, var, own.weight, own.bias, EPS, y, SILU, y)
    options = {"eps": EPS, "precision": "fast", "residual": r}
    same([y], [fastbn.batch_norm_inference(own.x, mean, var, own.weight, own.bias, activation="silu", **options)])
    y = r.copy()
    batch_norm_forward(own.x, own.weight, own.bias, EPS, y, own.mean, own.invstd, residual=y)
    same([y], [fastbn.batch_norm(own.x, own.weight, own.bias, **options)[0]])


def test_the_code_in_the_docs(rng):
    page = (ROOT / "docs" / "embedding.md").read_text(encoding="utf-8")
    first, beyond = re.findall(r"^```python\n([^`]*@njit[^`]*)^```", page, re.MULTILINE)
    names = {}
    exec(first + beyond, names)  # the functions of the second are compiled and called above
    own = case(rng, (6, 5, 300))
    same(names["step"](own.x, own.dy, own.weight, own.bias), [of_fastbn(own)[k] for k in (0, 3, 4, 5)])


# ---------------------------------------------------------------- what does not fit


FORWARD = ["x", "weight", "bias", "eps", "y", "mean", "invstd"]
BACKWARD = ["dy", "x", "weight", "mean", "invstd", "dx", "dweight", "dbias"]
WRONG_FORWARD = {
    "x": np.ones((4, 3, 8), np.float32), "y": np.ones((4, 3, 8), np.float32), "weight": np.ones(4, np.float32),
    "bias": np.ones(2, np.float32), "mean": np.ones((3, 3)), "invstd": np.ones(4), "eps": 0.0,
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG_FORWARD)
def test_a_forward_call_that_does_not_fit_raises_and_writes_nothing(rng, name):
    own = case(rng, (4, 3, 7))
    arguments = list(own.forward)
    arguments[FORWARD.index(name)] = np.nan if name == "eps" else WRONG_FORWARD[name]
    with pytest.raises(ValueError, match="fastbn: .*" + name):
        batch_norm_forward(*arguments)
    assert all(np.isnan(array).all() for array in own.results)


@pytest.mark.parametrize("name", BACKWARD)
def test_a_backward_call_that_does_not_fit_raises_and_writes_nothing(rng, name):
    own = case(rng, (4, 3, 7))
    batch_norm_forward(*own.forward)
    arguments = list(own.backward)
    wrong = arguments[BACKWARD.index(name)]
    arguments[BACKWARD.index(name)] = np.ones([n + 1 for n in wrong.shape], wrong.dtype)
    with pytest.raises(ValueError, match="fastbn: .*" + name):
        batch_norm_backward(*arguments)
    assert all(np.isnan(array).all() for array in own.results[3:])


def test_memory_that_overlaps_without_being_the_same_raises(rng):
    own = case(rng, (4, 3, 7))
    memory = np.ones(4 * 3 * 7 + 1, np.float32)
    x, y = memory[1:].reshape(4, 3, 7), memory[:-1].reshape(4, 3, 7)
    with pytest.raises(ValueError, match="shares no memory"):
        batch_norm_forward(x, *own.forward[1:4], y, own.mean, own.invstd)
    batch_norm_forward(*own.forward)
    with pytest.raises(ValueError, match="shares no memory"):
        batch_norm_backward(y, *own.backward[1:5], x, own.dweight, own.dbias)
    assert (memory == 1).all()


def test_an_empty_batch_raises_and_inference_of_one_does_nothing(rng):
    own = case(rng, (4, 3, 7))
    empty = np.empty((0, 3, 7), np.float32)
    with pytest.raises(ValueError, match="empty"):
        batch_norm_forward(empty, *own.forward[1:4], empty, own.mean, own.invstd)
    batch_norm_inference(empty, np.zeros(3), np.ones(3), own.weight, own.bias, EPS, empty)


WRONG_TYPES = {
    "float32 or float64": lambda x: x.astype(np.int16),  # as which the kernels know float16
    "C-contiguous": np.asfortranarray,
    "one dtype": lambda x: x.astype(np.float64),
    "written": lambda x: np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape),
}


@pytest.mark.parametrize("said", WRONG_TYPES)
def test_types_that_it_is_not_for_are_refused_when_a_call_is_compiled(rng, said):
    own = case(rng, (4, 3, 7))
    own.y = WRONG_TYPES[said](np.ones_like(own.y))
    with pytest.raises(numba.TypingError, match=f"fastbn: .*{said}"):
        step(*own.all)


WRONG_TAILS = {
    "activation is RELU": ("relu", None, None, None),
    "leave out residual": (None, None, "r", "r"),
    "needs the bias": (RELU, None, None, None),
    "come together": (RELU, "bias", "r", None),
}


@pytest.mark.parametrize("said", WRONG_TAILS)
def test_tails_that_do_not_go_together_are_refused_when_a_call_is_compiled(rng, said):
    own = case(rng, (4, 3, 7))
    named = {"bias": own.bias, "r": own.x.copy()}
    tail = [named.get(item, item) if isinstance(item, str) else item for item in WRONG_TAILS[said]]
    with pytest.raises(numba.TypingError, match=f"fastbn: .*{said}"):
        batch_norm_backward(*own.backward, *tail)


def test_residuals_that_do_not_fit_raise_and_write_nothing(rng):
    own = case(rng, (4, 3, 7))
    wrong, dr = own.x[:2].copy(), poisoned(own.x.shape, np.float32)
    with pytest.raises(ValueError, match="residual has the shape of x"):
        batch_norm_forward(*own.forward, None, wrong)
    assert all(np.isnan(array).all() for array in own.results)
    batch_norm_forward(*own.forward)
    for bias, residual, dresidual, message in (
        (own.bias[:2], own.x, dr, "bias has the shape"),
        (own.bias, wrong, dr, "residual and dresidual have the shape"),
        (own.bias, own.dx, dr, "residual shares no memory with dx"),
        (own.bias, own.y, own.dy, "dresidual shares no memory with x, dy and dx"),
        (own.bias, own.y, own.y, "dresidual shares no memory with residual"),
    ):
        with pytest.raises(ValueError, match=message):
            batch_norm_backward(*own.backward, SILU, bias, residual, dresidual)
    assert np.isnan(own.dx).all()


# ---------------------------------------------------------------- what is kept on disk

CACHED = """
import sys
import numpy as np
from numba import njit
import fastbn
from fastbn_kernels.cpu import batch_norm_inference
assert "fastbn.backends.cpu.launch" not in sys.modules

@njit{options}
def normalized(x, mean, var, one, zero, y):
    batch_norm_inference(x, mean, var, one, zero, 1e-5, y)
    return y[0, 0, 0] + y[0, 0, 1]

x = np.array([[[1.0, 4.0]], [[1.0, 4.0]]], np.float32)
one = np.ones(1, np.float32)
total = normalized(x, np.ones(1), np.full(1, 9.0), one, 0 * one, x)
assert abs(total - 1) < 1e-5, total
print(sum(normalized.stats.cache_hits.values()), sum(batch_norm_inference.stats.cache_hits.values()))
"""


def test_the_next_process_loads_what_was_compiled_with_and_without_a_cache_of_the_callers(tmp_path):
    """Without, the parts that are fastbn's; with Numba's `cache=True`, the caller's function whole."""
    env = {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    found = []
    for name, options in (("plain", ""), ("plain", ""), ("cached", "(cache=True)"), ("cached", "(cache=True)")):
        script = tmp_path / f"{name}.py"
        script.write_text(CACHED.replace("{options}", options))
        code = f"import sys, runpy; sys.path.insert(0, {str(tmp_path)!r}); import {name}"
        found.append(run(code, env=env, timeout=300).split())
    assert found == [["0", "0"], ["0", "1"], ["0", "1"], ["1", "0"]]
