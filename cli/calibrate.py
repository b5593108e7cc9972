"""`cxr calibrate`: fit calibration, thresholds and bands of a bundle on a lab's own studies."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console

from cli.console import Table as RichTable
from cli.console import escape
from cli.options import Json, Table, make_console

if TYPE_CHECKING:
    from training.recalibrate import Recalibrated


def calibrate(
    bundle: Annotated[Path, typer.Argument(help="Bundle to calibrate; it is not changed.")],
    table: Table,
    out: Annotated[Path, typer.Option(help="Bundle directory to write; must not exist.")],
    cache: Annotated[
        Path | None, typer.Option(help="Image cache of the table, made by `cxr data cache`.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Fit a model's calibration, thresholds and bands on labelled studies of your own, as a new bundle.

    The trained weights stay as they are; the fingerprint is new. The image, the report and both are fitted apart.

    A label with too few studies with or without it keeps its old values, and the output names it. Studies that the
    model was trained or tested with are left out.

    Measure the new bundle on other studies than these: what was fitted on some looks too good on them.
    """
    from cli.progress import show_progress
    from cli.show import print_json
    from contract.bundle import load_bundle
    from training.recalibrate import recalibrate

    console = make_console(as_json)
    loaded = load_bundle(bundle, convert=True)
    with show_progress(console, "Reading and asking") as progress:
        result = recalibrate(loaded, table, out, cache=cache, progress=progress)
    if as_json:
        print_json(result.to_dict())
    else:
        print_recalibrated(console, result)


def print_recalibrated(console: Console, result: "Recalibrated") -> None:
    """Print what was fitted on how many studies, and which labels keep their old values."""
    from cli.show import KIND_TITLES
    from contract.labels import LABELS

    table = RichTable(title="Calibrated", title_justify="left", header_style="bold", box=box.SIMPLE_HEAD)
    for place, column in enumerate(("Read from", "Studies", "Labels fitted", "Labels kept")):
        table.add_column(column, justify="right" if place else "left")
    for way, found in result.ways.items():
        counts = (found.studies, len(LABELS) - len(found.kept), len(found.kept))
        table.add_row(KIND_TITLES[way], *map(str, counts))
    console.print(table)
    for way, found in result.ways.items():
        if found.kept:
            console.print(
                f"Too few studies with or without them, old values kept ({KIND_TITLES[way]}): {', '.join(found.kept)}",
                highlight=False,
                soft_wrap=True,
            )
    if result.left_out:
        console.print(
            f"{result.left_out} studies were left out: the model was trained or tested with them.",
            highlight=False,
        )
    console.print(
        f"Bundle: {escape(str(result.bundle))}, model {result.fingerprint[:12]}, from {result.source[:12]}",
        highlight=False,
        soft_wrap=True,
    )
