"""Who runs the pieces of a parallel loop: the one place where work is spread over threads.

Kernels are `@njit(parallel=True)`, compiled once. Each of their `prange` loops calls `fastbn_parallel_for` (`regions`),
which is made here, once a process, and asks at every call whom the calling thread has chosen:

- `LAYER`, what everybody starts with: Numba's threading layer (tbb, omp or workqueue).
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

from fastbn_kernels.build import regions, threads

log = logging.getLogger("fastbn")

LAYER, CALLING_THREAD = 0, 1


class _State(ctypes.Structure):
    """What the machine code reads: whom threads choose that have chosen nobody, and whether `workqueue` is in use."""

    _fields_ = (("default", ctypes.c_ssize_t), ("busy", ctypes.c_int32))


_state = _State(LAYER, 0)

# What a thread has chosen lies in thread-specific storage that can be read without Python; its C interface for that is
# the same on every system. One key is for `over`, the other for `alone`.
_python = ctypes.pythonapi
_get = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)(("PyThread_tss_get", _python))
_set = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(("PyThread_tss_set", _python))


def _new_key() -> int:
    _python.PyThread_tss_alloc.restype = ctypes.c_void_p
    key: int = _python.PyThread_tss_alloc()
    _python.PyThread_tss_create(ctypes.c_void_p(key))
    return key


_choice, _alone = _new_key(), _new_key()


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
    """Stand for `alone` and `not_alone` where loops are Numba's."""


# With ``try: alone(); kernel(...)`` and ``finally: not_alone()`` the calling thread runs all pieces of one launch: two
# calls of C without arguments, 0.2 us, where `over` takes 1 us. What `over` has chosen stays.
alone: Callable[[], None] = _nothing
not_alone: Callable[[], None] = _nothing


def by_default(runner: int) -> None:
    """Let a runner have the loops of all threads that have chosen nobody."""
    _state.default = runner


@functools.cache
def works() -> bool:
    """Bind the symbol that regions call, before the first kernel is compiled or loaded; return whether that worked.

    Where it does not, regions are Numba's own, and what must run in one thread is compiled a second time without them.
    """
    global alone, not_alone
    threads.start()
    try:
        if not regions.known():
            raise NotImplementedError("this release writes parallel regions in a way of its own")
        machine = _machine()
        llvm.add_symbol(regions.OURS, machine.get_function_address(regions.OURS))
        signature = ctypes.PYFUNCTYPE(None)
        alone, not_alone = (signature(machine.get_function_address(name)) for name in ("alone", "not_alone"))
    except Exception as error:
        log.warning("fastbn: kernels leave it to Numba who runs their loops: %s: %s", type(error).__name__, error)
        return False
    return True


