"""`cxr calibrate`: fit a bundle's calibration, thresholds and uncertainty bands on a lab's own studies."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console

from cli.console import Table as RichTable
from cli.console import escape
from cli.options import Cache, Json, Table, make_console
from cli.signing import RequireSignature, find_trust

if TYPE_CHECKING:
    from training.recalibrate import Recalibrated


def calibrate(
    bundle: Annotated[Path, typer.Argument(help="Bundle to calibrate. It is not changed.")],
    table: Table,
    out: Annotated[Path, typer.Option(help="Bundle directory to write. Must not exist.")],
    cache: Cache = None,
    require_signature: RequireSignature = None,
    as_json: Json = False,
) -> None:
    """Fit a model's calibration, thresholds and uncertainty bands on your own labelled studies; write a new bundle.

    The weights do not change. The new bundle has a new fingerprint. Image, report and both are fitted separately.

    A label that too few studies have or lack keeps its old values; the output names it. Patients of the
    model's training or test data are left out.

    Evaluate the new bundle on other studies: results on the studies it was fitted on look too good.
    """
    from cli.progress import show_progress
    from cli.show import print_json
    from contract.bundle import load_bundle
    from training.recalibrate import recalibrate

    console = make_console(as_json)
    loaded = load_bundle(bundle, convert=True, trust=find_trust(require_signature))
    with show_progress(console, "Reading and predicting") as progress:
        result = recalibrate(loaded, table, out, cache=cache, progress=progress)
    if as_json:
        print_json(result.to_dict())
    else:
        print_recalibrated(console, result)


def print_recalibrated(console: Console, result: "Recalibrated") -> None:
    """Print the number of studies of each fit, and the labels that keep their old values."""
    from cli.show import KIND_TITLES
    from contract.labels import LABELS

    table = RichTable(title="Calibrated", title_justify="left", header_style="bold", box=box.SIMPLE_HEAD)
    for column_index, column in enumerate(("Read from", "Studies", "Labels fitted", "Labels kept")):
        table.add_column(column, justify="right" if column_index else "left")
    for way, fit in result.ways.items():
        counts = (fit.studies, len(LABELS) - len(fit.kept), len(fit.kept))
        table.add_row(KIND_TITLES[way], *map(str, counts))
    console.print(table)
    for way, fit in result.ways.items():
        if fit.kept:
            console.print(
                f"Old values kept: too few studies have or lack the label ({KIND_TITLES[way]}): "
                f"{', '.join(fit.kept)}",
                highlight=False,
                soft_wrap=True,
            )
    if result.left_out:
        console.print(
            f"{result.left_out} studies were left out, because their patients are in the model's training or test "
            "data.",
            highlight=False,
        )
    console.print(
        f"Bundle: {escape(str(result.bundle))}, model {result.fingerprint[:12]}, from {result.source[:12]}",
        highlight=False,
        soft_wrap=True,
    )
