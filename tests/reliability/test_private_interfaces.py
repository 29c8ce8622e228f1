"""What fastbn relies on that its hosts have not promised, an interface a test; and that it does without where it can.

A test that fails here says what has moved. The code that uses it is named in the test.
"""

import inspect
import pickle
import re
import sys
from pathlib import Path

import llvmlite.binding
import numba
import numpy as np
import pytest
from numba.core import caching, callconv, compiler_lock, dispatcher, imputils
from numba.np.ufunc import parallel

from fastbn_kernels.build import blas, forks, regions, threads, whole
from processes import FOLD, ROOT, copy_packages, run


def require(condition, sentence):
    """Fail with a sentence."""
    if not condition:
        pytest.fail(sentence, pytrace=False)


def parameters(function):
    return list(inspect.signature(function).parameters)


# ---------------------------------------------------------------- Numba


def test_numba_was_tried_with_this_release():
    """`pyproject.toml` says which ones were."""
    text = (ROOT / "pyproject.toml").read_text()
    lowest, limit = re.search(r'"numba>=([\d.]+),<([\d.]+)"', text).groups()
    found = tuple(int(part) for part in numba.__version__.split(".")[:2])
    low, high = (tuple(int(part) for part in bound.split(".")) for bound in (lowest, limit))
    require(low <= found < high, f"Numba {numba.__version__} is outside of what pyproject.toml allows")


def test_numba_writes_parallel_regions_as_regions_py_knows():
    require(
        hasattr(parallel, regions.WRITER) and parameters(parallel.build_gufunc_kernel) == regions.WRITERS_PARAMETERS,
        "numba.np.ufunc.parallel.build_gufunc_kernel has other parameters: regions.py does not change regions any more",
    )
    require(
        regions.NUMBAS in parallel.build_gufunc_kernel.__code__.co_consts,
        "regions call something else than numba_parallel_for: spread.py cannot say who runs them",
    )
    require(regions.known(), "build_gufunc_kernel does not ask `ctx` for Python or `cgutils` for declarations any more")


def test_numba_makes_libraries_as_whole_py_knows():
    for owner, name, expected, names in whole.KNOWN:
        found = getattr(owner, name, None)
        require(
            found is not None and parameters(found) == expected and names <= set(found.__code__.co_names),
            f"{owner.__name__}.{name} is another: whole.py does not compile kernels as a whole any more",
        )
    require(whole.known(), "Codegen has no create_library: whole.py does not compile kernels as a whole any more")


def test_numbas_entry_takes_what_spread_py_hands_it():
    source = inspect.getsource(parallel.build_gufunc_kernel)
    require(
        "[byte_ptr_t] * 5 + [intp_t, ] * 3" in source and "[fnptr] + innerargs" in source,
        "numba_parallel_for has other arguments: _PARALLEL_FOR of spread.py must follow",
    )
    numba.get_num_threads()
    require(
        llvmlite.binding.address_of_symbol(regions.NUMBAS),
        "the threading layer does not offer numba_parallel_for under that name to llvmlite any more",
    )


def test_numbas_count_of_threads_is_a_function_of_c():
    require(
        getattr(parallel, threads.C_COUNT)() == numba.get_num_threads(),
        "numba.np.ufunc.parallel has no _get_num_threads: threads.count() takes 0.5 us more of a call",
    )


def test_numbas_compiler_lock_is_a_context():
    lock = compiler_lock.global_compiler_lock
    require(
        hasattr(lock, "__enter__") and hasattr(lock, "acquire"),
        "numba.core.compiler_lock.global_compiler_lock is no lock: Kernel.get and forks.py hold it",
    )


def test_numba_takes_constants_of_other_types():
    require(
        parameters(imputils.lower_constant) == ["ty"],
        "numba.core.imputils.lower_constant has changed: compiled code cannot name an activation (cpu/simd/tails.py)",
    )


def test_numbas_cache_has_the_parts_that_cache_py_replaces():
    require(hasattr(caching, "CompileResultCacheImpl"), "numba.core.caching.CompileResultCacheImpl is gone")
    require(hasattr(caching, "FunctionCache"), "numba.core.caching.FunctionCache is gone")
    cache = caching.FunctionCache(test_numbas_cache_has_the_parts_that_cache_py_replaces)
    for name in ("_cache_file", "_impl", "_py_func", "_impl_class"):
        require(hasattr(cache, name), f"FunctionCache has no {name}: cache.py puts its own files and names there")
    for name in ("_cache_path", "_dump", "_source_stamp"):
        require(hasattr(cache._cache_file, name), f"IndexDataCacheFile has no {name}: Files of cache.py needs it")
    require(hasattr(cache._impl, "_locator_classes"), "a cache has no _locator_classes: NoStrayFolder changes them")
    require(
        hasattr(cache._impl.locator, "get_suitable_cache_subpath"),
        "a locator has no get_suitable_cache_subpath: cache.py asks it where root's files are",
    )
    require(parameters(caching.FunctionCache.load_overload) == ["self", "sig", "target_context"], "load_overload moved")
    require(parameters(caching.FunctionCache.save_overload) == ["self", "sig", "data"], "save_overload moved")


