"""What the GPU's kernels compute of an activation: their instructions on this processor, with its own exp and tanh."""

import ctypes
import ctypes.util

import numpy as np
import pytest
from llvmlite import binding, ir

from gpu_helpers import SIMULATED
from smooth import smooth

pytest.importorskip("numba_cuda", reason="numba-cuda is not installed; make test-all installs it")
pytestmark = pytest.mark.skipif(SIMULATED, reason="the simulated GPU has no instructions")

KINDS = {np.float32: ir.FloatType(), np.float64: ir.DoubleType()}
# Roundings in a result and in a slope, of the larger of its terms: as on the CPU, of an exp and a tanh within 2 units.
ROUNDINGS = {"tanh": (4, 11), "sigmoid": (7, 11), "silu": (8, 10), "gelu": (11, 11)}


def compiled(write, dtype):
    """Return a function of an array, made of what `write` writes of one number."""
    kind, module = KINDS[dtype], ir.Module()
    module.triple = binding.get_default_triple()
    function = ir.Function(module, ir.FunctionType(kind, [kind]), "one")
    builder = ir.IRBuilder(function.append_basic_block())
    builder.ret(write(builder, function.args[0]))
    libm = ctypes.CDLL(ctypes.util.find_library("m"))
    end = "f" if dtype == np.float32 else ""
    for name in ("exp", "fabs", "tanh"):
        binding.add_symbol(f"__nv_{name}{end}", ctypes.cast(getattr(libm, name + end), ctypes.c_void_p).value)
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    parsed = binding.parse_assembly(str(module))
    machine = binding.Target.from_default_triple().create_target_machine()
    engine = binding.create_mcjit_compiler(parsed, machine)
    c = ctypes.c_float if dtype == np.float32 else ctypes.c_double
    call = ctypes.CFUNCTYPE(c, c)(engine.get_function_address("one"))
    return lambda values: np.array([call(v) for v in values.tolist()], dtype), engine


@pytest.mark.parametrize("dtype", KINDS)
@pytest.mark.parametrize("name", ROUNDINGS)
def test_activations(rng, name, dtype):
    from fastbn_kernels.cuda.simd import tail_ops
    from fastbn_kernels.cuda.tails import Kind

    far = 13 if dtype == np.float32 else 30
    z = np.concatenate([rng.uniform(-far, far, 2000), rng.uniform(-1, 1, 500), 10 ** rng.uniform(-30, 0, 100)])
    z = z.astype(dtype)
    y, slope, term = smooth(name, z)
    of_y, of_slope = ROUNDINGS[name]
    rounding, tiny = np.finfo(dtype).eps / 2, np.finfo(dtype).smallest_normal
    one = Kind(name)
    function, _kept = compiled(lambda builder, v: tail_ops.activated_one(builder, v, one), dtype)
    assert (np.abs(function(z) - y) <= of_y * rounding * np.abs(y) + tiny).all()
    limits = function(np.array([np.inf, -np.inf, np.nan], dtype))
    assert (np.isnan(limits) == [False, False, True]).all()
    function, _also = compiled(lambda builder, v: tail_ops.slope_one(builder, v, name), dtype)
    assert (np.abs(function(z) - slope) <= of_slope * rounding * np.maximum(np.abs(slope), term) + tiny).all()
    limits = function(np.array([np.inf, -np.inf], dtype))
    np.testing.assert_array_equal(limits, [0 if name in ("tanh", "sigmoid") else 1, 0])


@pytest.mark.parametrize("dtype", KINDS)
def test_what_is_bent(rng, dtype):
    """At the bends too; NaN goes through, and lets a gradient pass, as in PyTorch."""
    from fastbn_kernels.cuda.simd import tail_ops
    from fastbn_kernels.cuda.tails import Kind

    z = np.concatenate([[0.0, -0.0, 6, np.inf, -np.inf, np.nan], rng.uniform(-9, 9, 100)]).astype(dtype)
    with np.errstate(invalid="ignore"):
        leaky = np.where(z > 0, z, z * dtype(0.3)), np.where(z > 0, 1, dtype(0.3))
    for kind, y, slope in (
        (Kind("relu"), np.maximum(z, 0), ~(z <= 0)),
        (Kind("relu6"), np.clip(z, 0, 6), ~((z <= 0) | (z >= 6))),
        (Kind("leaky_relu", 0.3), *leaky),
    ):
        function, _kept = compiled(lambda builder, v, kind=kind: tail_ops.activated_one(builder, v, kind), dtype)
        np.testing.assert_array_equal(function(z), y)
        function, _also = compiled(
            lambda builder, v, kind=kind: tail_ops.through_one(builder, ir.Constant(v.type, 1.0), v, kind), dtype
        )
        np.testing.assert_array_equal(function(z), slope)
