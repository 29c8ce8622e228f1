"""Kernels that XLA calls by itself: every plan, every thread, no memory, and Python that ends meanwhile."""

import numpy as np
import pytest

import fastbn
from grid import affine, draw
from plans import force
from processes import run

pytest.importorskip("jax", reason="JAX is not installed; make test-all installs it")
import jax
import jax.numpy as jnp

from fastbn.adapters.jax import batch_norm, xla
from fastbn_kernels.build.decorators import scalar

pytestmark = pytest.mark.frameworks

TRAINING, INFERENCE, BACKWARD = "forward", "normalize", "backward"


def kernels(*families):
    """The kernels of a training pass, of inference and of a backward pass."""
    return [f"{what}_{family}" for what, family in zip((TRAINING, INFERENCE, BACKWARD), families, strict=True)]


def calls(family):
    return [f"call_{what}_{family}" for what in ("forward", "forward", "backward")]


# Shape, axis, changes of the plan, and the kernels that then take it.
PLANS = {
    "small rows": ((32, 24), 1, {}, calls("channels_last")),
    "small segments": ((6, 5, 4), 1, {}, calls("channels_first")),
    "rows, wide": ((4, 5000), 1, {}, calls("channels_last")),
    "rows": ((3000, 24), 1, {}, kernels(*["channels_last"] * 3)),
    "channels last": ((20, 9, 11, 24), -1, {}, kernels(*["channels_last"] * 3)),
    "short segments": ((16, 100, 5, 5), 1, {}, kernels("short_segments", "channels_first", "short_segments")),
    "segments": ((4, 6, 40, 45), 1, {"family": "channels_first"}, kernels(*["channels_first"] * 3)),
    "tiles": ((4, 6, 40, 45), 1, {"family": "tiles"}, kernels("tiles", "channels_first", "tiles")),
    "overlapped": (
        (2, 4, 80, 80), 1, {"family": "overlapped", "groups": 2, "past_cache": (True, True)},
        kernels("overlapped", "channels_first", "overlapped"),
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def on_the_cpu():
    with jax.default_device(jax.devices("cpu")[0]):
        yield


@pytest.fixture
def called(monkeypatch):
    """Return the targets that are traced; a callback instead of one fails the test."""
    names = []
    make = jax.ffi.ffi_call
    monkeypatch.setattr(jax.ffi, "ffi_call", lambda name, *a, **k: names.append(name) or make(name, *a, **k))
    monkeypatch.setattr(jax, "pure_callback", None)
    return names


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", PLANS)
def test_every_plan_gives_the_bits_of_fastbn(rng, monkeypatch, called, name, training):
    shape, axis, changes, expected_kernels = PLANS[name]
    force(monkeypatch, **changes)
    x, dy = draw(rng, shape, np.float32, mean=3), draw(rng, shape, np.float32)
    weight, bias = affine(rng, shape[axis], np.float32)
    old = draw(rng, shape[axis], np.float32), rng.uniform(0.5, 2, shape[axis]).astype(np.float32)
    options = {"training": training, "momentum": 0.3, "eps": 1e-3, "axis": axis}

    def net(x, weight, bias):
        y, mean, var = batch_norm(x, weight, bias, *old, **options)
        return y, (mean, var)

    y, back, state = jax.vjp(net, x, weight, bias, has_aux=True)
    found = [np.asarray(a) for a in (y, *back(jnp.asarray(dy)), *state)]
    running = [a.copy() for a in old]
    expected, ctx = fastbn.batch_norm(x, weight, bias, running_mean=running[0], running_var=running[1], **options)
    grads = fastbn.batch_norm_backward(dy, ctx)
    for got, exact in zip(found, (expected, grads.dx, grads.dweight, grads.dbias, *running), strict=True):
        assert got.dtype == exact.dtype
        np.testing.assert_array_equal(got, exact)
    for target, kernel in zip(called, (expected_kernels[0 if training else 1], expected_kernels[2]), strict=True):
        assert target == f"fastbn_{kernel}_float32"


TAILS = {"": ("small segments", {}), "relu": ("small rows", {"activation": "relu"}),
         "leaky_relu(0.3)": ("rows", {"activation": ("leaky_relu", 0.3)})}  # fmt: skip


@pytest.mark.parametrize("added", [False, True])
@pytest.mark.parametrize("tail", TAILS)
def test_kernels_do_activations_and_residuals_too(rng, called, tail, added):
    """A residual is an argument of XLA's, its gradient a result."""
    plan, options = TAILS[tail]
    shape, axis, _, expected_kernels = PLANS[plan]
    x, dy = draw(rng, shape, np.float32, mean=3), draw(rng, shape, np.float32)
    arrays = {"x": x} | ({"residual": draw(rng, shape, np.float32)} if added else {})
    y, back = jax.vjp(lambda arrays: batch_norm(**arrays, axis=axis, **options)[0], arrays)
    found = back(jnp.asarray(dy))[0]
    expected, ctx = fastbn.batch_norm(**arrays, axis=axis, **options)
    np.testing.assert_array_equal(y, expected)
    grads = fastbn.batch_norm_backward(dy, ctx)
    for name, gradient in found.items():
        np.testing.assert_array_equal(gradient, getattr(grads, f"d{name}"))
    name = tail or "None"
    then = [f"_{name}_residual" * added or f"_{name}" * bool(tail), f"_{name}" * bool(tail)]
    then[1] += "_residual_residual" * (added and bool(tail))
    assert called == [f"fastbn_{expected_kernels[i]}_float32{end}" for i, end in zip((0, 2), then, strict=True)]


def test_what_kernels_do_not_take_goes_through_python(rng, called, monkeypatch):
    """Parameters of another dtype than they take; a JAX that does not say which interface it has; a GPU."""
    x, c = draw(rng, (8, 3), np.float32), np.ones(3, np.float32)
    monkeypatch.setattr(
        jax, "pure_callback", lambda call, shapes, *_, **__: [np.zeros(s.shape, s.dtype) for s in shapes]
    )
    batch_norm(x, c)
    assert len(called) == 1
    with jax.enable_x64(True):
        batch_norm(x, c.astype(float))
    with monkeypatch.context() as patch:
        patch.setattr(xla, "version", lambda: (1, 0))
        batch_norm(x, c)
    with monkeypatch.context() as patch:
        patch.setattr(jax, "default_backend", lambda: "gpu")
        batch_norm(x, c)
    assert len(called) == 1


def test_the_version_is_the_headers(tmp_path, monkeypatch):
    major, minor = xla.version()
    assert major == 0
    assert minor > 0
    monkeypatch.setattr(jax.ffi, "include_dir", lambda: str(tmp_path))
    assert xla.version.__wrapped__() == (-1, -1)


@pytest.mark.parametrize("fails", [True, False])
def test_no_memory_is_an_error_of_jax(fails):
    """As a kernel does that cannot have its workspace, by raising MemoryError."""

    @scalar
    def body(given, step, kernel, itemsize):
        if fails:
            raise MemoryError
        return False

    name = f"fastbn_test_no_memory_{fails}"
    xla._register(name, body, 0, 0, 4)
    call = jax.ffi.ffi_call(name, jax.ShapeDtypeStruct((1,), np.float32))
    if fails:
        with pytest.raises(jax.errors.JaxRuntimeError, match="RESOURCE_EXHAUSTED: fastbn: no memory left"):
            jax.block_until_ready(call(np.zeros(1, np.float32), numbers=np.zeros(1)))
    else:
        jax.block_until_ready(call(np.zeros(1, np.float32), numbers=np.zeros(1)))


SCRIPT = """
import jax, jax.numpy as jnp, numpy as np
from fastbn.adapters.jax import batch_norm
x = jnp.asarray(np.random.default_rng(0).normal(size=(32, 64, 28, 28)), jnp.float32)
def other(x):  # a second of it
    return jnp.sin(jax.lax.fori_loop(0, 30, lambda _, a: jnp.tanh(a * 1.01), x))
step = jax.jit(jax.grad(lambda x: (batch_norm(jnp.tanh(batch_norm(other(x), axis=1)[0]), axis=1)[0] ** 3).sum()))
compiled = step.lower(x).compile()
for _ in range(3):
    x = compiled(x)  # the second and third wait for the ones before
"""
ONE_THREAD = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"


@pytest.mark.parametrize(("layer", "flags"), [("tbb", ""), ("tbb", ONE_THREAD), ("omp", ""), ("workqueue", "")])
def test_python_may_end_while_calls_are_under_way_or_wait_for_their_arguments(layer, flags):
    run(SCRIPT, env={"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "NUMBA_THREADING_LAYER": layer})


def test_python_may_end_under_vmap():
    mapped = "step = jax.jit(jax.vmap(step))\nx = x.reshape(4, 8, 64, 28, 28)\ncompiled = step"
    run(SCRIPT.replace("compiled = step", mapped), env={"JAX_PLATFORMS": "cpu"})


def test_functions_that_run_at_the_end_of_python_see_results():
    script = """
import atexit
def check():
    print((np.asarray(step(x)) == seen).all())
atexit.register(check)
import jax, jax.numpy as jnp, numpy as np
from fastbn.adapters.jax import batch_norm
x = jnp.asarray(np.random.default_rng(0).normal(size=(3000, 24)), jnp.float32)
step = jax.jit(jax.grad(lambda x: (batch_norm(x)[0] ** 3).sum()))
seen = np.asarray(step(x))
"""
    assert run(script, env={"JAX_PLATFORMS": "cpu"}).split() == ["True"]
