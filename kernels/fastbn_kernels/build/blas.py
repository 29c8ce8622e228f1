"""Loops on the worker threads of NumPy's matrix products, while those are awake.

After a product OpenBLAS's workers wait for the next one in a busy loop of 2^28 cycles, 0.1 s. Meanwhile threads of
Numba's layer share the cores with them, and a second thread brings nothing. So loops over NumPy's arrays are offered to
OpenBLAS first. `offer` runs a loop on those workers, or answers that it had better not, and the layer runs it:

- A worker sleeps, or is kept from its core by somebody else. To wake it is to keep a core busy for 0.1 s that others
  may have use for, and to wait for one that is kept away took 8 ms. Two readings of its clock of processor time, 0.3 us
  each, tell.
- It may be awake because of loops alone. So after `SPELL` of them the layer has its turn for `REST`, in which workers
  without products go to sleep.
- OpenBLAS has fewer threads now than the loop has pieces (`openblas_set_num_threads`, threadpoolctl).
- A fork is about to come: OpenBLAS stops its workers then, and waits forever for one that is at work.

What is called is ``gotoblas_pthread(count, function, arguments, stride)``, for which the first task is the caller's and
the others are workers'. It is exported, but in no header, so: releases that were tried, and one test at first use.
Whatever is not as known, and every other library of products, leaves loops to the layer, and the log says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import re
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from llvmlite import ir

from fastbn_kernels.build.machine import NONE, RUN, at, byte, call, finished, flag, kept, word

TRIED = (0, 3, 23), (0, 3, 31)  # the first and the last release; those of NumPy 1.26 to 2.4
NAMES = "get_config", "get_parallel", "get_num_threads", "set_num_threads"
PTHREADS = 1  # what openblas_get_parallel says of a build with threads of its own; 2 is OpenMP
PATIENCE = 1.0  # seconds that the test may take; it takes 0.0002

SPELL, REST = 5_000_000_000, 300_000_000  # nanoseconds

LONG_AGO = -(1 << 62)
NO_CLOCK = -1  # no thread's, so reading it fails
CLOSED = 1 << 30  # added to the users


class _State(ctypes.Structure):
    """What threads share: when the spell began, the first worker's clock, and how many loops are on workers now."""

    _fields_ = (("since", ctypes.c_int64), ("clock", ctypes.c_int32), ("users", ctypes.c_int32))


_state: _State = kept(_State(LONG_AGO, NO_CLOCK, 0))


class UnknownError(Exception):
    """Why loops stay with Numba's layer."""


# ---------------------------------------------------------------- NumPy's library


@functools.cache
def functions() -> dict[str, Any]:
    """Return what is called of the library of NumPy's products, or raise `UnknownError` if it is not as known.

    The names are looked up through NumPy's own module, so that it is that library and no other OpenBLAS of the process.
    """
    if not sys.platform.startswith("linux") or sys.maxsize < 1 << 32:
        raise UnknownError(f"this was tried on 64-bit Linux, not on {sys.platform}")
    modules = "numpy._core._multiarray_umath", "numpy.core._multiarray_umath"
    numpy = ctypes.CDLL(next(sys.modules[name].__file__ for name in modules if name in sys.modules))
    for form in ("scipy_openblas_{}64_", "openblas_{}64_", "scipy_openblas_{}", "openblas_{}"):
        with contextlib.suppress(AttributeError):
            found = {name: numpy[form.format(name)] for name in NAMES}
            break
    else:
        raise UnknownError("NumPy's products are not OpenBLAS's")
    found["get_config"].restype = ctypes.c_char_p
    config = found["get_config"]().decode(errors="replace").strip()
    release = re.match(r"OpenBLAS (\d+)\.(\d+)\.(\d+)", config)
    first, last = TRIED
    if release is None or not first <= tuple(int(part) for part in release.groups()) <= last:
        between = " to ".join(".".join(map(str, bound)) for bound in TRIED)
        raise UnknownError(f"NumPy's products are those of {config!r}, and tried was OpenBLAS {between}")
    if found["get_parallel"]() != PTHREADS:
        raise UnknownError(f"{config!r} has no threads of its own")
    try:
        found["gotoblas_pthread"] = numpy["gotoblas_pthread"]
        libc = ctypes.CDLL(None)
        for name in ("clock_gettime", "pthread_self", "pthread_getcpuclockid"):
            found[name] = libc[name]
    except AttributeError as error:
        raise UnknownError(str(error)) from None
    return found


