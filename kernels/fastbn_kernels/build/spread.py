"""Who runs the pieces of a parallel loop: the one place where work is spread over threads.

Kernels are `@njit(parallel=True)`, compiled once. Each of their `prange` loops calls `fastbn_parallel_for` (`regions`),
which is made here, once a process, and asks at every call whom the calling thread has chosen:

- `LAYER`, what everybody starts with: Numba's threading layer (tbb, omp or workqueue). A launch over arrays of NumPy
  is offered to the threads of NumPy's matrix products first (`blas`), which take it while they are awake.
- `NUMBA`: the layer, whoever would have it otherwise; for a host whose own products run elsewhere.
- `CALLING_THREAD`: all pieces one after the other, on no other thread. Also what a fork turns to if the layer does not
  survive it (`forks`).
- The address of a host's function ``host(begin, end, grain, run, context)`` which calls ``run(i, j, context)`` for
  ranges that make up ``begin <= i < end``, from whatever threads it likes, and returns when all are done. PyTorch's
  `torch_parallel_for` is one.

The bits are the same whoever runs them: what is in a piece depends on the shape of the data alone, no two pieces write
to the same place, and no piece waits for another.

Under `workqueue`, which aborts the process if two threads use it at once, a loop that finds it in use runs in its own
thread instead.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core.compiler_lock import global_compiler_lock

from fastbn_kernels.build import blas, regions, threads
from fastbn_kernels.build.machine import NONE, RUN, at, byte, call, finished, flag, kept, word

log = logging.getLogger("fastbn")

LAYER, CALLING_THREAD, NUMBA = range(3)


class _State(ctypes.Structure):
    """What the machine code reads: who is chosen where nobody was, `blas.offer`, and whether `workqueue` is in use."""

    _fields_ = (("default", ctypes.c_ssize_t), ("offer", ctypes.c_ssize_t), ("busy", ctypes.c_int32))


_state: _State = kept(_State(LAYER, 0, 0))

# What a thread has chosen lies in thread-specific storage that can be read without Python; its C interface for that is
# the same on every system. One key is for `over`, the other for what the launch is that it is in.
_python = ctypes.pythonapi
_get = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(("PyThread_tss_get", _python))
_set = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(("PyThread_tss_set", _python))


def _new_key() -> int:
    _python.PyThread_tss_alloc.restype = ctypes.c_void_p
    key: int = _python.PyThread_tss_alloc()
    _python.PyThread_tss_create(ctypes.c_void_p(key))
    return key


_choice, _launch = _new_key(), _new_key()
ALONE, BESIDE_PRODUCTS = 1, 2


class over:  # noqa: N801 - reads as the function that it stands for
    """``with over(runner):`` lets a runner have the parallel loops that this thread comes to.

    Parameters
    ----------
    runner : int
        `LAYER`, `CALLING_THREAD` or the address of a host's function; see the module.
    """

    __slots__ = ("_before", "_runner")

    def __init__(self, runner: int) -> None:
        self._runner = runner

    def __enter__(self) -> None:
        self._before = _get(_choice)
        try:
            _set(_choice, self._runner)
        except BaseException:  # Ctrl-C, which comes after a call
            _set(_choice, self._before)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _set(_choice, self._before)


def _nothing() -> None:
    """Stand for the functions below where loops are Numba's."""


# Around one `launch`: two calls of C without arguments, 0.2 us, where `over` takes 1 us. `alone` has the calling thread
# run all pieces, whoever was chosen; `beside_products` asks the threads of NumPy's products first, if nobody was.
alone: Callable[[], None] = _nothing
beside_products: Callable[[], None] = _nothing
launched: Callable[[], None] = _nothing


_shares_products = True


def keep_to_numba() -> None:
    """Leave the threads of NumPy's products alone; before the first kernel is compiled or loaded."""
    global _shares_products
    _shares_products = False


def _meet_products() -> None:
    """Be the first `beside_products`: look whether NumPy's products are known, which takes 10 ms, for all others."""
    global beside_products
    with global_compiler_lock:  # so that no fork comes between
        if beside_products is not _meet_products:
            return
        try:
            if blas.count() < 2:  # asked again at the next launch: `openblas_set_num_threads` may change it
                return
            _state.offer = blas.offer()
            beside_products = _c_function("beside_products")
        except blas.UnknownError as reason:
            log.info("fastbn: loops run on Numba's threads, also beside NumPy's matrix products: %s", reason)
            beside_products = _nothing


def launch(function: Callable[..., Any], parallel: bool, *arguments: Any) -> Any:
    """Call a function with loops on an array of NumPy; unless `parallel`, the calling thread does everything."""
    try:
        if parallel:
            beside_products()
        else:
            alone()
        return function(*arguments)
    finally:  # Ctrl-C may come as soon as `alone` is done
        launched()


def by_default(runner: int) -> None:
    """Let a runner have the loops of all threads that have chosen nobody."""
    _state.default = runner


