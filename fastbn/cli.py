"""The command line: ``fastbn demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

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
    """Hold the options of ``fastbn`` itself; with it, ``demo`` stays a command of its own."""


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