def exchange_address() -> int:
    """Return where ``intptr_t exchange(intptr_t runner)`` is: `over` for compiled code, which needs no Python for it.

    It lets a runner have the loops of the thread that calls, and returns the one before, for the call that ends it. 0
    where regions are Numba's own.
    """
    return _machine().get_function_address("exchange") if works() else 0


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Keep loops away from `workqueue`, once it is idle; for a fork."""
    if not (works.cache_info().currsize and works() and threads.layer() == "workqueue"):
        yield
        return
    signature = ctypes.PYFUNCTYPE(ctypes.c_int32)
    take, give_back = (signature(_machine().get_function_address(name)) for name in ("take", "give_back"))
    while not take():
        time.sleep(0.0005)
    try:
        yield
    finally:
        give_back()


# ---------------------------------------------------------------- in machine code

_byte = ir.IntType(8).as_pointer()
_flag = ir.IntType(32)
_word = ir.IntType(8 * ctypes.sizeof(ctypes.c_void_p))  # Numba's `intp`
_none = ir.VoidType()
# Numba's: piece(args, dimensions, steps, data), and parallel_for(piece, args, dimensions, steps, data,
# inner_ndim, array_count, num_threads). A piece walks over dimensions[0] rows of the schedule; in the next row,
# args[i] is steps[i] bytes further.
_PIECE = ir.FunctionType(_none, [_byte] * 4)
_PARALLEL_FOR = ir.FunctionType(_none, [_byte] * 5 + [_word] * 3)
_RUN = ir.FunctionType(_none, [_word, _word, _byte])
_HOST = ir.FunctionType(_none, [_word, _word, _word, _RUN.as_pointer(), _byte])
_CONTEXT = ir.LiteralStructType([_byte] * 5 + [_word] * 2)  # the arguments of parallel_for but the last


def _at(builder: Any, address: int | None, kind: Any) -> Any:
    """Return an address of this process as a pointer."""
    return builder.inttoptr(_word(address), kind.as_pointer())


def _ask(builder: Any, name: str, key: int, *value: Any) -> Any:
    """Call a function of thread-specific storage."""
    address = ctypes.cast(getattr(_python, name), ctypes.c_void_p).value
    function = _at(builder, address, ir.FunctionType(_word, [_word] * (1 + len(value))))
    return builder.call(function, [_word(key), *value])


def _element(builder: Any, pointer: Any, kind: Any, i: Any) -> Any:
    """Return where element i of an array is."""
    return builder.gep(builder.bitcast(pointer, kind.as_pointer()), [i])


@functools.cache
def _machine() -> Any:
    """Compile `fastbn_parallel_for` and what belongs to it: 40 instructions of LLVM's."""
    module = ir.Module("spread")
    run = _run(module)
    take, give_back = _turns(module)
    for name, value in (("alone", 1), ("not_alone", 0)):
        builder = ir.IRBuilder(ir.Function(module, ir.FunctionType(_none, []), name).append_basic_block())
        _ask(builder, "PyThread_tss_set", _alone, _word(value))
        builder.ret_void()
    function = ir.Function(module, ir.FunctionType(_word, [_word]), "exchange")
    builder = ir.IRBuilder(function.append_basic_block())
    before = _ask(builder, "PyThread_tss_get", _choice)
    _ask(builder, "PyThread_tss_set", _choice, *function.args)
    builder.ret(before)
    _parallel_for(module, run, take, give_back)
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_default_triple().create_target_machine(opt=2, jit=True)
    module.triple = target.triple
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(str(module)), target)
    engine.finalize_object()
    return engine


def _run(module: Any) -> Any:
    """Write what a host calls: rows `begin` to `end` of the schedule, by arguments that begin there."""
    function = ir.Function(module, _RUN, "run")
    begin, end, context = function.args
    builder = ir.IRBuilder(function.append_basic_block())
    given = builder.load(builder.bitcast(context, _CONTEXT.as_pointer()))
    piece, args, dimensions, steps, data, inner, arrays = (builder.extract_value(given, i) for i in range(7))
    zero = _word(0)
    own_args, own_dimensions = builder.alloca(_byte, arrays), builder.alloca(_word, builder.add(inner, _word(1)))

    def each(count: Any, body: Callable[[Any], None]) -> None:
        head, end = function.append_basic_block(), function.append_basic_block()
        start = builder.block
        builder.branch(head)
        builder.position_at_end(head)
        i = builder.phi(_word)
        i.add_incoming(zero, start)
        body(i)
        following = builder.add(i, _word(1))
        i.add_incoming(following, head)
        builder.cbranch(builder.icmp_unsigned("<", following, count), head, end)
        builder.position_at_end(end)

    def shift(i: Any) -> None:
        step = builder.load(_element(builder, steps, _word, i))
        moved = builder.gep(builder.load(_element(builder, args, _byte, i)), [builder.mul(step, begin)])
        builder.store(moved, builder.gep(own_args, [i]))

    def copy(i: Any) -> None:
        builder.store(builder.load(_element(builder, dimensions, _word, i)), builder.gep(own_dimensions, [i]))

    each(arrays, shift)
    each(builder.add(inner, _word(1)), copy)
    builder.store(builder.sub(end, begin), own_dimensions)
    own = builder.bitcast(own_args, _byte), builder.bitcast(own_dimensions, _byte)
    builder.call(builder.bitcast(piece, _PIECE.as_pointer()), [*own, steps, data])
    builder.ret_void()
    return function


