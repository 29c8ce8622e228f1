"""The command line: ``fastbn demo``, ``fastbn devices`` and ``fastbn warmup``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

import fastbn
from fastbn._version import __version__

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Batch normalization for NumPy, as Numba kernels.")


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fastbn {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Hold the options of ``fastbn`` itself."""


@app.command()
def demo(
    out: Annotated[
        Path, typer.Option(file_okay=False, writable=True, help="Folder for demo.png and demo.json; made if need be.")
    ] = Path("demo-results"),
    quick: Annotated[bool, typer.Option("--quick", help="One seed and few steps.")] = False,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Runs of each net.", show_default="3, or 1 with --quick")
    ] = None,
) -> None:
    """Train two small nets on handwritten digits, with and without batch norm.

    Prints how many steps each needs, and writes a figure of the accuracy and the pre-activations.
    """
    # Here, not above: they take a second, and the help does not need them.
    from rich.console import Console

    from fastbn.experiments.demo import run

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise typer.BadParameter(f"cannot make the folder: {error}", param_hint="'--out'") from None
    run(out, quick, seeds or (1 if quick else 3), Console())


@app.command()
def warmup(
    dtypes: Annotated[
        str, typer.Option(help="Dtypes of the data, with commas between: float32, float64, float16, bfloat16.")
    ] = "float32",
    precision: Annotated[
        str | None,
        typer.Option(
            help="Precision of the calls, fast or exact: float32 has other kernels for either.",
            show_default="FASTBN_PRECISION, or fast",
        ),
    ] = None,
    rare: Annotated[
        bool,
        typer.Option(
            "--all",
            help="Compile also what ordinary calls do not need: statistics over several machines, higher derivatives.",
        ),
    ] = False,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Compile in so many processes at once.", show_default="the cores")
    ] = None,
) -> None:
    """Compile the kernels into the cache on disk, so that no later process waits for them.

    These are the kernels that the layer, batch_norm, batch_norm_inference and batch_norm_backward need for arrays of
    any layout and size: about 20 seconds of a core a dtype.
    """
    from fastbn.checks.scalars import precision as checked
    from fastbn.warmup import check
    from fastbn.warmup import warmup as warm_up

    try:
        names = check([name.strip() for name in dtypes.split(",")])
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="'--dtypes'") from None
    try:
        precision = checked(precision)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="'--precision'") from None

    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console()
    columns = SpinnerColumn(), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
    with Progress(*columns, console=console, transient=True) as bar:
        item = bar.add_task("", total=None)
        done = warm_up(
            names,
            lambda at, total, name: bar.update(item, completed=at, total=total, description=name),
            precision=precision,
            rare=rare,
            processes=processes or _cores(),
        )
    console.print(
        f"{done.compiled} kernels compiled, {done.loaded} loaded from the cache, in {done.seconds:.1f} s.",
        highlight=False,
    )


def _cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@app.command()
def devices() -> None:
    """Show the processors found here, and which of them calls run on and why.

    FASTBN_DEVICE=cpu, cuda or auto, or the argument device=, send NumPy arrays elsewhere than to the CPU.
    """
    from rich.console import Console

    from fastbn.backends.cuda import availability

    console = Console()

    def show(name: str, text: str) -> None:
        console.print(f"{name:<14} {text}", markup=False, highlight=False, soft_wrap=True)

    show("CPU", _cpu())
    problem = availability.problem()
    show("GPU", _gpu() if problem is None else f"none: {problem}")
    show("FASTBN_DEVICE", repr(os.environ["FASTBN_DEVICE"]) if "FASTBN_DEVICE" in os.environ else "not set")
    show("NumPy arrays", _choice(np.zeros((2, 1))))
    show("on the GPU", _choice(fastbn.to_device(np.zeros((2, 1)))) if problem is None else "no array can be there")


def _cpu() -> str:
    """Say what the CPU is to fastbn."""
    import numba

    from fastbn_kernels.build import threads

    count = threads.count()  # starts the layer, which has no name before
    return f"{os.cpu_count()} cores, {count} threads ({numba.threading_layer()})"


def _gpu() -> str:
    """Say what the GPU is that was found."""
    from fastbn_kernels.cuda import gpu

    found = f"{gpu.name()}, {gpu.properties()['multiprocessors']} multiprocessors"
    total = gpu.memory_bytes()
    return f"{found}, in Python" if total is None else f"{found}, {total / 2**30:.0f} GiB"


def _choice(x: Any) -> str:
    """Say where `batch_norm` of an array would run, and why."""
    try:
        return str(fastbn.explain(x))
    except ValueError as error:  # FASTBN_DEVICE
        return f"an error: {error}"