@functools.cache
def works() -> bool:
    """Bind the symbol that regions call, before the first kernel is compiled or loaded; return whether that worked.

    Where it does not, regions are Numba's own, and what must run in one thread is compiled a second time without them.
    """
    global alone, beside_products, launched
    threads.start()
    try:
        if not regions.known():
            raise NotImplementedError("this release writes parallel regions in a way of its own")
        machine = _machine()
        llvm.add_symbol(regions.OURS, machine.get_function_address(regions.OURS))
        alone, launched = _c_function("alone"), _c_function("launched")
        beside_products = _meet_products if _shares_products else _nothing
    except Exception as error:
        log.warning("fastbn: kernels leave it to Numba who runs their loops: %s: %s", type(error).__name__, error)
        return False
    return True


def _c_function(name: str, result: Any = None) -> Any:
    """Return a function of the machine code without arguments; it keeps the GIL."""
    return ctypes.PYFUNCTYPE(result)(_machine().get_function_address(name))


def exchange_address() -> int:
    """Return where ``intptr_t exchange(intptr_t runner)`` is: `over` for compiled code, which needs no Python for it.

    It lets a runner have the loops of the thread that calls, and returns the one before, for the call that ends it. 0
    where regions are Numba's own.
    """
    return _machine().get_function_address("exchange") if works() else 0


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Keep loops away from `workqueue` and from NumPy's products, once they are idle; for a fork."""
    with blas.closed() if _state.offer else contextlib.nullcontext():
        if not (works.cache_info().currsize and works() and threads.layer() == "workqueue"):
            yield
            return
        take, give_back = _c_function("take", ctypes.c_int32), _c_function("give_back")
        while not take():
            time.sleep(0.0005)
        try:
            yield
        finally:
            give_back()


# ---------------------------------------------------------------- in machine code

# Numba's: piece(args, dimensions, steps, data), and parallel_for(piece, args, dimensions, steps, data,
# inner_ndim, array_count, num_threads). A piece walks over dimensions[0] rows of the schedule; in the next row,
# args[i] is steps[i] bytes further.
_PIECE = ir.FunctionType(NONE, [byte] * 4)
_PARALLEL_FOR = ir.FunctionType(NONE, [byte] * 5 + [word] * 3)
_HOST_ARGUMENTS = [word, word, word, RUN.as_pointer(), byte]
_CONTEXT = ir.LiteralStructType([byte] * 5 + [word] * 2)  # the arguments of parallel_for but the last


def _ask(builder: Any, name: str, key: int, *value: Any) -> Any:
    """Call a function of thread-specific storage."""
    address = ctypes.cast(getattr(_python, name), ctypes.c_void_p).value
    return call(builder, address, word, word(key), *value)


def _element(builder: Any, pointer: Any, kind: Any, i: Any) -> Any:
    """Return where element i of an array is."""
    return builder.gep(builder.bitcast(pointer, kind.as_pointer()), [i])


@functools.cache
def _machine() -> Any:
    """Compile `fastbn_parallel_for` and what belongs to it: 40 instructions of LLVM's."""
    module = ir.Module("spread")
    run = _run(module)
    take, give_back = _turns(module)
    for name, value in (("alone", ALONE), ("beside_products", BESIDE_PRODUCTS), ("launched", 0)):
        builder = ir.IRBuilder(ir.Function(module, ir.FunctionType(NONE, []), name).append_basic_block())
        _ask(builder, "PyThread_tss_set", _launch, word(value))
        builder.ret_void()
    function = ir.Function(module, ir.FunctionType(word, [word]), "exchange")
    builder = ir.IRBuilder(function.append_basic_block())
    before = _ask(builder, "PyThread_tss_get", _choice)
    _ask(builder, "PyThread_tss_set", _choice, *function.args)
    builder.ret(before)
    _parallel_for(module, run, take, give_back)
    return finished(module)


def _run(module: Any) -> Any:
    """Write what a host calls: rows `begin` to `end` of the schedule, by arguments that begin there."""
    function = ir.Function(module, RUN, "run")
    begin, end, context = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    given = builder.load(builder.bitcast(context, _CONTEXT.as_pointer()))
    piece, args, dimensions, steps, data, inner, arrays = (builder.extract_value(given, i) for i in range(7))
    zero = word(0)
    own_args, own_dimensions = builder.alloca(byte, arrays), builder.alloca(word, builder.add(inner, word(1)))

    def each(count: Any, body: Callable[[Any], None]) -> None:
        head, end = function.append_basic_block(), function.append_basic_block()
        start = builder.block
        builder.branch(head)
        builder.position_at_end(head)
        i = builder.phi(word)
        i.add_incoming(zero, start)
        body(i)
        following = builder.add(i, word(1))
        i.add_incoming(following, head)
        builder.cbranch(builder.icmp_unsigned("<", following, count), head, end)
        builder.position_at_end(end)

    def shift(i: Any) -> None:
        step = builder.load(_element(builder, steps, word, i))
        moved = builder.gep(builder.load(_element(builder, args, byte, i)), [builder.mul(step, begin)])
        builder.store(moved, builder.gep(own_args, [i]))

    def copy(i: Any) -> None:
        builder.store(builder.load(_element(builder, dimensions, word, i)), builder.gep(own_dimensions, [i]))

    each(arrays, shift)
    each(builder.add(inner, word(1)), copy)
    builder.store(builder.sub(end, begin), own_dimensions)
    own = builder.bitcast(own_args, byte), builder.bitcast(own_dimensions, byte)
    builder.call(builder.bitcast(piece, _PIECE.as_pointer()), [*own, steps, data])
    builder.ret_void()
    return function