def _turns(module: Any) -> tuple[Any, Any]:
    """Write what takes `workqueue`, if it is not in use, and what gives it back."""
    busy = ctypes.addressof(_state) + _State.busy.offset
    take = ir.Function(module, ir.FunctionType(_flag, []), "take")
    builder = ir.IRBuilder(take.append_basic_block())
    taken = builder.extract_value(
        builder.cmpxchg(_at(builder, busy, _flag), _flag(0), _flag(1), "acquire", "monotonic"), 1
    )
    builder.ret(builder.zext(taken, _flag))
    give_back = ir.Function(module, ir.FunctionType(_none, []), "give_back")
    builder = ir.IRBuilder(give_back.append_basic_block())
    builder.store_atomic(_flag(0), _at(builder, busy, _flag), "release", 4)
    builder.ret_void()
    return take, give_back


def _parallel_for(module: Any, run: Any, take: Any, give_back: Any) -> None:
    """Write what regions call: it finds who runs the pieces, and lets him."""
    function = ir.Function(module, _PARALLEL_FOR, regions.OURS)
    piece, args, dimensions, steps, data, inner, arrays, _ = function.args
    names = "entry", "choose", "runner", "calling_thread", "layer", "queue", "taken", "host"
    blocks = {name: function.append_basic_block(name) for name in names}
    builder = ir.IRBuilder(blocks["entry"])
    rows = builder.load(_element(builder, dimensions, _word, _word(0)))
    builder.cbranch(builder.icmp_unsigned("<=", rows, _word(1)), blocks["calling_thread"], blocks["choose"])

    builder.position_at_end(blocks["choose"])
    is_alone = builder.icmp_unsigned("!=", _ask(builder, "PyThread_tss_get", _alone), _word(0))
    builder.cbranch(is_alone, blocks["calling_thread"], blocks["runner"])

    builder.position_at_end(blocks["runner"])
    choice = _ask(builder, "PyThread_tss_get", _choice)
    default = _at(builder, ctypes.addressof(_state) + _State.default.offset, _word)
    default = builder.load_atomic(default, "monotonic", _word.width // 8)
    choice = builder.select(builder.icmp_unsigned("==", choice, _word(LAYER)), default, choice)
    cases = builder.switch(choice, blocks["host"])
    cases.add_case(_word(LAYER), blocks["queue"] if threads.layer() == "workqueue" else blocks["layer"])
    cases.add_case(_word(CALLING_THREAD), blocks["calling_thread"])

    builder.position_at_end(blocks["calling_thread"])
    builder.call(builder.bitcast(piece, _PIECE.as_pointer()), [args, dimensions, steps, data])
    builder.ret_void()

    layers = llvm.address_of_symbol(regions.NUMBAS)
    builder.position_at_end(blocks["layer"])
    builder.call(_at(builder, layers, _PARALLEL_FOR), function.args)
    builder.ret_void()

    builder.position_at_end(blocks["queue"])
    free = builder.icmp_unsigned("==", builder.call(take, []), _flag(1))
    builder.cbranch(free, blocks["taken"], blocks["calling_thread"])
    builder.position_at_end(blocks["taken"])
    builder.call(_at(builder, layers, _PARALLEL_FOR), function.args)
    builder.call(give_back, [])
    builder.ret_void()

    builder.position_at_end(blocks["host"])
    context = builder.alloca(_CONTEXT)
    for i, value in enumerate((piece, args, dimensions, steps, data, inner, arrays)):
        builder.store(value, builder.gep(context, [_flag(0), _flag(i)]))
    host = builder.inttoptr(choice, _HOST.as_pointer())
    builder.call(host, [_word(0), rows, _word(1), run, builder.bitcast(context, _byte)])
    builder.ret_void()
