"""fastbn.adapters.jax against fastbn itself, against JAX's own derivatives, and under JAX's transformations."""

import functools
import threading

import numpy as np
import pytest

import fastbn
from grid import affine, draw
from processes import run

pytest.importorskip("jax", reason="JAX is not installed; make test-all installs it")
import jax
import jax.numpy as jnp

from fastbn.adapters.jax import batch_norm, xla

pytestmark = pytest.mark.frameworks

DTYPES = ["float32", "float64", "float16", "bfloat16"]


@pytest.fixture(autouse=True)
def on_the_cpu():
    with jax.default_device(jax.devices("cpu")[0]), jax.enable_x64(True):
        yield


def plain(x, weight, bias, mean=None, var=None, axis=-1):
    """The formula, which JAX differentiates by itself."""
    along = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
    shape = [1] * x.ndim
    shape[axis] = -1
    if mean is None:
        mean = x.mean(along)
        var = ((x - mean.reshape(shape)) ** 2).mean(along)
    xhat = (x - mean.reshape(shape)) / jnp.sqrt(var.reshape(shape) + 1e-5)
    return xhat * weight.reshape(shape) + bias.reshape(shape)


@pytest.fixture
def through_python(monkeypatch):
    """Calls go through Python, as on a GPU."""
    monkeypatch.setattr(xla, "takes", lambda *_: False)


@pytest.mark.parametrize(("dtype", "axis"), [(dtype, -1) for dtype in DTYPES] + [("float32", 1)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("python", [False, True])
def test_the_same_bits_as_fastbn(rng, dtype, axis, training, python, request):
    if python:
        request.getfixturevalue("through_python")
    own = np.float64 if dtype == "float64" and not python else np.float32
    x = jnp.asarray(draw(rng, (6, 5, 4, 5), np.float64)).astype(dtype)
    dy = jnp.asarray(draw(rng, x.shape, np.float64)).astype(dtype)
    weight, bias = affine(rng, 5, own)
    old = draw(rng, 5, own), rng.uniform(0.5, 2, 5).astype(own)
    options = {"training": training, "momentum": 0.3, "correction": 1, "eps": 1e-3, "axis": axis}

    @jax.jit
    def both(x, weight, bias, mean, var, dy):
        y, back, state = jax.vjp(lambda *a: (lambda r: (r[0], r[1:]))(batch_norm(*a, mean, var, **options)),
                                 x, weight, bias, has_aux=True)  # fmt: skip
        return y, back(dy), state

    y, grads, state = both(x, weight, bias, *old, dy)
    mean, var = (a.copy() for a in old)
    expected, ctx = fastbn.batch_norm(np.asarray(x), weight, bias, running_mean=mean, running_var=var, **options)
    want = fastbn.batch_norm_backward(np.asarray(dy), ctx)
    for got, exact in zip((y, *grads, *state), (expected, want.dx, want.dweight, want.dbias, mean, var), strict=True):
        assert got.dtype == exact.dtype
        np.testing.assert_array_equal(np.asarray(got), exact)


@pytest.mark.parametrize("absent", [(), ("weight",), ("bias",), ("weight", "bias")], ids=str)
@pytest.mark.parametrize("training", [True, False])
def test_first_and_second_derivatives_are_jaxs_own(rng, absent, training):
    x, dy, v = (draw(rng, (6, 3, 4), np.float64) for _ in range(3))
    weight, bias = affine(rng, 3, np.float64)
    given = {"weight": weight, "bias": bias}
    given = {name: value for name, value in given.items() if name not in absent}
    frozen = {} if training else {"mean": draw(rng, 3, np.float64), "var": rng.uniform(0.5, 2, 3)}

    def ours(x, given):
        mean, var = frozen.get("mean"), frozen.get("var")
        return batch_norm(x, given.get("weight"), given.get("bias"), mean, var, training=training, axis=1)[0]

    def theirs(x, given):
        return plain(x, given.get("weight", jnp.ones(3)), given.get("bias", jnp.zeros(3)), axis=1, **frozen)

    def first(f, x, given, dy):  # by everything
        return jax.grad(lambda x, given: (jnp.sin(f(x, given)) * dy).sum(), (0, 1))(x, given)

    def second(f):
        def loss(x, given, dy):
            dx, rest = first(f, x, given, dy)
            return (dx**2 * v).sum() + sum((r**2).sum() for r in rest.values())

        return jax.jit(jax.grad(loss, (0, 1, 2)))

    close = functools.partial(np.testing.assert_allclose, rtol=1e-10, atol=1e-10)
    jax.tree.map(close, first(ours, x, given, dy), first(theirs, x, given, dy))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-8), second(ours)(x, given, dy),
                 second(theirs)(x, given, dy))  # fmt: skip