def count() -> int:
    """Return how many threads OpenBLAS has now, the caller included."""
    found: int = functions()["get_num_threads"]()
    return found


# ---------------------------------------------------------------- in machine code

_OFFER = ir.FunctionType(flag, [word, word, word, RUN.as_pointer(), byte])
_TASK = ir.LiteralStructType([RUN.as_pointer(), byte, word, word])  # run, context, which piece, which task
_TIME = ir.LiteralStructType([word, word])  # struct timespec


def _c(builder: Any, name: str, result: Any, *arguments: Any) -> Any:
    return call(builder, ctypes.cast(functions()[name], ctypes.c_void_p).value, result, *arguments)


def _shared(builder: Any, field: Any, kind: Any = flag) -> Any:
    return at(builder, ctypes.addressof(_state) + field.offset, kind)


@functools.cache
def _machine() -> Any:
    """Compile `offer`, `note`, which the test runs, and `change`, which a fork calls."""
    module = ir.Module("blas")
    _offer(module, _task(module))
    note = ir.Function(module, RUN, "note")
    begin, _, context = note.args
    builder = ir.IRBuilder(note.append_basic_block())
    place = builder.gep(builder.bitcast(context, word.as_pointer()), [begin])
    builder.store(_c(builder, "pthread_self", word), place)
    builder.ret_void()
    change = ir.Function(module, ir.FunctionType(NONE, [flag]), "change")
    builder = ir.IRBuilder(change.append_basic_block())
    builder.atomic_rmw("add", _shared(builder, _State.users), change.args[0], "seq_cst")
    builder.ret_void()
    return finished(module)


def _task(module: Any) -> Any:
    """Write what a thread calls: one piece. The second task, which is a worker's, also says whose clock to look at."""
    function = ir.Function(module, ir.FunctionType(byte, [byte]), "task")
    builder = ir.IRBuilder(function.append_basic_block())
    given = builder.load(builder.bitcast(function.args[0], _TASK.as_pointer()))
    run, context, piece, which = (builder.extract_value(given, i) for i in range(4))
    with builder.if_then(builder.icmp_signed("==", which, word(1))):
        thread = _c(builder, "pthread_self", word)
        _c(builder, "pthread_getcpuclockid", flag, thread, _shared(builder, _State.clock))
    builder.call(run, [piece, builder.add(piece, word(1)), context])
    builder.ret(byte(None))
    return function