def _turns(module: Any) -> tuple[Any, Any]:
    """Write what takes `workqueue`, if it is not in use, and what gives it back."""
    busy = ctypes.addressof(_state) + _State.busy.offset
    take = ir.Function(module, ir.FunctionType(flag, []), "take")
    builder = ir.IRBuilder(take.append_basic_block())
    taken = builder.extract_value(builder.cmpxchg(at(builder, busy, flag), flag(0), flag(1), "acquire", "monotonic"), 1)
    builder.ret(builder.zext(taken, flag))
    give_back = ir.Function(module, ir.FunctionType(NONE, []), "give_back")
    builder = ir.IRBuilder(give_back.append_basic_block())
    builder.store_atomic(flag(0), at(builder, busy, flag), "release", 4)
    builder.ret_void()
    return take, give_back


def _parallel_for(module: Any, run: Any, take: Any, give_back: Any) -> None:
    """Write what regions call: it finds who runs the pieces, and lets him."""
    function = ir.Function(module, _PARALLEL_FOR, regions.OURS)
    piece, args, dimensions, steps, data, inner, arrays, _ = function.args
    names = "entry", "choose", "runner", "offer", "chosen", "calling_thread", "layer", "queue", "taken", "host", "done"
    blocks = {name: function.append_basic_block(name) for name in names}
    builder = ir.IRBuilder(blocks["entry"])
    context = builder.alloca(_CONTEXT)
    rows = builder.load(_element(builder, dimensions, word, word(0)))
    builder.cbranch(builder.icmp_unsigned("<=", rows, word(1)), blocks["calling_thread"], blocks["choose"])

    builder.position_at_end(blocks["choose"])
    launch = _ask(builder, "PyThread_tss_get", _launch)
    builder.cbranch(builder.icmp_unsigned("==", launch, word(ALONE)), blocks["calling_thread"], blocks["runner"])

    builder.position_at_end(blocks["runner"])
    for i, value in enumerate((piece, args, dimensions, steps, data, inner, arrays)):
        builder.store(value, builder.gep(context, [flag(0), flag(i)]))
    loop = word(0), rows, word(1), run, builder.bitcast(context, byte)
    choice = _ask(builder, "PyThread_tss_get", _choice)
    nobody = builder.icmp_unsigned("==", choice, word(LAYER))
    beside = builder.icmp_unsigned("==", launch, word(BESIDE_PRODUCTS))
    builder.cbranch(builder.and_(nobody, beside), blocks["offer"], blocks["chosen"])

    builder.position_at_end(blocks["offer"])
    offer = builder.load(at(builder, ctypes.addressof(_state) + _State.offer.offset, word))
    offer = builder.inttoptr(offer, ir.FunctionType(flag, _HOST_ARGUMENTS).as_pointer())
    took = builder.icmp_unsigned("!=", builder.call(offer, loop), flag(0))
    builder.cbranch(took, blocks["done"], blocks["chosen"])

    builder.position_at_end(blocks["chosen"])
    default = at(builder, ctypes.addressof(_state) + _State.default.offset, word)
    default = builder.load_atomic(default, "monotonic", word.width // 8)
    layer = builder.or_(nobody, builder.icmp_unsigned("==", choice, word(NUMBA)))
    choice = builder.select(layer, default, choice)
    cases = builder.switch(choice, blocks["host"])
    cases.add_case(word(LAYER), blocks["queue"] if threads.layer() == "workqueue" else blocks["layer"])
    cases.add_case(word(CALLING_THREAD), blocks["calling_thread"])

    builder.position_at_end(blocks["calling_thread"])
    builder.call(builder.bitcast(piece, _PIECE.as_pointer()), [args, dimensions, steps, data])
    builder.ret_void()

    layers = llvm.address_of_symbol(regions.NUMBAS)
    builder.position_at_end(blocks["layer"])
    builder.call(at(builder, layers, _PARALLEL_FOR), function.args)
    builder.ret_void()

    builder.position_at_end(blocks["queue"])
    free = builder.icmp_unsigned("==", builder.call(take, []), flag(1))
    builder.cbranch(free, blocks["taken"], blocks["calling_thread"])
    builder.position_at_end(blocks["taken"])
    builder.call(at(builder, layers, _PARALLEL_FOR), function.args)
    builder.call(give_back, [])
    builder.ret_void()

    builder.position_at_end(blocks["host"])
    builder.call(builder.inttoptr(choice, ir.FunctionType(NONE, _HOST_ARGUMENTS).as_pointer()), loop)
    builder.branch(blocks["done"])
    builder.position_at_end(blocks["done"])
    builder.ret_void()