def test_numbas_dispatchers_have_what_decorators_py_uses():
    function = numba.njit(lambda x: x + 1)
    function.compile((numba.types.int64,))
    require(hasattr(function, "_cache"), "a dispatcher has no _cache: cache.enable puts ours there")
    require(hasattr(function.stats, "cache_hits"), "a dispatcher does not count cache hits: the log and warmup do")
    require(hasattr(dispatcher.Dispatcher, "disable_compile"), "a dispatcher cannot be kept from compiling any more")


def test_numbas_functions_can_be_called_by_address():
    """As XLA's handlers do (`adapters/jax/xla_frame.py`)."""
    convention = callconv.CPUCallConv
    require(
        parameters(convention.get_function_type) == ["self", "restype", "argtypes"],
        "CPUCallConv.get_function_type moved: xla_frame.py declares kernels with it",
    )
    require(
        parameters(convention.call_function)[:6] == ["self", "builder", "callee", "resty", "argtys", "args"],
        "CPUCallConv.call_function moved: xla_frame.py calls kernels with it",
    )
    require(hasattr(convention, "return_status_propagate"), "CPUCallConv.return_status_propagate is gone")
    function = numba.njit(lambda x: x + 1)
    function.compile((numba.types.int64,))
    (compiled,) = function.overloads.values()
    require(
        compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name),
        "a compiled function does not tell its address by library and fndesc any more",
    )


@pytest.fixture
def cuda_dispatcher():
    pytest.importorskip("numba_cuda")
    if numba.config.ENABLE_CUDASIM:
        pytest.skip("the simulated GPU has no dispatcher")
    return pytest.importorskip("numba.cuda.dispatcher")


# ---------------------------------------------------------------- llvmlite, NumPy


def test_llvmlite_has_its_lock_where_a_fork_takes_it():
    lock = forks.llvm_lock()
    require(lock is not None, "llvmlite.binding.ffi.lib._lock is gone: a fork cannot wait for it (forks.py)")
    with lock:
        pass


@pytest.mark.slow
def test_numpy_has_what_numba_cuda_looks_up(cuda_dispatcher):
    """`cuda/build/numba_cuda.py` gives NumPy 2.5 the name `row_stack` back for the import of numba-cuda."""
    from fastbn_kernels.cuda.build import numba_cuda

    require(hasattr(np, "vstack"), "numpy.vstack, which stands in for row_stack, is gone")
    before = hasattr(np, "row_stack")
    with numba_cuda.row_stack_named():
        require(hasattr(np, "row_stack"), "numpy takes no row_stack from row_stack_named")
    require(hasattr(np, "row_stack") is before, "row_stack_named leaves NumPy changed")


def test_numpys_products_are_those_that_blas_py_was_tried_with():
    if not sys.platform.startswith("linux"):
        pytest.skip("loops run on Numba's threads on this system")
    build = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    if build["name"] not in ("scipy-openblas", "openblas64"):
        pytest.skip(f"NumPy's products are those of {build['name']}: loops run on Numba's threads")
    try:
        found = blas.functions()
    except blas.UnknownError as reason:
        pytest.fail(f"blas.py leaves loops to Numba's threads: {reason}", pytrace=False)
    require("gotoblas_pthread" in found, "OpenBLAS does not export gotoblas_pthread any more")


# ---------------------------------------------------------------- numba-cuda


@pytest.mark.slow
def test_numba_cuda_has_the_cache_that_fastbn_replaces(cuda_dispatcher):
    for name in ("CUDACache", "CUDACacheImpl"):
        require(hasattr(cuda_dispatcher, name), f"numba.cuda.dispatcher.{name} is gone: GPU kernels are not cached")
    cache = cuda_dispatcher.CUDACache(test_numba_cuda_has_the_cache_that_fastbn_replaces)
    for name in ("_cache_path", "_dump", "_source_stamp"):
        require(hasattr(cache._cache_file, name), f"its index has no {name}: Files of build/cache.py needs it")