def _offer(module: Any, task: Any) -> None:
    """Write ``offer(begin, end, grain, run, context)``: as a host, but it returns whether it took the loop."""
    function = ir.Function(module, _OFFER, "offer")
    begin, end, _, run, context = function.args
    names = "entry", "enter", "look", "asleep", "awake", "again", "anew", "ready", "fill", "go", "leave", "refuse"
    blocks = {name: function.append_basic_block(name) for name in names}
    builder = ir.IRBuilder(blocks["entry"])
    times = [builder.alloca(_TIME) for _ in range(3)]
    pieces = builder.sub(end, begin)
    threads = builder.sext(_c(builder, "get_num_threads", flag), word)
    builder.cbranch(builder.icmp_signed("<=", pieces, threads), blocks["enter"], blocks["refuse"])

    builder.position_at_end(blocks["enter"])
    users = builder.atomic_rmw("add", _shared(builder, _State.users), flag(1), "acquire")
    builder.cbranch(builder.icmp_signed("<", users, flag(CLOSED)), blocks["look"], blocks["leave"])

    builder.position_at_end(blocks["look"])
    clock = builder.load_atomic(_shared(builder, _State.clock), "monotonic", 4)
    failed = [_c(builder, "clock_gettime", flag, clock, time) for time in times[:2]]
    _c(builder, "clock_gettime", flag, flag(time.CLOCK_MONOTONIC), times[2])
    first, second, (seconds, rest) = (
        [builder.extract_value(builder.load(time), i) for i in range(2)] for time in times
    )
    now = builder.add(builder.mul(seconds, word(1_000_000_000)), rest)
    # A worker without a clock is one that a fork has stopped, in this process or in its parent: there are new ones.
    new = builder.icmp_signed("!=", builder.or_(*failed), flag(0))
    awake = builder.or_(new, builder.icmp_signed("!=", first[1], second[1]))
    since = _shared(builder, _State.since, word)
    builder.cbranch(awake, blocks["awake"], blocks["asleep"])
    builder.position_at_end(blocks["asleep"])
    builder.store_atomic(now, since, "monotonic", 8)
    builder.branch(blocks["leave"])
    builder.position_at_end(blocks["awake"])
    age = builder.sub(now, builder.load_atomic(since, "monotonic", 8))
    builder.cbranch(builder.icmp_signed("<", age, word(SPELL)), blocks["ready"], blocks["again"])
    builder.position_at_end(blocks["again"])
    builder.cbranch(builder.icmp_signed("<", age, word(SPELL + REST)), blocks["leave"], blocks["anew"])
    builder.position_at_end(blocks["anew"])  # still awake after a rest: there have been products
    builder.store_atomic(now, since, "monotonic", 8)
    builder.branch(blocks["ready"])

    builder.position_at_end(blocks["ready"])
    tasks = builder.alloca(_TASK, pieces)
    builder.branch(blocks["fill"])
    builder.position_at_end(blocks["fill"])
    i = builder.phi(word)
    i.add_incoming(word(0), blocks["ready"])
    for k, value in enumerate((run, context, builder.add(begin, i), i)):
        builder.store(value, builder.gep(tasks, [i, flag(k)]))
    following = builder.add(i, word(1))
    i.add_incoming(following, blocks["fill"])
    builder.cbranch(builder.icmp_signed("<", following, pieces), blocks["fill"], blocks["go"])

    builder.position_at_end(blocks["go"])
    stride = flag(4 * 8)
    arguments = builder.bitcast(task, byte), builder.bitcast(tasks, byte), stride
    _c(builder, "gotoblas_pthread", flag, builder.trunc(pieces, flag), *arguments)
    builder.branch(blocks["leave"])

    builder.position_at_end(blocks["leave"])
    took = builder.phi(flag)
    for name, value in (("enter", 0), ("asleep", 0), ("again", 0), ("go", 1)):
        took.add_incoming(flag(value), blocks[name])
    builder.atomic_rmw("sub", _shared(builder, _State.users), flag(1), "release")
    builder.ret(took)

    builder.position_at_end(blocks["refuse"])
    builder.ret(flag(0))


# ---------------------------------------------------------------- before it is used


@functools.cache
def offer() -> int:
    """Return where `offer` is, tested with the threads that there are, 2 at least; or raise `UnknownError`."""
    machine = _machine()
    address: int = machine.get_function_address("offer")
    _test(address, machine.get_function_address("note"))
    return address


def _test(offer: int, note: int) -> None:
    """Run a loop whose pieces note their threads; raise `UnknownError` if one was left out, or all are one thread's.

    In a thread of its own, so that whatever may be wrong, the caller waits no longer than `PATIENCE`.
    """
    pieces = count()
    noted = (ctypes.c_int64 * pieces)()
    function = ctypes.CFUNCTYPE(ctypes.c_int32, *([ctypes.c_ssize_t] * 3), *([ctypes.c_void_p] * 2))(offer)
    worker = threading.Thread(target=function, args=(0, pieces, 1, note, noted), name="fastbn", daemon=True)
    worker.start()
    worker.join(PATIENCE)
    if worker.is_alive():
        raise UnknownError(f"OpenBLAS has not finished a test of its threads in {PATIENCE} s")
    if not all(noted) or len(set(noted)) < 2:
        raise UnknownError(f"OpenBLAS ran a test of {pieces} pieces on the threads {list(noted)}")


@contextlib.contextmanager
def closed() -> Iterator[None]:
    """Keep loops away from the workers, once none is there; for a fork."""
    change = ctypes.PYFUNCTYPE(None, ctypes.c_int32)(_machine().get_function_address("change"))
    change(CLOSED)
    try:
        while _state.users != CLOSED:
            time.sleep(0.0005)
        yield
    finally:
        change(-CLOSED)
