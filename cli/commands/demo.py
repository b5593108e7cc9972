"""The command `cxr demo`."""

from pathlib import Path
from typing import Annotated

import typer

from cli.options import Json, make_console


def demo(
    reports: Annotated[
        Path | None,
        typer.Option(help="Use real Open-i reports (NLMCXR_reports.tgz) instead of the phantom data set."),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Output directory. The output of an earlier demo in it is deleted.")
    ] = Path("demo-output"),
    keep: Annotated[bool, typer.Option("--keep", help="Keep the servers running until Ctrl-C.")] = False,
    studies: Annotated[int, typer.Option(min=60, help="Number of phantom studies to draw.")] = 700,
    seed: Annotated[int, typer.Option(help="Seed for data, split and training.")] = 0,
    as_json: Json = False,
) -> None:
    """Run the whole path once: data, training, export, serving, prediction, search, explanation."""
    from cli.demo import run_demo
    from cli.show import print_json

    summary = run_demo(make_console(as_json), reports=reports, out=out, keep=keep, studies=studies, seed=seed)
    if as_json:
        print_json(summary)