@pytest.mark.slow
def test_numba_cuda_takes_constants_of_other_types(cuda_dispatcher):
    """A tail is a constant of a kernel, whose type is found again in the cache on disk."""
    from numba.cuda import cgutils
    from numba.cuda.core import imputils
    from numba.cuda.extending import typeof_impl

    from fastbn_kernels.cuda import tails

    require(parameters(imputils.lower_constant) == ["ty"], "numba.cuda.core.imputils.lower_constant: cuda/tails.py")
    require(hasattr(typeof_impl, "register"), "numba.cuda.extending.typeof_impl is no dispatcher: cuda/tails.py")
    require(hasattr(cgutils, "get_or_insert_function"), "numba.cuda.cgutils has changed: cuda/simd/tail_ops.py")
    tail = tails.beside(tails.named("leaky_relu", 0.2), True)
    assert pickle.loads(pickle.dumps(tail)) is tail
    omitted = numba.types.Omitted(tail)
    require(pickle.loads(pickle.dumps(omitted)) == omitted, "a tail is not found again in numba-cuda's cache")


@pytest.mark.slow
def test_numba_cuda_launches_as_launch_py_does(cuda_dispatcher):
    config = cuda_dispatcher.LaunchConfig(grid=(1, 1, 1), block=(1, 1, 1), shmem_size=0, is_cooperative=False)
    require(config.block == (1, 1, 1), "cuda.core's LaunchConfig takes other arguments: cuda/build/launch.py")
    require(callable(cuda_dispatcher.launch), "numba.cuda.dispatcher.launch is gone: cuda/build/launch.py")
    source = inspect.getsource(cuda_dispatcher)
    for name in ("self.cooperative", "self._codelibrary", "_specialized"):
        require(name in source, f"compiled GPU kernels have no {name} any more: cuda/build and cuda/gpu.py use it")
    from numba.cuda import codegen
    from numba.cuda.cudadrv import driver

    require(
        hasattr(codegen.CUDACodeLibrary, "get_cufunc"),
        "CUDACodeLibrary.get_cufunc is gone: cuda/gpu.py has the driver's function from it",
    )
    require(
        hasattr(driver.CudaPythonFunction, "set_shared_memory_carveout"),
        "CudaPythonFunction.set_shared_memory_carveout is gone: allow_shared of cuda/gpu.py",
    )
    require(hasattr(driver, "binding") and hasattr(driver, "driver"), "numba.cuda.cudadrv.driver has another shape")


# ---------------------------------------------------------------- hosts of adapters


@pytest.mark.frameworks
def test_mygrad_makes_a_tensor_of_an_operation():
    mygrad = pytest.importorskip("mygrad")
    require(
        {"op_kwargs", "constant"} <= set(parameters(mygrad.Tensor._op)),
        "mygrad.Tensor._op has other parameters: adapters/mygrad.py calls its operation with it",
    )


@pytest.mark.frameworks
def test_sklearn_checks_sample_weights():
    validation = pytest.importorskip("sklearn.utils.validation")
    require(
        {"sample_weight", "X", "dtype", "ensure_non_negative"} <= set(parameters(validation._check_sample_weight)),
        "sklearn's _check_sample_weight has other parameters: adapters/sklearn.py",
    )


@pytest.mark.frameworks
def test_torch_says_who_follows_its_operations():
    torch = pytest.importorskip("torch")
    from torch.autograd import forward_ad

    for name in ("_are_functorch_transforms_active", "_len_torch_dispatch_stack", "_get_tracing_state"):
        where = "is_traced of adapters/torch/functional.py"
        require(callable(getattr(torch._C, name, None)), f"torch._C.{name} is gone: {where}")
    require(isinstance(forward_ad._current_level, int), "torch.autograd.forward_ad._current_level is no number")
    with forward_ad._set_fwd_grad_enabled(False):
        off = torch._C._is_fwd_grad_enabled()
    require(off is False, "_set_fwd_grad_enabled does not switch: _forward_mode of adapters/torch/transforms.py")
    tensor = torch.ones(1)
    torch.autograd.graph.increment_version((tensor,))
    require(tensor._version == 1, "increment_version does not count a tensor that fastbn writes to")


