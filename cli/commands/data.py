"""`cxr data`: draw, read and describe data sets in Open-i's layout."""

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from cli.console import escape
from cli.options import Cache, Json, Table, make_console
from cli.signing import RequireSignature, find_trust
from contract.errors import ConfigError

data_app = typer.Typer(no_args_is_help=True, help="Draw, read and describe data sets.")


class SourceFormat(str, Enum):
    """Published formats. `training.data.collections` reads all of them except Open-i's."""

    OPENI = "openi"
    NIH14 = "nih14"
    CHEXPERT = "chexpert"
    MIMIC_CXR = "mimic-cxr"
    VINDR = "vindr"
    PADCHEST = "padchest"
    KERMANY = "kermany"
    CSV = "csv"


@data_app.command("draw")
def draw_data(
    directory: Annotated[Path, typer.Argument(help="New directory for the data set.")],
    studies: Annotated[int, typer.Option(min=1, help="Number of studies.")] = 100,
    seed: Annotated[int, typer.Option(help="Seed. The same seed gives the same files.")] = 0,
    scale: Annotated[
        float, typer.Option(min=0.02, max=1.0, help="Side length relative to real images.")
    ] = 0.125,
    as_json: Json = False,
) -> None:
    """Draw a phantom data set: DICOM radiographs, XML reports and one box per finding."""
    from cli.progress import show_progress
    from cli.show import print_json
    from training.phantom import draw_dataset

    console = make_console(as_json)
    with show_progress(console, "Drawing studies") as progress:
        draw_dataset(directory, studies=studies, seed=seed, scale=scale, progress=progress)
    if as_json:
        print_json({"directory": str(directory), "studies": studies})
    else:
        console.print(f"{studies} phantom studies in {escape(directory)}", soft_wrap=True)


@data_app.command("table")
def make_table(
    source: Annotated[
        Path,
        typer.Argument(
            help="Open-i: NLMCXR_reports.tgz or a directory of XML files. Others: the label file or its directory."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Studies table to write (Parquet).")],
    images: Annotated[Path | None, typer.Option(help="Directory tree of DICOM, PNG or JPEG files.")] = None,
    form: Annotated[
        SourceFormat, typer.Option("--format", help="How the files are published.")
    ] = SourceFormat.OPENI,
    mapping: Annotated[
        Path | None, typer.Option(help="TOML file that describes the columns; only with --format csv.")
    ] = None,
    projections: Annotated[
        Path | None,
        typer.Option(
            help="Published list of frontal and lateral Open-i images: CSV with the columns filename and projection."
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Read published labels, reports and images into one studies table. The frontal image of a study comes first.

    A label that a collection does not state is unknown.
    """
    from cli.data import describe_images, describe_table, print_images, print_table
    from cli.progress import show_progress
    from cli.show import print_json
    from training.data.collections.table import build_collection_table
    from training.data.openi import ImageCount, build_table, write_table

    console = make_console(as_json)
    counts: list[ImageCount] = []
    if mapping is not None and form is not SourceFormat.CSV:
        raise ConfigError("--mapping needs --format csv.")
    if projections is not None and form is not SourceFormat.OPENI:
        raise ConfigError("--projections needs --format openi.")
    with show_progress(console, "Reading studies") as progress:
        if form is SourceFormat.OPENI:
            table = build_table(source, images, progress, counts.append, projections)
        else:
            table = build_collection_table(
                source, form.value, images, mapping=mapping, progress=progress, on_images=counts.append
            )
    write_table(table, out)
    if as_json:
        print_json({"table": str(out), **describe_table(table), **describe_images(counts)})
    else:
        console.print(f"{table.num_rows} studies in {escape(out)}", soft_wrap=True)
        print_table(console, table)
        print_images(console, counts)


@data_app.command("order")
def order_data(
    table: Table,
    bundle: Annotated[Path, typer.Argument(help="Bundle of the model whose view head is used.")],
    out: Annotated[Path, typer.Option(help="Studies table to write (Parquet).")],
    cache: Cache = None,
    require_signature: RequireSignature = None,
    as_json: Json = False,
) -> None:
    """Put the frontal image of each study first. A model decides where the header does not state the view reliably.

    A view from a reliable header or a published list is not changed.
    """
    from cli.data import print_order
    from cli.progress import show_progress
    from cli.show import print_json
    from contract.bundle import load_bundle
    from training.evaluation.order_views import order_table

    console = make_console(as_json)
    loaded = load_bundle(bundle, trust=find_trust(require_signature))
    with show_progress(console, "Reading images") as progress:
        ordered = order_table(table, loaded, out, cache=cache, progress=progress)
    if as_json:
        print_json({"table": str(out), **ordered.to_dict()})
    else:
        print_order(console, out, ordered)


@data_app.command("audit")
def audit_data(
    table: Table,
    out: Annotated[Path | None, typer.Option(help="HTML page to write, with plots.")] = None,
    split_file: Annotated[
        Path | None,
        typer.Option(
            "--split",
            help="Split file whose parts are compared: split.json of a bundle, or another JSON or CSV file.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Describe a table: labels, headings without a label, headers, sections, duplicate reports, splits."""
    from cli.data import print_audit
    from cli.show import print_json
    from training.data.audit.figures import audit_table

    console = make_console(as_json)
    with console.status("Comparing reports"):
        audit = audit_table(table, split_file)
    if out is not None:
        from training.data.audit.page import write_page

        write_page(audit, out)
    if as_json:
        print_json(audit)
        return
    print_audit(console, audit)
    if out is not None:
        console.print(f"Page: {escape(out)}", soft_wrap=True)


@data_app.command("cache")
def make_cache(
    table: Table,
    out: Annotated[Path, typer.Option(help="Directory of the cache. An existing cache is extended.")],
    size: Annotated[
        int,
        typer.Option(
            min=16, max=4096, help="Side of the square images in pixels: the config's model.image_size."
        ),
    ] = 224,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Number of processes. Default: one per core.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Decode every image of a table once, so that `cxr train --cache` starts quickly. Repeat it after an interrupt."""
    import time

    from cli.data import print_cache
    from cli.progress import show_progress
    from cli.show import print_json
    from training.data.cache import fill_cache

    console = make_console(as_json)
    started = time.perf_counter()
    with show_progress(console, "Decoding images") as progress:
        summary = fill_cache(table, out, size=size, workers=workers, progress=progress)
    seconds = time.perf_counter() - started
    if as_json:
        print_json({"cache": str(out), "size": size, "seconds": round(seconds, 1), **summary.to_dict()})
    else:
        print_cache(console, out, summary, seconds)


@data_app.command("speed")
def measure_reading(
    size: Annotated[
        int, typer.Option(min=16, max=2048, help="Side of the square output image, in pixels.")
    ] = 224,
    repeats: Annotated[int, typer.Option(min=1, help="How often each file is read.")] = 7,
    scale: Annotated[
        float, typer.Option(min=0.02, max=1.0, help="Side length relative to a 2828x2320 radiograph.")
    ] = 1.0,
    as_json: Json = False,
) -> None:
    """Time the reading of each kind of image file, compared with a minimal decoder."""
    from cli.progress import show_progress
    from cli.show import print_json
    from cli.speed import COLUMNS, ROWS, measure_speed, print_speed

    console = make_console(as_json)
    shape = {"rows": round(ROWS * scale), "columns": round(COLUMNS * scale)}
    with show_progress(console, "Reading") as progress:
        report = measure_speed(size=size, repeats=repeats, **shape, progress=progress)
    if as_json:
        print_json(report.to_dict())
    else:
        print_speed(console, report)
