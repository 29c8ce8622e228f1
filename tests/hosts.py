"""Hosts of parallel loops, each ``host(begin, end, grain, run, context)``, that are harder on them than a real pool."""

import ctypes
import threading

INT, POINTER = ctypes.c_ssize_t, ctypes.c_void_p
RUN = ctypes.CFUNCTYPE(None, INT, INT, POINTER)
HOST = ctypes.CFUNCTYPE(None, INT, INT, INT, RUN, POINTER)


@HOST
def backwards(begin, end, grain, run, context):
    """One piece after the other, the last one first."""
    for i in reversed(range(begin, end)):
        run(i, i + 1, context)


@HOST
def uneven(begin, end, grain, run, context):
    """The first piece alone, then all others together."""
    run(begin, begin + 1, context)
    if begin + 1 < end:
        run(begin + 1, end, context)


@HOST
def threads(begin, end, grain, run, context):
    """A thread of Python's a piece, and all that there are at once."""
    workers = [threading.Thread(target=run, args=(i, i + 1, context)) for i in range(begin, end)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def address(host):
    """Return what `spread.over` takes."""
    return ctypes.cast(host, ctypes.c_void_p).value


HOSTS = {"backwards": address(backwards), "uneven": address(uneven), "threads": address(threads)}