def test_a_hessian_is_jaxs_own_and_a_third_derivative_is_refused(rng):
    x, dy = draw(rng, (4, 2), np.float64), draw(rng, (4, 2), np.float64)

    def loss(f):
        return lambda x: (f(x) ** 2 * dy).sum()

    ours = loss(lambda x: batch_norm(x)[0])
    theirs = loss(lambda x: plain(x, jnp.ones(2), jnp.zeros(2)))
    hessian = jax.jacrev(jax.jacrev(ours))
    np.testing.assert_allclose(hessian(x), jax.hessian(theirs)(x), atol=1e-9)
    with pytest.raises(NotImplementedError, match="a third one was asked for"):
        jax.jacrev(hessian)(x)


RENORM = fastbn.Renorm(1.1, 0.1)
BEYOND = {
    "activation": {"activation": "tanh"},
    "leaky": {"activation": ("leaky_relu", 0.3), "update_stats": False},
    "residual": {"residual": True},
    "both": {"residual": True, "activation": "relu"},
    "frozen": {"residual": True, "activation": "silu", "training": False},
    "mask": {"mask": True, "activation": "sigmoid"},
    "ghosts": {"ghost_batch_size": 4, "activation": "relu", "residual": True},
    "all": {"mask": True, "ghost_batch_size": 4, "renorm": RENORM, "residual": True, "momentum": 0.3},
    "renorm": {"renorm": RENORM, "update_stats": False},
}


@pytest.mark.parametrize("python", [False, True])
@pytest.mark.parametrize("name", BEYOND)
def test_what_goes_beyond_has_the_bits_of_fastbn(rng, name, python, request):
    if python:
        request.getfixturevalue("through_python")
    x, dy = draw(rng, (6, 7, 5), np.float32, mean=2), draw(rng, (6, 7, 5), np.float32)
    options, (weight, bias) = dict(BEYOND[name]), affine(rng, 5, np.float32)
    arrays = {"x": x, "weight": weight, "bias": bias}
    if options.pop("residual", False):
        arrays["residual"] = draw(rng, x.shape, np.float32)
    mask = np.arange(7) < np.array([7, 1, 3, 0, 2, 5])[:, None] if options.pop("mask", False) else None
    old = draw(rng, 5, np.float32), rng.uniform(0.5, 2, 5).astype(np.float32)

    @jax.jit
    def both(arrays, mask, old, dy):
        def net(arrays):
            y, *state = batch_norm(
                **arrays, running_mean=old[0], running_var=old[1], mask=None if mask is None else mask[..., None],
                **options,
            )  # fmt: skip
            return y, state

        y, back, state = jax.vjp(net, arrays, has_aux=True)
        return y, back(dy)[0], state

    y, grads, state = both(arrays, mask, old, dy)
    running = [array.copy() for array in old]
    named = {"running_mean": running[0], "running_var": running[1]}
    expected, ctx = fastbn.batch_norm(**arrays, **named, **options, mask=mask, axis=-1)
    np.testing.assert_array_equal(y, expected)
    want = fastbn.batch_norm_backward(dy, ctx)
    for name, gradient in grads.items():
        np.testing.assert_array_equal(gradient, getattr(want, f"d{name}"), err_msg=name)
    np.testing.assert_array_equal(state, running)


@pytest.mark.parametrize("activation", ["relu", "relu6", "leaky_relu", "tanh", "sigmoid", "silu", "gelu"])
@pytest.mark.parametrize("training", [True, False])
def test_second_derivatives_with_an_activation_are_jaxs_own(rng, activation, training):
    x, residual, dy, v = (draw(rng, (6, 3, 4), np.float64) for _ in range(4))
    weight, bias = affine(rng, 3, np.float64)
    frozen = {} if training else {"mean": draw(rng, 3, np.float64), "var": rng.uniform(0.5, 2, 3)}

    def ours(x, weight, bias, residual):
        return batch_norm(x, weight, bias, frozen.get("mean"), frozen.get("var"), training=training, axis=1,
                          residual=residual, activation=activation)[0]  # fmt: skip

    def theirs(x, weight, bias, residual):
        named = functools.partial(jax.nn.gelu, approximate=False) if activation == "gelu" else None
        return (named or getattr(jax.nn, activation))(plain(x, weight, bias, axis=1, **frozen) + residual)

    def second(f):
        def loss(given, dy):
            grads = jax.grad(lambda given: (jnp.sin(f(*given)) * dy).sum())(given)
            return (grads[0] * v).sum() + sum((g**2).sum() for g in grads[1:])

        return jax.jit(jax.grad(loss, (0, 1)))((x, weight, bias, residual), dy)

    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-8), second(ours), second(theirs))