@pytest.mark.frameworks
def test_torchs_operators_can_be_replaced():
    torch = pytest.importorskip("torch")
    from fastbn.adapters.torch.native import register, shim

    if tuple(int(n) for n in torch.__version__.split(".")[:2]) < (2, 13):
        pytest.skip("PyTorch has had all that this needs since 2.13")
    where = "calls go by Python: adapters/torch/native"
    require(shim.library() is not None, f"a function of shim.h is gone, so {where}/shim.py")
    require(register.works(), f"PyTorch did not take fastbn's operators, so {where}/register.py")
    statistics = "weight running_mean running_var save_mean"
    schemas = {  # the words on the dispatcher's stack, which forward.py and backward.py count
        "native_batch_norm": "input weight bias running_mean running_var training momentum eps",
        "_native_batch_norm_legit": "input weight bias running_mean running_var training momentum eps",
        "native_batch_norm_backward": f"grad_out input {statistics} save_invstd train eps output_mask",
        "batch_norm_backward": f"grad_out input {statistics} save_var update eps output_mask reserve",
    }
    for name, expected in schemas.items():
        found = " ".join(a.name for a in getattr(torch.ops.aten, name).default._schema.arguments)
        require(found == expected, f"aten::{name} takes {found}: {where}")


@pytest.mark.frameworks
def test_torch_says_who_looks_at_a_modules_calls():
    torch = pytest.importorskip("torch")
    where = "adapters/torch/deferred.py"
    module = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1))
    kept = {"forward": "_forward_hooks", "forward_pre": "_forward_pre_hooks"}
    kept |= {"full_backward": "_backward_hooks", "full_backward_pre": "_backward_pre_hooks"}
    for kind, name in kept.items():
        handle = getattr(module, f"register_{kind}_hook")(print)
        require(len(getattr(module, name)) == 1, f"Module.{name} does not keep hooks: is_quiet of {where}")
        handle.remove()
    has_any = torch.nn.modules.module._has_any_global_hook
    handle = torch.nn.modules.module.register_module_forward_pre_hook(print)
    require(has_any(), f"_has_any_global_hook does not see hooks: is_quiet of {where}")
    handle.remove()
    require(not has_any(), f"_has_any_global_hook sees hooks: is_quiet of {where}")
    require(isinstance(module[0], torch.nn.modules.conv._ConvNd), f"no convolution is a _ConvNd: FRESH of {where}")
    require([*module._modules.values()] == [*module], f"Sequential calls other modules than _modules: {where}")


FRAME = ["struct_size", "extension_start", "api", "ctx", "stage", "args", "rets", "attrs"]


@pytest.mark.frameworks
def test_xla_hands_over_the_frame_that_xla_frame_py_reads():
    jax = pytest.importorskip("jax")
    from fastbn.adapters.jax import xla

    major, minor = xla.version()
    require(
        major == 0, f"XLA's FFI is version {major}.{minor}: xla_frame.py reads the frame of 0.x, and Python is called"
    )
    header = (Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h").read_text()
    body = re.search(r"struct XLA_FFI_CallFrame \{(.*?)\n\};", header, re.DOTALL).group(1)
    body = re.sub(r"//.*", "", body)
    fields = re.findall(r"(\w+);", body)
    require(
        fields[: len(FRAME)] == FRAME, f"XLA_FFI_CallFrame has the fields {fields}: the words in xla_frame.py moved"
    )


# ---------------------------------------------------------------- without them

TAKE_AWAY = {
    "Numba's cache": (
        "import numba.core.caching as c; del c.CompileResultCacheImpl",
        "the kernel cache does not work",
    ),
    "a part of it": (
        "import numba.core.caching as c; del c.IndexDataCacheFile._dump",
        "the kernel cache does not work",
    ),
    "llvmlite's lock": (
        "import numba, llvmlite.binding as b; handle = b.ffi.lib\n"
        "class Other:\n    def __getattr__(self, name):\n"
        "        if name == '_lock': raise AttributeError(name)\n        return getattr(handle, name)\n"
        "b.ffi.lib = Other()",
        "llvmlite's lock has moved",
    ),
}


@pytest.mark.parametrize("what", TAKE_AWAY)
def test_without_it_kernels_run_and_the_log_says_so_once(what, tmp_path):
    """Parallel regions are taken away in `test_spread.py`."""
    taken, sentence = TAKE_AWAY[what]
    env = copy_packages(tmp_path / "packages")
    fork = "\nif hasattr(os, 'fork'):\n    pid = os.fork()\n    if pid == 0: os._exit(0)\n    os.waitpid(pid, 0)"
    script = (
        FOLD.replace("import numpy", taken + "\nimport numpy") + "fold()\nfold_parameters._compiled.clear()\nfold()"
    )
    out = run(script + fork, env=env)
    if sentence is not None:
        assert out.count(sentence) == 1
    assert out.count("WARNING") == 1