def test_a_mask_is_flaxs_but_for_what_is_left_out(rng):
    nn = pytest.importorskip("flax.linen")
    x, mask = draw(rng, (6, 7, 5), np.float32, mean=1), rng.random((6, 7, 1)) < 0.6
    layer = nn.BatchNorm(use_running_average=False, momentum=0.9, use_fast_variance=False)
    variables = layer.init(jax.random.key(0), x)
    wanted, state = layer.apply(variables, x, mask=mask, mutable=["batch_stats"])
    c = jnp.ones(5, "float32")
    y, mean, var = batch_norm(x, c, 0 * c, 0 * c, c, mask=mask, momentum=0.1, correction=0)
    np.testing.assert_allclose(y, np.where(mask, wanted, 0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(mean, state["batch_stats"]["mean"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(var, state["batch_stats"]["var"], rtol=1e-5)


def test_masks_and_tails_under_vmap(rng):
    x, residual = draw(rng, (3, 20, 4), np.float32), draw(rng, (3, 20, 4), np.float32)
    mask = rng.random((3, 20, 1)) < 0.5

    def loss(x, residual, mask):
        return (batch_norm(x, residual=residual, mask=mask, activation="tanh")[0] ** 3).sum()

    for given in (mask, None):
        axes = (0, 0, None if given is None else 0)
        dx, dresidual = jax.vmap(jax.grad(loss, (0, 1)), axes)(x, residual, given)
        for i in range(3):
            own = jax.grad(loss, (0, 1))(x[i], residual[i], None if given is None else given[i])
            np.testing.assert_array_equal([dx[i], dresidual[i]], own)


def test_second_derivatives_of_what_has_none_are_refused(rng):
    x, mask, c = draw(rng, (8, 3), np.float32), np.arange(8)[:, None] < 5, jnp.ones(3, "float32")
    for options in ({"mask": mask}, {"ghost_batch_size": 4}, {"renorm": RENORM}):
        loss = lambda x: (batch_norm(x, running_mean=c, running_var=c, **options)[0] ** 3).sum()  # noqa: B023, E731
        with pytest.raises(NotImplementedError, match="a second one was asked for"):
            jax.grad(lambda x: (jax.grad(loss)(x) ** 2).sum())(x)  # noqa: B023


def test_vmap_takes_every_element_by_itself(rng):
    x, (weight, bias) = draw(rng, (3, 20, 4), np.float32), affine(rng, 4, np.float32)
    y, mean, var = jax.vmap(lambda x: batch_norm(x, weight, bias, weight, weight, momentum=1, correction=0))(x)
    for i in range(3):
        expected, ctx = fastbn.batch_norm(x[i], weight, bias)
        np.testing.assert_array_equal(y[i], expected)
        np.testing.assert_array_equal(mean[i], ctx.moments.mean.astype(np.float32))
        np.testing.assert_array_equal(var[i], ctx.moments.var().astype(np.float32))
    grads = jax.vmap(jax.grad(lambda x: (batch_norm(x, weight, bias)[0] ** 3).sum()))(x)
    assert grads.shape == x.shape


def test_state_passes_through_a_scan(rng):
    batches = draw(rng, (5, 16, 3), np.float32, mean=4)

    def step(state, x):
        y, *state = batch_norm(x, None, None, *state, momentum=0.2)
        return tuple(state), y

    (mean, var), _ = jax.jit(functools.partial(jax.lax.scan, step))((jnp.zeros(3, "f"), jnp.ones(3, "f")), batches)
    layer = fastbn.BatchNorm(3, momentum=0.2)
    for x in batches:
        layer(x)
    np.testing.assert_array_equal(mean, layer.running_mean)
    np.testing.assert_array_equal(var, layer.running_var)


def test_without_x64_everything_is_float32(rng):
    with jax.enable_x64(False):
        y, mean, var = batch_norm(draw(rng, (8, 3), np.float64), np.ones(3), None, np.zeros(3), np.ones(3))
    assert y.dtype == mean.dtype == var.dtype == np.float32


def test_what_does_not_fit_is_refused_while_tracing_in_the_words_of_fastbn():
    x, c = jnp.ones((4, 3)), jnp.ones(3)
    for bad, argument, arguments, options in (
        (TypeError, "x", (jnp.ones((4, 3), int),), {}),
        (ValueError, "x", (c,), {}),
        (ValueError, "axis", (x,), {"axis": 2}),
        (ValueError, "weight", (x, jnp.ones(4)), {}),
        (TypeError, "bias", (x, c, c.astype("float16")), {}),
        (ValueError, "running_var", (x, c, c, c), {}),
        (ValueError, "running_mean, running_var", (x, c, c), {"training": False}),
        (ValueError, "eps", (x,), {"eps": 0.0}),
        (ValueError, "momentum", (x, c, c, c, c), {"momentum": 2}),
        (ValueError, "x", (x[:0],), {}),
        (ValueError, "correction", (x[:1], c, c, c, c), {}),
        (ValueError, "activation", (x,), {"activation": "swish"}),
        (ValueError, "ghost_batch_size", (x,), {"ghost_batch_size": 0}),
        (ValueError, "running_mean, running_var", (x,), {"renorm": RENORM}),
    ):
        with pytest.raises(bad, match=f"^{argument}: expected") as ours:
            jax.jit(functools.partial(batch_norm, **options))(*arguments)
        x_, weight, bias, *running = (np.array(a) for a in (*arguments, *[None] * (5 - len(arguments))))
        given = {"weight": weight, "bias": bias} | dict(zip(("running_mean", "running_var"), running, strict=True))
        given = {name: value for name, value in given.items() if value.ndim}
        with pytest.raises(bad) as theirs:
            fastbn.batch_norm(x_, **({"axis": -1} | options), **given)
        assert str(ours.value).startswith(str(theirs.value))


def test_residuals_and_masks_that_do_not_fit_are_refused_while_tracing(rng):
    x = jnp.ones((4, 3), "float32")
    for error, message, options in (
        (ValueError, "residual: expected the shape of x", {"residual": x[:2]}),
        (TypeError, "residual: expected the dtype of x", {"residual": x.astype("float16")}),
        (TypeError, "mask: expected an array of bool .*, got dtype int", {"mask": jnp.ones((4, 1), int)}),
        (ValueError, r"mask: expected .* got shape \(4,\)", {"mask": jnp.ones(4, bool)}),
        (ValueError, r"mask: expected .* got shape \(4, 3\)", {"mask": jnp.ones((4, 3), bool)}),
        (ValueError, r"mask: expected .* got shape \(1, 4, 1\)", {"mask": jnp.ones((1, 4, 1), bool)}),
    ):
        with pytest.raises(error, match=message):
            jax.jit(functools.partial(batch_norm, **options))(x)
    with pytest.raises(jax.errors.JaxRuntimeError, match="mask: expected at least one True in training"):
        jax.block_until_ready(batch_norm(x, mask=np.zeros((4, 1), bool)))


def test_an_empty_batch_passes_inference():
    c = jnp.ones(3)
    y, mean, var = batch_norm(jnp.ones((0, 3)), c, c, c, c, training=False)
    assert y.shape == (0, 3)
    np.testing.assert_array_equal([mean, var], np.ones((2, 3)))


def test_forward_mode_is_refused():
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(lambda x: batch_norm(x)[0], (jnp.ones((4, 3)),), (jnp.ones((4, 3)),))


def test_an_error_inside_python_reaches_the_caller(monkeypatch, through_python):
    def fail(*_, **__):
        raise MemoryError("no memory left")

    monkeypatch.setattr(fastbn, "batch_norm", fail)
    with pytest.raises(jax.errors.JaxRuntimeError, match="MemoryError: no memory left"):
        jax.block_until_ready(batch_norm(jnp.ones((7, 3)))[0])


@pytest.mark.parametrize("size", [16, 1024])
def test_calls_from_many_threads_end_and_agree(rng, size):
    x = jnp.asarray(draw(rng, (64, size), np.float32))
    step = jax.jit(jax.grad(lambda x: (batch_norm(jnp.tanh(batch_norm(x)[0]))[0] ** 3).sum()))
    expected, found = np.asarray(step(x)), []
    threads = [
        threading.Thread(target=lambda: found.extend(np.asarray(step(x)) for _ in range(20)), daemon=True)
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 80
    for grad in found:
        np.testing.assert_array_equal(grad, expected)


def test_one_thread_of_xla_is_enough_and_leaving_with_results_unread_is_clean():
    script = """
import jax, jax.numpy as jnp, numpy as np
from fastbn.adapters.jax import batch_norm
x = jnp.asarray(np.random.default_rng(0).normal(size=(32, 64, 28, 28)), jnp.float32)
def other(x):  # a second of it
    return jnp.sin(jax.lax.fori_loop(0, 30, lambda _, a: jnp.tanh(a * 1.01), x))
step = jax.jit(jax.grad(lambda x: (batch_norm(jnp.tanh(other(x) + batch_norm(x, axis=1)[0]), axis=1)[0] ** 3).sum()))
assert np.isfinite(np.asarray(step(x))).all()
for _ in range(3):
    step(x)  # dropped
"""
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    run(script, env={"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"})
